"""The Toybox from the command line, as a process of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mask_guided_video.recipes.mask_refine.files import FILES
from mask_guided_video.recipes.model_sets import TOYBOX, load_model_set


def toybox_is_complete() -> bool:
    return (
        all(any((TOYBOX / name).glob("**/*.safetensors")) for name in ("text_to_video", "detector", "segmenter"))
        and (TOYBOX / "text_to_video" / "unet.safetensors").exists()
    )


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not toybox_is_complete(), reason="the Toybox weights are not in this checkout"),
]


def arguments(out, steps):
    words = ["--prompt", "a red ball moves left on sand", "--object", "red ball", "--model", "toybox"]
    return ["refine", *words, "--steps", steps, "--out", str(out)]


def test_toybox_run_as_a_process(root, tmp_path):
    command = [sys.executable, str(root / "cli.py"), *arguments(tmp_path / "out", "4")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a process")
def test_interrupted_process_leaves_nothing(root, tmp_path):
    command = [sys.executable, str(root / "cli.py"), *arguments(tmp_path / "out", "1000")]
    # A shell lets its background jobs ignore SIGINT, and children inherit that; a user's terminal does not.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "cancelled" in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_toybox_set_finds_its_objects():
    from mask_guided_video.recipes.mask_refine.recipe import mask_refine
    from mask_guided_video.recipes.mask_refine.settings import MaskRefineSettings

    models = load_model_set("toybox")
    settings = MaskRefineSettings("a red ball moves right on sand", ("red ball",), steps=10)
    result = mask_refine(models.model, models.detector, models.tracker, settings)
    assert result.report["guided"] and not torch.equal(result.first, result.second)
