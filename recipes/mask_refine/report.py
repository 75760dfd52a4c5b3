"""What masked attention changed: the report of Mask Refine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...attention_patches.guidance.guide import Guide
from ...perception.phrases import phrase_key
from ...perception.tracks import Tracks
from ..measurements import change_outside, frames_sha256, mask_iou, measure_film
from ..report import environment, peak_memory_bytes
from .settings import MaskRefineSettings

# A pixel belongs to an object from this value of an 8-bit mask on.
INSIDE = 128


def build_report(
    settings: MaskRefineSettings,
    first: Tensor,
    second: Tensor,
    tracks: Tracks,
    guide: Guide | None,
    found_first: Tracks | None,
    found_second: Tracks | None,
    given: bool,
) -> dict[str, Any]:
    """Measure both videos under the guiding masks.

    Args:
        settings: of the run.
        first: the first video, float [T, H, W, 3].
        second: the second video, same shape.
        tracks: the guiding masks; may hold no object.
        guide: None when the second video was made without guidance.
        found_first: the objects found in the first video; None without a detector.
        found_second: the same of the second video.
        given: whether the user gave the masks.

    Returns:
        Plain JSON values; ``notes`` holds what a reader has to know, in sentences.
    """
    union = tracks.union()
    films, notes = {}, []
    for name, frames, found in (("first", first, found_first), ("second", second, found_second)):
        values: dict[str, Any] = {"sha256": frames_sha256(frames), "object_iou": None}
        values.update(measure_film(frames, union))
        if found is not None and tracks.ids:
            values["object_iou"] = mask_iou(_seen(found), union)
            if not found.ids:
                notes.append(f"the detector does not find the object in the {name} video; its IoU counts as 0.")
        films[name] = values
    if guide is not None and guide.strength == 0.0:
        notes.append("strength is 0; the second video was made without guidance.")
    if settings.regenerate == "fresh":
        notes.append("the second video has its own noise: the masks were found in another video than they guide.")
    return {
        "recipe": "mask_refine",
        "guided": guide is not None and guide.strength > 0.0,
        "notes": notes,
        "settings": _settings(settings, guide),
        "film": {"frames": first.shape[0], "height": first.shape[1], "width": first.shape[2]},
        "masks": {
            "source": "given" if given else "detected",
            "area": union.mean().item(),
            "objects": _objects(tracks, found_first, found_second),
        },
        "films": films,
        "change_outside": change_outside(first, second, union),
        "change_anywhere": (first - second).abs().mean().item(),
        "environment": environment(),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _settings(settings: MaskRefineSettings, guide: Guide | None) -> dict[str, Any]:
    values = settings.to_dict()
    if guide is not None:
        values["strength"] = guide.own_strength if guide.goal is None else guide.strength
    return values


def _objects(tracks: Tracks, found_first: Tracks | None, found_second: Tracks | None) -> list[dict[str, Any]]:
    objects = []
    for number, (identity, label) in enumerate(zip(tracks.ids, tracks.labels, strict=True)):
        missed = tracks.misses[number].nonzero().flatten().tolist()
        seen = ~tracks.misses[number]
        entry: dict[str, Any] = {
            "id": identity,
            "phrase": label,
            "frames_missed": missed,
            "score": tracks.scores[number][seen].mean().item() if bool(seen.any()) else None,
        }
        mask = tracks.masks[number] >= INSIDE
        for name, found in (("iou_first", found_first), ("iou_second", found_second)):
            entry[name] = None if found is None else mask_iou(_seen(found, label), mask)
        objects.append(entry)
    return objects


def _seen(found: Tracks, label: str | None = None) -> Tensor:
    """Union of the tracks (of one phrase), only in frames in which the detector saw them: a filled mask is a guess.

    Returns:
        bool [T, H, W].
    """
    union = torch.zeros(found.frames, *found.size, dtype=torch.bool)
    for number, name in enumerate(found.labels):
        if label is None or phrase_key(label) == phrase_key(name):
            for frame in (~found.misses[number]).nonzero().flatten().tolist():
                union[frame] |= found.masks[number, frame] >= INSIDE
    return union
