"""The modes by name."""

from __future__ import annotations

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
    if name not in MODES:
        raise ValueError(f"mode is {name!r}; choose one of {', '.join(MODES)}.")
    known = [field.name for field in fields(MODES[name])]
    unknown = [constant for constant in constants if constant not in known]
    if unknown:
        raise ValueError(f"mode {name} has no constant {unknown[0]!r}; its constants are {', '.join(known)}.")
    return MODES[name](**constants)
