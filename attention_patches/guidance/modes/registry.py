"""The modes by name."""

from __future__ import annotations

from collections.abc import Iterable
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
    check_constants(name, constants)
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


def check_constants(name: str, constants: Iterable[str]) -> None:
    """Raise GuideError unless a mode is there and has all of these constants."""
    known = mode_constants(name)
    for constant in constants:
        if constant not in known:
            values = ", ".join(f"{key}={value}" for key, value in known.items())
            raise GuideError(f"mode {name} has no constant {constant!r}; it has {values}.")
