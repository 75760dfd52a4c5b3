"""Points over time as ComfyUI core passes them (TRACKS), read as paths of objects and made of tracks.

The form is that of core's nodes for Wan-Move and ATI (``comfy_extras/nodes_wanmove.py``): a dictionary with
``track_path``, [T, N, 2], x and y in pixels of the video, and ``track_visibility``, [T, N] or [T, 1] for all points
alike, where what is not 0 is visible; without it all are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..boxes import shown
from ..mask_shapes import box_of_mask
from ..tracks import Tracks
from .keyframes import Keyframe
from .mask_paths import MAX_OBJECTS, ObjectPath, Shape

Grouping = Literal["one_object", "object_per_point"]
GROUPINGS: tuple[str, ...] = get_args(Grouping)
# Pixels by which a keyframe that is left out may lie beside the line between its neighbours.
STRAIGHT = 0.01
# Smallest side of a box in pixels: a point alone has no size.
LEAST_SIDE = 1.0
MAX_POINTS = 256


@dataclass(frozen=True, eq=False)
class PointTracks:
    """Points over time.

    Attributes:
        places: float32 [T, N, 2], x and y in pixels; where a point is not visible, anything.
        visible: bool [T, N].

    Raises:
        ValueError: shapes that do not agree, or a visible point that is not finite.
    """

    places: Tensor
    visible: Tensor

    def __post_init__(self) -> None:
        if self.places.ndim != 3 or self.places.shape[2] != 2 or not len(self.places):
            raise ValueError(
                f"track_path of TRACKS has shape {list(self.places.shape)}; give [frames, points, 2] with x and y in "
                "pixels."
            )
        if self.visible.shape != self.places.shape[:2]:
            frames, points = self.places.shape[:2]
            raise ValueError(
                f"track_visibility of TRACKS has shape {list(self.visible.shape)} for {points} points in {frames} "
                f"frames; give [{frames}, {points}], or [{frames}, 1] for all points (a track_mask needs a mask for "
                "each frame)."
            )
        bad = self.visible & ~torch.isfinite(self.places).all(-1)
        if bool(bad.any()):
            frame, point = bad.nonzero()[0].tolist()
            raise ValueError(
                f"point {point} of TRACKS is at {self.places[frame, point].tolist()} in frame {frame}, where it is "
                "visible; give finite pixels."
            )

    @classmethod
    def of_core(cls, data: Any) -> PointTracks:
        """Read the dictionary.

        Raises:
            ValueError: another form, and as the constructor.
        """
        path = data.get("track_path") if isinstance(data, Mapping) else None
        if not isinstance(path, Tensor):
            keys = ", ".join(sorted(map(str, data))) if isinstance(data, Mapping) else ""
            given = f"has the keys {keys}" if isinstance(data, Mapping) else f"is {shown(data)}"
            raise ValueError(f"TRACKS need a tensor track_path, but this {given}; connect core's node of tracks.")
        path = path.detach().float().cpu()
        visible = data.get("track_visibility")
        if visible is None:
            return cls(path, torch.ones(path.shape[:2], dtype=torch.bool))
        if not isinstance(visible, Tensor):
            raise ValueError(f"track_visibility of TRACKS is {shown(visible)}; give a tensor [frames, points].")
        seen = visible.detach().cpu() != 0
        if path.ndim == 3 and seen.shape == (len(path), 1):
            seen = seen.expand(path.shape[:2])
        return cls(path, seen)

    def to_core(self) -> dict[str, Tensor]:
        """The dictionary."""
        return {"track_path": self.places, "track_visibility": self.visible}

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return len(self.places)


def paths_of_points(
    points: PointTracks,
    frames: int,
    height: int,
    width: int,
    grouping: Grouping = "one_object",
    size: float = 0.0,
    labels: Sequence[str] = (),
    shape: Shape = "box",
) -> tuple[ObjectPath, ...]:
    """Paths of the objects that points are on: in every frame the box around the visible points, widened.

    Args:
        points: in pixels of the video.
        frames: of the video; the points must have as many.
        height: of the video in pixels.
        width: of the video in pixels.
        grouping: ``one_object``: all points are on one object; ``object_per_point``: each is an object of its own.
        size: pixels that the box is wider and higher than the points; a box is at least a pixel large.
        labels: one per object, one for all, or none.
        shape: of the objects, in that box.

    Returns:
        One path per object, with keyframes where its box leaves the straight line, hidden where no point is visible.

    Raises:
        ValueError: another number of frames, too many objects, labels that do not fit, no visible point, or no point
            inside the picture.
    """
    if points.frames != frames:
        raise ValueError(
            f"TRACKS has {points.frames} frames and the masks {frames}; set frames to {points.frames}, or make the "
            "tracks that long."
        )
    _check_places(points, height, width)
    count = points.places.shape[1]
    groups = [list(range(count))] if grouping == "one_object" else [[point] for point in range(count)]
    if len(groups) > MAX_OBJECTS:
        raise ValueError(
            f"TRACKS has {count} points, more than {MAX_OBJECTS} objects; choose one_object, or give fewer points."
        )
    if len(labels) not in (0, 1, len(groups)):
        raise ValueError(
            f"there are {len(labels)} labels ({', '.join(labels)}) for {len(groups)} objects of points; give one for "
            "each, or one for all."
        )
    names = list(labels) if len(labels) == len(groups) else [labels[0] if labels else ""] * len(groups)
    found = []
    for group, name in zip(groups, names, strict=True):
        boxes = _group_boxes(points.places[:, group].numpy(), points.visible[:, group].numpy(), size)
        found.append(_path(boxes, frames, height, width, name, shape))
    return tuple(found)


def points_of_tracks(tracks: Tracks, count: int = 1) -> PointTracks:
    """Points that move with tracked objects.

    One point is the middle of the mask (its mean pixel) in every frame. More of them are spread over the mask of the
    frame in which it is largest, and keep their place relative to the box around the mask. Where the mask is empty a
    point is not visible, and on the straight way between where it was and will be.

    Args:
        tracks: with any number of objects.
        count: points per object, 1..256.

    Returns:
        ``count`` points for each object, one object after the other; those of an object that is never seen are at 0.

    Raises:
        ValueError: a count out of range.
    """
    if not 1 <= count <= MAX_POINTS:
        raise ValueError(f"there are {count} points per object; give 1 to {MAX_POINTS}.")
    objects, frames = len(tracks.ids), tracks.frames
    places = np.zeros((frames, objects, count, 2), dtype=np.float32)
    visible = torch.zeros(frames, objects, count, dtype=torch.bool)
    for number in range(objects):
        seen, found = _object_points(tracks, number, count)
        if seen:
            visible[seen, number] = True
            for point, axis in np.ndindex(count, 2):
                places[:, number, point, axis] = np.interp(np.arange(frames), seen, found[:, point, axis])
    return PointTracks(torch.from_numpy(places).flatten(1, 2), visible.flatten(1, 2))


def _check_places(points: PointTracks, height: int, width: int) -> None:
    seen = points.places[points.visible]
    if not len(seen):
        raise ValueError(
            f"TRACKS has {points.places.shape[1]} points, of which none is visible in any frame; check the nodes that "
            "made it, or disconnect it."
        )
    inside = (seen >= 0).all(-1) & (seen[:, 0] < width) & (seen[:, 1] < height)
    if not bool(inside.any()):
        (left, top), (right, bottom) = seen.amin(0).tolist(), seen.amax(0).tolist()
        raise ValueError(
            f"all points of TRACKS lie outside of {width} x {height} pixels (x {left:g} to {right:g}, y {top:g} to "
            f"{bottom:g}); set width and height to those of the video that the points belong to."
        )


def _group_boxes(places: np.ndarray, visible: np.ndarray, size: float) -> dict[int, np.ndarray]:
    """(x, y, width, height) in pixels, x and y of the middle, of each frame in which a point [T, n, 2] is visible."""
    boxes = {}
    for frame in np.flatnonzero(visible.any(axis=1)).tolist():
        seen = places[frame, visible[frame]].astype(np.float64)
        low, high = seen.min(axis=0), seen.max(axis=0)
        boxes[frame] = np.concatenate([(low + high) / 2, np.maximum(high - low + size, LEAST_SIDE)])
    return boxes


def _path(
    boxes: Mapping[int, np.ndarray], frames: int, height: int, width: int, label: str, shape: Shape
) -> ObjectPath:
    known = list(boxes)
    if not known:
        # It stays an object, as one that was looked for and never seen.
        return ObjectPath(((0, (0.5, 0.5, 1.0, 1.0)),), label, shape, "linear", ((0, frames - 1),))
    sides = np.array([width, height, width, height], dtype=np.float64)
    kept = _bends(np.array(known, dtype=np.float64), np.array([boxes[frame] for frame in known]))
    keyframes: list[Keyframe] = [(known[place], tuple((boxes[known[place]] / sides).tolist())) for place in kept]
    hidden = sorted(set(range(frames)) - set(known))
    starts = [frame for frame in hidden if frame - 1 in boxes or frame == 0]
    ends = [frame for frame in hidden if frame + 1 in boxes or frame == frames - 1]
    return ObjectPath(tuple(keyframes), label, shape, "linear", tuple(zip(starts, ends, strict=True)))


def _bends(times: np.ndarray, values: np.ndarray) -> list[int]:
    """Places of the values [K, n] that must be kept, so that lines between them pass all others."""
    kept, start = [0], 0
    for end in range(2, len(times)):
        share = ((times[start + 1 : end] - times[start]) / (times[end] - times[start]))[:, None]
        line = values[start] + (values[end] - values[start]) * share
        if np.abs(values[start + 1 : end] - line).max() > STRAIGHT:
            start = end - 1
            kept.append(start)
    return kept if len(times) == 1 else [*kept, len(times) - 1]


def _object_points(tracks: Tracks, number: int, count: int) -> tuple[list[int], np.ndarray]:
    """Frames in which an object is, and its points there: [frames, count, 2], x and y."""
    seen, middles, boxes, areas = [], [], [], []
    for frame in range(tracks.frames):
        mask = tracks.masks[number, frame] > 127 if tracks.masks.any(number, frame) else None
        if mask is None or not bool(mask.any()):
            continue
        box = box_of_mask(tracks.masks[number, frame])
        pixels = mask.nonzero().double() + 0.5
        seen.append(frame)
        areas.append(len(pixels))
        middles.append(pixels.mean(0).flip(0).numpy())
        boxes.append((box.x, box.y, box.width, box.height))
    if not seen:
        return [], np.zeros((0, count, 2))
    if count == 1:
        return seen, np.array(middles)[:, None]
    largest = int(np.argmax(areas))
    spread = _spread(tracks.masks[number, seen[largest]] > 127, middles[largest], count)
    corners, sides = np.array(boxes)[:, None, :2], np.array(boxes)[:, None, 2:]
    relative = (spread - corners[largest]) / sides[largest]
    return seen, corners + relative * sides


def _spread(mask: Tensor, middle: np.ndarray, count: int) -> np.ndarray:
    """[count, 2] places in a mask, the first nearest to its middle, each next one farthest from all before."""
    pixels = mask.nonzero().flip(1).double().numpy() + 0.5
    chosen = [int(np.argmin(((pixels - middle) ** 2).sum(1)))]
    distance = ((pixels - pixels[chosen[0]]) ** 2).sum(1)
    while len(chosen) < count:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((pixels - pixels[chosen[-1]]) ** 2).sum(1))
    return pixels[chosen]
