"""A tiny run of the benchmark, stopped and gone on with."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("extension")


def test_a_tiny_run_goes_on_where_it_stopped(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 2)
    monkeypatch.setattr(benchmark, "VARIANTS", {"none, latent": benchmark.VARIANTS["none, latent"]})
    path = tmp_path / "results.json"
    arguments = ["--scenes", "1", "--steps", "1", "--threads", "1", "--results", str(path)]
    assert benchmark.main(arguments) == 0
    first = json.loads(path.read_text())
    assert [entry["variant"] for entry in first["films"]] == ["real", "none, latent"]
    assert first["lengths"] == {"drop": 15, "keep": 16}
    assert benchmark.main(arguments) == 0
    assert json.loads(path.read_text()) == first
    assert "none, latent" in capsys.readouterr().out
