"""Whether a video's objects went where their masks are: overlap, distance, and what happened elsewhere.

A measure that has nothing to look at is None and never a number that looks like a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...attention_patches.checks import check_shape
from ...perception.boxes import Progress
from ...perception.frames import Film
from ...perception.masks.mask_sequences import SequenceSettings, make_sequence
from ...perception.phrases import phrase_key
from ...perception.tracking.track_settings import TrackSettings
from ...perception.tracks import Tracks
from ..find_and_follow.recipe import FollowSettings, find_and_follow
from ..measurements import change_outside
from ..protocols import Detector, Tracker
from ..stages import StageProgress


class FilmScorer(Protocol):
    """Judges a video by a model that knows pictures and words."""

    def score(self, film: Film, prompt: str, progress: Progress | None = None) -> dict[str, float | None]:
        """``text_alignment`` and ``frame_consistency``."""


@dataclass(frozen=True)
class Finding:
    """How objects are looked for in a video.

    Attributes:
        box_threshold: 0..1, a box needs a better score.
        text_threshold: 0..1, a word counts as found above it.
        detect_every: frames, at least 1: the detector looks at every n-th one.
    """

    box_threshold: float = 0.35
    text_threshold: float = 0.25
    detect_every: int = 1


def find_objects(
    film: Film,
    phrases: Sequence[str],
    detector: Detector,
    tracker: Tracker,
    finding: Finding | None = None,
    progress: StageProgress | None = None,
) -> Tracks:
    """Objects that a detector finds by their phrases and a tracker follows.

    Args:
        film: video to look at.
        phrases: repeats count once.
        detector: of boxes by words.
        tracker: of masks from boxes.
        finding: thresholds; None takes the defaults.
        progress: called with (stage, done, total); may raise to cancel.

    Raises:
        ValueError: no phrases, one that is empty, or a threshold out of range.
    """
    if not all(phrase.strip() for phrase in phrases):
        raise ValueError("an object lacks a phrase to look for; name each one, for example 'red ball'.")
    finding = finding or Finding()
    settings = FollowSettings(
        tuple(dict.fromkeys(phrases)),
        finding.box_threshold,
        finding.text_threshold,
        detect_every=finding.detect_every,
        tracking=TrackSettings(),
    )
    return find_and_follow(film, detector, tracker, settings, progress).tracks


def measure_masks(film: Film, wanted: Tracks, found: Tracks) -> dict[str, Any]:
    """Compare where objects should be with where they are.

    Each wanted object is compared with one found object of its phrase: pairs are made from the greatest overlap down,
    among equal ones from the nearest. Where either side has no labels at all, any object may be it.

    Args:
        film: video whose size counts; masks of another size are brought to it.
        wanted: the masks of the guide, a mask per frame or a single one for all frames.
        found: what is in the video, likewise.

    Returns:
        ``objects``: for each wanted one ``phrase``, ``iou`` (mean over the frames in which either mask has a pixel, 0
        where nothing was found), ``iou_per_frame`` (None where neither has), ``centroid_error`` (mean distance of the
        masks' middles over the frames with both, as a share of the picture's diagonal), ``centroid_error_pixels``,
        ``frames_wanted``, ``frames_found``, ``found_id``. ``iou`` and ``centroid_error``: means over the objects.
        ``others_found``: objects of the wanted phrases that stand for none of them.

    Raises:
        ValueError: masks for a different number of frames, or of quite another shape.
    """
    wanted, found = fitted_tracks(wanted, film, "wanted masks"), fitted_tracks(found, film, "found masks")
    pairs = _pairs(wanted, found)
    objects = []
    for number, label in enumerate(wanted.labels):
        partner = pairs.get(number)
        values = _compare(wanted, number, found, partner)
        objects.append({"phrase": label, **values, "found_id": None if partner is None else found.ids[partner]})
    phrases = {phrase_key(label) for label in wanted.labels}
    others = [place for place, label in enumerate(found.labels) if place not in pairs.values()]
    if any(phrases):
        others = [place for place in others if not found.labels[place] or phrase_key(found.labels[place]) in phrases]
    return {
        "objects": objects,
        "iou": mean_of([entry["iou"] for entry in objects]),
        "centroid_error": mean_of([entry["centroid_error"] for entry in objects]),
        "others_found": len(others),
    }


def measure_background(film: Film, reference: Film, tracks: Sequence[Tracks]) -> float | None:
    """Mean absolute difference (0..1, over RGB) of two videos where no object is in either, averaged over the frames.

    Args:
        film: video to judge.
        reference: the same seed without guidance, for example; of the same length and size.
        tracks: objects in both videos and where they should be; two pixels around them count as theirs.

    Raises:
        ValueError: the videos differ in length or size, or masks for a different number of frames.
    """
    for name, first, second in (
        ("frames", len(film), len(reference)),
        ("pixels in height", film.height, reference.height),
        ("pixels in width", film.width, reference.width),
    ):
        if first != second:
            raise ValueError(f"the video has {first} {name} and the reference {second}; compare videos of one size.")
    fitted = [fitted_tracks(objects, film, "masks") for objects in tracks]
    changes = []
    for frame in range(len(film)):
        together = torch.zeros(1, film.height, film.width)
        for objects in fitted:
            together = together.maximum(objects.masks.union(slice(frame, frame + 1)).float() / 255)
        changes.append(change_outside(film.read([frame]), reference.read([frame]), together))
    return mean_of(changes)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of those that were measured; None when none was."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def fitted_tracks(tracks: Tracks, film: Film, name: str) -> Tracks:
    """Masks with a frame for each of the video's, of its size.

    Args:
        tracks: a mask per frame, or a single one for all; of any size of the video's shape.
        film: video whose length and size count.
        name: of the masks, for the message.

    Raises:
        ValueError: masks for another number of frames, or of quite another shape.
    """
    if tracks.frames not in (1, len(film)):
        raise ValueError(
            f"there are {name} for {tracks.frames} frames and the video has {len(film)}; give one mask "
            "per frame, or a single one."
        )
    check_shape(f"the {name} are", tracks.size, (film.height, film.width))
    if (tracks.frames, *tracks.size) == (len(film), film.height, film.width):
        return tracks
    return make_sequence(tracks, SequenceSettings(frames=len(film), height=film.height, width=film.width))


def _pairs(wanted: Tracks, found: Tracks) -> dict[int, int]:
    """For each wanted object the place of the found one that stands for it."""
    by_label = any(wanted.labels) and any(found.labels)
    ranked = []
    for first, phrase in enumerate(wanted.labels):
        for second, label in enumerate(found.labels):
            if not by_label or phrase_key(phrase) == phrase_key(label):
                values = _compare(wanted, first, found, second)
                distance = values["centroid_error"]
                ranked.append((-(values["iou"] or 0.0), 2.0 if distance is None else distance, first, second))
    pairs: dict[int, int] = {}
    for _, _, first, second in sorted(ranked):
        if first not in pairs and second not in pairs.values():
            pairs[first] = second
    return pairs


def _compare(wanted: Tracks, number: int, found: Tracks, partner: int | None) -> dict[str, Any]:
    overlaps: list[float | None] = []
    distances: list[float] = []
    seen = [0, 0]
    for frame in range(wanted.frames):
        first = wanted.masks[number, frame] > 127
        second = torch.zeros_like(first) if partner is None else found.masks[partner, frame] > 127
        there = bool(first.any()), bool(second.any())
        seen = [count + present for count, present in zip(seen, there, strict=True)]
        overlaps.append(float((first & second).sum() / (first | second).sum()) if any(there) else None)
        if all(there):
            distances.append(float((_middle(first) - _middle(second)).norm()))
    pixels = mean_of(distances)
    diagonal = float(torch.tensor([float(side) for side in wanted.size]).norm())
    return {
        "iou": mean_of(overlaps),
        "iou_per_frame": overlaps,
        "centroid_error": None if pixels is None else pixels / diagonal,
        "centroid_error_pixels": pixels,
        "frames_wanted": seen[0],
        "frames_found": seen[1],
    }


def _middle(mask: Tensor) -> Tensor:
    return mask.nonzero().double().mean(0)
