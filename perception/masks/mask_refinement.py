"""Cleaning masks over space and time before they guide anything."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..boxes import Progress
from ..frames import Film
from ..mask_stack import MaskStack
from ..optical_flow import FlowEstimator, flow_between
from ..tracks import Tracks
from .mask_films import MaskFilm, StackFilm, TensorFilm, hysteresis, temporal_median
from .mask_gaps import fill_gaps
from .mask_morphology import as_box, feather, fill_holes, grow, keep_components


@dataclass(frozen=True)
class RefinementSettings:
    """What to do to masks, in the order of the fields; the defaults do nothing. A pixel is inside above one half.

    Attributes:
        fill_gaps: frames, at least 0: runs of empty frames no longer than this, between frames that are not empty, are
            filled: with the shapes around the gap carried into it by optical flow where frames are given and the flow
            is consistent, else with those shapes moved and stretched in between. Filled masks have hard edges.
        median_frames: odd, at least 1: each pixel takes its median over this many frames; 1 does nothing.
        hysteresis_high: 0..1, pixels above it are always inside.
        hysteresis_low: 0..1, pixels above it are inside when they touch, in space or time, pixels that are. A high
            value of 0 (the default) leaves the mask as it is.
        component_share: 0..1: in each frame, a connected part stays when its area is at least this share of the largest
            part's. 0 keeps every part, 1 the largest alone.
        fill_holes: pixels: holes of at most this area, enclosed by the mask, are filled; 0 fills none, -1 all.
        grow: pixels, grows the mask, or shrinks it when negative, with a round outline.
        box: the mask becomes its bounding box.
        box_padding: pixels, at least 0, by which that box is wider on every side.
        feather: pixels, at least 0, width of the soft edge (about 4 standard deviations of a Gaussian); 0 keeps edges.

    Raises:
        ValueError: when a value is out of range.
    """

    fill_gaps: int = 0
    median_frames: int = 1
    hysteresis_high: float = 0.0
    hysteresis_low: float = 0.0
    component_share: float = 0.0
    fill_holes: int = 0
    grow: int = 0
    box: bool = False
    box_padding: int = 0
    feather: float = 0.0

    def __post_init__(self) -> None:
        if self.median_frames < 1 or self.median_frames % 2 == 0:
            raise ValueError(f"median_frames is {self.median_frames}; choose an odd number: 1, 3, 5 ...")
        if not 0.0 <= self.hysteresis_low <= self.hysteresis_high <= 1.0:
            raise ValueError(
                f"hysteresis_low is {self.hysteresis_low} and hysteresis_high {self.hysteresis_high}; "
                "choose 0 <= low <= high <= 1."
            )
        if not 0.0 <= self.component_share <= 1.0:
            raise ValueError(f"component_share is {self.component_share}; choose a number from 0 to 1.")
        if self.fill_holes < -1:
            raise ValueError(f"fill_holes is {self.fill_holes} pixels; choose 0 or more, or -1 for holes of any size.")
        for name, unit in (("fill_gaps", "frames"), ("box_padding", "pixels"), ("feather", "pixels")):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value} {unit}; choose 0 or more.")

    @property
    def changes_shapes(self) -> bool:
        """Whether something is done to masks one at a time."""
        return bool(self.component_share or self.fill_holes or self.grow or self.box or self.feather)

    @property
    def passes(self) -> int:
        """How many times the video is gone through."""
        return (
            (self.fill_gaps > 0) + (self.median_frames > 1) + 2 * (self.hysteresis_high > 0) + int(self.changes_shapes)
        )


def refine_masks(
    masks: Tensor,
    grow: int = 0,
    feather: float = 0.0,
    median_frames: int = 1,
    hysteresis_low: float = 0.0,
    hysteresis_high: float = 0.0,
    fill_gaps: int = 0,
    component_share: float = 0.0,
    fill_holes: int = 0,
    box: bool = False,
    box_padding: int = 0,
    frames: Tensor | Film | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Fill, smooth, clean, grow and soften masks; parameters as in :class:`RefinementSettings`.

    Args:
        masks: float [T, H, W] or [N, T, H, W], 0..1, or uint8 0..255.
        grow: see the settings, as all that follow.
        feather: see the settings.
        median_frames: see the settings.
        hysteresis_low: see the settings.
        hysteresis_high: see the settings.
        fill_gaps: see the settings.
        component_share: see the settings.
        fill_holes: see the settings.
        box: see the settings.
        box_padding: see the settings.
        frames: the T frames that the masks belong to, as :class:`Film` takes them, of any size; only for filling gaps.
        progress: called with (done, total) after every frame of every pass; may raise to cancel.

    Returns:
        float, same shape, 0..1, on the CPU, a copy. With the defaults it equals the input.

    Raises:
        ValueError: for another shape, values that are not finite, other counts of frames and masks, or a setting out
            of range.
    """
    settings = RefinementSettings(
        fill_gaps, median_frames, hysteresis_high, hysteresis_low, component_share, fill_holes, grow, box, box_padding,
        feather,
    )  # fmt: skip
    if masks.ndim not in (3, 4):
        raise ValueError(f"masks have shape {list(masks.shape)}; give [frames, height, width], with objects in front.")
    masks = masks / 255 if masks.dtype == torch.uint8 else masks.detach().cpu().float()
    if not torch.isfinite(masks).all():
        raise ValueError("masks hold NaN or infinite values; give numbers in 0..1.")
    refined = masks.clamp(0, 1).contiguous()
    if refined.numel() == 0:
        return refined
    objects = refined[None] if refined.ndim == 3 else refined
    pictures = _pictures(frames, objects.shape[1])
    counter = _Counter(progress, len(objects) * objects.shape[1] * settings.passes)
    for masks_of_object in objects:
        _refine(TensorFilm(masks_of_object), settings, pictures, counter)
    return refined


