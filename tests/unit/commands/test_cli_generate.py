"""``cli.py generate``: what it leaves, and what it says about bad input; with tiny files of all three LaVie models."""

import json

import pytest
import torch
from tiny_stable_diffusion import tiny_clip, tiny_vae, write_checkpoint, write_folder

from mask_guided_video.commands.progress_bars import StageBars
from mask_guided_video.recipes.long_video import models as long_video_models
from mask_guided_video.recipes.long_video.models import LongVideoModels
from mask_guided_video.video_models.lavie.config import LaVieConfig, UpscalerConfig
from mask_guided_video.video_models.lavie.files import make_unet

SMALL = {
    "block_out_channels": (32, 64),
    "attention_levels": (True, True),
    "layers_per_block": 1,
    "num_heads": 2,
    "cross_attention_dim": 64,
    "rotary_dim": 8,
}


@pytest.fixture
def tiny(monkeypatch, tiny_video_model):
    """The tiny random model in the Toybox's place."""
    monkeypatch.setattr(
        long_video_models, "open_long_video_models", lambda files, device: LongVideoModels("toybox", tiny_video_model)
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files in the forms that people have: the three models as ``torch.save`` files, their parts as folder and file."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, config in (
        ("base", LaVieConfig(native_frames=4, **SMALL)),
        ("interpolation", LaVieConfig(stage="interpolation", in_channels=8, native_frames=21, **SMALL)),
        ("upscaling", UpscalerConfig(only_cross_attention=(True, False), **SMALL)),
    ):
        unet = make_unet(config)
        torch.save({"ema": unet.state_dict()}, folder / f"{name}.pt")
        config.save(folder / f"{name}.json")
    write_folder(folder / "parts", tiny_clip(), tiny_vae())
    write_checkpoint(folder / "upscaler_parts.safetensors", tiny_clip(), tiny_vae(3), openclip=True)
    return folder


def arguments(out, **changes):
    values = {"prompt": "a red ball moves left on sand", "frames": "6", "steps": "2", "out": str(out)} | changes
    return ["generate", *(part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value)))]


