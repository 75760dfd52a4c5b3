"""Measure how well objects are followed through clips in which they cross, hide each other, leave and come back.

``python benchmarks/tracking_quality.py`` prints the figures of the Toybox models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..missing_packages import missing_package
from ..perception.boxes import Box, Detections
from ..perception.detection.detector import ObjectDetector
from ..perception.prompts import ObjectPrompt
from ..perception.tracks import Tracks
from ..toybox import crossings, world

# A mask is the object's in a frame when it overlaps the truth at least this much.
SAME = 0.5
# Objects with fewer visible pixels do not count for whether identities were kept: a sliver has hardly any mask.
SMALLEST_AREA = 30
# A prompt is given in the first frame that shows at least this share of the object.
SHOWN = 0.5

Follow = Callable[[Tensor, Detections, list[ObjectPrompt]], Tracks]


@dataclass(frozen=True)
class ClipScore:
    """The result of tracking one clip.

    Attributes:
        overlaps: intersection over union per object and frame, float [N, T]; 1 where both masks are empty.
        visible: where the object is visible, bool [N, T].
        switches: how often an object that was found again went on under another number, over all objects.
        extra: tracks that do not belong to an object.
    """

    overlaps: np.ndarray
    visible: np.ndarray
    switches: int
    extra: int


@dataclass
class Figures:
    """Sums over clips."""

    scores: list[ClipScore] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Means over objects of their means over frames, and the share of clips without any switch."""
        rows = [row for score in self.scores for row in score.overlaps]
        pairs = [(row, seen) for score in self.scores for row, seen in zip(score.overlaps, score.visible, strict=True)]
        return {
            "mean IoU": float(np.mean([row.mean() for row in rows])),
            "mean IoU where visible": float(np.mean([row[seen].mean() for row, seen in pairs if seen.any()])),
            "objects below 0.5": float(np.mean([row.mean() < SAME for row in rows])),
            "clips without a switch": float(np.mean([score.switches == 0 for score in self.scores])),
            "tracks too many per clip": float(np.mean([score.extra for score in self.scores])),
            "clips": len(self.scores),
        }


def overlap_table(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of every track with every object: float [K, N, T], 1 where both masks are empty.

    Args:
        found: bool [K, T, H, W].
        truth: bool [N, T, H, W].
    """
    both = (found[:, None] & truth[None]).sum(axis=(3, 4))
    either = (found[:, None] | truth[None]).sum(axis=(3, 4))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def score_clip(tracks: Tracks, truth: np.ndarray) -> ClipScore:
    """Compare tracks with the truth: each object with the one track that fits it best over the whole clip.

    Args:
        tracks: of T frames.
        truth: visible pixels of each object, bool [N, T, H, W].
    """
    objects, frames = truth.shape[:2]
    found = tracks.masks.tensor().numpy() > 127
    visible = truth.any(axis=(2, 3))
    table = overlap_table(found, truth)
    # Without a track the object is right only where nothing is visible.
    overlaps = np.where(visible, 0.0, 1.0)
    pairs = assign(table.mean(axis=2)) if len(found) else []
    for track, item in pairs:
        overlaps[item] = table[track, item]
    judged = truth.sum(axis=(2, 3)) >= SMALLEST_AREA
    switches = sum(_switches(table[:, item], judged[item]) for item in range(objects))
    return ClipScore(overlaps.reshape(objects, frames), visible, switches, len(found) - len(pairs))


def _switches(table: np.ndarray, judged: np.ndarray) -> int:
    """How often an object's mask passes from one track to another. ``table``: float [K, T]; ``judged``: bool [T]."""
    holders = [int(table[:, frame].argmax()) for frame in np.flatnonzero(judged) if (table[:, frame] >= SAME).any()]
    return sum(first != second for first, second in zip(holders, holders[1:], strict=False))


def assign(values: np.ndarray) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) with the largest sum, over all ways where there are few, else best pairs first."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise missing_package("measuring trackers", "scipy") from error
    rows, columns = linear_sum_assignment(-values)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def first_prompts(crossing: crossings.Crossing, clip: world.RenderedClip) -> list[ObjectPrompt]:
    """One true box per object, in the first frame that shows enough of it."""
    prompts = []
    for number, (walker, area) in enumerate(zip(crossing.walkers, crossings.full_areas(crossing), strict=True)):
        shown = clip.masks[number].sum(axis=(1, 2)) >= SHOWN * area
        frame = int(shown.argmax())
        box = Box.from_corners(*clip.boxes[number, frame].tolist(), label=world.phrase(walker))
        prompts.append(ObjectPrompt(frame, number + 1, box=box, label=box.label))
    return prompts


def draw_clips(
    detector: ObjectDetector, count: int, seed: int
) -> list[tuple[crossings.Crossing, world.RenderedClip, Detections]]:
    """Random crossings with what the detector finds in each of their frames."""
    drawn = [(crossing, crossings.render(crossing)) for crossing in crossings.random_crossings(count, seed)]
    return [
        (crossing, clip, detector.detect(torch.from_numpy(clip.frames), crossing.phrases)) for crossing, clip in drawn
    ]


def every(detections: Detections, step: int) -> Detections:
    """The boxes of every n-th frame only; 0 for none."""
    return [boxes if step and frame % step == 0 else [] for frame, boxes in enumerate(detections)]


def measure(
    clips: Sequence[tuple[crossings.Crossing, world.RenderedClip, Detections]], follow: Follow, step: int
) -> tuple[Figures, dict[str, Figures]]:
    """Follow the objects of many clips.

    Args:
        clips: drawn, with the detector's boxes in every frame.
        follow: makes tracks of frames, detections and prompts.
        step: the detector looks at every n-th frame; 0 gives one prompt per object instead.

    Returns:
        The figures over all clips, and by event and look.
    """
    whole, parts = Figures(), {}
    for crossing, clip, detections in clips:
        prompts = [] if step else first_prompts(crossing, clip)
        score = score_clip(follow(torch.from_numpy(clip.frames), every(detections, step), prompts), clip.masks)
        for figures in (whole, *(parts.setdefault(name, Figures()) for name in (crossing.event, crossing.look))):
            figures.scores.append(score)
    return whole, parts
