"""The arithmetic of the table of ten rounds, on numbers that can be checked by hand, and one tiny run."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("extension")


def film(variant, at, values, beyond=0):
    joins = {"at": at, "elsewhere": 0.2, "deviation": 0.1, "deviations": (at - 0.2) / 0.1, "beyond": beyond}
    return {"scene": 0, "variant": variant, "joins": joins} | dict.fromkeys(
        ("iou", "colour", "size", "background"), values
    )


def test_means_over_scenes(benchmark):
    films = [
        film("a", 0.2, [0.1, 0.2, 0.6], 1),
        film("a", 0.4, [0.3, None, 0.8], 2),
        film("b", 0.3, [None, None, None]),
    ]
    first, second = benchmark.summarise(films)
    assert (first["variant"], first["scenes"]) == ("a", 2)
    assert first["joins"] == pytest.approx({"at": 0.3, "elsewhere": 0.2, "deviations": 1.0, "beyond": 3})
    assert first["iou"] == {"first": 0.2, "last": 0.7, "all": 0.4}
    assert second["size"] == {"first": None, "last": None, "all": None}
    table = benchmark.table([first, second])
    assert "0.200 -> 0.700 (0.400)" in table and "- -> - (-)" in table


def test_the_drawn_scene_follows_its_masks(benchmark):
    scene, prompt, frames, masks = benchmark.scene_of(1)
    assert frames.shape == (71, 64, 64, 3) and masks.shape == (71, 64, 64) and scene.objects[0].colour in prompt
    assert (benchmark.length(True), benchmark.length(False)) == (71, 80)
    # All of the circle lies in the picture.
    assert not masks[:, [0, -1]].any() and not masks[:, :, [0, -1]].any() and masks.any(axis=(1, 2)).all()
    found = benchmark.measure(frames, 1)
    assert min(found["iou"]) > 0.9 and max(found["background"]) < 1e-3 and max(found["colour"]) < 0.1
    assert all(0.95 < size < 1.05 for size in found["size"])


def test_what_goes_wrong_is_measured(benchmark):
    _, _, frames, masks = benchmark.scene_of(1)
    darker = frames.copy()
    darker[-8:] *= 0.9
    found, plain = benchmark.measure(darker, 1), benchmark.measure(frames, 1)
    assert found["background"][-1] > plain["background"][-1] + 0.02
    assert found["background"][:-2] == plain["background"][:-2]
    # A flash where the second round begins.
    flash = frames.copy()
    flash[8] = 1.0 - flash[8]
    joins = benchmark.joins_of(flash)
    assert joins["beyond"] == 1 and joins["at"] > benchmark.joins_of(frames)["at"] + 0.01
    assert not np.array_equal(flash[7], flash[8])
