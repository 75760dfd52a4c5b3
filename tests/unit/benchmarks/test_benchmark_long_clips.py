"""The arithmetic of the long clips' table, on numbers that can be checked by hand, and one tiny run."""

import pytest


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("long_clips")


def film(seed, variant, value):
    return {"frames": 32, "seed": seed, "variant": variant} | {
        name: value
        for name in (
            *("colour_drift", "size_drift", "split"),
            *("flicker", "jerk", "travel", "presence", "colour_right"),
        )
    }


def test_differences_are_paired_by_seed(benchmark):
    films = [film(0, "direct", 0.4), film(1, "direct", 0.2), film(0, "FreeLong", 0.1), film(1, "FreeLong", 0.3)]
    direct, free_long = benchmark.summarise(films)
    assert direct["jerk"] == {"mean": pytest.approx(0.3), "deviation": pytest.approx(0.141421, abs=1e-6)}
    # -0.3 and +0.1: one of two is better where less is, the other where more is.
    assert free_long["jerk"]["difference"] == pytest.approx(-0.1)
    assert free_long["jerk"]["standard_error"] == pytest.approx(0.2)
    assert free_long["jerk"]["better"] == 1 and free_long["presence"]["better"] == 1
    table = benchmark.table([direct, free_long])
    assert "0.2000 (0.1414)  1/2" in table


def test_films_without_an_object_are_left_out(benchmark):
    films = [film(0, "direct", None), film(0, "FreeLong", 0.1)]
    direct, free_long = benchmark.summarise(films)
    assert direct["jerk"] == {"mean": None, "deviation": None}
    assert free_long["jerk"]["mean"] == 0.1 and free_long["jerk"]["difference"] is None
    assert benchmark.table([direct, free_long])
