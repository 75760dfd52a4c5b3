"""``cli.py train-motion``, from folders to a motion file, its curve and films."""

import pytest
from motion_clips import arguments, write_clips

from mask_guided_video.recipes.films.files import read_film
from mask_guided_video.training import train_motion
from mask_guided_video.video_models.motion.motion_files import apply_motion, read_motion

pytestmark = pytest.mark.slow


@pytest.fixture
def folders(tmp_path):
    return write_clips(tmp_path)


@pytest.fixture
def cli(cli, monkeypatch, tiny_video_model):
    """The command line with the tiny random model in the place of every base."""
    monkeypatch.setattr(train_motion, "open_base", lambda options, device: (tiny_video_model, "tiny"))
    return cli


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
