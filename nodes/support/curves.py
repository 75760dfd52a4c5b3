"""Curves of core as strength over the schedule and over the frames of a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.input import CurveInput, LinearCurve, MonotoneCubicCurve
from comfy_api.latest import io

from ...attention_patches.guidance.guide import Guide
from ...attention_patches.guidance.strength_curve import StrengthCurve
from ...perception.boxes import shown
from .types import Curve

# A curve of a kind that is not known is read at so many places, and straight between them.
SAMPLES = 1025
# Places at which a report says what a curve is.
TOLD = (0.0, 0.25, 0.5, 0.75, 1.0)


def strength_curve_input() -> io.Input:
    """Strength over the schedule."""
    return Curve.Input(
        "strength_curve",
        optional=True,
        tooltip="Factor on strength over the schedule, from core's Curve Editor: left the first step, right the end; 0 "
        "at the bottom is no guidance. It counts between start_percent and end_percent.",
    )


def frame_curve_input() -> io.Input:
    """Strength over the frames."""
    return Curve.Input(
        "frame_curve",
        optional=True,
        tooltip="Factor on strength over the video, from core's Curve Editor: left the first frame of the masks, right "
        "the last. Multiplies frame_strength.",
    )


def given_curve(value: Any) -> StrengthCurve | None:
    """What came through an input for curves; None where nothing is connected.

    Raises:
        ValueError: it is no curve, or goes below 0 or above what a strength can be.
    """
    if value is None:
        return None
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        try:
            value = CurveInput.from_raw(value)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the curve is {shown(value)}; connect core's Curve Editor, or give points from 0 to 1."
            ) from error
    if not isinstance(value, CurveInput):
        raise ValueError(f"the curve is {shown(value)}; connect core's Curve Editor, or give points from 0 to 1.")
    if isinstance(value, LinearCurve | MonotoneCubicCurve):
        return StrengthCurve(tuple(value.points), isinstance(value, MonotoneCubicCurve))
    places = [number / (SAMPLES - 1) for number in range(SAMPLES)]
    return StrengthCurve(tuple((place, float(value.interp(place))) for place in places), smooth=False)


def frame_values(curve: StrengthCurve | None, values: Sequence[float], frames: int) -> tuple[float, ...]:
    """One factor a frame: those of a curve times others.

    Args:
        curve: over the frames, or None.
        values: one a frame, or none.
        frames: of the masks.

    Raises:
        ValueError: a curve over a single mask, which has no frames to go over.
    """
    if curve is None:
        return tuple(values)
    if frames < 2:
        raise ValueError(
            f"frame_curve goes over the frames but there is {frames} mask; connect one mask per frame, or use "
            "strength_curve."
        )
    along = [curve.at(frame / (frames - 1)) for frame in range(frames)]
    return tuple(factor * own for factor, own in zip(along, values or [1.0] * frames, strict=True))


def curve_notes(guide: Guide) -> tuple[str, ...]:
    """What a report says of a guide's strength over the schedule, in at most one sentence."""
    curve = guide.strength_curve
    if curve is None:
        return ()
    factors = ", ".join(f"{curve.at(place):.2f} at {place:g}" for place in TOLD)
    scope = guide.mode.scope
    return (
        f"factor on strength over the schedule: {factors}; it counts from {scope.start_percent:g} to "
        f"{scope.end_percent:g}.",
    )
