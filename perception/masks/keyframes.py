"""Numbers over time, given at a few frames: held, joined by lines or by a smooth curve; and written as a text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Curve = Literal["linear", "spline", "hold"]
CURVES: tuple[str, ...] = get_args(Curve)

# A frame of the clip, from 0, and the numbers that hold there.
Keyframe = tuple[int, tuple[float, ...]]

MAX_KEYFRAMES = 1000
LAST_FRAME = 999_999
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
# A frame, a colon (also the wide one of Chinese and Japanese keyboards) and a number.
_VALUE = re.compile(f"\\s*([0-9]{{1,6}})\\s*[:\uff1a]\\s*({_NUMBER})\\s*")


def interpolate_keyframes(
    keyframes: Sequence[Keyframe], frames: int, curve: Curve = "linear"
) -> tuple[tuple[float, ...], ...]:
    """Numbers for every frame from numbers at some frames.

    The smooth curve is the monotone cubic of Fritsch and Butland, "A method for constructing local monotone piecewise
    cubic interpolants", SIAM J. Sci. Stat. Comput. 5 (1984): it passes every keyframe and overshoots none, so a size
    stays positive and a strength in its range.

    Args:
        keyframes: in rising order of frames, 0 or more, each with equally many numbers; those behind the clip's end
            count for the way towards them. Before the first and after the last their numbers hold.
        frames: of the clip, at least 1.
        curve: ``linear``, ``spline`` (smooth) or ``hold`` (each keyframe's numbers up to the next one).

    Returns:
        ``frames`` tuples of numbers.

    Raises:
        ValueError: no keyframe, frames that do not rise or are negative, unequal counts of numbers, non-finite ones, an
            unknown curve.
    """
    check_keyframes(keyframes)
    if frames < 1:
        raise ValueError(f"keyframes are read for {frames} frames; give at least 1.")
    if curve not in CURVES:
        raise ValueError(f"curve is {curve!r}; choose one of {', '.join(CURVES)}.")
    times = np.array([frame for frame, _ in keyframes], dtype=np.float64)
    values = np.array([numbers for _, numbers in keyframes], dtype=np.float64)
    wanted = np.clip(np.arange(frames, dtype=np.float64), times[0], times[-1])
    place = np.clip(np.searchsorted(times, wanted, side="right") - 1, 0, len(times) - 1)
    if curve == "hold" or len(times) == 1:
        between = values[place]
    else:
        place = np.minimum(place, len(times) - 2)
        width = times[place + 1] - times[place]
        share = ((wanted - times[place]) / width)[:, None]
        start, end = values[place], values[place + 1]
        between = start + (end - start) * share
        if curve == "spline":
            slopes = _slopes(times, values)
            # What the cubic adds to the line: its slopes at both ends, minus the slope of the line.
            bend = share * (1 - share)
            leave, arrive = width[:, None] * slopes[place] - (end - start), width[:, None] * slopes[place + 1]
            between = between + bend * ((1 - share) * leave - share * (arrive - (end - start)))
    return tuple(tuple(row) for row in between.tolist())


def check_keyframes(keyframes: Sequence[Keyframe], name: str = "keyframes") -> None:
    """Refuse keyframes without a clear meaning.

    Args:
        keyframes: to look at.
        name: of what they belong to, for the message.

    Raises:
        ValueError: see ``interpolate_keyframes``; also more than ``MAX_KEYFRAMES``.
    """
    if not 1 <= len(keyframes) <= MAX_KEYFRAMES:
        raise ValueError(f"{name}: there are {len(keyframes)}; give 1 to {MAX_KEYFRAMES}.")
    frames = [frame for frame, _ in keyframes]
    if not 0 <= min(frames) <= max(frames) <= LAST_FRAME:
        raise ValueError(f"{name} lie at frames {min(frames)} to {max(frames)}; give frames from 0 to {LAST_FRAME}.")
    for before, after in zip(frames, frames[1:], strict=False):
        if after <= before:
            raise ValueError(f"{name}: frame {after} comes after frame {before}; give each frame once, in order.")
    counts = {len(numbers) for _, numbers in keyframes}
    if len(counts) != 1:
        raise ValueError(f"{name} have {sorted(counts)} numbers; give equally many at each frame.")
    for frame, numbers in keyframes:
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{name}: at frame {frame} stands {list(numbers)}; give finite numbers.")


def parse_values(text: str, frames: int) -> tuple[float, ...]:
    """Read one number over time, joined by lines between its keyframes.

    Args:
        text: ``frame: number`` pairs such as ``0: 1, 8: 0.5``, apart by commas, semicolons or line ends; or a single
            number for all frames; or nothing.
        frames: of the clip, at least 1.

    Returns:
        One number a frame; none at all for an empty text.

    Raises:
        ValueError: text of another form, and as ``interpolate_keyframes``.
    """
    pieces = [piece for piece in re.split(r"[,;\n]", text) if piece.strip()]
    if not pieces:
        return ()
    if len(pieces) == 1 and re.fullmatch(_NUMBER, pieces[0].strip()):
        pieces = [f"0: {pieces[0]}"]
    keyframes: list[Keyframe] = []
    for piece in pieces:
        found = _VALUE.fullmatch(piece)
        if found is None:
            raise ValueError(
                f"{piece.strip()[:40]!r} is not a number at a frame; write pairs such as '0: 1, 8: 0.5', or one number."
            )
        keyframes.append((int(found[1]), (float(found[2]),)))
    return tuple(value for (value,) in interpolate_keyframes(keyframes, frames))


def _slopes(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Slopes [K, n] at the keyframes that keep the curve between its keyframes' numbers."""
    widths = np.diff(times)[:, None]
    secants = np.diff(values, axis=0) / widths
    if len(secants) == 1:
        return np.repeat(secants, 2, axis=0)
    before, after = secants[:-1], secants[1:]
    near, far = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
    same_way = before * after > 0
    # Harmonic mean of the secants, weighted; 1 stands in where they are not used.
    inner = (near + far) / (near / np.where(same_way, before, 1) + far / np.where(same_way, after, 1))
    inner = np.where(same_way, inner, 0.0)
    first = _end_slope(widths[0], widths[1], secants[0], secants[1])
    last = _end_slope(widths[-1], widths[-2], secants[-1], secants[-2])
    return np.concatenate([first[None], inner, last[None]])


def _end_slope(near: np.ndarray, far: np.ndarray, secant: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Slope at an end from the parabola through three keyframes, as far as nothing overshoots."""
    slope = ((2 * near + far) * secant - near * other) / (near + far)
    slope = np.where(slope * secant <= 0, 0.0, slope)
    steep = (secant * other <= 0) & (np.abs(slope) > 3 * np.abs(secant))
    return np.where(steep, 3 * secant, slope)
