"""Overlapping windows over the frames of a clip, and how a model's predictions for them are joined.

The windows and weights are those of ComfyUI's ``standard_static`` schedule with ``pyramid`` fusing, so that a clip
comes out the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ContextWindow:
    """A part of a clip, as a U-Net reads it from ``transformer_options["context_window"]``.

    Attributes:
        index_list: its frames in the whole clip, ascending.
        total_frames: of the whole clip.
    """

    index_list: tuple[int, ...]
    total_frames: int


def context_windows(frames: int, length: int, overlap: int) -> list[ContextWindow]:
    """Cut a clip into windows of equal length; the last one is moved back to end with the clip.

    Args:
        frames: of the clip, 1 or more.
        length: frames of a window, 1 or more; a clip of at most this length is one window.
        overlap: frames that a window shares with the next, 0 to ``length`` - 1; the last two may share more.

    Raises:
        ValueError: numbers out of range.
    """
    if frames < 1 or length < 1:
        raise ValueError(f"the clip has {frames} frames and a window {length}; both need at least 1.")
    if not 0 <= overlap < length:
        raise ValueError(f"overlap is {overlap} and window {length}; choose an overlap of 0 to {length - 1}.")
    if frames <= length:
        return [ContextWindow(tuple(range(frames)), frames)]
    starts = [*range(0, frames - length, length - overlap), frames - length]
    return [ContextWindow(tuple(range(start, start + length)), frames) for start in starts]


def pyramid_weights(length: int) -> Tensor:
    """How much each frame of a window counts: 1 at both ends, rising by 1 to the middle. float32 [length]."""
    rising = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(rising, rising.flip(0))


def blend_windows(windows: Sequence[ContextWindow], predict: Callable[[ContextWindow], Tensor]) -> Tensor:
    """Predict every window and average where windows overlap.

    Args:
        windows: of one clip, together covering it.
        predict: gives [B, C, frames of the window, h, w].

    Returns:
        [B, C, T, h, w]; a single window's answer comes back as it is.
    """
    if len(windows) == 1:
        return predict(windows[0])
    total: Tensor | None = None
    counts = torch.zeros(windows[0].total_frames)
    for window in windows:
        part = predict(window)
        if total is None:
            total = part.new_zeros(*part.shape[:2], window.total_frames, *part.shape[3:])
        weights = pyramid_weights(len(window.index_list))
        span = slice(window.index_list[0], window.index_list[-1] + 1)
        total[:, :, span] += part * weights.to(part)[:, None, None]
        counts[span] += weights
    return total / counts.to(total)[:, None, None]
