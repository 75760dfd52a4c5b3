"""One object's masks over time, changed frame by frame: median and hysteresis over any length.

Nothing here holds more than a few frames, whatever the length of the video.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..mask_stack import MaskStack
from .mask_morphology import full_value

# Called after every frame that was worked on; may raise to cancel.
Tick = Callable[[], None]


class MaskFilm(Protocol):
    """Masks of one object that are read and written one at a time.

    Attributes:
        hard: whether every pixel is either wholly inside or wholly outside.
    """

    hard: bool

    def __len__(self) -> int:
        """Number of frames."""

    def read(self, frame: int) -> np.ndarray:
        """A mask, uint8 0..255 or float32 0..1, [H, W]; not to be changed."""

    def write(self, frame: int, mask: np.ndarray) -> None:
        """Put a mask of the same kind in place."""


class StackFilm:
    """One object of a :class:`MaskStack`; masks are uint8."""

    def __init__(self, stack: MaskStack, number: int) -> None:
        self.stack, self.number = stack, number
        self.hard = stack.depth == "bit"

    def __len__(self) -> int:
        return self.stack.frames

    def read(self, frame: int) -> np.ndarray:
        """See :class:`MaskFilm`."""
        return self.stack[self.number, frame].numpy()

    def write(self, frame: int, mask: np.ndarray) -> None:
        """See :class:`MaskFilm`."""
        self.stack.write(self.number, frame, torch.from_numpy(mask))


class TensorFilm:
    """A tensor [T, H, W], float32 0..1 on the CPU, that is changed in place."""

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks.numpy()
        self.hard = all(((mask == 0) | (mask == 1)).all() for mask in self.masks)

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, frame: int) -> np.ndarray:
        """See :class:`MaskFilm`."""
        return self.masks[frame].copy()

    def write(self, frame: int, mask: np.ndarray) -> None:
        """See :class:`MaskFilm`."""
        self.masks[frame] = mask


def temporal_median(film: MaskFilm, window: int, tick: Tick) -> None:
    """Give each pixel its median over ``window`` frames (odd); beyond both ends the outermost frame is repeated."""
    reach, last = window // 2, len(film) - 1
    near = deque([film.read(min(max(frame, 0), last)) for frame in range(-reach, reach + 1)], maxlen=window)
    count = np.sum([mask > 0 for mask in near], axis=0, dtype=np.int16) if film.hard else None
    for frame in range(len(film)):
        if count is None:
            film.write(frame, _median(list(near)))
        else:
            film.write(frame, ((count > reach) * full_value(near[0])).astype(near[0].dtype))
        # What is read lies ahead of what is written, but for the last frame, which is written last.
        coming = film.read(min(frame + 1 + reach, last)) if frame < last else None
        if coming is not None and count is not None:
            count += coming > 0
            count -= near[0] > 0
        if coming is not None:
            near.append(coming)
        tick()


def _median(masks: list[np.ndarray]) -> np.ndarray:
    """Median of an odd number of masks, by exchanging neighbours: faster than sorting pixel by pixel."""
    size = len(masks)
    for turn in range(size):
        for place in range(turn % 2, size - 1, 2):
            low, high = masks[place], masks[place + 1]
            masks[place], masks[place + 1] = np.minimum(low, high), np.maximum(low, high)
    return masks[size // 2]


def hysteresis(film: MaskFilm, low: float, high: float, tick: Tick) -> None:
    """Keep pixels above ``low`` that are connected, in space and time, to pixels above ``high``; others become 0.

    Neighbours are the 8 in a frame and the same pixel one frame before and after. The masks are read twice: first every
    frame's parts are joined to those of the frame before, then the groups with a pixel above ``high`` are kept.

    Args:
        film: changed in place.
        low: 0..1.
        high: 0..1, at least ``low``.
        tick: called twice a frame.
    """
    groups = _Groups()
    starts, before = [], None
    for frame in range(len(film)):
        mask = film.read(frame)
        labels, count = _parts(mask, low)
        starts.append(groups.add(np.isin(np.arange(1, count), labels[mask > _level(mask, high)])))
        if before is not None:
            both = (before > 0) & (labels > 0)
            for pair in np.unique(before[both].astype(np.int64) * count + labels[both]).tolist():
                groups.join(starts[-2] + pair // count - 1, starts[-1] + pair % count - 1)
        before = labels
        tick()
    for frame, start in enumerate(starts):
        mask = film.read(frame)
        labels, count = _parts(mask, low)
        kept = np.array([False, *(groups.is_kept(start + part) for part in range(count - 1))])
        film.write(frame, mask * kept[labels])
        tick()


def _parts(mask: np.ndarray, low: float) -> tuple[np.ndarray, int]:
    """Connected parts above a level: int32 [H, W], 0 outside; and how many numbers there are, 0 among them."""
    import cv2

    count, labels = cv2.connectedComponents((mask > _level(mask, low)).view(np.uint8), connectivity=8)
    return labels, count


def _level(mask: np.ndarray, share: float) -> float:
    return math.floor(share * 255) if mask.dtype == np.uint8 else np.float32(share)


class _Groups:
    """Numbered parts that are joined into groups; a group is kept when one of its parts is."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._kept: list[bool] = []

    def add(self, kept: np.ndarray) -> int:
        """Add parts, each as a separate group; returns the number of the first one."""
        start = len(self._parents)
        self._parents.extend(range(start, start + len(kept)))
        self._kept.extend(kept.tolist())
        return start

    def join(self, first: int, second: int) -> None:
        first, second = self._root(first), self._root(second)
        self._parents[second] = first
        self._kept[first] = self._kept[first] or self._kept[second]

    def is_kept(self, part: int) -> bool:
        return self._kept[self._root(part)]

    def _root(self, part: int) -> int:
        while self._parents[part] != part:
            # Every other step is skipped from now on, which keeps ways short.
            self._parents[part] = self._parents[self._parents[part]]
            part = self._parents[part]
        return part
