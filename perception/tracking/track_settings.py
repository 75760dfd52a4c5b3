"""How objects are followed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Direction = Literal["both", "forward", "backward"]


@dataclass(frozen=True)
class TrackSettings:
    """How objects are followed.

    Attributes:
        max_gap: frames, at least 0: an object that is out of sight for no longer keeps its number when it is found
            again; None for the whole video.
        extend: frames, at least 0: how far an object is followed before it was first and after it was last found by
            a box or prompt; None for the whole video.
        minimum_seen: frames, at least 1: objects that were found in fewer are dropped as false alarms (none is when
            fewer than 4 frames have boxes, or fewer than 8 and not even half of the video; or when a prompt named it).
        max_objects: at least 1, those found most often and with the best scores are kept; None keeps all.
        soft: keep the soft edge of the masks instead of cutting at one half.
        duplicate_iou: 0..1: a thing whose mask overlaps that of a followed object more than this is that object (two
            boxes or two phrases for one thing), and a pixel belongs to one object at most; 1 keeps everything that was
            found and lets masks overlap.
        direction: of time: ``forward`` from where an object was found, ``backward``, or ``both``.
        folder: where to keep the masks in files that vanish with them; None keeps them in memory.
        find_every: frames, at least 1: how often a model that takes words looks for them.

    Raises:
        ValueError: when a number is out of range.
    """

    max_gap: int | None = None
    extend: int | None = None
    minimum_seen: int = 2
    max_objects: int | None = None
    soft: bool = False
    duplicate_iou: float = 0.75
    direction: Direction = "both"
    folder: str | Path | None = None
    find_every: int = 8

    def __post_init__(self) -> None:
        for name, least in (("max_gap", 0), ("extend", 0), ("minimum_seen", 1), ("max_objects", 1), ("find_every", 1)):
            value = getattr(self, name)
            if value is None and name in ("max_gap", "extend", "max_objects"):
                continue
            if value < least:
                raise ValueError(f"{name} is {value}; choose {least} or more.")
        if not 0.0 <= self.duplicate_iou <= 1.0:
            raise ValueError(f"duplicate_iou is {self.duplicate_iou}; choose a number from 0 to 1.")
        if self.direction not in ("both", "forward", "backward"):
            raise ValueError(f"direction is {self.direction!r}; choose both, forward or backward.")
