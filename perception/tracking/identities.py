"""Which of the followed or lost objects a newly found box or mask is, or that it is a new one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..boxes import Box, iou
from ..mask_shapes import box_of_mask, mask_iou
from ..phrases import phrase_key
from .appearance import histogram, likeness

# Overlap that a box needs with the object that is followed there, when both have one label and when they have two.
SAME_LABEL_IOU, OTHER_LABEL_IOU = 0.3, 0.5
# A box whose smaller part of the two lies this much in the other one fits too, when the labels are one.
INSIDE = 0.75
# A box that overlaps a followed object this much says nothing new, whatever its label.
DUPLICATE_BOX_IOU = 0.7
# A found thing that lies this much inside a followed one is a part of it, when labels or colours are alike.
PART, PART_LIKENESS = 0.7, 0.6
# What colours (0..1), the same label and the place must add up to for a lost object to be found again.
FOUND_AGAIN, LABEL_WEIGHT, PLACE_WEIGHT = 1.0, 0.25, 0.25
# A lost object comes back no smaller and no larger than these shares of its largest size.
SIZES = (0.05, 2.5)


@dataclass
class KnownObject:
    """An object that was seen at least once.

    Attributes:
        identity: its number.
        named: whether a user prompt gave it, so that it is never dropped.
        votes: sum of scores for each label it was found under.
        evidence: score by frame in which it was found or pointed at, not only followed.
        colours: histogram, see :mod:`.appearance`.
        mask: uint8 [H, W], where it was seen last.
        area: largest size in pixels.
        seen: frame in which it was seen last.
        lost: frame since which it is out of sight, None while it is seen.
        first: frame in which it was seen first.
        gaps: (first, last) frames, both counted, from which it was missing before it came back, in order of sweeping.
    """

    identity: int
    named: bool
    first: int
    mask: Tensor
    votes: dict[str, float] = field(default_factory=dict)
    evidence: dict[int, float] = field(default_factory=dict)
    colours: Tensor | None = None
    area: int = 0
    seen: int = 0
    lost: int | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The one with most votes; the first of equals."""
        return max(self.votes, key=self.votes.__getitem__) if self.votes else ""

    @property
    def confidence(self) -> float:
        """Sum of the scores with which it was found: how often, and how well."""
        return sum(self.evidence.values())

    def note(self, frame: int, label: str, score: float) -> None:
        """It was found in this frame, under this label."""
        if label:
            self.votes[label] = self.votes.get(label, 0.0) + score
        self.evidence[frame] = max(score, self.evidence.get(frame, 0.0))

    def look(self, frame: int, mask: Tensor, places: Tensor | None = None) -> None:
        """It looks like this now. ``places``: of the picture's colours, where these are to be remembered."""
        area = int((mask > 127).sum())
        self.mask, self.seen = mask, frame
        if places is not None and 2 * area >= self.area:
            fresh = histogram(places, mask > 127)
            if fresh is not None:
                self.colours = fresh if self.colours is None else 0.8 * self.colours + 0.2 * fresh
        self.area = max(self.area, area)


def agree(first: str, second: str) -> bool:
    """Whether two labels may be of one object: they are the same, or one is empty."""
    return first == second or not first or not second or phrase_key(first) == phrase_key(second)


def match_boxes(followed: Mapping[int, KnownObject], boxes: Sequence[Box]) -> dict[int, int]:
    """Which box is which followed object, best pairs first.

    Args:
        followed: objects that are seen in this frame, with their masks of it.
        boxes: found in this frame.

    Returns:
        Positions of boxes by identity; each object and each box at most once.
    """
    places = {identity: box_of_mask(item.mask) for identity, item in followed.items()}
    pairs = []
    for identity, place in places.items():
        for number, box in enumerate(boxes):
            value = 0.0 if place is None else _fit(place, box, agree(followed[identity].label, box.label))
            if value > 0:
                pairs.append((value, identity, number))
    matched: dict[int, int] = {}
    for _, identity, number in sorted(pairs, key=lambda pair: -pair[0]):
        if identity not in matched and number not in matched.values():
            matched[identity] = number
    return matched


def _fit(place: Box, box: Box, same_label: bool) -> float:
    overlap = iou(place, box)
    if not same_label:
        return overlap if overlap >= OTHER_LABEL_IOU else 0.0
    if overlap >= SAME_LABEL_IOU or inside(place, box) >= INSIDE:
        return overlap + LABEL_WEIGHT
    return 0.0


