"""The arithmetic of the guidance benchmark, on numbers that can be checked by hand."""

import json

import pytest
import torch

from mask_guided_video.toybox import metrics, world


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("guidance")


def film(iou, **values):
    names = ("colour_purity", "edge_sharpness", "change_outside", "colour", "background", "shape", "motion")
    return {"iou": iou, **dict.fromkeys(names, 0.5), **values}


def record(clip, seed, none, guided, track="shifted"):
    films = {"none": film(none), "separate": film(guided)}
    return {"part": "foreign", "clip": clip, "seed": seed, "track": track, "films": films}


def test_differences_are_paired_and_spread_over_clips(benchmark):
    records = [record(0, 0, 0.1, 0.3), record(0, 1, 0.1, 0.5), record(1, 0, 0.2, 0.3), record(1, 1, 0.0, 0.1)]
    result = benchmark.paired_difference(records, "separate", "iou")
    # Clip means 0.3 and 0.1.
    assert result["difference"] == pytest.approx(0.2)
    assert result["standard_deviation"] == pytest.approx(0.02**0.5)
    assert result["standard_error"] == pytest.approx(0.1)
    assert (result["clips_up"], result["clips_down"]) == (2, 0)


def test_ratio_is_of_the_means(benchmark):
    summary = benchmark.summarise([record(0, 0, 0.1, 0.3), record(1, 0, 0.2, 0.3, "reversed")])
    assert summary["foreign"]["all"]["separate"]["iou"]["ratio"] == pytest.approx(2.0)
    assert summary["foreign"]["reversed"]["separate"]["iou"]["ratio"] == pytest.approx(1.5)
    assert summary["foreign"]["all"]["clips"] == 2
    assert "x2.00" in benchmark.table(summary)


def test_films_without_an_object_have_no_pair(benchmark):
    lost = record(1, 0, 0.0, 0.0)
    del lost["films"]["separate"]
    group = benchmark.summarise([record(0, 0, 0.2, 0.3), lost])["foreign"]["all"]
    assert group["none"]["iou"]["mean"] == pytest.approx(0.2)
    assert (group["films"], group["films_without_object"]) == (1, 1)


def test_unmeasured_values_are_left_out(benchmark):
    pair = record(0, 0, 0.1, 0.3)
    pair["films"]["none"]["colour_purity"] = None
    summary = benchmark.summarise([pair])
    assert summary["foreign"]["all"]["none"]["colour_purity"]["mean"] is None
    assert summary["foreign"]["all"]["separate"]["colour_purity"]["difference"] is None
    json.dumps(summary, allow_nan=False)


def test_foreign_tracks_are_real_objects_off_the_prompts_path(benchmark):
    for number, scene in enumerate(benchmark.scenes(12, seed=23)):
        mask, kind = benchmark.foreign_track(scene, number)
        assert mask.shape == (8, 64, 64) and kind == ("reversed" if number % 2 else "shifted")
        assert mask.flatten(1).sum(1).min() > metrics.SMALLEST_AREA
        motion, prompted = metrics.measure_motion(mask.numpy() > 0.5), scene.objects[0].motion
        assert (motion == prompted) == (kind == "shifted")


def test_scenes_are_the_same_every_time(benchmark):
    first, again = benchmark.scenes(3, seed=1), benchmark.scenes(3, seed=1)
    assert [world.prompt(scene) for scene in first] == [world.prompt(scene) for scene in again]
    assert first == again


def test_rendered_film_scores_full_marks(benchmark):
    scene = benchmark.scenes(1, seed=3)[0]
    clip = world.render(scene)
    frames = torch.from_numpy(clip.frames)
    values = benchmark.measure(frames, frames, torch.from_numpy(clip.masks[0]).float(), scene)
    assert values["iou"] > 0.9 and values["change_outside"] == 0.0
    assert values["colour"] == values["background"] == values["shape"] == 1.0


def test_interrupted_runs_go_on(benchmark, tmp_path):
    path, content = tmp_path / "guidance.json", {"records": [], "settings": {}}
    asked = []

    def runs():
        for clip in range(3):
            done = yield {"part": "foreign", "clip": clip}
            asked.append((clip, done))
            if not done:
                yield record(clip, 0, 0.1, 0.2)

    content["records"].append(record(1, 0, 0.1, 0.2))
    benchmark.collect(runs(), content["records"], lambda: benchmark.save(path, content))
    assert asked == [(0, False), (1, True), (2, False)]
    saved = json.loads(path.read_text())
    assert [entry["clip"] for entry in saved["records"]] == [1, 0, 2]
    assert saved["summary"]["foreign"]["all"]["films"] == 3
