"""The benchmark of levers: what auto takes from recorded films, stale figures, missing parts of a folder."""

from __future__ import annotations

import json

import pytest
import torch

from mask_guided_video.recipes.guided_clips.levers import LADDER, Attempt
from mask_guided_video.toybox import world


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("levers")


def fake_bench(benchmark, model, overlaps):
    """A bench whose films are drawn ones, and whose looks see what the test says."""
    made = []

    class Bench(benchmark.Bench):
        def clip(self, task, seed):
            clip = super().clip(task, seed)
            film = torch.from_numpy(world.render(task.scene).frames)

            class Drawn(type(clip)):
                def with_levers(self, levers, least=0.0):
                    made.append(levers)
                    return film, Attempt(levers, 0.5, overlaps[levers])

            return Drawn(**{name: getattr(clip, name) for name in clip.__dataclass_fields__})

    return Bench(model, "tiny", 2, 1.0, "dmg"), made


@pytest.fixture
def model():
    from mask_guided_video.video_models.toybox import load_toybox

    model = load_toybox()
    model.decode = lambda film: film
    return model


def test_auto_takes_recorded_films_and_samples_the_others_once(benchmark, model, tmp_path):
    bench, made = fake_bench(benchmark, model, dict(zip(LADDER, (0.1, 0.9, 0.2), strict=True)))
    store = benchmark.Store(tmp_path / "levers.json", {"settings": {}, "records": []})
    tasks = benchmark.make_tasks(3)
    alone = store.film(bench, tasks, benchmark.ALONE, 0, 0)
    record = store.film(bench, tasks, benchmark.AUTO, 0, 0)
    assert made == [(), ("crude_film",)]
    assert [attempt["taken"] for attempt in record["attempts"]] == [False, True]
    assert record["film"] == store.film(bench, tasks, "crude_film", 0, 0)["film"]
    assert alone["film"]["iou"] > 0.95
    assert store.film(bench, tasks, benchmark.AUTO, 0, 0) is record
    stored = json.loads((tmp_path / "levers.json").read_text())
    assert stored["summary"]["tiny"]["auto"]["taken"] == {"crude_film": 1}
    assert "took crude_film 1" in benchmark.table(stored["summary"])


def test_means_and_errors_are_over_guides(benchmark):
    films = [{"task": task, "film": {"iou": value}} for task, value in ((0, 0.2), (0, 0.4), (1, 0.6))]
    found = benchmark.mean_and_error(films, "iou")
    # Guides' means are 0.3 and 0.6.
    assert found["mean"] == pytest.approx(0.45)
    assert found["standard_error"] == pytest.approx(0.15)


def test_every_rung_of_the_recipe_is_a_variant(benchmark):
    assert set(LADDER) <= set(benchmark.VARIANTS.values())


def test_a_folder_takes_missing_parts_from_the_bundled_one(benchmark, tmp_path):
    for name in ("unet.safetensors", "config.json", "text_encoder"):
        (tmp_path / name).symlink_to(benchmark.BUNDLED / name)
    with benchmark.opened(tmp_path) as model:
        assert model.encode_prompt("a red ball").embedding.shape[0] == 1


def test_figures_of_other_settings_are_dropped(benchmark, tmp_path, capsys):
    path = tmp_path / "levers.json"
    old = {"weights": benchmark.BUNDLED.name, "variant": "noise", "task": 0, "noise": 0}
    other = {**old, "weights": "other"}
    words = {"shape_word": "ball", "colour_word": "red", "ground": "sea", "attempts": []}
    film = {"film": dict.fromkeys(benchmark.MEASURES, 0.5)}
    records = [{**place, **words, **film} for place in (old, other)]
    path.write_text(json.dumps({"settings": {}, "records": records}), encoding="ascii")
    assert benchmark.main(["run", "--guides", "0", "--results", str(path)]) == 0
    # Nothing was measured, so that the table is of what is left.
    assert benchmark.BUNDLED.name not in capsys.readouterr().out
