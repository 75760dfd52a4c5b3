"""Boxes in pixels, per frame, and the small arithmetic on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# Of the dictionary form.
SIDES = ("x", "y", "width", "height")
# Letters of a wrong value that a message shows.
MAX_SHOWN = 80

# Called with (done, total) after each piece of work; it may raise to cancel.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Box:
    """A box in a frame.

    Attributes:
        x: left edge in pixels.
        y: top edge in pixels.
        width: in pixels, positive.
        height: in pixels, positive.
        label: the phrase that found it, or empty.
        score: 0..1, confidence of the detector.

    Raises:
        ValueError: when a number is not finite or the size is not positive.
    """

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    score: float = 1.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (self.x, self.y, self.width, self.height, self.score)):
            raise ValueError(f"box {self.to_dict()} has a value that is not finite; give numbers in pixels.")
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"box is {self.width} x {self.height} pixels; width and height must be above 0.")

    @classmethod
    def from_corners(cls, x0: float, y0: float, x1: float, y1: float, label: str = "", score: float = 1.0) -> Box:
        """Box between its top left and bottom right corners, in pixels."""
        return cls(float(x0), float(y0), float(x1 - x0), float(y1 - y0), label, float(score))

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels."""
        return self.x, self.y, self.x + self.width, self.y + self.height

    @property
    def area(self) -> float:
        """In square pixels."""
        return self.width * self.height

    def to_dict(self) -> dict[str, Any]:
        """The dictionary form that ComfyUI's BOUNDING_BOX wires carry."""
        return {
            "x": self.x,
            "y": self.y,
            "width": self.width,
            "height": self.height,
            "label": self.label,
            "score": self.score,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Box:
        """Read the dictionary form; ``label`` and ``score`` may be absent.

        Boxes that are drawn on core's canvas (BOUNDING_BOXES) have no label but ``metadata`` with a description.

        Raises:
            ValueError: when a side is missing or not a number, and as the constructor does.
        """
        missing = [name for name in SIDES if name not in values]
        if missing:
            raise ValueError(
                f"a bounding box has the keys {sorted(map(str, values))} and lacks {', '.join(missing)}; "
                "give x, y, width and height in pixels."
            )
        x, y, width, height = (as_number(values[name], f"{name} of a bounding box") for name in SIDES)
        label, score = values.get("label"), values.get("score")
        if label is None and isinstance(values.get("metadata"), Mapping):
            label = values["metadata"].get("desc")
        # Other packs write None for what they do not know.
        confidence = 1.0 if score is None else as_number(score, "score of a bounding box")
        return cls(x, y, width, height, "" if label is None else str(label), confidence)

    def scaled(self, x_factor: float, y_factor: float) -> Box:
        """The same box in a frame of another size."""
        return replace(
            self,
            x=self.x * x_factor,
            y=self.y * y_factor,
            width=self.width * x_factor,
            height=self.height * y_factor,
        )


def as_number(value: Any, name: str) -> float:
    """A number from another pack as float.

    Args:
        value: a number, or a tensor or array of one.
        name: for the message.

    Raises:
        ValueError: it is not a number, or larger than any float.
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"the {name} is {shown(value)}; give a finite number.") from error


def shown(value: Any) -> str:
    """A value in a message, cut to a readable length."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = " ".join(repr(value).split())
    except ValueError:
        # Whole numbers of thousands of digits in it.
        return f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " ..."


# One list per frame; an empty list is a normal answer.
Detections = list[list[Box]]


def clamp_box(box: Box, height: int, width: int) -> Box | None:
    """Cut a box to the frame; None when nothing of it is inside.

    Args:
        box: in pixels.
        height: of the frame in pixels.
        width: of the frame in pixels.
    """
    x0, y0, x1, y1 = box.corners
    x0, x1 = max(0.0, x0), min(float(width), x1)
    y0, y1 = max(0.0, y0), min(float(height), y1)
    if x1 <= x0 or y1 <= y0:
        return None
    return replace(box, x=x0, y=y0, width=x1 - x0, height=y1 - y0)


def iou(first: Box, second: Box) -> float:
    """Intersection over union, 0..1."""
    ax0, ay0, ax1, ay1 = first.corners
    bx0, by0, bx1, by1 = second.corners
    overlap = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    return overlap / (first.area + second.area - overlap)


def suppress(boxes: Sequence[Box], threshold: float, per_label: bool = False) -> list[Box]:
    """Non-maximum suppression.

    Args:
        boxes: of one frame.
        threshold: a box is dropped when its IoU with a better one is above this; 1 drops nothing.
        per_label: only boxes of the same label compete; otherwise all do.

    Returns:
        The kept boxes, best score first.
    """
    ordered = sorted(boxes, key=lambda item: -item.score)
    if threshold >= 1 or len(ordered) < 2:
        return ordered
    x0, y0, x1, y1 = np.array([box.corners for box in ordered]).T
    areas = (x1 - x0) * (y1 - y0)
    names = np.unique([box.label for box in ordered], return_inverse=True)[1]
    kept: list[Box] = []
    left = np.arange(len(ordered))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(ordered[best])
        wide = np.minimum(x1[left], x1[best]) - np.maximum(x0[left], x0[best])
        high = np.minimum(y1[left], y1[best]) - np.maximum(y0[left], y0[best])
        overlap = wide.clip(0) * high.clip(0)
        stays = overlap / (areas[left] + areas[best] - overlap) <= threshold
        if per_label:
            stays |= names[left] != names[best]
        left = left[stays]
    return kept


def interpolate_box(first: Box, second: Box, share: float) -> Box:
    """Box between two, ``share`` 0 at the first and 1 at the second; label of the first, lower score of both."""

    def between(a: float, b: float) -> float:
        return a + (b - a) * share

    return Box(
        between(first.x, second.x),
        between(first.y, second.y),
        between(first.width, second.width),
        between(first.height, second.height),
        first.label,
        min(first.score, second.score),
    )


def as_detections(boxes: Any, frames: int) -> Detections:
    """Read what a BOUNDING_BOX wire may carry: one box, a list for every frame alike, or one list per frame.

    Args:
        boxes: a :class:`Box` or its dictionary, a flat list of them, or a list of lists.
        frames: number of frames of the clip.

    Raises:
        ValueError: when there are more or fewer lists than frames, or an entry is not a box.
    """
    if isinstance(boxes, Box | Mapping):
        boxes = [boxes]
    if not isinstance(boxes, Sequence) or isinstance(boxes, str):
        raise ValueError(f"bounding boxes are a {type(boxes).__name__}; give a box, a list or a list per frame.")
    if not any(_is_list(item) for item in boxes):
        flat = [_as_box(item) for item in boxes]
        return [list(flat) for _ in range(frames)]
    if len(boxes) == 1:
        boxes = list(boxes) * frames
    if len(boxes) != frames:
        raise ValueError(
            f"there are bounding boxes for {len(boxes)} frames and the clip has {frames}; give one list per frame."
        )
    for frame, per_frame in enumerate(boxes):
        if not _is_list(per_frame):
            raise ValueError(
                f"the bounding boxes of frame {frame} are {shown(per_frame)}; give a list, or an empty one."
            )
    return [[_as_box(item) for item in per_frame] for per_frame in boxes]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _as_box(item: Any) -> Box:
    if isinstance(item, Box):
        return item
    if isinstance(item, Mapping):
        return Box.from_dict(item)
    raise ValueError(f"a bounding box is {shown(item)}; give a dictionary with x, y, width and height in pixels.")
