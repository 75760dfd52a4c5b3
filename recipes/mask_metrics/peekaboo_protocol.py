"""The public evaluation of Peekaboo, as published and corrected: volume IoU, coverage, centroid distance and AP50.

Source: Jain et al., "PEEKABOO: Interactive Video Generation via Masked-Diffusion" (arXiv 2312.07509), and the scripts
``eval/get_metrics.py`` and ``eval/create_bbox.py`` of github.com/microsoft/Peekaboo (MIT). A clip has one object: boxes
where it should be, and at most one box per frame where a detector sees it. Both are drawn as masks; all measures are of
masks. The published rules have constants of their own clips, 16 frames of 576 x 320 pixels, whatever is measured.

======================  ==============================================  ===============================================
measure                 published                                       corrected
======================  ==============================================  ===============================================
IoU of a clip           shared over all pixels of the whole clip at     the same without the 1e-5
                        once; 1e-5 is added below the fraction line
coverage                share of clips with a detection in more than    ... in more than half of the compared frames
                        8 frames
mIoU                    mean IoU of the covered clips                   the same
centroid of a mask      per axis, midpoint between the first of the     mean place of its pixels: of any shape
                        fullest lines and the last line with a pixel:
                        of one rectangle only
centroid distance       mean over all frames, where a mask without      mean over the frames in which both masks have
                        pixels is at the corner (0, 0); divided by the  pixels; divided by the diagonal of this picture
                        diagonal of 576 x 320
AP50                    share of frames with IoU >= 0.5 among those     the same without the 1e-5, over the frames of
                        with a detection; clips weigh as many           all clips together: each frame weighs the same
                        detections as they have
clips that count        at least 5 wanted pixels                        at least one wanted pixel
======================  ==============================================  ===============================================

Where one side has more frames, those at its end are left out. The published weights and coverage still count the
detections in them, the corrected ones do not. The published centroid distance has clips without any detection in it,
the corrected one has none: read it beside the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...perception.boxes import Box, clamp_box

# Constants of the published script: frames that cover a clip, its pictures' sides, least wanted pixels.
COVERED_ABOVE = 8
PUBLISHED_DIAGONAL = math.hypot(320, 576)
LEAST_PIXELS = 5
EPSILON = 1e-5
FORMS = ("published", "corrected")
PEEKABOO_MEASURES = {
    "miou": "mIoU of covered clips",
    "miou_all_clips": "mIoU of all clips",
    "coverage": "coverage",
    "centroid_distance": "centroid distance",
    "ap50": "AP50",
    "ap50_clip_mean": "AP50, mean of clips",
}

Corners = tuple[float, float, float, float]


def draw_corners(corners: Sequence[Corners | None], height: int, width: int) -> Tensor:
    """Draw boxes as the published scripts do: edges are cut to whole pixels, the right and lower ones are outside.

    Args:
        corners: per frame (left, top, right, bottom) in pixels, or None for no box. What is outside of the picture is
            left out; a box without a whole pixel draws nothing.
        height: of the pictures in pixels.
        width: of the pictures in pixels.

    Returns:
        bool [T, H, W].
    """
    masks = torch.zeros(len(corners), height, width, dtype=torch.bool)
    for mask, box in zip(masks, corners, strict=True):
        if box is not None:
            left, top, right, bottom = (max(0, int(edge)) for edge in box)
            mask[top:bottom, left:right] = True
    return masks


def draw_found(boxes: Sequence[Box | None], height: int, width: int) -> Tensor:
    """A detector's boxes, one per frame or None, as ``draw_corners`` draws them: bool [T, H, W]."""
    cut = [None if box is None else clamp_box(box, height, width) for box in boxes]
    # A corner is a sum of a place and a size: without rounding, 7.9999999 would lose a pixel.
    rounded = [None if box is None else tuple(round(edge, 6) for edge in box.corners) for box in cut]
    return draw_corners(rounded, height, width)


