"""Injected faults: killed and stopped processes, damaged files and full disks, on a tiny random model."""

import json
import os
import signal
from contextlib import ExitStack

import pytest
import torch

from mask_guided_video.commands.progress_bars import StageBars
from mask_guided_video.recipes.films.files import write_film
from mask_guided_video.recipes.guided_clips import models as guided_clips_models
from mask_guided_video.recipes.long_video import models as long_video_models
from mask_guided_video.recipes.long_video.models import LongVideoModels
from mask_guided_video.training import train_motion
from mask_guided_video.weight_files import writing

pytestmark = pytest.mark.slow

PATH = """[{"label": "red ball", "keyframes": [
    {"frame": 0, "x": 0.2, "y": 0.5, "width": 0.4, "height": 0.4}, {"frame": 9, "x": 0.8, "y": 0.5}]}]"""
ROUNDS = 3
FILES = ["film.mp4", "film_with_masks.mp4", "report.json", "rounds", "sheet.png"]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(scope="module", autouse=True)
def tiny(tiny_video_model):
    """The tiny random model in the Toybox's place."""
    made = LongVideoModels("toybox", tiny_video_model)
    with pytest.MonkeyPatch.context() as patched:
        for module in (guided_clips_models, long_video_models):
            patched.setattr(module, "open_long_video_models", lambda files, device: made)
        patched.setattr(train_motion, "open_base", lambda options, device: (tiny_video_model, "tiny"))
        yield


def guided(folder, *more):
    """Arguments of ``guide``."""
    path = folder.parent / "path.json"
    path.write_text(PATH)
    words = ["--prompt", "a red ball moves left on sand", "--steps", "2", "--rounds", str(ROUNDS), "--quiet"]
    return ["guide", *words, "--path", str(path), "--out", str(folder), *more]


@pytest.fixture
def guide(tmp_path):
    """``guide`` into a folder of this name: the arguments."""
    return lambda out, *more: guided(tmp_path / out, *more)


@pytest.fixture(scope="module")
def whole(cli, tiny, tmp_path_factory):
    """The film of a run that nothing happened to: its numbers and the rounds' tensors."""
    out = tmp_path_factory.mktemp("guide") / "whole"
    assert cli.main(guided(out)) == 0
    return kept(out)


def kept(out):
    """What a film is: report of it, bytes, and frames of its rounds."""
    from safetensors.torch import load_file

    film = json.loads((out / "report.json").read_text())["film"]
    frames = [load_file(path)["frames"] for path in sorted((out / "rounds").glob("*.safetensors"))]
    return film, (out / "film.mp4").read_bytes(), torch.stack(frames).tolist()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def in_child(work, until=0):
    """Run a command in a process of its own; returns it and its status: ended, or stopped."""
    child = os.fork()
    if child == 0:
        try:
            status = work()
        finally:
            # Nothing of pytest runs in there.
            os._exit(status if "status" in locals() else 99)
    return child, os.waitpid(child, os.WUNTRACED)[1]


def signalling(monkeypatch, which, stage, done):
    """Send a process a signal at a step, from itself."""

    def at_step(bars, name, number, total):
        if (name, number) == (stage, done):
            os.kill(os.getpid(), which)

    monkeypatch.setattr(StageBars, "__call__", at_step)


# In the first and second round, and while the film is written.
@forks
@pytest.mark.parametrize(("stage", "done"), [("rounds", 1), ("rounds", 3), ("writing film", 4)])
def test_guide_goes_on_after_a_kill_and_leaves_nothing(cli, guide, tmp_path, whole, monkeypatch, stage, done):
    with monkeypatch.context() as patched:
        signalling(patched, signal.SIGKILL, stage, done)
        _, status = in_child(lambda: cli.main(guide("out")))
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert any(name.startswith(writing.STAGE) for name in names(tmp_path / "out"))
    assert cli.main(guide("out")) == 0
    assert kept(tmp_path / "out") == whole and names(tmp_path / "out") == FILES
    assert names(tmp_path / "out" / "rounds") == [f"round_{number:04}.safetensors" for number in (1, 2, 3)]


@forks
@pytest.mark.parametrize("seed", ["0", "5"])
def test_a_second_run_in_the_folder_is_refused(cli, guide, tmp_path, whole, monkeypatch, capsys, seed):
    with monkeypatch.context() as patched:
        signalling(patched, signal.SIGSTOP, "rounds", 3)
        child, status = in_child(lambda: cli.main(guide("out")))
    try:
        assert os.WIFSTOPPED(status)
        assert cli.main(guide("out", "--seed", seed)) == 2
        assert "another run makes rounds in" in capsys.readouterr().err
    finally:
        os.kill(child, signal.SIGCONT)
    assert os.waitpid(child, 0)[1] == 0
    assert kept(tmp_path / "out") == whole and names(tmp_path / "out") == FILES


def test_where_nothing_locks_a_replaced_round_is_noticed(cli, guide, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writing, "_lock", lambda file: None)
    assert cli.main(guide("other", "--seed", "5")) == 0
    other = (tmp_path / "other" / "rounds" / "round_0001.safetensors").read_bytes()

    def replace(bars, stage, done, total):
        if (stage, done) == ("rounds", 3):
            (tmp_path / "out" / "rounds" / "round_0001.safetensors").write_bytes(other)

    monkeypatch.setattr(StageBars, "__call__", replace)
    assert cli.main(guide("out")) == 2
    assert "was replaced or removed while this run worked with it" in capsys.readouterr().err
    assert not (tmp_path / "out" / "film.mp4").exists()


