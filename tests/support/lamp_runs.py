"""Short runs of the lamp architecture in the tuning loop, on a motion that the Toybox never saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask_guided_video.toybox import unseen_motions, world
from mask_guided_video.training.motion.architectures import make_architecture
from mask_guided_video.training.motion.data import ClipWords, TrainingClip
from mask_guided_video.training.motion.examples import ExampleMaker
from mask_guided_video.training.motion.loop import Run
from mask_guided_video.training.motion.settings import MotionSettings

DEVICE = torch.device("cpu")


def circling_balls(toybox: Any) -> list[TrainingClip]:
    """Two clips of a motion that the Toybox never saw, the middle 32 x 32 pixels of 4 frames."""
    generator, clips = np.random.default_rng(3), []
    for colour, background in (("red", "sand"), ("blue", "grass")):
        scene = unseen_motions.unseen_scene("circle", colour, "ball", background, generator)
        frames = torch.from_numpy(world.render(scene, 4).frames).float()[:, 16:48, 16:48]
        latents = [toybox.encode(film) for film in (frames, frames.flip(2))]
        clips.append(TrainingClip(ClipWords(unseen_motions.unseen_prompt(scene)), torch.cat(latents), None))
    return clips


def run_of(model: Any, clips: Sequence[TrainingClip], folder: Path | None = None, **values: Any) -> Run:
    """A run of twelve steps; ``values`` are other settings."""
    usual = {"steps": 12, "batch": 2, "learning_rate": 2e-3, "flip": 0.0, "frames": 4}
    settings = MotionSettings(**{**usual, "width": 32, "height": 32, "checkpoint_every": 2, **values})
    return Run(settings, make_architecture("lamp", seed=4), ExampleMaker(model, clips, settings), DEVICE, folder)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states hold the same bits."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
