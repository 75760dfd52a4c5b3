"""The benchmark of mask modes: guides that prompts contradict, measures with known answers, stale figures."""

import json

import numpy as np
import pytest
import torch

from mask_guided_video.toybox import world


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("mask_modes")


def test_every_guide_moves_otherwise_than_its_prompt(benchmark):
    tasks = benchmark.make_tasks(3)
    assert len(tasks) == 30 and [task.motion for task in tasks[::5]] == list(world.MOTIONS)
    for task in tasks:
        assert world.MOTIONS[task.motion] not in task.prompt and world.phrase(task.item) in task.prompt
    assert [task.prompt for task in benchmark.make_tasks(3)] == [task.prompt for task in tasks]


def test_the_drawn_film_follows_and_an_empty_one_does_not(benchmark):
    task = benchmark.make_tasks(3)[0]
    # A brightness of 1, as the measures' own pictures have.
    drawn = torch.from_numpy(world.render(task.scene).frames)
    followed = benchmark.measure(drawn, task)
    assert followed["iou"] > 0.95 and followed["later_iou"] > 0.95 and followed["background_error"] < 0.01
    assert followed["colour"] == followed["shape"] == followed["background"] == 1.0
    empty = torch.from_numpy(np.repeat(world.background_image(task.scene.background)[None], 8, axis=0))
    lost = benchmark.measure(empty, task)
    assert lost["iou"] == lost["colour"] == 0.0 and lost["background"] == 1.0


def test_means_and_errors_are_over_guides(benchmark):
    films = [[0.2, 0.4], [0.6, 0.6]]
    records = [
        {
            **{"variant": "dmg", "task": number, "motion": "left", "prompt": "a red ball moves right on sand"},
            "films": [dict.fromkeys(benchmark.MEASURES, value) for value in values],
        }
        for number, values in enumerate(films)
    ]
    entry = benchmark.summarise(records)["dmg"]
    # Guides' means are 0.3 and 0.6.
    assert entry["films"] == 4 and entry["iou"]["mean"] == pytest.approx(0.45)
    assert entry["iou"]["standard_error"] == pytest.approx(0.15)
    assert "0.450 (se 0.150)" in benchmark.table({"dmg": entry})


def test_figures_of_other_constants_are_measured_again(benchmark, tmp_path):
    """A film per variant, and one that is already there; only what is missing or stale is made."""
    made = []

    class Bench:
        def films(self, task, number, name):
            made.append((number, name))
            return [torch.from_numpy(world.render(task.scene).frames)]

    path, tasks = tmp_path / "modes.json", benchmark.make_tasks(3)[:1]
    content = {"settings": {}, "variants": {}, "records": []}
    benchmark.run(Bench(), content, ["none", "dmg"], tasks, path)
    assert made == [(0, "none"), (0, "dmg")]
    stored = json.loads(path.read_text())
    stored["variants"]["dmg"]["beta"] = 77.0
    benchmark.run(Bench(), stored, ["none", "dmg"], tasks, path)
    assert made[2:] == [(0, "dmg")]
    assert stored["variants"]["dmg"] == benchmark.settings_of("dmg") and len(stored["records"]) == 2