def refine_tracks(
    tracks: Tracks,
    settings: RefinementSettings,
    frames: Tensor | Film | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    estimate: FlowEstimator = flow_between,
) -> Tracks:
    """Refine the masks of every object; identities, scores and misses stay (a filled mask is not a sighting).

    Masks are read and written one at a time and packed again. Soft masks, which feathering makes, take a byte a pixel:
    0.92 GB for 1000 frames of 1280 x 720 pixels, per object. Give a folder for those.

    Args:
        tracks: left as they are.
        settings: what to do.
        frames: the T frames that the masks belong to, as :class:`Film` takes them, of any size; only for filling gaps.
        folder: where to keep the new masks in files instead of memory, see :class:`MaskStack`.
        progress: called with (done, total) after every frame of every pass; may raise to cancel.
        estimate: makes the flow by which gaps are filled.

    Raises:
        ValueError: for a different number of frames and masks.
        OSError: when the folder cannot be written or is full.
    """
    pictures = _pictures(frames, tracks.frames)
    if settings.passes == 0 or not tracks.ids:
        return tracks
    depth = "byte" if settings.feather > 0 else tracks.masks.depth
    stack = MaskStack(tracks.frames, *tracks.size, depth, folder)
    counter = _Counter(progress, len(tracks.ids) * tracks.frames * (settings.passes + 1))
    for number in range(len(tracks.ids)):
        film = StackFilm(stack, stack.add_object())
        for frame in range(tracks.frames):
            stack.write(film.number, frame, tracks.masks[number, frame])
            counter.step()
        _refine(film, settings, pictures, counter, estimate)
    return replace(tracks, masks=stack)


def _refine(
    film: MaskFilm,
    settings: RefinementSettings,
    pictures: Film | None,
    counter: _Counter,
    estimate: FlowEstimator = flow_between,
) -> None:
    if settings.fill_gaps > 0:
        fill_gaps(film, settings.fill_gaps, pictures, counter.wait, estimate)
        counter.step(len(film))
    if settings.median_frames > 1:
        temporal_median(film, settings.median_frames, counter.step)
    if settings.hysteresis_high > 0:
        hysteresis(film, settings.hysteresis_low, settings.hysteresis_high, counter.step)
    if settings.changes_shapes:
        for frame in range(len(film)):
            film.write(frame, _reshaped(film.read(frame), settings))
            counter.step()


def _reshaped(mask: np.ndarray, settings: RefinementSettings) -> np.ndarray:
    """One mask with everything done that needs no other frame; where nothing is to do, the functions copy."""
    mask = keep_components(mask, settings.component_share)
    mask = fill_holes(mask, settings.fill_holes)
    mask = grow(mask, settings.grow)
    if settings.box:
        mask = as_box(mask, settings.box_padding)
    return feather(mask, settings.feather)


def _pictures(frames: Tensor | Film | None, count: int) -> Film | None:
    if frames is None:
        return None
    pictures = Film(frames)
    if len(pictures) != count:
        raise ValueError(f"there are {len(pictures)} frames and masks for {count}; give the frames of the masks.")
    return pictures


class _Counter:
    """Counts frames for the caller's progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self, frames: int = 1) -> None:
        self.done += frames
        self.wait()

    def wait(self) -> None:
        """Nothing is finished yet, but the caller may want to cancel."""
        if self.progress is not None:
            self.progress(self.done, self.total)
