"""Peekaboo's evaluation of videos and their masks: boxes of a detector, and the figures in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...perception.boxes import Box, Progress
from ...perception.frames import Film
from ...perception.tracks import Tracks
from ..protocols import Detector
from .peekaboo_protocol import FORMS, PEEKABOO_MEASURES, draw_found, measure_clip, summarise_clips
from .recipe import Finding, fitted_tracks, measure_masks

PROTOCOLS = ("peekaboo",)
NOT_DEFINED = "not defined"


def best_boxes(
    film: Film, phrase: str, detector: Detector, finding: Finding | None = None, progress: Progress | None = None
) -> list[Box | None]:
    """The box that a detector trusts most in each frame, frames one by one, without a tracker.

    The published evaluation takes OWL-ViT-large with scores above 0.1. Here it is any detector, with the threshold of
    ``finding``; figures of another detector do not stand beside published ones.

    Args:
        film: video to look at, every frame of it.
        phrase: what to look for.
        detector: of boxes by words.
        finding: its thresholds; None takes the defaults. ``detect_every`` is not used.
        progress: called with (done, total); may raise to cancel.

    Returns:
        One entry per frame, None where nothing is found.

    Raises:
        ValueError: an empty phrase, or a threshold out of range.
    """
    finding = finding or Finding()
    found = detector.detect(film, [phrase], finding.box_threshold, finding.text_threshold, every=1, progress=progress)
    return [boxes[0] if boxes else None for boxes in found]


def peekaboo_of_boxes(
    film: Film, wanted: Tracks, detector: Detector, finding: Finding | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Measure every object of a video by the boxes of a detector; objects of one phrase get the same boxes.

    Args:
        film: video to judge.
        wanted: where its objects should be, of any size; each needs a label to look for.
        detector, finding, progress: as in ``best_boxes``.

    Returns:
        For each object ``phrase`` and what ``measure_clip`` returns.

    Raises:
        ValueError: an object has no label, or masks for another number of frames or of quite another shape.
    """
    if not all(label.strip() for label in wanted.labels):
        raise ValueError("an object lacks a phrase to look for; name each one, for example 'red ball'.")
    wanted = fitted_tracks(wanted, film, "wanted masks")
    boxes = {label: best_boxes(film, label, detector, finding, progress) for label in dict.fromkeys(wanted.labels)}
    measured = []
    for number, label in enumerate(wanted.labels):
        found = draw_found(boxes[label], film.height, film.width)
        detected = [box is not None for box in boxes[label]]
        measured.append({"phrase": label, **measure_clip(wanted.masks[number] > 127, found, detected)})
    return measured


def peekaboo_of_tracks(film: Film, wanted: Tracks, found: Tracks) -> list[dict[str, Any]]:
    """Measure every object of a video by masks of what is in it, paired as in ``measure_masks``.

    The published evaluation draws boxes; these masks are taken in the shape that they have.

    Args:
        film: video to judge.
        wanted: where its objects should be.
        found: what is in the video.

    Returns:
        As ``peekaboo_of_boxes``.

    Raises:
        ValueError: masks for another number of frames, or of quite another shape.
    """
    wanted, found = fitted_tracks(wanted, film, "wanted masks"), fitted_tracks(found, film, "found masks")
    measured = []
    for number, entry in enumerate(measure_masks(film, wanted, found)["objects"]):
        first = wanted.masks[number] > 127
        second = first & False if entry["found_id"] is None else found.masks[found.ids.index(entry["found_id"])] > 127
        measured.append({"phrase": entry["phrase"], **measure_clip(first, second)})
    return measured


def peekaboo_report(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``clips`` of this module's measures, with ``summary`` of ``summarise_clips``."""
    return {"clips": list(clips), "summary": summarise_clips(clips)}


def peekaboo_summary(report: dict[str, Any]) -> str:
    """Both forms side by side, a line per measure, and what is to be known of them.

    Args:
        report: of ``peekaboo_report``.
    """
    clips, summary = report["clips"], report["summary"]
    lines = ["Peekaboo protocol: published | corrected"]
    for name, words in PEEKABOO_MEASURES.items():
        lines.append(f"{words}: " + " | ".join(_number(summary[form][name]) for form in FORMS))
    lines.append("objects that count: " + " | ".join(str(summary[form]["clips"]) for form in FORMS))
    without = sum(clip["frames"] - clip["frames_detected"] for clip in clips)
    if without:
        frames = sum(clip["frames"] for clip in clips)
        lines.append(f"{without} of {frames} frames have no detection; published, they are at the picture's corner")
    empty = sum(clip["frames_wanted"] == 0 for clip in clips)
    if empty:
        lines.append(f"{empty} of {len(clips)} objects are wanted in no frame and do not count")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return NOT_DEFINED if value is None else f"{value:.3f}"
