"""The FreeLong benchmark on a tiny clip: what it compares does the same, and every column is filled."""

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("free_long")


@pytest.mark.parametrize("of_layer", [False, True])
def test_the_original_formulation_gives_the_same(benchmark, of_layer):
    case = benchmark.Case(24, 2, 4, 320)
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        attend = benchmark.make_attention(case, "cpu", of_layer)
        ours, original = (benchmark.make_call(kind, case, attend)() for kind in ("free_long", "original"))
        plain = benchmark.make_call("plain", case, attend)()
    torch.testing.assert_close(ours, original.view_as(ours), atol=3e-6, rtol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_every_kind_is_timed_and_compared(benchmark):
    case = benchmark.Case(24, 2, 4, 64)
    with torch.inference_mode():
        for of_layer in (False, True):
            timed = benchmark.time_case(case, "cpu", of_layer, 1)
            assert set(timed["ratio"]) == set(benchmark.KINDS) and timed["ratio"]["plain"] == 1.0
            assert all(len(times) == 1 for times in timed["seconds"].values())
    assert benchmark.Case(64, 40, 64, 320).kinds == ("plain", "windows")
