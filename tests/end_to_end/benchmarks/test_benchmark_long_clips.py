"""A tiny run of the benchmark, stopped and gone on with."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("long_clips")


def test_a_tiny_run_goes_on_where_it_stopped(benchmark, tmp_path, capsys):
    path = tmp_path / "results.json"
    arguments = ["--frames", "9", "--seeds", "1", "--steps", "1", "--results", str(path)]
    assert benchmark.main(arguments) == 0
    first = json.loads(path.read_text())
    assert len(first["films"]) == len(benchmark.variants()) == 6
    assert benchmark.main(arguments) == 0
    assert json.loads(path.read_text()) == first
    assert "FreeLong++, SpecMix" in capsys.readouterr().out
