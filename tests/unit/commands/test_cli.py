"""The command line: results and refusals, in process on a tiny model and as a process of its own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mask_guided_video.commands.progress_bars import StageBars
from mask_guided_video.perception.answers import BrokenAnswerError
from mask_guided_video.recipes.mask_refine.files import FILES
from mask_guided_video.recipes.model_sets import MODEL_SETS, ModelSet, check_device


@pytest.fixture
def tiny(monkeypatch, tiny_video_model):
    """A model set named ``tiny``: the tiny random model; masks are given, so nothing has to be found."""
    monkeypatch.setitem(MODEL_SETS, "tiny", lambda device: ModelSet("tiny", tiny_video_model, None, None))


@pytest.fixture
def mask_file(tmp_path):
    mask = np.zeros((4, 16, 16), dtype=np.float32)
    mask[:, 4:12, 4:12] = 1
    np.save(tmp_path / "mask.npy", mask)
    return tmp_path / "mask.npy"


def arguments(out, **changes):
    values = {
        "prompt": "a red ball moves left on sand", "object": "red ball", "model": "tiny", "steps": "2", "out": str(out)
    } | changes  # fmt: skip
    return ["refine", *(part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", value))]


def test_refine_leaves_films_sheet_and_report(cli, tiny, mask_file, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert cli.main(arguments(out, masks=str(mask_file))) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == "tiny" and report["guided"]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 500
    captured = capsys.readouterr()
    assert str(out / "side_by_side.mp4") in captured.out
    assert "first film" in captured.err and "Traceback" not in captured.err


def test_second_run_with_the_same_seed_gives_identical_pixels(cli, tiny, mask_file, tmp_path, capsys):
    prints = []
    for name in ("one", "two"):
        assert cli.main([*arguments(tmp_path / name, masks=str(mask_file)), "--quiet"]) == 0
        films = json.loads((tmp_path / name / "report.json").read_text())["films"]
        prints.append([films[film]["sha256"] for film in ("first", "second")])
    assert prints[0] == prints[1] and prints[0][0] != prints[0][1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "blur"}, "mode is 'blur'; choose one of dmg, focus, focus_fg, separate, cross_text"),
        ({"strength": "-2"}, "strength is -2"),
        ({"strength": "nan"}, "strength is nan"),
        ({"object": "blue square"}, "'blue square' does not occur in the prompt"),
        ({"object": " "}, "name at least one object"),
        ({"frames": "0"}, "frames is 0"),
        ({"height": "33"}, "height is 33"),
        ({"steps": "0"}, "steps is 0"),
        ({"fps": "0"}, "fps is 0"),
        ({"threads": "0"}, "threads is 0"),
        ({"model": "large"}, "model is 'large'; choose one of"),
        ({"regenerate": "again"}, "regenerate is 'again'"),
        ({"masks": "none.npy"}, "no mask file 'none.npy'"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(cli, tiny, mask_file, tmp_path, capsys, changes, message):
    out = tmp_path / "out"
    assert cli.main(arguments(out, **({"masks": str(mask_file)} | changes))) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not out.exists()


def test_output_folder_that_cannot_be_written(cli, tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(arguments(tmp_path / "file")) == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == ""


def test_missing_and_broken_weights(cli, monkeypatch, tmp_path, capsys):
    from mask_guided_video.perception.open_models import open_detector

    folder = tmp_path / "detector"
    monkeypatch.setitem(MODEL_SETS, "tiny", lambda device: open_detector(folder))
    assert cli.main(arguments(tmp_path / "out")) == 2
    missing = capsys.readouterr().err
    assert str(folder) in missing and missing.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_cancel_leaves_nothing(cli, tiny, mask_file, tmp_path, capsys, monkeypatch):
    def interrupt(self, stage, done, total):
        if stage == "second film":
            raise KeyboardInterrupt

    monkeypatch.setattr(StageBars, "__call__", interrupt)
    assert cli.main(arguments(tmp_path / "out", masks=str(mask_file))) == 130
    assert not (tmp_path / "out").exists()
    assert "cancelled" in capsys.readouterr().err


def test_unknown_script(cli, capsys):
    assert cli.main(["train", "nothing"]) == 2
    assert "choose one of" in capsys.readouterr().err
    assert "detector" in cli.script_names("train")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("motion tuning needs the package peft"), "motion tuning needs the package peft"),
        (FileNotFoundError(2, "No such file", "a.bin"), "cli.py: 'a.bin' cannot be used (No such file)."),
        (MemoryError("the film takes 5 TiB"), "the film takes 5 TiB"),
        (MemoryError(), "too little memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "too little memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "too little memory"),
        (BrokenAnswerError("the detector answers with NaN"), "the detector answers with NaN"),
    ],
)
def test_what_a_user_can_mend_is_a_sentence(cli, tiny, monkeypatch, tmp_path, capsys, error, message):
    def fail(device):
        raise error

    monkeypatch.setattr("mask_guided_video.recipes.model_sets.load_models", lambda loader, *rest: fail(None))
    assert cli.main([*arguments(tmp_path / "out"), "--quiet"]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1
    with pytest.raises(type(error)):
        cli.main(["--debug", *arguments(tmp_path / "out"), "--quiet"])


def test_a_fault_of_the_program_keeps_its_traceback(cli, tiny, monkeypatch, tmp_path):
    def fail(*rest):
        raise RuntimeError("The size of tensor a (4) must match the size of tensor b (3)")

    monkeypatch.setattr("mask_guided_video.recipes.model_sets.load_models", fail)
    with pytest.raises(RuntimeError, match="size of tensor a"):
        cli.main([*arguments(tmp_path / "out"), "--quiet"])


EMPTY = [
    ("follow", "", "--object", "ball"),
    ("follow", "film.mp4", "--object", "ball", "--out", ""),
    ("follow", "film.mp4", "--object", "ball", "--detector", ""),
    ("refine", "--prompt", "a ball", "--object", "ball", "--masks", " "),
    ("refine", "--prompt", "a ball", "--object", "ball", "--parts", ""),
    ("guide", "--prompt", "a ball", "--object", "ball", "--masks", ""),
    ("guide", "--prompt", "a ball", "--path", ""),
    ("generate", "--prompt", "a ball", "--upscale", ""),
    ("metrics", "film.mp4", "--masks", ""),
    ("convert", "", "--out", "model.safetensors"),
    ("train-motion", "--videos", "", "--out", "motion.safetensors"),
    ("train", "detector", "--run", ""),
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_path_is_not_the_current_folder(cli, words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(words))
    assert stopped.value.code == 2 and "give a path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_argparse_refuses_with_two(cli):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["refine", "--prompt", "a red ball"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("name", ["abacus", "", "meta", "cuda:99" if not torch.cuda.is_available() else "xpu"])
def test_devices_that_are_not_there(name):
    with pytest.raises(ValueError, match=f"device is '{name}'"):
        check_device(name)
    assert check_device(None) == torch.device("cpu")
