"""Drawn paths: objects as boxes or ellipses at a few frames, in between along lines or smooth curves.

Written as JSON: a list of objects (or one of them by itself), each with keyframes. Places and sizes are fractions of
the picture, so that a path serves every size::

    [{"label": "red ball", "shape": "ellipse", "curve": "spline", "keyframes": [
        {"frame": 0, "x": 0.2, "y": 0.7, "width": 0.3, "height": 0.3},
        {"frame": 7, "x": 0.8, "y": 0.3}]}]

``x`` and ``y`` are the middle of the object; they may lie outside of the picture. A size holds until another is given.
``"hidden": [[3, 5]]`` hides an object from frame 3 to frame 5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..boxes import Box, Detections
from ..mask_stack import MaskStack
from ..tracks import Tracks
from .keyframes import (
    CURVES,
    LAST_FRAME,
    MAX_KEYFRAMES,
    Curve,
    Keyframe,
    check_keyframes,
    interpolate_keyframes,
)

Shape = Literal["box", "ellipse"]
SHAPES: tuple[str, ...] = get_args(Shape)

MAX_OBJECTS = 64
MAX_TEXT = 1_000_000
# Fractions of the picture: an object may wait far outside, and be larger than the picture.
FARTHEST, LARGEST = 10.0, 10.0
_OBJECT_KEYS = ("label", "shape", "curve", "hidden", "keyframes")
_KEYFRAME_KEYS = ("frame", "x", "y", "width", "height")


@dataclass(frozen=True)
class ObjectPath:
    """Where one object is, and how large.

    Attributes:
        keyframes: (frame, (x, y, width, height)) in rising order of frames from 0: the object's middle and its size as
            fractions of the picture's width and height. Middles from -10 to 11, sizes above 0, up to 10.
        label: the phrase that names it; may be empty.
        shape: ``box`` or ``ellipse``.
        curve: between the keyframes: ``linear``, ``spline`` (smooth) or ``hold`` (jumps).
        hidden: pairs of first and last frame in which it is not there.

    Raises:
        ValueError: a value out of range.
    """

    keyframes: tuple[Keyframe, ...]
    label: str = ""
    shape: Shape = "box"
    curve: Curve = "linear"
    hidden: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        name = f"keyframes of {self.label!r}" if self.label else "keyframes"
        check_keyframes(self.keyframes, name)
        if self.shape not in SHAPES:
            raise ValueError(f"shape is {self.shape!r}; choose one of {', '.join(SHAPES)}.")
        if self.curve not in CURVES:
            raise ValueError(f"curve is {self.curve!r}; choose one of {', '.join(CURVES)}.")
        for frame, numbers in self.keyframes:
            if len(numbers) != 4:
                raise ValueError(f"{name}: at frame {frame} are {len(numbers)} numbers; give x, y, width and height.")
            x, y, width, height = numbers
            if not (
                max(abs(x - 0.5), abs(y - 0.5)) <= FARTHEST + 0.5
                and 0 < min(width, height) <= LARGEST >= max(width, height)
            ):
                raise ValueError(
                    f"{name}: at frame {frame} the object is {width:g} x {height:g} at ({x:g}, {y:g}); "
                    f"give fractions of the picture, sizes above 0 up to {LARGEST:g}, "
                    f"places from {-FARTHEST:g} to {1 + FARTHEST:g}."
                )
        for first, last in self.hidden:
            if not 0 <= first <= last <= LAST_FRAME:
                raise ValueError(
                    f"hidden has the frames {first} to {last}; give first and last frame, in order, from 0."
                )

    def boxes(self, frames: int, height: int, width: int) -> list[Box | None]:
        """The box of every frame in pixels, not cut at the picture's border; None where the object is hidden.

        Args:
            frames: of the clip.
            height: of the picture in pixels.
            width: of the picture in pixels.
        """
        found: list[Box | None] = []
        for frame, (x, y, wide, high) in enumerate(interpolate_keyframes(self.keyframes, frames, self.curve)):
            hidden = any(first <= frame <= last for first, last in self.hidden)
            box = Box((x - wide / 2) * width, (y - high / 2) * height, wide * width, high * height, self.label)
            found.append(None if hidden else box)
        return found


def parse_paths(text: str) -> tuple[ObjectPath, ...]:
    """Read drawn paths.

    Args:
        text: JSON as in the description of this module; empty text is no objects at all.

    Raises:
        ValueError: not JSON, too long, a wrong structure, unknown names, missing or wrong values; the message names the
            place.
    """
    if not text.strip():
        return ()
    if len(text) > MAX_TEXT:
        raise ValueError(f"the path has {len(text)} characters; {MAX_TEXT} at most are read.")
    try:
        entries = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the path is not JSON ({error}); write a list of objects with keyframes.") from error
    entries = [entries] if isinstance(entries, dict) else entries
    if not isinstance(entries, list) or len(entries) > MAX_OBJECTS:
        given = f"{len(entries)} objects" if isinstance(entries, list) else type(entries).__name__
        raise ValueError(f"the path is {given}; write a list of at most {MAX_OBJECTS} objects with keyframes.")
    return tuple(_read_object(entry, f"object {number}") for number, entry in enumerate(entries, 1))


def _read_object(entry: Any, name: str) -> ObjectPath:
    _check_keys(entry, _OBJECT_KEYS, name)
    keyframes, hidden = entry.get("keyframes"), entry.get("hidden", [])
    if not isinstance(keyframes, list) or not 1 <= len(keyframes) <= MAX_KEYFRAMES:
        raise ValueError(f"{name} of the path lacks a list of 1 to {MAX_KEYFRAMES} keyframes; write at least one.")
    if not isinstance(hidden, list) or len(hidden) > MAX_KEYFRAMES:
        raise ValueError(f"{name} of the path: hidden is {hidden!r:.60}; write pairs of frames such as [[3, 5]].")
    pairs = [_frame_pair(pair, name) for pair in hidden]
    read: list[Keyframe] = []
    size: tuple[float | None, float | None] = (None, None)
    for number, keyframe in enumerate(keyframes, 1):
        place = f"keyframe {number} of {name}"
        _check_keys(keyframe, _KEYFRAME_KEYS, place)
        size = tuple(
            held if keyframe.get(key) is None else _number(keyframe, key, place)
            for key, held in zip(("width", "height"), size, strict=True)
        )
        if None in size:
            raise ValueError(f"{place} of the path has no width and height; the first keyframe must give both.")
        read.append((_frame(keyframe, place), (_number(keyframe, "x", place), _number(keyframe, "y", place), *size)))
    texts = {key: entry.get(key, default) for key, default in (("label", ""), ("shape", "box"), ("curve", "linear"))}
    for key, value in texts.items():
        if not isinstance(value, str) or len(value) > 1000:
            raise ValueError(f"{name} of the path: {key} is {value!r:.60}; write a short text.")
    texts["label"] = " ".join(texts["label"].split())
    try:
        return ObjectPath(tuple(read), hidden=tuple(pairs), **texts)
    except ValueError as error:
        raise ValueError(f"{name} of the path: {error}") from error


def _check_keys(entry: Any, known: Sequence[str], name: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{name} of the path is {entry!r:.60}; write an object in braces with {', '.join(known)}.")
    unknown = [key for key in entry if key not in known]
    if unknown:
        raise ValueError(f"{name} of the path has {unknown[0]!r:.60}; what is known: {', '.join(known)}.")


def _number(entry: Mapping[str, Any], key: str, name: str) -> float:
    value = entry.get(key)
    # true and false are whole numbers to Python; a whole number may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise ValueError(f"{name} of the path: {key} is {value!r:.60}; write a number (fraction of the picture).")
    return float(value)


def _frame(entry: Mapping[str, Any], name: str) -> int:
    value = entry.get("frame")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} of the path: frame is {value!r:.60}; write a whole number from 0.")
    return value


def _frame_pair(pair: Any, name: str) -> tuple[int, int]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"{name} of the path: hidden holds {pair!r:.60}; write pairs of frames such as [[3, 5]].")
    return _frame({"frame": pair[0]}, name), _frame({"frame": pair[1]}, name)


def paths_of_boxes(
    detections: Detections, height: int, width: int, shape: Shape = "box", curve: Curve = "linear"
) -> tuple[ObjectPath, ...]:
    """Paths through given boxes, an object for each label; frames without a box of that label lie in between.

    Args:
        detections: one list of boxes per frame, in pixels; of one label the best counts. Boxes without a label that are
            the same in every frame were drawn once for all of them: each is an object.
        height: of the picture in pixels.
        width: of the picture in pixels.
        shape: see :class:`ObjectPath`.
        curve: see there.

    Raises:
        ValueError: too many labels, or a box out of range.
    """
    still = [box for box in detections[0] if not box.label] if detections else []
    if len(still) > 1 and all(boxes == detections[0] for boxes in detections):
        named = [[box for box in boxes if box.label] for boxes in detections]
        drawn = [path for box in still for path in paths_of_boxes([[box]], height, width, shape, curve)]
        return (*paths_of_boxes(named, height, width, shape, curve), *drawn)
    keyframes: dict[str, list[Keyframe]] = {}
    for frame, boxes in enumerate(detections):
        for label in dict.fromkeys(box.label for box in boxes):
            box = max((box for box in boxes if box.label == label), key=lambda box: box.score)
            middle = (box.x + box.width / 2) / width, (box.y + box.height / 2) / height
            keyframes.setdefault(label, []).append((frame, (*middle, box.width / width, box.height / height)))
    if len(keyframes) > MAX_OBJECTS:
        raise ValueError(f"there are boxes of {len(keyframes)} labels; give at most {MAX_OBJECTS}.")
    return tuple(ObjectPath(tuple(places), label, shape, curve) for label, places in keyframes.items())


def path_tracks(paths: Sequence[ObjectPath], frames: int, height: int, width: int) -> Tracks:
    """Masks of objects on their paths.

    Args:
        paths: may be none.
        frames: of the clip, at least 1.
        height: of the masks in pixels.
        width: of the masks in pixels.

    Returns:
        Hard masks. An object that is hidden, or has left the picture, has an empty mask there and counts as not seen.

    Raises:
        ValueError: sizes below 1, more than ``MAX_OBJECTS`` paths.
    """
    if len(paths) > MAX_OBJECTS:
        raise ValueError(f"there are {len(paths)} paths; give at most {MAX_OBJECTS}.")
    stack = MaskStack(frames, height, width)
    seen = torch.zeros(len(paths), frames, dtype=torch.bool)
    for path in paths:
        number = stack.add_object()
        for frame, box in enumerate(path.boxes(frames, height, width)):
            if box is not None:
                mask = shape_mask(path.shape, box, height, width)
                stack.write(number, frame, mask)
                seen[number, frame] = mask.any()
    identities = tuple(range(1, len(paths) + 1))
    return Tracks(stack, identities, tuple(path.label for path in paths), seen.float(), ~seen)


def shape_mask(shape: Shape, box: Box, height: int, width: int) -> Tensor:
    """The pixels whose middle lies in a shape: bool [H, W].

    However small the shape is, the pixel at its middle is inside where it lies in the picture.
    """
    x0, y0, x1, y1 = box.corners
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    if shape == "box":
        mask = ((x >= x0) & (x < x1)) & ((y >= y0) & (y < y1))
    else:
        mask = ((x - middle_x) / (box.width / 2)) ** 2 + ((y - middle_y) / (box.height / 2)) ** 2 <= 1
    if 0 <= middle_x < width and 0 <= middle_y < height:
        mask[math.floor(middle_y), math.floor(middle_x)] = True
    return mask
