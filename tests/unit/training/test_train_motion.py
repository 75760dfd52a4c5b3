"""``cli.py train-motion``: what wrong arguments say."""

import pytest
import torch
from motion_clips import arguments, write_clips

from mask_guided_video.training import train_motion


@pytest.fixture
def folders(tmp_path):
    return write_clips(tmp_path)


@pytest.fixture
def cli(cli, monkeypatch, tiny_video_model):
    """The command line with the tiny random model in the place of every base."""
    monkeypatch.setattr(train_motion, "open_base", lambda options, device: (tiny_video_model, "tiny"))
    return cli


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
