"""The modes by name."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any

from ...checks import check_number
from ...errors import GuideError
from .cross_text import CrossText
from .direct_a_video import DirectAVideo
from .dynamic_masks import DynamicMasks
from .focus import Focus, FocusForeground
from .freetraj import FreeTraj
from .mode import MAX_CONSTANT, MAX_STRENGTH, MaskMode
from .motionbooth import MotionBooth
from .peekaboo import Peekaboo
from .separate import Separate
from .through_the_mask import ThroughTheMask
from .trailblazer import TrailBlazer
from .videograin import VideoGrain

# To add a mode, write its file and add its class here.
_ALL: tuple[type[MaskMode], ...] = (
    DynamicMasks,
    Focus,
    FocusForeground,
    Separate,
    CrossText,
    Peekaboo,
    TrailBlazer,
    FreeTraj,
    DirectAVideo,
    MotionBooth,
    VideoGrain,
    ThroughTheMask,
)
MODES: dict[str, type[MaskMode]] = {mode.name: mode for mode in _ALL}
# Those that have one constant that is their strength.
PLAIN = tuple(name for name, mode in MODES.items() if mode.strength_constant)


def make_mode(name: str, **constants: Any) -> MaskMode:
    """Make a mode with its published constants, some of them replaced.

    Args:
        name: one of ``MODES``.
        **constants: by the names of the mode's fields.

    Raises:
        GuideError: an unknown mode, an unknown constant, or a value out of its range.
    """
    defaults = mode_constants(name)
    unknown = [constant for constant in constants if constant not in defaults]
    if unknown:
        raise GuideError(_no_constant(name, unknown[0], defaults))
    return MODES[name](**constants)


def mode_at(name: str, strength: float | None = None, **constants: Any) -> tuple[MaskMode, float]:
    """Make a mode at a strength in its own unit.

    Args:
        name: one of ``MODES``.
        strength: of a mode with a ``strength_constant`` (``gap`` of separate, ``gain`` of cross_text, ``exponent`` of
            focus) that constant; of any other a factor on all it does. 0 is no guidance, None the mode's own.
        **constants: as in ``make_mode``.

    Returns:
        The mode, and the ``strength`` of a guide with it.

    Raises:
        GuideError: as ``make_mode``, or a strength out of its range.
    """
    own = mode_class(name).strength_constant
    if strength is None:
        return make_mode(name, **constants), 1.0
    check_number("strength", strength, MAX_CONSTANT if own else MAX_STRENGTH, meaning="no guidance")
    if not own or strength == 0.0:
        return make_mode(name, **constants), strength
    return make_mode(name, **{own: strength}, **constants), 1.0


def mode_class(name: str) -> type[MaskMode]:
    """The class of a mode; GuideError for a mode that is none."""
    if name not in MODES:
        raise GuideError(f"mode is {name!r}; choose one of {', '.join(MODES)}.")
    return MODES[name]


def mode_constants(name: str) -> dict[str, Any]:
    """Names and published values of all constants of a mode; GuideError for a mode that is none."""
    return {constant.name: constant.default for constant in fields(mode_class(name))}


def read_constants(name: str, text: str) -> dict[str, Any]:
    """Read constants of a mode from a text.

    Args:
        name: of the mode.
        text: ``constant=value`` pairs, apart by commas, semicolons or new lines; a value may have commas itself
            (``blocks=mid,up``). A line that begins with ``#`` is a remark.

    Returns:
        Values by name, of the kinds of the published ones.

    Raises:
        GuideError: an unknown mode or constant, one that is named twice, or a value of another kind.
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
                raise GuideError(f"constants has {piece!r} without '='; write pairs such as 'end_percent=0.5'.")
            found[last] += f",{piece}"
            continue
        if constant not in defaults:
            raise GuideError(_no_constant(name, constant, defaults))
        if constant in found:
            raise GuideError(f"constants has {constant!r} twice; give each once.")
        found[constant], last = value, constant
    return {constant: _value(constant, value, defaults[constant]) for constant, value in found.items()}


def _value(constant: str, text: str, default: Any) -> Any:
    """A value of the kind that the published one has."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise GuideError(f"constant {constant} is {text!r}; write true or false.")
        return text.lower() == "true"
    if not isinstance(default, int | float):
        return text
    kind = "whole number" if isinstance(default, int) else "number"
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise GuideError(f"constant {constant} is {text!r}; write a {kind} such as {default}.") from None
    if not math.isfinite(value):
        raise GuideError(f"constant {constant} is {text!r}; write a {kind} such as {default}.")
    return value


def _no_constant(mode: str, constant: str, defaults: dict[str, Any]) -> str:
    known = ", ".join(f"{name}={value}" for name, value in defaults.items())
    return f"mode {mode} has no constant {constant!r}; it has {known}."
