"""Frames take the colours of a reference: each channel gets the distribution of the reference's channel.

Source: LAMP (arXiv 2310.10769), which matches the histograms of all decoded frames to those of the first one.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256


def histogram_match(frames: Tensor, reference: Tensor) -> Tensor:
    """Match frames to a reference by cumulative histograms of 256 bins, each channel and frame for itself.

    A level becomes the lowest level at which at least as large a part of the reference's pixels lies as of the frame's
    at or below its own. A frame with the same histogram as the reference comes back as it was, in steps of 1/255.

    Args:
        frames: [T, H, W, 3] in 0..1.
        reference: [H', W', 3] in 0..1, of any size.

    Returns:
        float32 [T, H, W, 3], whole multiples of 1/255.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    if frames.ndim != 4 or reference.ndim != 3 or frames.shape[-1] != reference.shape[-1] or not reference.numel():
        raise ValueError(
            f"frames have shape {tuple(frames.shape)} and the reference {tuple(reference.shape)}; give [T, H, W, 3] "
            "and [H, W, 3]."
        )
    for name, pictures in (("the frames", frames), ("the reference", reference[None])):
        if not all(bool(torch.isfinite(picture).all()) for picture in pictures):
            raise ValueError(f"{name} hold NaN or infinite values, so there is no histogram; check the node before.")
    wanted = _cumulative_counts(_levels(reference))
    matched = torch.empty(frames.shape, dtype=torch.float32, device=frames.device)
    pixels = reference.shape[0] * reference.shape[1]
    own_pixels = frames.shape[1] * frames.shape[2]
    for frame, result in zip(frames, matched, strict=True):
        levels = _levels(frame)
        # Parts of pictures of different sizes are compared in whole numbers.
        table = torch.searchsorted(wanted * own_pixels, _cumulative_counts(levels) * pixels)
        result.copy_(table.gather(1, levels.flatten(0, 1).T).T.reshape(frame.shape) / (LEVELS - 1))
    return matched


def _levels(picture: Tensor) -> Tensor:
    """[H, W, 3] in 0..1 as whole levels 0..255."""
    return (picture.float().clamp(0.0, 1.0) * (LEVELS - 1)).round().long()


def _cumulative_counts(levels: Tensor) -> Tensor:
    """How many pixels of each channel lie at or below each level: long [3, 256]."""
    counts = [torch.bincount(channel, minlength=LEVELS) for channel in levels.flatten(0, 1).unbind(1)]
    return torch.stack(counts).cumsum(dim=1)
