"""The plain way to follow objects, as a baseline: join each frame's boxes by place and label, segment every box."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...perception.boxes import Box, Detections, iou
from ...perception.tracking.tracker import ObjectTracker
from ...perception.tracks import Tracks

# Two boxes further apart than this many times their sizes are never the same object in neighbouring frames.
REACH = 1.0
# With different phrases the same object must overlap at least this much.
OTHER_LABEL_IOU = 0.5
# Frames for which an object may be unseen, and in which it must be seen.
MAX_GAP, MINIMUM_SEEN = 8, 2


@dataclass
class BoxTrack:
    """One object: the detection it was given in each frame in which it was seen."""

    label: str
    boxes: dict[int, Box] = field(default_factory=dict)


def extrapolate(boxes: dict[int, Box], frame: int) -> Box:
    """Box at ``frame`` from the two sightings nearest to it, at constant speed and size."""
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
    seen = max(track.boxes)
    last, expected = track.boxes[seen], extrapolate(track.boxes, frame)
    overlap = max(iou(last, box), iou(expected, box))
    if box.label != track.label and overlap < OTHER_LABEL_IOU:
        return 0.0
    distance = min(_distance(last, box), _distance(expected, box)) / math.sqrt(last.area)
    if overlap == 0.0 and distance > REACH * (frame - seen):
        return 0.0
    return overlap + math.exp(-distance * distance)


def _distance(first: Box, second: Box) -> float:
    dx = first.x + first.width / 2 - second.x - second.width / 2
    dy = first.y + first.height / 2 - second.y - second.height / 2
    return math.hypot(dx, dy)


def associate(detections: Detections, max_gap: int) -> list[BoxTrack]:
    """Join detections over time into tracks, best pairs first; every detection belongs to exactly one."""
    tracks: list[BoxTrack] = []
    for frame, boxes in enumerate(detections):
        active = [track for track in tracks if frame - max(track.boxes) <= max_gap + 1]
        pairs = sorted(
            (-likeness(track, box, frame), number, place)
            for number, track in enumerate(active)
            for place, box in enumerate(boxes)
        )
        taken_tracks: set[int] = set()
        taken_boxes: set[int] = set()
        for value, number, place in pairs:
            if value < 0.0 and number not in taken_tracks and place not in taken_boxes:
                active[number].boxes[frame] = boxes[place]
                taken_tracks.add(number)
                taken_boxes.add(place)
        tracks.extend(BoxTrack(box.label, {frame: box}) for place, box in enumerate(boxes) if place not in taken_boxes)
    return tracks


def track_boxes(tracker: ObjectTracker, frames: Tensor, detections: Detections) -> Tracks:
    """Tracks of frames [T, H, W, 3] with a mask wherever a box was found, and between two boxes from their mean."""
    kept = [track for track in associate(detections, MAX_GAP) if len(track.boxes) >= MINIMUM_SEEN]
    masks = torch.zeros(len(kept), *frames.shape[:3], dtype=torch.uint8)
    for number, track in enumerate(kept):
        seen = sorted(track.boxes)
        for frame in range(seen[0], seen[-1] + 1):
            box = track.boxes.get(frame) or _between(track.boxes, frame)
            masks[number, frame] = (tracker.masks_at_boxes(frames[frame], [box])[0] * 255).to(torch.uint8)
    there = masks.flatten(2).any(2)
    return Tracks(masks, tuple(range(1, len(kept) + 1)), tuple(track.label for track in kept), there.float(), ~there)


def _between(boxes: dict[int, Box], frame: int) -> Box:
    first, last = max(seen for seen in boxes if seen < frame), min(seen for seen in boxes if seen > frame)
    share = (frame - first) / (last - first)
    sides = (
        before + (after - before) * share
        for before, after in zip(boxes[first].corners, boxes[last].corners, strict=True)
    )
    return Box.from_corners(*sides, label=boxes[first].label)
