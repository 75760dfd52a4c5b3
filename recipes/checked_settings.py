"""Checks that the settings of several recipes share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .protocols import Geometry

MAX_STEPS = 1000
MAX_FRAMES = 4096
MAX_SIDE = 1 << 14
MAX_SEED = 2**63 - 2


def check_choices(entries: Iterable[tuple[str, Any, Sequence[str]]]) -> None:
    """Check (name, value, choices).

    Raises:
        ValueError: naming the value and the choices.
    """
    for name, value, choices in entries:
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def check_ranges(entries: Iterable[tuple[str, float | None, float, float]]) -> None:
    """Check (name, value, lowest, highest); None is not looked at.

    Raises:
        ValueError: naming the value and its range.
    """
    for name, value, low, high in entries:
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{name} is {value}; give a value from {low} to {high}.")


def film_size(geometry: Geometry, frames: int, height: int | None, width: int | None) -> tuple[int, int, int]:
    """Frames, height and width of a clip; a side that is None takes the model's native one.

    Raises:
        ValueError: a size that the model cannot make, with the nearest one that it can.
    """
    height = geometry.height if height is None else height
    width = geometry.width if width is None else width
    for name, value in (("height", height), ("width", width)):
        factor = geometry.spatial_factor
        if value % factor:
            near = max(factor, round(value / factor) * factor)
            raise ValueError(f"{name} is {value}, not a multiple of {factor} as this model needs; take {near}.")
    if (frames - 1) % geometry.temporal_factor:
        near = (frames - 1) // geometry.temporal_factor * geometry.temporal_factor + 1
        raise ValueError(
            f"frames is {frames}; this model makes lengths of {geometry.temporal_factor} * n + 1: take {near}."
        )
    return frames, height, width
