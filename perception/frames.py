"""Reading frames in: one check for everything that takes pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Film:
    """Frames that are read a few at a time, so that a long video is never copied.

    Args:
        frames: [T, H, W, C] or one picture [H, W, C], float 0..1 or uint8 0..255; of more than 3 channels the first 3
            are used.

    Raises:
        ValueError: for another shape or no frames. Values that are not finite are found when their frame is read.
    """

    def __init__(self, frames: Tensor | Film) -> None:
        if isinstance(frames, Film):
            frames = frames.frames
        if frames.ndim == 3:
            frames = frames[None]
        if frames.ndim != 4 or frames.shape[-1] < 3:
            raise ValueError(f"frames have shape {list(frames.shape)}; give [frames, height, width, 3].")
        if 0 in frames.shape[:3]:
            raise ValueError(f"frames have shape {list(frames.shape)}; give at least one frame of at least one pixel.")
        self.frames = frames

    def __len__(self) -> int:
        return self.frames.shape[0]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.frames.shape[2]

    def read(self, frames: Sequence[int]) -> Tensor:
        """Some frames: float [t, H, W, 3] in 0..1 on the CPU, a copy.

        Raises:
            ValueError: when a value is not finite.
        """
        part = self.frames[list(frames)][..., :3].detach().cpu()
        if part.dtype == torch.uint8:
            return part.float().div_(255)
        part = part.float()
        # A sum is finite when all of its terms are, and much faster to look at.
        if not torch.isfinite(part.sum()):
            self._check_finite(part, list(frames))
        return part.clamp_(0, 1)

    def _check_finite(self, part: Tensor, frames: list[int]) -> None:
        finite = torch.isfinite(part).flatten(1).all(1)
        if not finite.all():
            first = frames[int((~finite).nonzero()[0])]
            raise ValueError(
                f"frame {first} holds NaN or infinite values; decode the video again before detecting in it."
            )

    def picture(self, frame: int) -> np.ndarray:
        """One frame as uint8 [H, W, 3], which image processors of every version read alike."""
        # In place: a frame is read anew for each call, and a large one as floats takes tens of megabytes.
        return self.read([frame]).mul_(255).round_().to(torch.uint8)[0].numpy()


def as_bytes(frames: Tensor) -> list[np.ndarray]:
    """Frames as uint8 arrays [H, W, 3], which image processors of every version read alike."""
    return list((frames * 255).round().to(torch.uint8).numpy())
