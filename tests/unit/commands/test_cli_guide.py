"""``cli.py guide``: what it leaves, how it goes on, and what it says about bad input; on a tiny random model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mask_guided_video.commands.progress_bars import StageBars
from mask_guided_video.recipes.films.files import read_film
from mask_guided_video.recipes.guided_clips import models as guided_clips_models
from mask_guided_video.recipes.guided_clips.models import open_guided_model
from mask_guided_video.recipes.long_video import models as long_video_models
from mask_guided_video.recipes.long_video.models import LongVideoModels, ModelFiles

PROMPT = "a red ball moves left on sand"
FILES = ["film.mp4", "film_with_masks.mp4", "report.json", "rounds", "sheet.png"]
PATH = """[{"label": "red ball", "keyframes": [
    {"frame": 0, "x": 0.2, "y": 0.5, "width": 0.4, "height": 0.4}, {"frame": 6, "x": 0.8, "y": 0.5}]}]"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tiny_video_model):
    """The tiny random model in the Toybox's place."""
    made = LongVideoModels("toybox", tiny_video_model)
    for module in (guided_clips_models, long_video_models):
        monkeypatch.setattr(module, "open_long_video_models", lambda files, device: made)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "path.json"
    file.write_text(PATH)
    return file


def arguments(out, **changes):
    values = {"prompt": PROMPT, "rounds": "2", "steps": "2", "out": str(out)} | changes
    given = {key: value for key, value in values.items() if value is not None}
    words = (part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value)))
    return ["guide", *words, "--quiet"]


def test_a_path_makes_a_film_with_sheet_and_report(cli, tmp_path, path, capsys):
    out = tmp_path / "deep" / "out"
    constants = ["--constant", "end_percent=1", "--constant", "blocks=mid,up"]
    given = {"background": "sand", "fps": "12", "seed": "3", "overlap": "keep", "frame_strength": "0: 1, 6: 0.5"}
    assert cli.main([*arguments(out, path=path, **given), *constants]) == 0
    assert sorted(entry.name for entry in out.iterdir()) == FILES
    report = json.loads((out / "report.json").read_text())
    settings = report["settings"]
    assert (settings["phrases"], settings["background_phrase"], settings["seed"]) == (["red ball"], "sand", 3)
    assert settings["constants"] == {"end_percent": 1.0, "blocks": "mid,up"}
    assert settings["frame_strength"][::3] == [1.0, 0.75, 0.5] and len(settings["frame_strength"]) == 7
    assert (report["model"], report["film"]["frames"]) == ("toybox", 8)
    assert len(read_film(out / "film.mp4")) == len(read_film(out / "film_with_masks.mp4")) == 8
    shown = capsys.readouterr().out
    assert "2 rounds, 8 frames, 16 x 16" in shown and str((out / "sheet.png").resolve()) in shown


def test_a_share_of_attention_in_place_of_a_strength(cli, tmp_path, path, capsys):
    given = {"share": "0.9", "mode": "cross_text"}
    whole = ["--constant", "end_percent=1"]
    assert cli.main([*arguments(tmp_path / "out", path=path, **given), *whole]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["goal"] == {"share": 0.9, "among": "kind"}
    for number in (1, 2):
        line = f"round {number}: red ball, share of attention on its own words: "
        assert any(note.startswith(line) and "90 % wanted, 90.0 % reached" in note for note in report["notes"])
    assert "90 % wanted" in capsys.readouterr().out
    for wrong, message in (({"share": "1"}, "share is 1; give a value"), ({"share_among": "all"}, "there is no share")):
        assert cli.main(arguments(tmp_path / "wrong", path=path, **wrong)) == 2
        assert message in capsys.readouterr().err


def test_masks_from_files_one_per_object(cli, tmp_path):
    masks = np.zeros((7, 16, 16), dtype=bool)
    masks[:, 2:9, 2:9] = True
    np.save(tmp_path / "ball.npy", masks)
    (tmp_path / "sand").mkdir()
    for frame in range(7):
        Image.fromarray((~masks[frame] * 255).astype(np.uint8)).save(tmp_path / "sand" / f"{frame}.png")
    Image.fromarray(np.full((16, 16, 3), 200, dtype=np.uint8)).save(tmp_path / "first.png")
    objects = [f"--{name}={value}" for name, value in (("object", "red ball"), ("object", "sand"))]
    files = [f"--masks={tmp_path / 'ball.npy'}", f"--masks={tmp_path / 'sand'}"]
    given = arguments(tmp_path / "out", first_image=tmp_path / "first.png", mode="peekaboo", next_frame="picture")
    assert cli.main([*given, *objects, *files]) == 0
    settings = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]
    assert (settings["phrases"], settings["mode"]) == (["red ball", "sand"], "peekaboo")


