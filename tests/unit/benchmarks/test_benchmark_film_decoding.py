"""The benchmark of film decoding on tiny films: both ways write the same file, and every column is filled."""

import pytest
import torch

from mask_guided_video.recipes.films.files import read_film

SIZE = 32, 16


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    pytest.importorskip("av")
    return open_benchmark("film_decoding")


def test_both_ways_write_the_same_film(benchmark, tmp_path):
    with torch.random.fork_rng():
        coder = benchmark.make_coder()
    # More frames than the VAE takes at once.
    latents = benchmark.random_latents(coder, 11, *SIZE)
    assert latents.shape == (1, 4, 11, 2, 4)
    for way in benchmark.WAYS:
        benchmark.write(way, coder, latents, tmp_path / way)
    whole, streamed = (read_film(tmp_path / way) for way in benchmark.WAYS)
    assert whole.shape == (11, 16, 32, 3) and float(whole.std()) > 0.01
    # Not their bytes: sums in memory that is aligned otherwise may round a pixel to its neighbour.
    assert float((whole - streamed).abs().max()) < 0.02


def test_time_and_memory_are_measured(benchmark, capsys):
    with torch.random.fork_rng():
        entry = benchmark.measure(9, *SIZE, 2)
        if benchmark.can_measure_memory("cpu"):
            assert all(benchmark.peak_bytes(way, 9, *SIZE) >= 0 for way in benchmark.WAYS)
    assert entry["film_bytes"] == 9 * 32 * 16 * 3 * 4
    assert set(entry["ratio"]) == set(benchmark.WAYS) and entry["ratio"]["plain"] == 1.0
    assert all(len(times) == 2 for times in entry["seconds"].values())
    benchmark.show({**entry, "peak_bytes": {"plain": 3 * 2**20, "streamed": 2**20}})
    shown = capsys.readouterr().out
    assert "9 frames" in shown and "streamed  peak 1 MB" in shown


def test_what_is_said_of_memory(benchmark):
    lengths = [{"peak_bytes": {"plain": 200, "streamed": 80}}, {"peak_bytes": {"plain": 400, "streamed": 100}}]
    said = {"streamed_to_plain": 0.25, "growth_plain": 2.0, "growth_streamed": 1.25}
    assert benchmark.compare_peaks(lengths) == said
