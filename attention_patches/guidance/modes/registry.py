"""The modes by name."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any

from .direct_a_video import DirectAVideo
from .dynamic_masks import DynamicMasks
from .freetraj import FreeTraj
from .mode import MaskMode
from .motionbooth import MotionBooth
from .peekaboo import Peekaboo
from .through_the_mask import ThroughTheMask
from .trailblazer import TrailBlazer
from .videograin import VideoGrain

_ALL = (DynamicMasks, Peekaboo, TrailBlazer, FreeTraj, DirectAVideo, MotionBooth, VideoGrain, ThroughTheMask)
MODES: dict[str, type[MaskMode]] = {mode.name: mode for mode in _ALL}


def make_mode(name: str, **constants: Any) -> MaskMode:
    """Make a mode with its published constants, some of them replaced.

    Args:
        name: one of ``MODES``.
        **constants: by the names of the mode's fields.

    Raises:
        ValueError: an unknown mode, an unknown constant, or a value out of its range.
    """
    defaults = mode_constants(name)
    unknown = [constant for constant in constants if constant not in defaults]
    if unknown:
        raise ValueError(_no_constant(name, unknown[0], defaults))
    return MODES[name](**constants)


def mode_constants(name: str) -> dict[str, Any]:
    """Names and published values of all constants of a mode; ValueError for a mode that is none."""
    if name not in MODES:
        raise ValueError(f"mode is {name!r}; choose one of {', '.join(MODES)}.")
    return {constant.name: constant.default for constant in fields(MODES[name])}


def read_constants(name: str, text: str) -> dict[str, Any]:
    """Read constants of a mode from a text.

    Args:
        name: of the mode.
        text: ``constant=value`` pairs, apart by commas, semicolons or new lines; a value may have commas itself
            (``blocks=mid,up``). A line that begins with ``#`` is a remark.

    Returns:
        Values by name, of the kinds of the published ones.

    Raises:
        ValueError: an unknown mode or constant, one that is named twice, or a value of another kind.
    """
    defaults = mode_constants(name)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, str] = {}
    last = ""
    for piece in (part.strip() for part in re.split(r"[,;\n]", "\n".join(lines))):
        if not piece:
            continue
        constant, equals, value = (part.strip() for part in piece.partition("="))
        if not equals:
            if not last:
                raise ValueError(f"constants has {piece!r} without '='; write pairs such as 'end_percent=0.5'.")
            found[last] += f",{piece}"
            continue
        if constant not in defaults:
            raise ValueError(_no_constant(name, constant, defaults))
        if constant in found:
            raise ValueError(f"constants has {constant!r} twice; give each once.")
        found[constant], last = value, constant
    return {constant: _value(constant, value, defaults[constant]) for constant, value in found.items()}


def _value(constant: str, text: str, default: Any) -> Any:
    """A value of the kind that the published one has."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"constant {constant} is {text!r}; write true or false.")
        return text.lower() == "true"
    if not isinstance(default, int | float):
        return text
    kind = "whole number" if isinstance(default, int) else "number"
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise ValueError(f"constant {constant} is {text!r}; write a {kind} such as {default}.") from None
    if not math.isfinite(value):
        raise ValueError(f"constant {constant} is {text!r}; write a {kind} such as {default}.")
    return value


def _no_constant(mode: str, constant: str, defaults: dict[str, Any]) -> str:
    known = ", ".join(f"{name}={value}" for name, value in defaults.items())
    return f"mode {mode} has no constant {constant!r}; it has {known}."