@pytest.mark.parametrize("damage", ["half", "five", "empty", "flipped", "latents"])
def test_a_damaged_round_is_made_again(cli, guide, tmp_path, whole, damage):
    assert cli.main(guide("out")) == 0
    path = tmp_path / "out" / "rounds" / "round_0002.safetensors"
    content = bytearray(path.read_bytes())
    if damage in ("flipped", "latents"):
        # In the middle of the frames, or of the numbers that the next round begins with; tensors lie by their types.
        header = 8 + int.from_bytes(content[:8], "little")
        places = json.loads(bytes(content[8:header]))["frames" if damage == "flipped" else "last"]["data_offsets"]
        middle = header + sum(places) // 2
        content[middle : middle + 20] = bytes(value ^ 255 for value in content[middle : middle + 20])
    path.write_bytes(content[: {"half": len(content) // 2, "five": 5, "empty": 0}.get(damage, len(content))])
    assert cli.main(guide("out")) == 0
    assert kept(tmp_path / "out") == whole


def test_rounds_of_versions_without_checksums_are_good(cli, guide, tmp_path, whole):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    assert cli.main(guide("out")) == 0
    for path in (tmp_path / "out" / "rounds").iterdir():
        with safe_open(path, "pt") as file:
            metadata = {name: value for name, value in file.metadata().items() if name != "sha256"}
        save_file(load_file(path), path, metadata)
    assert cli.main(guide("out")) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["notes"]) == ROUNDS and kept(tmp_path / "out") == whole


@pytest.fixture
def train(tmp_path):
    """``train-motion``: the arguments."""
    (tmp_path / "videos").mkdir()
    for number in range(2):
        write_film(tmp_path / "videos" / f"{number}.mp4", torch.rand(4, 16, 16, 3))
    words = ["--prompt", "a red ball moves left on grass", "--steps", "4", "--batch", "2", "--rank", "2"]
    words += ["--checkpoint-every", "2", "--videos", str(tmp_path / "videos"), "--run", str(tmp_path / "run")]
    return lambda out, *more: ["train-motion", *words, "--out", str(tmp_path / out), *more]


def steps_done(folder):
    log = folder / "run" / "log.txt"
    return log.read_text().count(": loss") if log.exists() else 0


def test_a_motion_that_cannot_be_written_is_said_before_training(cli, train, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for out in ("file/a.safetensors", "a" * 300 + ".safetensors"):
        assert cli.main(train(out)) == 2
        assert "cannot be written to" in capsys.readouterr().err and steps_done(tmp_path) == 0
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert cli.main(train("a.safetensors")) == 2
    assert "has room for 100 bytes and the tuned tensors take" in capsys.readouterr().err and steps_done(tmp_path) == 0


def test_a_disk_that_fills_up_meanwhile_keeps_the_checkpoint(cli, train, tmp_path, monkeypatch, capsys, small_files):
    tune = train_motion.tune_motion
    with monkeypatch.context() as patched, ExitStack() as full:

        def filled(*values, **named):
            result = tune(*values, **named)
            full.enter_context(small_files(5000))
            return result

        patched.setattr(train_motion, "tune_motion", filled)
        assert cli.main(train("a.safetensors")) == 2
    error = capsys.readouterr().err
    assert "a.safetensors' (File too large); the last checkpoint in" in error and error.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()
    done = steps_done(tmp_path)
    # The same command again: no step is made anew.
    assert cli.main(train("a.safetensors")) == 0 and steps_done(tmp_path) == done
    assert cli.main(train("b.safetensors", "--run", str(tmp_path / "other"))) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_torn_checkpoint_of_a_run_is_told(cli, train, tmp_path, capsys):
    assert cli.main(train("a.safetensors")) == 0
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"")
    assert cli.main(train("b.safetensors")) == 2
    error = capsys.readouterr().err
    assert "remove it to start anew" in error and error.count("\n") == 1


KILLED_TRAINING = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
import bootstrap; bootstrap.import_package()
import cli, tiny_video_model
from mask_guided_video.training import train_motion
from mask_guided_video.training.motion import loop as motion_loop
model = tiny_video_model.build_tiny_video_model()
train_motion.open_base = lambda options, device: (model, "tiny")
save, stop = motion_loop._save, int(sys.argv[3])
def killed(run, optimizer, accelerator, step):
    save(run, optimizer, accelerator, step)
    if step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
motion_loop._save = killed
sys.exit(cli.main(sys.argv[4:]))
"""


def test_training_goes_on_after_a_kill(cli, train, root, tmp_path):
    import subprocess
    import sys

    folders = [str(root), str(root / "tests" / "support")]
    command = [sys.executable, "-c", KILLED_TRAINING, *folders, "2", *train("a.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "a.safetensors").exists()
    assert cli.main(train("a.safetensors")) == 0
    assert cli.main(train("b.safetensors", "--run", str(tmp_path / "other"))) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith((writing.STAGE, writing.LOCK))]
