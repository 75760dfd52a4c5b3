"""Regions of a guide with their phrases, out of tracks or a mask, and the report on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention_patches.guidance.guide import Guide
from ...attention_patches.guidance.regions import FOREGROUND
from ...perception.phrases import bind_phrases, phrase_key
from .inputs import masks_of, phrase_list
from .object_inputs import given_objects


@dataclass(frozen=True, eq=False)
class NamedRegions:
    """What a guide is about.

    Attributes:
        masks: [R, T, H, W] in 0..1.
        phrases: one per region, empty for an object without words, or none at all.
        notes: what a user should know of how phrases and objects came together, in sentences.
    """

    masks: Tensor
    phrases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def named_regions(tracks: Any, mask: Tensor | None, phrases: str) -> NamedRegions:
    """Regions out of what is connected, either tracks or a mask.

    Raises:
        ValueError: if both or neither is, or phrases do not fit.
    """
    if (tracks is None) == (mask is None):
        given = "both" if mask is not None else "neither"
        raise ValueError(f"{given} of tracks and mask is connected; connect exactly one of them.")
    wanted = phrase_list(phrases)
    if tracks is None:
        return regions_of_mask(masks_of(mask), wanted)
    return regions_of_tracks(given_objects(tracks), wanted)


def regions_of_tracks(tracks: Any, phrases: Sequence[str]) -> NamedRegions:
    """One region per phrase out of tracks; without phrases, one per label and one for each object that has none.

    Args:
        tracks: ``perception.tracks.Tracks``.
        phrases: wanted, may be empty.

    Raises:
        ValueError: if phrases fit neither the labels nor the number of objects.
    """
    if not tracks.ids:
        return NamedRegions(tracks.object_masks())
    if phrases:
        names, groups = tuple(phrases), bind_phrases(phrases, tracks.labels, together=True)
    else:
        places: dict[Any, list[int]] = {}
        for place, label in enumerate(tracks.labels):
            places.setdefault(phrase_key(label) or place, []).append(place)
        groups = list(places.values())
        names = tuple(tracks.labels[group[0]] for group in groups)
    masks = torch.stack([tracks.select(group).union() for group in groups])
    return NamedRegions(masks, names if any(names) else (), _binding_notes(tracks, names, groups))


def _binding_notes(tracks: Any, names: Sequence[str], groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Which objects a phrase got that is not their label, and which are in no region."""
    objects = [f"{identity} {label}".strip() for identity, label in zip(tracks.ids, tracks.labels, strict=True)]
    notes = []
    for name, group in zip(names, groups, strict=True):
        if name and any(phrase_key(tracks.labels[place]) != phrase_key(name) for place in group):
            notes.append(f"{name} is object {', '.join(objects[place] for place in group)}.")
    guided = {place for group in groups for place in group}
    left = [name for place, name in enumerate(objects) if place not in guided]
    if left:
        notes.append(f"no phrase names object {', '.join(left)}: not guided.")
    return tuple(notes)


def regions_of_mask(mask: Tensor, phrases: Sequence[str]) -> NamedRegions:
    """The one region of a MASK: [1, T, H, W], or none at all when the mask is empty.

    Raises:
        ValueError: if there is more than one phrase.
    """
    if len(phrases) > 1:
        raise ValueError(
            f"a mask is one region but there are {len(phrases)} phrases ({', '.join(phrases)}); give one, or connect "
            "tracks."
        )
    if not bool((mask > 0).any()):
        return NamedRegions(mask[None][:0])
    return NamedRegions(mask[None], tuple(phrases))


def guide_report(guide: Guide, notes: Sequence[str] = ()) -> str:
    """One line per region, or the plain statement that there is none; then notes."""
    if not guide.is_active:
        flat = guide.strength_curve is not None and guide.strength_curve.highest == 0.0
        resting = "the strength curve is 0 everywhere" if flat and guide.strength > 0.0 else "strength is 0"
        reason = resting if bool((guide.masks >= FOREGROUND).any()) else "no object in any frame"
        return f"{reason}: the video runs unguided."
    lines = []
    for index, region in enumerate(guide.masks):
        name = (guide.phrases[index] if guide.phrases else "") or f"region {index + 1}"
        frames = (region.flatten(1) > 0).any(dim=1).sum().item()
        share = region.mean().item()
        lines.append(
            f"{name}: in {frames} of {len(region)} frames, {100 * share:.1f} % of the picture, {guide.mode.name}."
        )
    if guide.goal is not None:
        lines.append(
            f"strength: what each head needs to give {100 * guide.goal.share:g} % of its attention to what is wanted, "
            f"times {guide.strength:g}."
        )
    if guide.mode.uses_words and guide.phrases:
        wordless = [f"region {index + 1}" for index, phrase in enumerate(guide.phrases) if not phrase]
        lines += [f"{name} has no label, so no words are steered in it." for name in wordless]
    return "\n".join((*lines, *notes))
