"""The lamp architecture learns a motion on the Toybox, and its file is the model."""

import pytest
import torch
from lamp_runs import DEVICE, circling_balls, run_of, same

from mask_guided_video.training.motion.examples import motion_loss
from mask_guided_video.training.motion.loop import tune
from mask_guided_video.video_models.motion.lamp import expected_shapes
from mask_guided_video.video_models.motion.motion_files import (
    MotionInfo,
    apply_motion,
    base_hash,
    read_motion,
    write_motion,
)
from mask_guided_video.video_models.toybox import load_toybox

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toybox():
    return load_toybox()


def loss_of(unet, examples):
    """On examples that no step of the runs here saw."""
    with torch.no_grad():
        seen = [example for step in (1000, 1001, 1002) for example in examples.examples(step, 1000)]
        return sum(float(motion_loss(unet, example, unet.config, DEVICE)) for example in seen) / len(seen)


def test_a_short_run_on_the_toybox_learns_and_its_file_is_the_model(toybox, tmp_path):
    before = {name: value.clone() for name, value in toybox.unet.state_dict().items()}
    run = run_of(toybox, circling_balls(toybox))
    assert len(run.architecture.parameters()) == 0
    untuned = loss_of(toybox.unet, run.examples)
    tuned = tune(run, toybox.unet)
    learned = loss_of(tuned, run.examples)
    assert learned < 0.8 * untuned
    assert same(before, toybox.unet.state_dict())

    state = run.architecture.state()
    assert {name: value.shape for name, value in state.items()} == expected_shapes(toybox.unet)
    # Everything that is trained has moved.
    assert all(bool(value.any()) for value in state.values())
    names = run.architecture.base_names()
    info = MotionInfo(
        "lamp", "Toybox", base_hash(toybox.unet.state_dict(), names), tuple(names), 4,
        details=run.architecture.metadata(),
    )  # fmt: skip
    write_motion(tmp_path / "circle.safetensors", state, info)
    motion = read_motion(tmp_path / "circle.safetensors")
    opened = apply_motion(toybox, motion)
    assert loss_of(opened.unet, run.examples) == pytest.approx(learned, rel=1e-4)
    assert same(before, toybox.unet.state_dict())
    half = loss_of(apply_motion(toybox, motion, 0.5).unet, run.examples)
    assert learned < half < untuned
