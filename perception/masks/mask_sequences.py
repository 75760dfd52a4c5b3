"""A sequence of masks brought to another length and size, onto a path, wider and softer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from ..boxes import Box, Progress, interpolate_box
from ..mask_shapes import box_of_mask, moved_mask
from ..mask_stack import MaskStack
from ..tracks import Tracks
from .mask_morphology import feather, grow, inside, signed_distance
from .mask_paths import ObjectPath

Timing = Literal["interpolate", "hold", "extend", "repeat", "exact"]
TIMINGS: tuple[str, ...] = get_args(Timing)
Placing = Literal["stretch", "fit", "keep"]
PLACINGS: tuple[str, ...] = get_args(Placing)

MAX_FRAMES = 100_000
MAX_SIDE = 16384


@dataclass(frozen=True)
class SequenceSettings:
    """What to do to a sequence of masks, in the order of the fields; the defaults do nothing.

    Attributes:
        start: masks at the beginning that are left out.
        frames: length of the result; 0 is as many as are left.
        timing: how the length is reached. ``interpolate`` spreads the masks evenly from the first frame to the last and
            blends shapes in between; ``hold`` gives each mask equally many frames; ``extend`` keeps their speed and the
            last one stays; ``repeat`` keeps their speed and begins again; ``exact`` refuses another length. One mask
            is always for all frames.
        height: of the result in pixels; 0 keeps it.
        width: of the result in pixels; 0 keeps it.
        paths: none, one for each object, or one for all: every mask moves onto its object's box in its frame, and is
            empty where the object is hidden.
        placing: how it lies in that box: ``fit`` keeps its proportions, ``keep`` its size too, ``stretch`` fills the
            box.
        dilate: pixels of the result by which masks grow, or shrink below 0.
        feather: pixels of the result over which edges fade.

    Raises:
        ValueError: a value out of range.
    """

    start: int = 0
    frames: int = 0
    timing: Timing = "interpolate"
    height: int = 0
    width: int = 0
    paths: tuple[ObjectPath, ...] = ()
    placing: Placing = "fit"
    dilate: int = 0
    feather: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("start", MAX_FRAMES), ("frames", MAX_FRAMES), ("height", MAX_SIDE), ("width", MAX_SIDE)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}; choose a number from 0 to {most}.")
        for name, known in (("timing", TIMINGS), ("placing", PLACINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        if abs(self.dilate) > MAX_SIDE:
            raise ValueError(f"dilate is {self.dilate} pixels; choose at most {MAX_SIDE}, in either direction.")
        if not 0.0 <= self.feather <= MAX_SIDE:
            raise ValueError(f"feather is {self.feather} pixels; choose a number from 0 to {MAX_SIDE}.")


def make_sequence(tracks: Tracks, settings: SequenceSettings, progress: Progress | None = None) -> Tracks:
    """Masks of every object as the settings say; with the defaults, the tracks themselves.

    Args:
        tracks: at least one frame; may hold no object. They are left as they are.
        settings: see there.
        progress: called with (done, total) after every mask; may raise to cancel.

    Returns:
        The same objects. Masks between two soft ones are soft, between two hard ones hard; only feathering and soft
        masks make soft ones. Scores and misses are those of the nearest mask; an empty mask counts as not seen.

    Raises:
        ValueError: no mask is left, a wrong length where it must be exact, or another number of paths than objects.
    """
    if settings == SequenceSettings():
        return tracks
    places = _places(tracks.frames, settings)
    if settings.paths and len(settings.paths) not in (1, len(tracks.ids)):
        raise ValueError(
            f"there are {len(settings.paths)} paths and {len(tracks.ids)} objects; give a path for each, or one."
        )
    height, width = settings.height or tracks.size[0], settings.width or tracks.size[1]
    depth = "byte" if settings.feather > 0 else tracks.masks.depth
    stack = MaskStack(len(places), height, width, depth, tracks.masks.folder)
    nearest = [math.floor(place + 0.5) for place in places]
    scores, misses = tracks.scores[:, nearest].clone(), tracks.misses[:, nearest].clone()
    for number in range(len(tracks.ids)):
        stack.add_object()
        boxes = _boxes(settings, number, len(places), height, width)
        for frame, place in enumerate(places):
            mask = _resized(_mask_at(tracks, number, place), height, width)
            if boxes is not None:
                mask = _placed(mask, boxes[frame], settings.placing)
            if tracks.masks.depth == "bit":
                mask = inside(mask).astype(np.uint8) * np.uint8(255)
            mask = feather(grow(mask, settings.dilate), settings.feather)
            stack.write(number, frame, torch.from_numpy(mask))
            if not inside(mask).any():
                scores[number, frame], misses[number, frame] = 0.0, True
            if progress is not None:
                progress(number * len(places) + frame + 1, len(tracks.ids) * len(places))
    return Tracks(stack, tracks.ids, tracks.labels, scores, misses)


def _places(count: int, settings: SequenceSettings) -> list[float]:
    """For each frame of the result, where between the masks of the sequence it lies."""
    left = count - settings.start
    if left < 1:
        raise ValueError(f"start is {settings.start} and there are {count} masks; choose at most {count - 1}.")
    frames = settings.frames or left
    if settings.timing == "exact" and left not in (1, frames):
        raise ValueError(
            f"there are {left} masks from mask {settings.start} on and {frames} frames are wanted; give as many, or "
            "choose another timing than exact."
        )
    if settings.timing == "interpolate":
        places = [frame * (left - 1) / max(1, frames - 1) for frame in range(frames)]
    elif settings.timing == "hold":
        places = [frame * left // frames for frame in range(frames)]
    elif settings.timing == "repeat":
        places = [frame % left for frame in range(frames)]
    else:
        places = [min(frame, left - 1) for frame in range(frames)]
    return [settings.start + place for place in places]


def _boxes(settings: SequenceSettings, number: int, frames: int, height: int, width: int) -> list[Box | None] | None:
    if not settings.paths:
        return None
    path = settings.paths[number if len(settings.paths) > 1 else 0]
    return path.boxes(frames, height, width)


def _mask_at(tracks: Tracks, number: int, place: float) -> np.ndarray:
    """The mask at a place between two, uint8 0..255: shapes move, stretch and blend from one to the other."""
    first = math.floor(place)
    share = place - first
    before = tracks.masks[number, first].numpy()
    if share < 1e-6:
        return before
    after = tracks.masks[number, first + 1].numpy()
    boxes = [box_of_mask(torch.from_numpy(mask)) for mask in (before, after)]
    if None in boxes:
        # There is nothing to blend with: the thing appears or vanishes half way.
        return before if share < 0.5 else after
    target = interpolate_box(*boxes, share)
    pair = [moved_mask(mask, box, target) for mask, box in zip((before, after), boxes, strict=True)]
    if tracks.masks.depth == "byte":
        return np.round(255 * ((1 - share) * pair[0] + share * pair[1])).astype(np.uint8)
    # Where both lie one over the other, blended distances to their edges make a shape between both.
    distance = (1 - share) * signed_distance(pair[0]) + share * signed_distance(pair[1])
    return (distance > 0).astype(np.uint8) * np.uint8(255)


def _resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Another size, by area where it shrinks; a thing too thin for it keeps its strongest pixel."""
    import cv2

    if mask.shape == (height, width):
        return mask
    smaller = height < mask.shape[0] or width < mask.shape[1]
    scaled = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    if inside(mask).any() and not inside(scaled).any():
        scaled.flat[scaled.argmax()] = 255
    return scaled


def _placed(mask: np.ndarray, target: Box | None, placing: Placing) -> np.ndarray:
    """The mask's shape moved into a box, which may lie outside of the picture."""
    box = box_of_mask(torch.from_numpy(mask))
    if target is None or box is None:
        return np.zeros_like(mask)
    x_scale, y_scale = target.width / box.width, target.height / box.height
    if placing != "stretch":
        x_scale = y_scale = min(x_scale, y_scale) if placing == "fit" else 1.0
    wide, high = box.width * x_scale, box.height * y_scale
    middle_x, middle_y = target.x + target.width / 2, target.y + target.height / 2
    moved = moved_mask(mask, box, Box(middle_x - wide / 2, middle_y - high / 2, wide, high))
    return np.round(255 * moved).astype(np.uint8)