def inside(first: Box, second: Box) -> float:
    """Share of the smaller box that lies in the other one."""
    overlap = iou(first, second)
    both = overlap / (1 + overlap) * (first.area + second.area)
    return both / min(first.area, second.area)


def says_nothing_new(box: Box, followed: Mapping[int, KnownObject]) -> int | None:
    """The followed object that a box, left over from matching, is a second box of; None when there is none."""
    best = None
    for identity, item in followed.items():
        place = box_of_mask(item.mask)
        if place is not None and iou(place, box) > DUPLICATE_BOX_IOU:
            best = identity
    return best


def same_thing(
    mask: Tensor, label: str, colours: Tensor | None, followed: Mapping[int, KnownObject], duplicate_iou: float
) -> int | None:
    """The followed object that a new mask is another view or a part of; None when there is none.

    Args:
        mask: uint8 [H, W].
        label: that it was found under.
        colours: its histogram.
        followed: objects seen in this frame.
        duplicate_iou: see ``TrackSettings``.
    """
    if duplicate_iou >= 1:
        return None
    area = max(int((mask > 127).sum()), 1)
    for identity, item in followed.items():
        if mask_iou(mask, item.mask) > duplicate_iou:
            return identity
        share = float(((mask > 127) & (item.mask > 127)).sum()) / area
        if share > PART and (agree(label, item.label) or likeness(colours, item.colours) > PART_LIKENESS):
            return identity
    return None


def find_lost(
    mask: Tensor, label: str, colours: Tensor | None, frame: int, lost: Mapping[int, KnownObject]
) -> int | None:
    """The lost object that a new mask is; None when it is not one of them.

    Args:
        mask: uint8 [H, W].
        label: that it was found under.
        colours: its histogram.
        frame: in which it was found.
        lost: objects out of sight.
    """
    area, place = int((mask > 127).sum()), box_of_mask(mask)
    best, chosen = FOUND_AGAIN, None
    for identity, item in lost.items():
        if place is None or not SIZES[0] * item.area <= area <= SIZES[1] * item.area:
            continue
        value = likeness(colours, item.colours) + LABEL_WEIGHT * agree(label, item.label)
        value += PLACE_WEIGHT * _nearness(place, item, abs(frame - item.seen))
        if value > best:
            best, chosen = value, identity
    return chosen


def _nearness(place: Box, item: KnownObject, frames: int) -> float:
    """1 where the object was seen last, falling over its own size and more slowly the longer ago that was."""
    last = box_of_mask(item.mask)
    if last is None:
        return 0.0
    across = place.x + place.width / 2 - last.x - last.width / 2
    down = place.y + place.height / 2 - last.y - last.height / 2
    return math.exp(-math.hypot(across, down) / (math.sqrt(max(item.area, 1)) * (1 + 0.25 * frames)))


def share_pixels(masks: Mapping[int, Tensor], scores: Mapping[int, float]) -> dict[int, Tensor]:
    """Give each pixel to one object at most: the one whose mask has the highest confidence there.

    Args:
        masks: uint8 [H, W] by identity.
        scores: of those masks, 0..1.

    Returns:
        The masks, each 0 where a pixel went to another one.
    """
    order = [identity for identity, mask in masks.items() if mask.any()]
    shared = dict(masks)
    if len(order) < 2:
        return shared
    claimed = masks[order[0]] > 127
    taken = torch.zeros_like(claimed)
    for identity in order[1:]:
        inside = masks[identity] > 127
        taken |= claimed & inside
        claimed |= inside
    if not taken.any():
        return shared
    values = torch.stack([masks[identity][taken].float() * (scores[identity] + 1e-3) for identity in order])
    winners = values.argmax(0)
    for place, identity in enumerate(order):
        mask = masks[identity].clone()
        mask[taken] = torch.where(winners == place, mask[taken], 0)
        shared[identity] = mask
    return shared


def choose(known: Sequence[KnownObject], minimum_seen: int, max_objects: int | None) -> list[KnownObject]:
    """The objects to keep, in order: without fleeting ones, and at most as many as allowed.

    Args:
        known: all of them.
        minimum_seen: frames in which an object must have been found, unless a user prompt named it.
        max_objects: how many to keep at most, named ones first, then those found most often and with the best scores.
    """
    kept = [item for item in known if item.named or len(item.evidence) >= minimum_seen]
    if max_objects is not None:
        chosen = sorted(kept, key=lambda item: (not item.named, -item.confidence))[:max_objects]
        kept = [item for item in kept if item in chosen]
    return kept
