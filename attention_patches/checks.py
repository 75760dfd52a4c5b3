"""What every kind of guide asks of its masks and settings; each message names the value seen and the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from .errors import GuideError
from .latent_time import LatentTime, latent_frame_groups

# Masks whose width and height relate to each other otherwise than the film's by more than this belong to another film.
MAX_STRETCH = 1.25


def checked_masks(masks: Tensor) -> Tensor:
    """Return masks as float32 [R, F, H, W] on the CPU; [F, H, W] is taken as one object.

    Raises:
        GuideError: the wrong shape, or values that are not finite or not in 0..1.
    """
    given = masks[None] if masks.ndim == 3 else masks
    if given.ndim != 4 or 0 in given.shape[1:]:
        raise GuideError(
            f"masks have shape {tuple(masks.shape)}; give [objects, frames, height, width] with at least one frame and "
            "pixel."
        )
    given = given.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(given).all()):
        raise GuideError("masks hold NaN or infinite values; refine or redraw them so that all lie in 0..1.")
    if given.numel() and not (0.0 <= float(given.min()) and float(given.max()) <= 1.0):
        raise GuideError(
            f"mask values reach from {float(given.min()):g} to {float(given.max()):g}; scale them to 0..1."
        )
    return given


def check_phrases(phrases: Sequence[str], masks: Tensor) -> None:
    """Raise GuideError unless there is one phrase per object, or none at all."""
    if phrases and len(phrases) != len(masks):
        raise GuideError(f"{len(phrases)} phrases for {len(masks)} masks; give one phrase per object, or none.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise GuideError when a setting is none of its choices."""
    if value not in choices:
        raise GuideError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def check_number(name: str, value: float, most: float, least: float = 0.0, meaning: str = "") -> None:
    """Raise GuideError for a number outside of its range or not finite; ``meaning`` says what the least one does."""
    if not math.isfinite(value) or not least <= value <= most:
        explained = f" ({meaning})" if meaning else ""
        raise GuideError(f"{name} is {value:g}; give a value from {least:g}{explained} to {most:g}.")


def check_percents(start_percent: float, end_percent: float) -> None:
    """Raise GuideError unless 0 <= start <= end <= 1."""
    if not 0.0 <= start_percent <= end_percent <= 1.0:
        raise GuideError(
            f"start_percent {start_percent:g} and end_percent {end_percent:g} are not a part of the schedule; give "
            "0 <= start <= end <= 1."
        )


def block_patterns(blocks: str) -> tuple[str, ...]:
    """Patterns of a comma list of block names.

    Raises:
        GuideError: the list is empty.
    """
    patterns = tuple(pattern.strip() for pattern in blocks.split(",") if pattern.strip())
    if not patterns:
        raise GuideError(f"blocks is {blocks!r}; write 'all' or a comma list such as 'mid,up' or 'down.1.*'.")
    return patterns


def matches_block(block: str, pattern: str) -> bool:
    """Say whether ``down.1.0`` is meant by a pattern: ``all``, the name or the start of it, or with ``*`` and ``?``."""
    return pattern == "all" or fnmatchcase(block, pattern) or fnmatchcase(block, f"{pattern}.*")


def check_blocks(blocks: str, names: Sequence[str]) -> None:
    """Compare a comma list of block name patterns with the blocks of a model.

    Raises:
        GuideError: a pattern fits none of them.
    """
    for pattern in block_patterns(blocks):
        if not any(matches_block(name, pattern) for name in names):
            raise GuideError(
                f"blocks has {pattern!r}, which fits no block of this model ({', '.join(names)}); correct it, or "
                "write all."
            )


def check_shape(name: str, size: Sequence[int], film_size: Sequence[int], film: str = "film") -> None:
    """Compare the shape of masks, or of another picture, with that of the film to which they shall belong.

    Args:
        name: of what is compared, with its verb, for the message.
        size: height and width of it.
        film_size: height and width of the film; only the ratios count.
        film: what has this size, for the message.

    Raises:
        GuideError: width and height relate to each other otherwise, by more than ``MAX_STRETCH``.
    """
    (height, width), (film_height, film_width) = size, film_size
    stretch = (width / height) / (film_width / film_height)
    if not 1.0 / MAX_STRETCH <= stretch <= MAX_STRETCH:
        raise GuideError(
            f"{name} {width} x {height} pixels but the {film} {film_width} x {film_height}: they would be distorted; "
            "crop to that shape, or give what was made for this film."
        )


def check_film(masks: Tensor, clip_frames: int, height: int, width: int, latent_time: LatentTime | None = None) -> None:
    """Compare masks [R, F, H, W] with the clip that is about to be sampled.

    Args:
        masks: of a guide.
        clip_frames: frames of the whole clip as the model counts them.
        height, width: of its latents; only their ratio counts.
        latent_time: see ``AttentionSite``.

    Raises:
        GuideError: the masks' frames do not fit, or their pictures have quite another shape.
    """
    latent_frame_groups(masks.shape[1], clip_frames, latent_time)
    check_shape("the masks are", masks.shape[2:], (height, width), "film's latents")
