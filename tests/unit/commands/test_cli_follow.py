"""Finding and following from the command line, on a Toybox film and the Toybox models."""

import json
import shutil

import numpy as np
import pytest
import torch

from mask_guided_video.commands.progress_bars import StageBars
from mask_guided_video.recipes.films.files import read_film_bytes, write_film
from mask_guided_video.recipes.find_and_follow.files import FILES
from mask_guided_video.recipes.find_and_follow.recipe import FollowSettings
from mask_guided_video.toybox import world

SCENE = world.Scene(
    "sand", (world.SceneObject("red", "ball", "right", 11.0, (16.0, 32.0), 28.0),
             world.SceneObject("blue", "square", "still", 10.0, (48.0, 12.0), 0.0))
)  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    return world.render(SCENE, 10)


@pytest.fixture
def film(clip, tmp_path):
    write_film(tmp_path / "film.mp4", torch.from_numpy(clip.frames), 12.0)
    return tmp_path / "film.mp4"


def test_follow_leaves_masks_films_strip_and_report(cli, clip, film, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--object", "red ball", "--object", "blue square", "--out", str(out), "--on-disk", "--quiet"]
    assert cli.main(["follow", str(film), *words]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    report = json.loads((out / "report.json").read_text())
    phrases = [entry["phrase"] for entry in report["objects"]]
    assert sorted(phrases) == ["blue square", "red ball"] and report["film"]["frames"] == 10
    masks = np.load(out / "masks.npy")
    assert masks.dtype == bool and masks.shape == (2, 10, 64, 64)
    for place, phrase in enumerate(phrases):
        truth = clip.masks[["red ball", "blue square"].index(phrase)]
        assert (masks[place] & truth).sum() / (masks[place] | truth).sum() > 0.85
    drawn, rate = read_film_bytes(out / "masks.mp4")
    assert rate == 12.0 and ((drawn.float().mean(-1).numpy() > 127) == masks.any(0)).mean() > 0.99
    captured = capsys.readouterr()
    assert "red ball" in captured.out and captured.err == ""


def test_a_film_without_the_object_gives_empty_masks(cli, film, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["follow", str(film), "--object", "purple triangle", "--out", str(out), "--quiet"]) == 0
    assert np.load(out / "masks.npy").shape == (0, 10, 64, 64)
    assert "no object" in capsys.readouterr().out
    drawn, _ = read_film_bytes(out / "masks.mp4")
    assert drawn.shape == (10, 64, 64, 3) and int(drawn.max()) < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--detector", "nowhere.pth"], "nowhere.pth"),
        (["--detect-every", "0"], "every is 0"),
        (["--median-frames", "2"], "median_frames is 2"),
        (["--max-objects", "0"], "max_objects is 0"),
        (["--box-threshold", "2"], "box_threshold is 2"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(cli, film, tmp_path, capsys, changes, message):
    out = tmp_path / "out"
    assert cli.main(["follow", str(film), "--object", "red ball", "--out", str(out), "--quiet", *changes]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not out.exists()


def test_a_folder_of_pictures_is_told_from_a_film(cli, tmp_path, capsys):
    assert cli.main(["follow", str(tmp_path), "--object", "red ball", "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "is a folder; give a video file" in capsys.readouterr().err


def test_a_detector_with_broken_weights_is_one_sentence(cli, film, root, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "detector"
    shutil.copytree(root / "toybox" / "detector", folder)
    weights = load_file(folder / "model.safetensors")
    spoilt = {name: value * float("nan") if value.is_floating_point() else value for name, value in weights.items()}
    save_file(spoilt, folder / "model.safetensors", metadata={"format": "pt"})
    words = ["--object", "red ball", "--detector", str(folder), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main(["follow", str(film), *words]) == 2
    captured = capsys.readouterr().err
    assert "the detector answers with NaN" in captured and captured.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_segmenter_in_the_detectors_place_is_refused(cli, film, root, tmp_path, capsys):
    folder = str(root / "toybox" / "segmenter")
    words = ["--object", "red ball", "--detector", folder, "--out", str(tmp_path / "out")]
    assert cli.main(["follow", str(film), *words]) == 2
    assert "'sam'" in capsys.readouterr().err


def test_no_phrases_are_refused():
    with pytest.raises(ValueError, match="there are no phrases"):
        FollowSettings(())


def test_cancel_leaves_nothing(cli, film, tmp_path, capsys, monkeypatch):
    def interrupt(self, stage, done, total):
        if stage == "track" and done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageBars, "__call__", interrupt)
    assert cli.main(["follow", str(film), "--object", "red ball", "--out", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out").exists()
    assert "cancelled" in capsys.readouterr().err


def shares(masks, truth):
    return [float((mask & truth).sum() / (mask | truth).sum()) for mask in masks]


@pytest.fixture
def followed(cli, film, tmp_path):
    """Follow with the objects asked for in an order, and what it leaves."""

    def run(*phrases):
        words = [word for phrase in phrases for word in ("--object", phrase)]
        assert cli.main(["follow", str(film), *words, "--out", str(tmp_path / "followed"), "--quiet"]) == 0
        return tmp_path / "followed" / "masks.npy"

    return run


@pytest.mark.parametrize("phrases", [("red ball", "blue square"), ("blue square", "red ball")])
def test_masks_are_in_the_order_of_the_phrases_and_keep_their_names(followed, clip, phrases):
    path = followed(*phrases)
    assert json.loads(path.with_name("masks.names.json").read_text(encoding="utf-8")) == list(phrases)
    report = json.loads(path.with_name("report.json").read_text(encoding="utf-8"))
    assert [entry["phrase"] for entry in report["objects"]] == list(phrases)
    for mask, phrase in zip(np.load(path), phrases, strict=True):
        assert shares([mask], clip.masks[["red ball", "blue square"].index(phrase)])[0] > 0.85


def test_several_phrases_in_one_text_and_weights(followed):
    path = followed("(red ball:1.2),\nblue square.")
    assert json.loads(path.with_name("masks.names.json").read_text(encoding="utf-8")) == ["red ball", "blue square"]


def test_a_text_that_names_nothing_is_refused(cli, film, tmp_path, capsys):
    assert cli.main(["follow", str(film), "--object", ",", "--out", str(tmp_path / "out")]) == 2
    assert "phrase ',' names nothing" in capsys.readouterr().err


def test_metrics_read_what_follow_wrote(cli, film, followed, tmp_path):
    """The phrases in the other order: each is still compared with its own masks, and one alone with its own."""
    path = followed("red ball", "blue square")
    for phrases in ([], ["blue square", "red ball"], ["blue square"]):
        words = [word for phrase in phrases for word in ("--object", phrase)]
        given = ["metrics", str(film), "--masks", str(path), "--found", str(path), *words, "--quiet"]
        assert cli.main([*given, "--out", str(tmp_path / "judged")]) == 0
        report = json.loads((tmp_path / "judged" / "metrics.json").read_text())
        assert report["mean"]["iou"] == 1.0
        found = [entry["phrase"] for entry in report["clips"][0]["objects"]]
        assert found == (phrases or ["red ball", "blue square"])


def test_guide_reads_what_follow_wrote(cli, followed, tmp_path, monkeypatch):
    """Each phrase comes to the recipe with the masks that were found by it, in whatever order phrases are given."""
    from mask_guided_video.recipes.guided_clips import recipe

    path = followed("blue square", "red ball")
    found = dict(zip(("blue square", "red ball"), np.load(path), strict=True))
    given = []
    make = recipe.guided_clips

    def watched(model, settings, masks, *others, **options):
        given.append((settings.phrases, masks))
        return make(model, settings, masks, *others, **options)

    monkeypatch.setattr(recipe, "guided_clips", watched)
    words = ["--prompt", "a red ball and a blue square on sand", "--frames", "10", "--steps", "1", "--quiet"]
    for phrases in ([], ["red ball", "blue square"], ["red ball"]):
        objects = [word for phrase in phrases for word in ("--object", phrase)]
        out = tmp_path / f"guided{len(phrases)}"
        assert cli.main(["guide", *words, *objects, "--masks", str(path), "--out", str(out)]) == 0
        named, masks = given[-1]
        assert list(named) == (phrases or ["blue square", "red ball"]) and len(masks) == len(named)
        for phrase, mask in zip(named, masks, strict=True):
            assert np.array_equal(mask.numpy() > 0.5, found[phrase])


def test_guide_goes_on_without_an_object(cli, followed, tmp_path):
    path = followed("purple triangle")
    words = ["--prompt", "a purple triangle on sand", "--object", "purple triangle", "--frames", "10", "--steps", "1"]
    assert cli.main(["guide", *words, "--masks", str(path), "--quiet", "--out", str(tmp_path / "out")]) == 0
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert notes == ["the masks of round 1 are empty: nothing guides it."]