def test_generate_leaves_film_sheet_and_report(cli, tiny, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    given = {"free_long": "freelong++", "window": "2", "noise": "specmix", "fps": "12", "seed": "3", "key_stride": "2"}
    assert cli.main(arguments(out, **given)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["film.mp4", "report.json", "sheet.png"]
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == "toybox" and report["noise"] == "specmix" and report["window"] == 2
    chosen = report["settings"]
    assert (chosen["technique"], chosen["seed"], chosen["key_stride"]) == ("freelong++", 3, 2)
    assert report["films"][0]["frames_per_second"] == 12
    captured = capsys.readouterr()
    assert str(out / "film.mp4") in captured.out and "freelong++, window 2" in captured.out
    assert "sampling" in captured.err and "Traceback" not in captured.err


def test_second_run_with_the_same_seed_gives_identical_pixels(cli, tiny, tmp_path, capsys):
    prints = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert cli.main([*arguments(tmp_path / name, seed=seed), "--quiet"]) == 0
        prints.append(json.loads((tmp_path / name / "report.json").read_text())["films"][0]["sha256"])
    assert prints[0] == prints[1] != prints[2]
    assert capsys.readouterr().err == ""


def test_prompts_over_time_come_from_a_file(cli, tiny, tmp_path):
    (tmp_path / "prompts.txt").write_text("0: a red ball on sand\n3: a blue ball on sand\n")
    changes = {"schedule": tmp_path / "prompts.txt", "schedule_overlap": "2"}
    given = [part for part in arguments(tmp_path / "out", **changes) if part not in ("--prompt",)]
    given.remove("a red ball moves left on sand")
    assert cli.main([*given, "--quiet"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [prompt["frame"] for prompt in report["prompts"]] == [0, 3]
    assert report["settings"]["schedule_overlap"] == 2


def test_a_schedule_that_is_no_text_is_named(cli, tiny, tmp_path, capsys):
    (tmp_path / "film.txt").write_bytes(b"0: \xff\xfe")
    assert cli.main(arguments(tmp_path / "out", schedule=tmp_path / "film.txt")) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"frames": "0"}, "frames is 0"),
        ({"height": "33"}, "height is 33, not a multiple of 2"),
        ({"free_long": "fast"}, "technique is 'fast'; choose one of freelong"),
        ({"noise": "pink"}, "noise is 'pink'"),
        ({"window": "0"}, "window is 0"),
        ({"strength": "-1"}, "strength is -1"),
        ({"fps": "0"}, "frames_per_second is 0"),
        ({"threads": "0"}, "threads is 0"),
        ({"schedule": "none.txt"}, "there is no prompt schedule 'none.txt'"),
        ({"schedule": __file__.replace("test_cli_generate.py", "")}, "there is no prompt schedule"),
        ({"model": "large"}, "the model is 'large', which does not exist; take toybox, toybox-joint or a file"),
        ({"interpolate": "none.pt"}, "the interpolation model is 'none.pt', which does not exist"),
        ({"interpolation_steps": "0"}, "interpolation steps is 0"),
        ({"upscaling_noise_level": "999"}, "noise_level is 999"),
        ({"upscaling_window": "4"}, "upscaling overlap is 4; give a value from 0 to 3"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(cli, tiny, tmp_path, capsys, changes, message):
    out = tmp_path / "out"
    assert cli.main(arguments(out, **changes)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not out.exists()


def test_cancel_leaves_nothing(cli, tiny, tmp_path, capsys, monkeypatch):
    def interrupt(self, stage, done, total):
        if stage == "writing films":
            raise KeyboardInterrupt

    monkeypatch.setattr(StageBars, "__call__", interrupt)
    assert cli.main(arguments(tmp_path / "out")) == 130
    assert not (tmp_path / "out").exists()
    assert "cancelled" in capsys.readouterr().err


def lavie(weights, **changes):
    values = {
        "model": weights / "base.pt", "parts": weights / "parts", "height": 16, "width": 24, "cfg": 7.5,
        "interpolate": weights / "interpolation.pt", "upscale": weights / "upscaling.pt",
        "upscale_parts": weights / "upscaler_parts.safetensors", "tokenizer": weights / "parts" / "tokenizer",
        "interpolation_steps": 1, "upscaling_steps": 1,
    }  # fmt: skip
    return {name: value for name, value in (values | changes).items() if value is not None}


def test_all_three_lavie_models_from_files(cli, weights, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["--debug", *arguments(out, **lavie(weights, frames=5)), "--quiet"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "film.mp4", "interpolated.mp4", "report.json", "sheet.png", "upscaled.mp4",
    ]  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == "base.pt" and report["window"] == 4
    sizes = [(film["frames"], film["height"], film["width"]) for film in report["films"]]
    assert sizes == [(5, 16, 24), (17, 16, 24), (17, 64, 96)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": None}, "interpolation.pt has no text encoder and VAE of its own"),
        ({"parts": None, "interpolate": None}, "base.pt holds LaVie's U-Net only"),
        ({"upscale_parts": None}, "upscaling.pt has no text encoder and VAE of its own; give a Stable Diffusion x4"),
        ({"model": "interpolation.pt"}, "LaVie's interpolation model"),
        ({"interpolate": "upscaling.pt"}, "LaVie's upscal"),
        ({"upscale": "base.pt"}, "LaVie's base model"),
    ],
)
def test_wrong_models_are_named_before_any_work(cli, weights, tmp_path, capsys, changes, message):
    changes = {name: value and weights / value for name, value in changes.items()}
    assert cli.main([*arguments(tmp_path / "out", **lavie(weights, **changes)), "--quiet"]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_named(cli, weights, tmp_path, capsys):
    whole = (weights / "base.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    changes = lavie(weights, model=tmp_path / "cut.pt")
    assert cli.main([*arguments(tmp_path / "out", **changes), "--quiet"]) == 2
    errors = capsys.readouterr().err
    assert "cut.pt" in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()
