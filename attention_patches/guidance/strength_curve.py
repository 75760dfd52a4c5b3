"""Strength over the schedule: a curve through a few points, straight or smooth between them."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from ..checks import check_number
from ..errors import GuideError

MAX_POINTS = 4096
# Largest factor on the strength of a guide.
MAX_FACTOR = 10.0


@dataclass(frozen=True)
class StrengthCurve:
    """A factor at every part of the schedule.

    Smooth curves are the monotone cubics of Fritsch and Carlson, "Monotone piecewise cubic interpolation", SIAM J.
    Numer. Anal. 17 (1980), with the mean of both secants as slope: they pass every point and overshoot none. ComfyUI
    core's curves (``comfy_api/latest/_input/curve_types.py``) are the same ones.

    Attributes:
        points: (x, y) in rising order of x: the part of the schedule, 0 at the first step to 1 at the end, and the
            factor there, 0..10. Before the first point and after the last one theirs holds. Where two have the same x
            the curve jumps.
        smooth: straight lines between points, or a smooth curve.

    Raises:
        GuideError: no point, too many, an order that does not rise, or a value out of range.
    """

    points: tuple[tuple[float, float], ...]
    smooth: bool = True

    def __post_init__(self) -> None:
        points = tuple((float(x), float(y)) for x, y in self.points)
        object.__setattr__(self, "points", points)
        if not 1 <= len(points) <= MAX_POINTS:
            raise GuideError(f"a strength curve has {len(points)} points; give 1 to {MAX_POINTS}.")
        for x, y in points:
            check_number("x of a strength curve", x, 1.0, meaning="the first step")
            check_number("a strength curve", y, MAX_FACTOR, meaning="no guidance")
        for (before, _), (after, _) in zip(points, points[1:], strict=False):
            if after < before:
                raise GuideError(f"in a strength curve {after:g} comes after {before:g}; give points in rising order.")

    @property
    def highest(self) -> float:
        """The largest factor."""
        return max(y for _, y in self.points)

    def at(self, progress: float) -> float:
        """The factor at a part of the schedule; what lies before 0 or after 1 counts as that end."""
        x = min(max(progress, 0.0), 1.0)
        after = bisect_right(self.points, x, key=lambda point: point[0])
        if after == 0 or after == len(self.points):
            return self.points[after - 1 if after else 0][1]
        (left, low), (right, high) = self.points[after - 1], self.points[after]
        width, share = right - left, (x - left) / (right - left)
        line = low + (high - low) * share
        if not self.smooth:
            return line
        # What the cubic adds to the line: its slopes at both ends, minus the slope of the line.
        leave = width * self._slopes[after - 1] - (high - low)
        arrive = width * self._slopes[after] - (high - low)
        value = line + share * (1.0 - share) * ((1.0 - share) * leave - share * arrive)
        # Rounding must not make a strength below 0.
        return min(max(value, min(low, high)), max(low, high))

    @cached_property
    def _slopes(self) -> tuple[float, ...]:
        pairs = list(zip(self.points, self.points[1:], strict=False))
        secants = [0.0 if right == left else (high - low) / (right - left) for (left, low), (right, high) in pairs]
        if not secants:
            return (0.0,)
        inner = [
            0.0 if before * after <= 0.0 else (before + after) / 2.0
            for before, after in zip(secants, secants[1:], strict=False)
        ]
        slopes = [secants[0], *inner, secants[-1]]
        for place, secant in enumerate(secants):
            if secant == 0.0:
                slopes[place] = slopes[place + 1] = 0.0
                continue
            start, end = slopes[place] / secant, slopes[place + 1] / secant
            length = math.hypot(start, end)
            if length > 3.0:
                slopes[place], slopes[place + 1] = 3.0 * start / length * secant, 3.0 * end / length * secant
        return tuple(slopes)
