"""``cli.py train-motion``: from folders to a motion file, its curve and films, and what wrong arguments say."""

import importlib.util

import numpy as np
import pytest
import torch

from mask_guided_video.recipes.films.files import read_film, write_film
from mask_guided_video.training import train_motion
from mask_guided_video.video_models.motion.motion_files import apply_motion, read_motion


@pytest.fixture
def folders(tmp_path):
    for name in ("videos", "masks"):
        (tmp_path / name).mkdir()
    for number in range(2):
        pictures = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(number))
        write_film(tmp_path / "videos" / f"{number}.mp4", pictures)
        drawn = np.zeros((4, 16, 16), dtype=bool)
        drawn[:, 4:12, 4:12] = True
        np.save(tmp_path / "masks" / f"{number}.npy", drawn)
    return tmp_path


def arguments(folder, *more):
    return [
        *(
            "--videos",
            str(folder / "videos"),
            "--masks",
            str(folder / "masks"),
            "--out",
            str(folder / "out.safetensors"),
        ),
        *("--run", str(folder / "run"), "--prompt", "a red ball moves left on grass", "--phrase", "red ball"),
        *("--background", "grass", "--steps", "4", "--batch", "2", "--rank", "2", "--checkpoint-every", "2"),
        *("--learning-rate", "0.01", "--constant", "blocks=all", "--constant", "beta=3", *more),
    ]


@pytest.fixture
def cli(root, monkeypatch, tiny_video_model):
    monkeypatch.setattr(train_motion, "open_base", lambda options, device: (tiny_video_model, "tiny"))
    spec = importlib.util.spec_from_file_location("cli_of_motion", root / "cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_from_folders_to_a_file(cli, folders, tiny_video_model):
    assert cli.main(["train-motion", *arguments(folders, "--validate-every", "2")]) == 0
    motion = read_motion(folders / "out.safetensors")
    assert motion.info.prompt == "a red ball moves left on grass" and motion.info.background_phrase == "grass"
    assert motion.info.constants == {"blocks": "all", "beta": 3.0} and motion.info.mode == "dmg"
    assert (motion.info.frames, motion.info.width, motion.info.steps) == (4, 16, 4)
    assert apply_motion(tiny_video_model, motion) is not tiny_video_model
    names = {path.name for path in (folders / "run").iterdir()}
    films = {"validation.mp4", "validation_000002.mp4", "validation_000004.mp4"}
    assert names == {"checkpoint.pt", "clips.safetensors", "log.txt", "loss.png", *films}
    # The clip and the film side by side, sixteen times enlarged.
    assert read_film(folders / "run" / "validation.mp4").shape == (4, 256, 512, 3)
    log = (folders / "run" / "log.txt").read_text()
    assert "step 4 of 4: loss" in log and "the motion is in" in log
    # The same command again changes nothing: the run is at its end.
    before = (folders / "out.safetensors").read_bytes()
    assert cli.main(["train-motion", *arguments(folders, "--validate-every", "2")]) == 0
    assert (folders / "out.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--out", "motion.bin"), "motion files end in .safetensors"),
        (("--steps", "0"), "steps is 0; give 1 or more"),
        (("--constant", "gamma=3"), "mode dmg has no constant 'gamma'"),
        (("--mode", "other"), "mode is 'other'; choose one of dmg"),
        (("--device", "cuda:77"), "device is 'cuda:77'"),
        (("--phrase", "blue square"), "masks of 1 objects and 2 phrases"),
        (("--frames", "9"), "has 4 frames at stride 1 and training takes 9"),
    ],
)
def test_wrong_arguments(cli, folders, capsys, more, message):
    assert cli.main(["train-motion", *arguments(folders, *more)]) == 2
    written = capsys.readouterr().err
    assert message in written and written.count("\n") == 1
    assert not (folders / "out.safetensors").exists()


def test_other_commands_refuse_what_they_do_not_know(cli, capsys):
    with pytest.raises(SystemExit):
        cli.main(["convert", "--nothing", "in.pt", "out.safetensors"])
    assert "unrecognized arguments: --nothing" in capsys.readouterr().err
    assert "motion" not in cli.script_names("train")


def test_lavie_needs_its_parts(tmp_path):
    options = train_motion.build_parser().parse_args(["--videos", "a", "--out", "b", "--base", str(tmp_path / "x.pt")])
    with pytest.raises((ValueError, OSError), match=r"x\.pt|parts"):
        train_motion.open_base(options, torch.device("cpu"))
