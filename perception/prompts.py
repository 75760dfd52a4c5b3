"""User prompts about an object in one frame: a box, points on and off it, or a rough mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..attention_patches.checks import check_shape
from .boxes import Box, clamp_box


@dataclass(frozen=True)
class Point:
    """A point in a frame, in pixels from its top left corner, on the object or, with ``inside`` False, off it."""

    x: float
    y: float
    inside: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise ValueError(f"point ({self.x}, {self.y}) is not finite; give pixels.")


@dataclass(frozen=True, eq=False)
class ObjectPrompt:
    """Where an object is in one frame; at least one of box, points and mask.

    Attributes:
        frame: from 0.
        identity: prompts with the same number are about one object; None is a separate object.
        box: around it, in pixels.
        points: on it and off it.
        mask: rough, [H, W], bool, uint8 0..255 or float 0..1; another size than the frame's is resized.
        label: what it is called, or empty.
        score: 0..1, confidence.

    Raises:
        ValueError: when the prompt is empty, no point is on the object, or a number is out of range.
    """

    frame: int
    identity: int | None = None
    box: Box | None = None
    points: tuple[Point, ...] = ()
    mask: Tensor | None = None
    label: str = ""
    score: float = 1.0

    def __post_init__(self) -> None:
        if self.frame < 0:
            raise ValueError(f"a prompt is for frame {self.frame}; frames count from 0.")
        if self.box is None and self.mask is None and not any(point.inside for point in self.points):
            raise ValueError(
                f"the prompt for frame {self.frame} says nothing about the object; give a box, a mask or a point on it."
            )
        if self.mask is not None and self.mask.ndim != 2:
            raise ValueError(f"the mask of a prompt has shape {list(self.mask.shape)}; give [height, width].")


def prompt_of_box(box: Box, frame: int, identity: int | None = None) -> ObjectPrompt:
    """A detection as a prompt."""
    return ObjectPrompt(frame, identity, box=box, label=box.label, score=box.score)


def fit_prompt(prompt: ObjectPrompt, frames: int, height: int, width: int) -> ObjectPrompt | None:
    """A prompt cut to a video: box clamped, mask bool [H, W] at frame size; None when it is all outside or empty.

    Raises:
        ValueError: when the frame is not in the video, a point lies outside the picture, or the mask has quite another
            shape.
    """
    if prompt.frame >= frames:
        raise ValueError(
            f"a prompt is for frame {prompt.frame} but the video has {frames} frames; use 0 to {frames - 1}."
        )
    for point in prompt.points:
        if not (0 <= point.x <= width and 0 <= point.y <= height):
            raise ValueError(
                f"point ({point.x:g}, {point.y:g}) in frame {prompt.frame} lies outside the picture of "
                f"{width} x {height} pixels; give pixels of the video that is tracked."
            )
    box = None if prompt.box is None else clamp_box(prompt.box, height, width)
    mask = None if prompt.mask is None else _fit_mask(prompt.mask, height, width)
    if mask is not None and not mask.any():
        mask = None
    if box is None and mask is None and not prompt.points:
        return None
    return replace(prompt, box=box, mask=mask)


def _fit_mask(mask: Tensor, height: int, width: int) -> Tensor:
    values = mask.detach().cpu()
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if not torch.isfinite(values).all():
        raise ValueError("the mask of a prompt holds NaN or infinite values; give numbers in 0..1.")
    check_shape("the mask of a prompt is", values.shape, (height, width))
    if tuple(values.shape) != (height, width):
        values = functional.interpolate(values[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    return values > 0.5


def next_identity(prompts: Sequence[ObjectPrompt]) -> int:
    """A number that no prompt has yet, from 1."""
    return max((prompt.identity for prompt in prompts if prompt.identity is not None), default=0) + 1
