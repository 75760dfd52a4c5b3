"""The FreeLong benchmark of a whole U-Net, on a tiny one."""

import pytest
import torch

from mask_guided_video.video_models.lavie.config import LaVieConfig

TINY = LaVieConfig(
    block_out_channels=(32, 64), attention_levels=(True, True), layers_per_block=1, num_heads=2, cross_attention_dim=32
)
KINDS = ["plain", "free_long", "windows", "free_long_plus"]


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("free_long_unet")


def test_every_kind_is_another_call(benchmark):
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        unet = benchmark.make_unet("cpu", TINY)
        results = [call() for call in benchmark.make_calls(unet, 20, (4, 4), KINDS).values()]
        short = [call() for call in benchmark.make_calls(unet, 16, (4, 4), KINDS).values()]
    for number, result in enumerate(results):
        assert all(not torch.equal(result, other) for other in results[:number])
    assert all(torch.equal(result, short[0]) for result in short)


def test_time_and_memory_are_measured(benchmark, capsys):
    with torch.inference_mode():
        unet = benchmark.make_unet("cpu", TINY)
        entry = benchmark.measure(unet, "cpu", 20, (4, 4), KINDS, 2)
        if benchmark.can_measure_memory("cpu"):
            assert benchmark.peak_bytes(unet, "cpu", 20, (4, 4), "free_long") >= 0
    assert set(entry["ratio"]) == set(KINDS) and entry["ratio"]["plain"] == 1.0
    assert all(len(times) == 2 for times in entry["seconds"].values())
    benchmark.show({**entry, "peak_bytes": dict.fromkeys(KINDS, 2**20)})
    assert "20 frames" in capsys.readouterr().out
