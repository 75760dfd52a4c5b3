"""Settings of a motion tuning run: length, rates, clips and masks; checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class MaskAugmentation:
    """How training masks are roughened, so that the tuned model tolerates masks that are not exact.

    Attributes:
        grow: masks grow or shrink by a random number of latent cells up to this, 0 or more.
        box: how often a mask is replaced by its bounding box, 0..1.
        drop: how often a clip is seen without masks, 0..1.
    """

    grow: int = 2
    box: float = 0.2
    drop: float = 0.1

    def __post_init__(self) -> None:
        if self.grow < 0:
            raise ValueError(f"masks cannot grow by {self.grow} cells; give 0 or more.")
        _check_shares(self, "box", "drop")


@dataclass(frozen=True)
class MotionSettings:
    """One tuning run.

    Attributes:
        prompt: of clips that come without words.
        phrases: words of the prompt that name the objects in the masks, one per object.
        background_phrase: words of the prompt that name the background; may be empty.
        frames: of a clip as the model sees it; 0 takes the model's native length.
        width, height: in pixels; 0 takes the model's native size. Videos are cut to this shape and resized.
        stride: of the frames taken from a video, 1 or more.
        steps: of the optimizer, 1 or more.
        batch: clips per step, one after another (their gradients are added up), 1 or more.
        learning_rate: above 0. Small models bear 1e-3, large ones 1e-4.
        warm_up: steps of linear rise.
        decay: share of the steps at the end over which the rate falls to nothing, 0..1.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this length.
        first_frame: how often the first frame is given clean and left out of the loss, 0..1; 1 is LAMP's rule.
        prompt_dropout: how often a clip is seen without its prompt, 0..1; keeps classifier-free guidance working.
        flip: how often clip and masks are mirrored, 0..1. 0 where left and right matter.
        augmentation: of the masks.
        mode: name of the mask mode that is active in training, as in sampling.
        constants: of the mode, where they differ from its defaults.
        key_source: frames whose keys self-attention reads; empty for the mode's default.
        checkpointing: gradient checkpointing: less memory, a third more time.
        precision: of the forward pass: ``no`` is float32.
        seed: of all random numbers.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validation clips; 0 makes only the last.

    Raises:
        ValueError: a value out of its range; the message has it.
    """

    prompt: str = ""
    phrases: tuple[str, ...] = ()
    background_phrase: str = ""
    frames: int = 0
    width: int = 0
    height: int = 0
    stride: int = 1
    steps: int = 1000
    batch: int = 1
    learning_rate: float = 1e-4
    warm_up: int = 20
    decay: float = 0.3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    first_frame: float = 1.0
    prompt_dropout: float = 0.1
    flip: float = 0.5
    augmentation: MaskAugmentation = field(default_factory=MaskAugmentation)
    mode: str = "dmg"
    constants: Mapping[str, Any] = field(default_factory=dict)
    key_source: str = ""
    checkpointing: bool = False
    precision: Precision = "no"
    seed: int = 1
    checkpoint_every: int = 100
    validate_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "stride", "checkpoint_every"):
            _check_least(self, name, 1)
        for name in ("frames", "width", "height", "warm_up", "validate_every", "seed"):
            _check_least(self, name, 0)
        if self.frames == 1:
            raise ValueError("frames is 1, and the first frame is not learned from; give 2 or more.")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name} is {value}; give a value above 0.")
        _check_shares(self, "decay", "first_frame", "prompt_dropout", "flip")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; give 0 or more.")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is {self.precision!r}; choose one of {', '.join(get_args(Precision))}.")

    def rate(self, step: int) -> float:
        """Learning rate at a step, from 0."""
        rise = min(1.0, (step + 1) / max(self.warm_up, 1))
        fall = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.learning_rate * rise * max(fall, 0.0)


def _check_least(settings: Any, name: str, least: int) -> None:
    value = getattr(settings, name)
    if value < least:
        raise ValueError(f"{name} is {value}; give {least} or more.")


def _check_shares(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}; give a share from 0 to 1.")