def test_a_cancelled_run_goes_on(cli, tmp_path, path, capsys, monkeypatch):
    assert cli.main(arguments(tmp_path / "whole", path=path)) == 0
    whole = json.loads((tmp_path / "whole" / "report.json").read_text())["film"]

    def cancel(bars, stage, done, total):
        # The first step of the second round.
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StageBars, "__call__", cancel)
        assert cli.main(arguments(tmp_path / "out", path=path)) == 130
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["rounds"]
    assert cli.main(arguments(tmp_path / "out", path=path)) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["film"] == whole and report["notes"] == ["round 1 was finished by an earlier run."]
    capsys.readouterr()
    assert cli.main(arguments(tmp_path / "out", path=path, cfg="5")) == 2
    assert "was made with cfg 4.0, and now cfg is 5.0; set it back to go on" in capsys.readouterr().err
    assert cli.main([*arguments(tmp_path / "out", path=path, cfg="5"), "--fresh"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either --path FILE or --masks PATH"),
        ({"path": "nowhere.json"}, "there is no path"),
        ({"masks": "nowhere.npy"}, "there is no mask file"),
        ({"path": True, "rounds": "0"}, "rounds is 0"),
        ({"path": True, "mode": "magic"}, "mode is 'magic'; choose one of dmg"),
        ({"path": True, "constant": "gamma"}, "gamma"),
        ({"path": True, "constant": "gamma=1"}, "gamma"),
        ({"path": True, "object": "blue"}, "blue"),
        ({"path": True, "first_image": "nowhere.png"}, "there is no picture"),
        ({"path": True, "motion": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"path": True, "frame_strength": "fast"}, "'fast' is not a number at a frame"),
        ({"path": True, "prompt": "a blue ball"}, "red ball"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(cli, tmp_path, path, capsys, changes, message):
    changes = {key: path if value is True else value for key, value in changes.items()}
    out = tmp_path / "out"
    assert cli.main(arguments(out, **changes)) == 2
    error = capsys.readouterr().err
    assert error.startswith("cli.py: ") and error.count("\n") == 1 and message in error
    assert not out.exists()


def test_paths_and_masks_that_are_broken_are_named(cli, tmp_path, path, capsys):
    path.write_bytes(b"\xff\xfe\x00")
    assert cli.main(arguments(tmp_path / "out", path=path)) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err
    np.save(tmp_path / "a.npy", np.zeros((7, 16, 16), dtype=bool))
    np.save(tmp_path / "b.npy", np.zeros((6, 16, 16), dtype=bool))
    files = [f"--masks={tmp_path / name}" for name in ("a.npy", "b.npy")]
    assert cli.main([*arguments(tmp_path / "out"), *files]) == 2
    assert "give all objects masks of one length and size" in capsys.readouterr().err


def test_a_motion_is_part_of_the_models_name(monkeypatch, tmp_path, tiny_video_model):
    from mask_guided_video.video_models.motion import motion_files

    file = tmp_path / "zigzag.safetensors"
    file.write_bytes(b"motion")
    given = []
    monkeypatch.setattr(motion_files, "read_motion", lambda path: path)
    monkeypatch.setattr(motion_files, "apply_motion", lambda *values: given.append(values) or torch.nn.Identity())
    assert open_guided_model(ModelFiles()) == ("toybox", tiny_video_model)
    name, model = open_guided_model(ModelFiles(), file, 0.5)
    assert given == [(tiny_video_model, file, 0.5)] and isinstance(model, torch.nn.Identity)
    assert name.startswith("toybox with zigzag.safetensors (") and name.endswith(") at 0.5")


def test_levers_and_auto(cli, tmp_path, path, capsys):
    settings = {}
    for name, words in (("levers", ["--lever", "noise", "--lever", "crude_film"]), ("auto", ["--auto"])):
        out = tmp_path / name
        assert cli.main([*arguments(out, path=path, rounds="1"), *words]) == 0
        report = json.loads((out / "report.json").read_text())
        (attempts,) = report["levers"].values()
        assert sum(attempt["taken"] for attempt in attempts) == 1
        settings[name] = (report["settings"]["levers"], report["settings"]["auto"])
        assert f"round 1: {name}" in capsys.readouterr().out
    assert settings == {"levers": (["noise", "crude_film"], False), "auto": ([], True)}
    assert cli.main([*arguments(tmp_path / "no", path=path), "--lever", "sideways"]) != 0
    assert "there is no lever 'sideways'" in capsys.readouterr().err
