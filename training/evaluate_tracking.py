"""Measure how well objects are followed through clips in which they cross, hide each other, leave and come back.

    python cli.py evaluate tracking                  # 100 clips, all ways of saying what to follow
    python cli.py evaluate tracking --clips 20 --seed 7 --steps 1,0

The Toybox detector finds, the Toybox segmenter draws, optical flow carries; beside it plain per-frame matching.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..missing_packages import missing_package
from ..perception.boxes import Box, Detections
from ..perception.detection.detector import ObjectDetector
from ..perception.open_models import open_detector, open_tracker
from ..perception.prompts import ObjectPrompt
from ..perception.tracks import Tracks
from ..recipes.given.paths import given_path
from ..toybox import crossings, world
from .perception.box_association import track_boxes

# A mask is the object's in a frame when it overlaps the truth at least this much.
SAME = 0.5
# Objects with fewer visible pixels do not count for whether identities were kept: a sliver has hardly any mask.
SMALLEST_AREA = 30
# A prompt is given in the first frame that shows at least this share of the object.
SHOWN = 0.5

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tracking_quality.json"
WAYS = {1: "boxes in every frame", 4: "boxes in every 4th frame", 0: "one prompt per object"}

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


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """To four places."""
    return {name: round(value, 4) for name, value in figures.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the clips, detect once, follow in every way, write the figures."""
    parser = argparse.ArgumentParser(prog="evaluate tracking", description=__doc__)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--steps", default="1,4,0", help="n: every n-th frame has boxes; 0 for one prompt per object")
    parser.add_argument("--baseline", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=given_path, default=RESULTS)
    options = parser.parse_args(arguments)

    detector, tracker = open_detector(ROOT / "toybox" / "detector"), open_tracker(ROOT / "toybox" / "segmenter")
    clips = draw_clips(detector, options.clips, options.seed)
    ways: dict[str, Follow] = {"tracker": lambda frames, boxes, prompts: tracker.track(frames, boxes, prompts=prompts)}
    if options.baseline:
        ways["matching boxes only"] = lambda frames, boxes, prompts: track_boxes(tracker, frames, boxes)
    result: dict[str, Any] = {"clips": options.clips, "seed": options.seed, "torch": torch.__version__}
    for step in (int(text) for text in options.steps.split(",")):
        for name, follow in ways.items():
            if step == 0 and name != "tracker":
                continue
            started = time.perf_counter()
            whole, parts = measure(clips, follow, step)
            entry: dict[str, Any] = {"all": rounded(whole.summary())}
            entry["seconds"] = round(time.perf_counter() - started, 1)
            entry["parts"] = {part: rounded(figures.summary()) for part, figures in sorted(parts.items())}
            result[f"{WAYS.get(step, f'boxes in every {step}th frame')}, {name}"] = entry
            sys.stdout.write(f"{WAYS.get(step, step)}, {name}: {json.dumps(entry['all'])}\n")
            sys.stdout.flush()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
