"""The report of mask metrics: of one video, of many, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...perception.frames import Film
from ...perception.tracks import Tracks
from ..protocols import Progress
from .recipe import FilmScorer, mean_of, measure_background, measure_masks

MEASURES = {
    "iou": "overlap with the masks (IoU)",
    "centroid_error": "distance of the middles (share of the diagonal)",
    "text_alignment": "text alignment",
    "frame_consistency": "frame consistency",
    "background_change": "change of the background",
}


def film_report(
    film: Film,
    wanted: Tracks,
    found: Tracks,
    prompt: str = "",
    scorer: FilmScorer | None = None,
    reference: Film | None = None,
    reference_found: Tracks | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that can be measured of one video, ready for JSON.

    Args:
        film: video to judge.
        wanted: where its objects should be.
        found: where they are.
        prompt: for the scorer.
        scorer: a CLIP model; None measures neither text alignment nor consistency.
        reference: a video to compare the background with; None does not.
        reference_found: the objects in the reference, which are not background either.
        progress: of the scorer.

    Returns:
        As ``measure_masks``, with ``film`` (its sizes) and the other names of ``MEASURES``; None is not measured.

    Raises:
        ValueError: see ``measure_masks`` and ``measure_background``.
    """
    report: dict[str, Any] = {"film": {"frames": len(film), "height": film.height, "width": film.width}}
    report |= measure_masks(film, wanted, found)
    report |= {"text_alignment": None, "frame_consistency": None, "background_change": None}
    if scorer is not None:
        report |= scorer.score(film, prompt, progress)
    if reference is not None:
        places = [wanted, found] if reference_found is None else [wanted, found, reference_found]
        report["background_change"] = measure_background(film, reference, places)
    return report


def mean_report(reports: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Each of ``MEASURES`` averaged over the videos for which it was measured."""
    return {name: mean_of([report[name] for report in reports]) for name in MEASURES}


def metrics_summary(report: dict[str, Any]) -> str:
    """A line per object and one per other measure; of a mean, the measures alone."""
    lines = []
    for entry in report.get("objects", []):
        name = entry["phrase"] or "object"
        if entry["iou"] is None:
            lines.append(f"{name}: neither wanted nor found in any frame")
        elif entry["centroid_error"] is None:
            lines.append(f"{name}: IoU {entry['iou']:.3f}, never found where it is wanted in the same frame")
        else:
            lines.append(
                f"{name}: IoU {entry['iou']:.3f}, middle off by {100 * entry['centroid_error']:.1f} % of the diagonal "
                f"({entry['centroid_error_pixels']:.1f} pixels), found in {entry['frames_found']} frames, wanted in "
                f"{entry['frames_wanted']}"
            )
    if report.get("others_found"):
        lines.append(f"{report['others_found']} more of these objects were found than wanted")
    digits = {"iou": 3, "centroid_error": 4, "text_alignment": 2, "frame_consistency": 2, "background_change": 4}
    for name, words in MEASURES.items():
        value = report.get(name)
        lines.append(f"{words}: {'not measured' if value is None else f'{value:.{digits[name]}f}'}")
    return "\n".join(lines)
