"""Cleaning masks over space and time before they guide anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from .boxes import interpolate_box
from .mask_shapes import box_of_mask, moved_shape


@dataclass(frozen=True)
class RefinementSettings:
    """What to do to masks, in the order of the fields.

    Attributes:
        fill_gaps: frames, at least 0: runs of empty frames no longer than this, between frames that are not empty, are
            filled with the neighbours' shape, moved and stretched in between.
        median_frames: odd, at least 1: each pixel takes its median over this many frames; 1 does nothing.
        hysteresis_high: 0..1, pixels above it are surely inside.
        hysteresis_low: 0..1, pixels above it are inside when they touch, in space or time, pixels that are. Equal
            values (the default 0 and 0) leave the mask as it is.
        grow: pixels, grows the mask, or shrinks it when negative.
        feather: pixels, at least 0, width of the soft edge (about 4 standard deviations of a Gaussian); 0 keeps edges.

    Raises:
        ValueError: when a value is out of range.
    """

    fill_gaps: int = 0
    median_frames: int = 1
    hysteresis_high: float = 0.0
    hysteresis_low: float = 0.0
    grow: int = 0
    feather: float = 0.0

    def __post_init__(self) -> None:
        if self.fill_gaps < 0:
            raise ValueError(f"fill_gaps is {self.fill_gaps} frames; choose 0 or more.")
        if self.median_frames < 1 or self.median_frames % 2 == 0:
            raise ValueError(f"median_frames is {self.median_frames}; choose an odd number: 1, 3, 5 ...")
        if not 0.0 <= self.hysteresis_low <= self.hysteresis_high <= 1.0:
            raise ValueError(
                f"hysteresis_low is {self.hysteresis_low} and hysteresis_high {self.hysteresis_high}; "
                "choose 0 <= low <= high <= 1."
            )
        if self.feather < 0:
            raise ValueError(f"feather is {self.feather} pixels; choose 0 or more.")


def refine_masks(
    masks: Tensor,
    grow: int = 0,
    feather: float = 0.0,
    median_frames: int = 1,
    hysteresis_low: float = 0.0,
    hysteresis_high: float = 0.0,
    fill_gaps: int = 0,
) -> Tensor:
    """Fill, smooth, clean, grow and soften masks; parameters as in :class:`RefinementSettings`.

    Args:
        masks: float [T, H, W] or [N, T, H, W], 0..1.
        grow: see the settings, as all that follow.
        feather: see the settings.
        median_frames: see the settings.
        hysteresis_low: see the settings.
        hysteresis_high: see the settings.
        fill_gaps: see the settings.

    Returns:
        float, same shape, 0..1, on the CPU. With the defaults it equals the input.

    Raises:
        ValueError: for another shape, values that are not finite, or a setting out of range.
    """
    settings = RefinementSettings(fill_gaps, median_frames, hysteresis_high, hysteresis_low, grow, feather)
    if masks.ndim not in (3, 4):
        raise ValueError(f"masks have shape {list(masks.shape)}; give [frames, height, width], with objects in front.")
    if masks.dtype == torch.uint8:
        masks = masks / 255
    masks = masks.detach().cpu().float()
    if not torch.isfinite(masks).all():
        raise ValueError("masks hold NaN or infinite values; give numbers in 0..1.")
    masks = masks.clamp(0, 1)
    if masks.numel() == 0:
        return masks.clone()
    if masks.ndim == 3:
        return _refine_object(masks, settings)
    return torch.stack([_refine_object(single, settings) for single in masks])


def _refine_object(mask: Tensor, settings: RefinementSettings) -> Tensor:
    mask = fill_empty_frames(mask, settings.fill_gaps)
    mask = temporal_median(mask, settings.median_frames)
    if settings.hysteresis_high > 0:
        mask = hysteresis(mask, settings.hysteresis_low, settings.hysteresis_high)
    mask = grow_mask(mask, settings.grow)
    return feather_mask(mask, settings.feather)


def fill_empty_frames(mask: Tensor, longest: int) -> Tensor:
    """Fill runs of at most ``longest`` empty frames between others. ``mask``: float [T, H, W]."""
    if longest == 0:
        return mask
    boxes = [box_of_mask(frame) for frame in mask]
    known = [frame for frame, box in enumerate(boxes) if box is not None]
    filled = mask.clone()
    for first, second in zip(known, known[1:], strict=False):
        if not 1 < second - first <= longest + 1:
            continue
        pair = [(mask[frame] * 255).round().to(torch.uint8) for frame in (first, second)]
        for frame in range(first + 1, second):
            target = interpolate_box(boxes[first], boxes[second], (frame - first) / (second - first))
            shape = moved_shape(pair, [boxes[first], boxes[second]], [frame - first, second - frame], target)
            filled[frame] = shape.float() / 255
    return filled


def temporal_median(mask: Tensor, window: int) -> Tensor:
    """Median of each pixel over ``window`` frames (odd), first and last frame repeated. ``mask``: float [T, H, W]."""
    if window == 1 or len(mask) == 1:
        return mask
    reach = window // 2
    index = torch.arange(-reach, len(mask) + reach).clamp(0, len(mask) - 1)
    return mask[index].unfold(0, window, 1).median(dim=-1).values


def hysteresis(mask: Tensor, low: float, high: float) -> Tensor:
    """Keep pixels above ``low`` that are connected, in space and time, to pixels above ``high``; others become 0.

    ``mask``: float [T, H, W]. Neighbours are the 8 in a frame and the same pixel one frame before and after.
    """
    allowed = mask > low
    kept = mask > high
    while True:
        spread = functional.max_pool2d(kept[:, None].float(), 3, 1, 1)[:, 0] > 0
        spread[1:] |= kept[:-1]
        spread[:-1] |= kept[1:]
        grown = (spread & allowed) | kept
        if torch.equal(grown, kept):
            return mask * kept
        kept = grown


def grow_mask(mask: Tensor, pixels: int) -> Tensor:
    """Grow (or, below 0, shrink) by pixels with an almost round outline; the frame's border is no edge. [T, H, W]."""
    if pixels < 0:
        return -_dilate(-mask, -pixels)
    return _dilate(mask, pixels)


def _dilate(mask: Tensor, pixels: int) -> Tensor:
    stack = mask[:, None]
    for turn in range(pixels):
        if turn % 2:
            # Square and cross in turn make an octagon.
            stack = functional.max_pool2d(stack, 3, 1, 1)
        else:
            tall = functional.max_pool2d(stack, (3, 1), 1, (1, 0))
            stack = torch.maximum(tall, functional.max_pool2d(stack, (1, 3), 1, (0, 1)))
    return stack[:, 0]


def feather_mask(mask: Tensor, pixels: float) -> Tensor:
    """Soften edges over about ``pixels`` pixels, centred on the old edge. ``mask``: float [T, H, W]."""
    if pixels == 0:
        return mask
    sigma = pixels / 4
    reach = min(max(1, round(3 * sigma)), min(mask.shape[-2:]) - 1)
    if reach < 1:
        return mask
    ticks = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-ticks.square() / (2 * sigma * sigma))
    kernel = kernel / kernel.sum()
    stack = functional.pad(mask[:, None], (reach, reach, reach, reach), mode="replicate")
    stack = functional.conv2d(stack, kernel.view(1, 1, -1, 1))
    return functional.conv2d(stack, kernel.view(1, 1, 1, -1))[:, 0].clamp(0, 1)