def measure_clip(wanted: Tensor, found: Tensor, detected: Sequence[bool] | None = None) -> dict[str, Any]:
    """All measures of one object in one clip, in both forms.

    Args:
        wanted: bool [T, H, W], where the object should be.
        found: bool [S, H, W], where it is.
        detected: S values, whether there was a detection in the frame; None takes the frames in which ``found`` has a
            pixel. They differ only for boxes too small or too far outside to be drawn.

    Returns:
        ``frames`` that were compared, ``frames_wanted`` and ``frames_detected`` among them, ``detections`` in all S
        frames, and for each of ``FORMS``: ``counts`` (whether the clip has enough wanted pixels), ``covered``, ``iou``,
        ``centroid_distance``, ``ap50``, and ``ap50_frames``, by which it weighs. None is not defined.

    Raises:
        ValueError: masks of different sizes, or of other shapes.
    """
    if wanted.ndim != 3 or found.ndim != 3 or wanted.shape[1:] != found.shape[1:]:
        raise ValueError(
            f"wanted masks have shape {list(wanted.shape)} and found ones {list(found.shape)}; give [frames, height, "
            "width] of one height and width."
        )
    seen = found.flatten(1).any(1).tolist() if detected is None else [bool(value) for value in detected]
    if len(seen) != len(found):
        raise ValueError(f"there are {len(found)} found masks and {len(seen)} marks of detections; give one for each.")
    frames = min(len(wanted), len(found))
    first, second = wanted[:frames].bool().cpu().numpy(), found[:frames].bool().cpu().numpy()
    return {
        "frames": frames,
        "frames_wanted": int(first.any((1, 2)).sum()),
        "frames_detected": sum(seen[:frames]),
        "detections": sum(seen),
        "published": _published(first, second, sum(seen)),
        "corrected": _corrected(first, second, sum(seen[:frames])),
    }


def summarise_clips(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The benchmark's figures over clips.

    Args:
        clips: of ``measure_clip``.

    Returns:
        For each of ``FORMS``: ``clips`` that count, and ``PEEKABOO_MEASURES``, all of them 0..1 (the publication has
        mIoU and AP50 in per cent); None where no clip defines one.
    """
    return {form: _summary([clip[form] for clip in clips if clip[form]["counts"]]) for form in FORMS}


def _published(wanted: np.ndarray, found: np.ndarray, detections: int) -> dict[str, Any]:
    both, either = _shared(wanted, found)
    frames_found = found.any((1, 2))
    hits = both / (either + EPSILON) >= 0.5
    distances = np.linalg.norm(_box_centroids(wanted) - _box_centroids(found), axis=1)
    return {
        "counts": bool(wanted.sum() >= LEAST_PIXELS),
        "covered": detections > COVERED_ABOVE,
        "iou": float(both.sum() / (either.sum() + EPSILON)),
        "centroid_distance": float(distances.mean()) / PUBLISHED_DIAGONAL if len(distances) else None,
        "ap50": float(hits[frames_found].mean()) if frames_found.any() else None,
        "ap50_frames": detections,
    }


def _corrected(wanted: np.ndarray, found: np.ndarray, detections: int) -> dict[str, Any]:
    both, either = _shared(wanted, found)
    frames_found = found.any((1, 2))
    distances = [
        float(np.linalg.norm(np.argwhere(first).mean(0) - np.argwhere(second).mean(0)))
        for first, second in zip(wanted, found, strict=True)
        if first.any() and second.any()
    ]
    diagonal = math.hypot(*wanted.shape[1:])
    return {
        "counts": bool(wanted.any()),
        "covered": 2 * detections > len(wanted),
        "iou": float(both.sum() / either.sum()) if either.any() else None,
        "centroid_distance": sum(distances) / len(distances) / diagonal if distances else None,
        "ap50": float((2 * both >= either)[frames_found].mean()) if frames_found.any() else None,
        "ap50_frames": int(frames_found.sum()),
    }


def _shared(wanted: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels per frame that are in both masks, and that are in at least one."""
    return (wanted & found).sum((1, 2)), (wanted | found).sum((1, 2))


def _box_centroids(masks: np.ndarray) -> np.ndarray:
    """The published centroid: [T, 2], row and column in pixels; (0, 0) of an empty mask."""
    places = []
    for axis in (2, 1):
        lines = masks.sum(axis)
        last = np.where(lines > 0, np.arange(lines.shape[1]), 0).max(1)
        places.append((lines.argmax(1) + last) / 2)
    return np.stack(places, axis=1)


def _summary(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    covered = [clip["iou"] for clip in clips if clip["covered"]]
    hits = sum(clip["ap50"] * clip["ap50_frames"] for clip in clips if clip["ap50"] is not None)
    weights = sum(clip["ap50_frames"] for clip in clips)
    return {
        "clips": len(clips),
        "miou": _mean(covered),
        "miou_all_clips": _mean([clip["iou"] for clip in clips]),
        "coverage": _mean([float(clip["covered"]) for clip in clips]),
        "centroid_distance": _mean([clip["centroid_distance"] for clip in clips]),
        "ap50": hits / weights if weights else None,
        "ap50_clip_mean": _mean([clip["ap50"] for clip in clips]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
