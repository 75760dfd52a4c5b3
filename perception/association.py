"""Which detection in this frame is which object of the frames before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .boxes import Box, Detections, interpolate_box, iou

# Two boxes further apart than this many of their own sizes are never the same object in neighbouring frames.
REACH = 1.0
# With different phrases the same object must overlap at least this much.
OTHER_LABEL_IOU = 0.5


@dataclass
class BoxTrack:
    """One object: the detection it was given in each frame in which it was seen."""

    identity: int
    label: str
    boxes: dict[int, Box] = field(default_factory=dict)

    @property
    def last_frame(self) -> int:
        """Last frame in which it was seen."""
        return max(self.boxes)

    def expected(self, frame: int) -> Box:
        """Where its box should be: moved on at the speed of the last two sightings."""
        return extrapolate(self.boxes, frame)


def extrapolate(boxes: dict[int, Box], frame: int) -> Box:
    """Box at ``frame`` from the two sightings nearest to it, at constant speed and size.

    Args:
        boxes: sightings by frame, at least one, all before or all after ``frame``.
        frame: to predict.
    """
    nearest = sorted(boxes, key=lambda seen: abs(seen - frame))[:2]
    box = boxes[nearest[0]]
    if len(nearest) < 2:
        return box
    other = boxes[nearest[1]]
    share = (frame - nearest[0]) / (nearest[0] - nearest[1])
    dx = (box.x + box.width / 2) - (other.x + other.width / 2)
    dy = (box.y + box.height / 2) - (other.y + other.height / 2)
    return Box(box.x + dx * share, box.y + dy * share, box.width, box.height, box.label, box.score)


def likeness(track: BoxTrack, box: Box, frame: int) -> float:
    """How well a detection continues a track: 0 (not at all) to 2 (same place as last and as expected)."""
    last = track.boxes[track.last_frame]
    expected = track.expected(frame)
    overlap = max(iou(last, box), iou(expected, box))
    if box.label != track.label and overlap < OTHER_LABEL_IOU:
        return 0.0
    gap = frame - track.last_frame
    size = math.sqrt(last.width * last.height)
    distance = min(_distance(last, box), _distance(expected, box)) / size
    if overlap == 0.0 and distance > REACH * gap:
        return 0.0
    return overlap + math.exp(-distance * distance)


def _distance(first: Box, second: Box) -> float:
    dx = first.x + first.width / 2 - second.x - second.width / 2
    dy = first.y + first.height / 2 - second.y - second.height / 2
    return math.hypot(dx, dy)


def associate(detections: Detections, max_gap: int) -> list[BoxTrack]:
    """Join detections over time into tracks, best pairs first.

    Args:
        detections: one list per frame.
        max_gap: frames that an object may be unseen and keep its number.

    Returns:
        Tracks in order of first sighting, numbered from 1. Every detection belongs to exactly one.
    """
    tracks: list[BoxTrack] = []
    for frame, boxes in enumerate(detections):
        active = [track for track in tracks if frame - track.last_frame <= max_gap + 1]
        pairs = sorted(
            (
                (likeness(track, box, frame), number, place)
                for number, track in enumerate(active)
                for place, box in enumerate(boxes)
            ),
            key=lambda pair: (-pair[0], pair[1], pair[2]),
        )
        taken_tracks: set[int] = set()
        taken_boxes: set[int] = set()
        for value, number, place in pairs:
            if value <= 0.0 or number in taken_tracks or place in taken_boxes:
                continue
            active[number].boxes[frame] = boxes[place]
            taken_tracks.add(number)
            taken_boxes.add(place)
        for place, box in enumerate(boxes):
            if place not in taken_boxes:
                tracks.append(BoxTrack(len(tracks) + 1, box.label, {frame: box}))
    return tracks


def keep_tracks(tracks: Sequence[BoxTrack], minimum_seen: int, max_objects: int | None) -> list[BoxTrack]:
    """Drop fleeting tracks, and all but the most seen ones when there are too many; order and numbers stay.

    Args:
        tracks: from :func:`associate`.
        minimum_seen: frames in which an object must be seen.
        max_objects: how many to keep at most, None for all.
    """
    kept = [track for track in tracks if len(track.boxes) >= minimum_seen]
    if max_objects is not None and len(kept) > max_objects:
        strength = {track.identity: sum(box.score for box in track.boxes.values()) for track in kept}
        chosen = sorted(kept, key=lambda track: -strength[track.identity])[:max_objects]
        kept = [track for track in kept if track in chosen]
    return kept


def fill_order(tracks: Sequence[BoxTrack], frames: int, max_gap: int, extend: int) -> list[list[int]]:
    """Per track, the unseen frames that are to be filled, in order of distance from what is known.

    Inner gaps of up to ``max_gap`` frames are filled, and up to ``extend`` frames at both ends.
    """
    orders = []
    for track in tracks:
        seen = sorted(track.boxes)
        distance: dict[int, int] = {}
        for first, second in zip(seen, seen[1:], strict=False):
            if second - first - 1 <= max_gap:
                distance.update({frame: min(frame - first, second - frame) for frame in range(first + 1, second)})
        for frame in range(max(0, seen[0] - extend), seen[0]):
            distance[frame] = seen[0] - frame
        for frame in range(seen[-1] + 1, min(frames, seen[-1] + extend + 1)):
            distance[frame] = frame - seen[-1]
        orders.append(sorted(distance, key=lambda frame: (distance[frame], frame)))
    return orders


def neighbours_of(frame: int, known: Iterable[int]) -> list[int]:
    """The nearest known frame before and the nearest after, as far as there are."""
    known = list(known)
    before = [other for other in known if other < frame]
    after = [other for other in known if other > frame]
    return ([max(before)] if before else []) + ([min(after)] if after else [])


def guess_box(known: dict[int, Box], frame: int) -> Box:
    """Box at an unseen frame: between its neighbours, or carried on at constant speed beyond the last one."""
    near = neighbours_of(frame, known)
    if len(near) == 2:
        first, second = near
        return interpolate_box(known[first], known[second], (frame - first) / (second - first))
    return extrapolate(known, frame)
