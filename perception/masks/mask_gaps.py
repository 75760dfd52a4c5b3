"""Masks for frames in which an object was not seen, from the frames around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..boxes import interpolate_box
from ..frames import Film
from ..mask_shapes import box_of_mask, moved_shape
from ..mask_stack import MaskStack
from ..optical_flow import FlowEstimator, flow_between
from .mask_films import MaskFilm, Tick
from .mask_morphology import full_value, inside, signed_distance

# A shape is no longer trusted when less than this share of it is found again in the next frame, or less than this
# share of it is expected to be right.
LEAST_BELIEF = 0.5


def fill_gaps(
    film: MaskFilm, longest: int, pictures: Film | None, tick: Tick, estimate: FlowEstimator = flow_between
) -> None:
    """Fill runs of at most ``longest`` empty frames between others, in place.

    With pictures the shapes before and after a gap are carried into it by optical flow, each as far as the flow is
    consistent, and blended. What remains empty, and everything without pictures, gets the neighbours' shape moved and
    stretched from box to box.

    Args:
        film: masks of one object.
        longest: frames; 0 fills nothing.
        pictures: as many as there are masks, of any size.
        tick: called after every step of the flow.
        estimate: makes the flow.
    """
    known = [frame for frame in range(len(film)) if inside(film.read(frame)).any()] if longest else []
    for first, second in zip(known, known[1:], strict=False):
        if not 1 < second - first <= longest + 1:
            continue
        filled = {first, second}
        if pictures is not None:
            for frame, mask in _flow_filled(film, first, second, pictures, tick, estimate):
                film.write(frame, mask)
                filled.add(frame)
        ends = sorted(filled)
        for start, stop in zip(ends, ends[1:], strict=False):
            _move_between(film, start, stop)


def _move_between(film: MaskFilm, first: int, second: int) -> None:
    """Fill the frames between two masks with their shapes, moved at constant speed."""
    if second - first < 2:
        return
    masks = [film.read(frame) for frame in (first, second)]
    pair = [torch.from_numpy(inside(mask).view(np.uint8) * np.uint8(255)) for mask in masks]
    boxes = [box_of_mask(mask) for mask in pair]
    for frame in range(first + 1, second):
        target = interpolate_box(*boxes, (frame - first) / (second - first))
        shape = moved_shape(pair, boxes, [frame - first, second - frame], target)
        film.write(frame, _like(shape.numpy() > 127, masks[0]))


def _flow_filled(
    film: MaskFilm, first: int, second: int, pictures: Film, tick: Tick, estimate: FlowEstimator
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames of a gap that the flow reaches, with their masks."""
    sources = {frame: film.read(frame) for frame in (first, second)}
    forward = _carried(sources[first], inside(sources[second]), range(first, second + 1), pictures, tick, estimate)
    backward = _carried(sources[second], inside(sources[first]), range(second, first - 1, -1), pictures, tick, estimate)
    for frame in range(first + 1, second):
        way = (frame - first) / (second - first)
        beliefs = [forward.belief(frame, way), backward.belief(frame, 1 - way)]
        if max(beliefs) < LEAST_BELIEF:
            continue
        weights = [belief * near for belief, near in zip(beliefs, (1 - way, way), strict=True)]
        # Blended distances to the edge make a shape between both; blended masks would be the nearer one.
        distance = sum(
            weight * signed_distance(carried.mask(frame))
            for weight, carried in zip(weights, (forward, backward), strict=True)
            if weight > 0
        )
        mask = distance > 0
        if mask.any():
            yield frame, _like(mask, sources[first])


@dataclass(frozen=True)
class _Carried:
    """A shape carried by flow from one end of a gap to the other.

    Attributes:
        masks: of one object, packed.
        place: of each frame in them.
        found: of each frame that it reached, 0..1, the share of it that was found again, least of all steps.
        agreement: 0..1, its overlap with the shape at the other end, 0 when it did not get there.
    """

    masks: MaskStack
    place: dict[int, int]
    found: dict[int, float]
    agreement: float

    def mask(self, frame: int) -> np.ndarray:
        return self.masks[0, self.place[frame]].numpy()

    def belief(self, frame: int, way: float) -> float:
        """0..1, how much of the shape is expected to be right after that share of the way."""
        if self.agreement >= LEAST_BELIEF:
            # It arrives where it should, so the way was right.
            return 1 - way * (1 - self.agreement)
        return self.found.get(frame, 0.0) * (1 - way)


def _carried(
    source: np.ndarray, goal: np.ndarray, frames: range, pictures: Film, tick: Tick, estimate: FlowEstimator
) -> _Carried:
    """Carry a shape from the first of some frames to the last.

    The way of every pixel back to the first frame is followed and the shape looked up there once, so that it does not
    blur on the way.
    """
    import cv2

    height, width = source.shape
    shape = inside(source).astype(np.float32)
    from_y, from_x = y, x = np.mgrid[:height, :width].astype(np.float32)
    masks = MaskStack(len(frames), height, width)
    masks.add_object()
    found, share, agreement = {}, 1.0, 0.0
    before = _picture(pictures, frames[0], height, width)
    for place, frame in enumerate(frames[1:], start=1):
        after = _picture(pictures, frame, height, width)
        flow = estimate(before, after)
        shift = flow.shift.numpy()
        step = x + shift[..., 0], y + shift[..., 1]
        from_x = cv2.remap(from_x, *step, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        from_y = cv2.remap(from_y, *step, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        carried = cv2.remap(shape, from_x, from_y, cv2.INTER_LINEAR) > 0.5
        tick()
        known = flow.known.numpy()[carried].mean() if carried.any() else 0.0
        if known < LEAST_BELIEF:
            break
        share = min(share, float(known))
        found[frame] = share
        masks.write(0, place, torch.from_numpy(carried))
        if place == len(frames) - 1:
            agreement = float((carried & goal).sum() / (carried | goal).sum())
        before = after
    return _Carried(masks, {frame: place for place, frame in enumerate(frames)}, found, agreement)


def _picture(pictures: Film, frame: int, height: int, width: int) -> np.ndarray:
    """A frame at the size of the masks: uint8 [H, W, 3]."""
    import cv2

    picture = pictures.picture(frame)
    if picture.shape[:2] == (height, width):
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _like(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    return mask.astype(other.dtype) * other.dtype.type(full_value(other))
