"""Guides in the four modes that have one constant as their strength, and what they add, pair by pair of tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import mode_at


def plain_guide(
    masks: Tensor,
    phrases: tuple[str, ...] = (),
    mode: str = "focus_fg",
    strength: float | None = None,
    time_pooling: str = "max",
    **constants: Any,
) -> Guide:
    """A guide in ``focus``, ``focus_fg``, ``separate`` or ``cross_text`` at a strength in the mode's own unit."""
    chosen, factor = mode_at(mode, strength, **constants)
    return Guide(masks, chosen, phrases, strength=factor, time_pooling=time_pooling)
