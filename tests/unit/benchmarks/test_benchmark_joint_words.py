"""The benchmark of words in joint attention: colours exchanged, measures with known answers, stale figures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mask_guided_video.toybox import world


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("joint_words")


@pytest.fixture(scope="module")
def tasks(benchmark):
    return benchmark.make_tasks(benchmark.PARTS["choose"])


def drawn(scene) -> torch.Tensor:
    return torch.from_numpy(world.render(scene).frames)


def test_both_colourings_have_the_same_masks(benchmark, tasks):
    assert len(tasks) == 12 and [task.number for task in tasks] == [number for number in range(6) for _ in range(2)]
    for plain, exchanged in zip(tasks[::2], tasks[1::2], strict=True):
        assert np.array_equal(world.render(plain.scene).masks, world.render(exchanged.scene).masks)
        first, second = plain.scene.objects
        assert first.shape != second.shape and first.colour != second.colour
        assert world.prompt(exchanged.scene).startswith(f"a {second.colour} {first.shape} ")
    again = benchmark.make_tasks(benchmark.PARTS["choose"])
    assert [task.scene for task in again] == [task.scene for task in tasks]


def test_no_part_shares_scenes_or_noises_with_another(benchmark):
    parts = benchmark.PARTS.values()
    seeds = [
        1000 * part.seed + part.noises * number + noise
        for part in parts
        for number in range(part.scenes)
        for noise in range(part.noises)
    ]
    assert len(set(seeds)) == len(seeds)
    scenes = [task.scene for part in parts for task in benchmark.make_tasks(part)]
    assert len(set(scenes)) == len(scenes) == 2 * sum(part.scenes for part in parts)


def test_the_drawn_film_is_right(benchmark, tasks):
    for task in tasks:
        found = benchmark.measure(drawn(task.scene), task.scene)
        assert found["iou"] > 0.95
        assert found["own_place"] == found["own_shape"] == found["background"] == found["both_seen"] == 1.0
        assert found["swapped"] == found["alike"] == 0.0


def test_exchanged_colours_are_swapped(benchmark, tasks):
    plain, exchanged = tasks[:2]
    found = benchmark.measure(drawn(exchanged.scene), plain.scene)
    assert found["own_place"] == found["own_shape"] == found["alike"] == 0.0
    assert found["swapped"] == found["both_seen"] == 1.0 and found["iou"] < 0.1


def test_two_objects_of_one_colour_are_alike(benchmark, tasks):
    scene = tasks[0].scene
    first, second = scene.objects
    same = replace(scene, objects=(first, replace(second, colour=first.colour)))
    found = benchmark.measure(drawn(same), scene)
    assert found["alike"] == 1.0 and found["own_place"] == found["both_seen"] == found["swapped"] == 0.0


def test_right_objects_in_other_places_keep_their_shapes_only(benchmark, tasks):
    scene = next(task.scene for task in tasks)
    generator = np.random.default_rng(5)
    words = [(item.colour, item.shape, item.motion) for item in scene.objects]
    masks = world.render(scene).masks.any(axis=0)
    while True:
        moved = world.scene_from_words(words, scene.background, generator)
        if not (world.render(moved).masks.any(axis=0) & masks).sum() > 0.3 * masks.sum():
            break
    found = benchmark.measure(drawn(moved), scene)
    assert found["own_shape"] == found["motion"] == 1.0 and found["own_place"] == 0.0


def test_an_empty_film_has_nothing(benchmark, tasks):
    scene = tasks[0].scene
    empty = torch.from_numpy(np.repeat(world.background_image(scene.background)[None], 8, axis=0))
    found = benchmark.measure(empty, scene)
    assert found.pop("background") == 1.0 and set(found.values()) == {0.0}


def test_every_variant_can_be_bound(benchmark, tasks):
    class Model:
        block_names = ("joint.0", "joint.1")

        def token_spans(self, prompt, phrases):
            from mask_guided_video.attention_patches.guidance.text_spans import TextSpans

            return TextSpans(phrases, ((1, 2), (6, 7)), 24)

    for part in benchmark.PARTS.values():
        for name, variant in part.variants.items():
            found = benchmark.patches(Model(), tasks[0].scene, variant)
            assert len(found) == len(variant.modes), name
            assert (name.endswith(benchmark.UNGUIDED)) == (not found)


def test_means_and_errors_are_over_scenes(benchmark):
    values = {(0, False): [1.0, 0.0], (0, True): [1.0, 1.0], (1, False): [0.0, 0.0], (1, True): [1.0, 0.0]}
    records = [
        {
            **{"variant": "none", "scene": scene, "exchanged": exchanged},
            "films": [dict.fromkeys(benchmark.MEASURES, value) for value in films],
        }
        for (scene, exchanged), films in values.items()
    ]
    kept = {"variants": {"none": {}}, "records": records}
    entry = benchmark.summarise(kept)["none"]
    # Scenes' means are 3/4 and 1/4; both colourings are right with one noise of two, and with none.
    assert entry["films"] == 8 and entry["own_place"]["mean"] == pytest.approx(0.5)
    assert entry["own_place"]["standard_error"] == pytest.approx(0.25)
    assert entry["both_colourings"]["mean"] == pytest.approx(0.25)
    assert "0.50 (0.25)" in benchmark.table("run", kept)


def test_figures_of_other_settings_are_measured_again(benchmark, monkeypatch, tmp_path, tasks):
    made = []

    def films(model, task, part, variant):
        made.append((task.exchanged, len(variant.modes)))
        return [drawn(task.scene)]

    monkeypatch.setattr(benchmark, "films", films)
    path, content = tmp_path / "words.json", {"settings": {}, "parts": {}}
    names = ["none", "focus_fg 0.25"]
    benchmark.measure_part(None, "choose", content, tasks[:2], names, path)
    assert made == [(False, 0), (True, 0), (False, 1), (True, 1)]
    stored = json.loads(path.read_text())
    stored["parts"]["choose"]["variants"]["focus_fg 0.25"]["steps"] = 77
    benchmark.measure_part(None, "choose", stored, tasks[:2], names, path)
    assert made[4:] == [(False, 1), (True, 1)]
    assert len(stored["parts"]["choose"]["records"]) == 4
