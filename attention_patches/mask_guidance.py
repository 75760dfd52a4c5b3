"""Mask guidance: attention follows the masks of the objects, exactly and without a dense mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .site import AttentionSite
from .stack import Attend, Patch
from .text_spans import TextSpans

GuidanceMode = Literal["focus", "focus_fg", "separate", "cross_text"]
GuidedRows = Literal["conditional", "both"]

# The constants of the modes: the exponent of the mask (focus), the logit gap (separate), the logit gain (cross_text).
DEFAULT_STRENGTH: dict[str, float] = {"focus": 1.0, "focus_fg": 1.0, "separate": 8.0, "cross_text": 3.0}
MAX_STRENGTH = 1000.0


@dataclass(frozen=True, eq=False)
class MaskGuidance:
    """Which regions of a clip attention shall keep to, how and when; not yet bound to a model.

    Attributes:
        masks: [R, F, H, W] float in 0..1 on the CPU, one track per object, F pixel (or latent) frames. F may be 1 (one
            mask for all frames). [F, H, W] is taken as one object.
        phrases: words of the prompt that name each object, one per object, or empty. Where given, ``separate`` and
            ``cross_text`` need their token positions (``TextSpans``).
        mode: what the bias is, for membership m of queries q and keys k, and strength g:
            ``focus``: g * log(max(m_k, 1e-4)) for every row, m the union of the objects;
            ``focus_fg``: the same for rows with m_q >= 0.5 only, each object's rows on the object's own keys;
            ``separate``: -g * (1 - <m_q, m_k>) over objects and background (object sees object, background sees
            background), over space and time, and -g for an object's words outside of the object where the phrases
            are given;
            ``cross_text``: +g * m_q on the words of each object.
        strength: g, 0 (no guidance) to 1000. None takes the mode's own: 1, 1, 8, 3.
        start_percent: guidance begins at this part of the schedule, 0..1.
        end_percent: guidance ends at this part of the schedule, 0..1.
        blocks: comma list of block name patterns: ``all``, ``mid,up``, ``down.1.*``.
        levels: grid levels to guide, 0 the finest; None is all.
        rows: ``conditional`` leaves unconditional batch rows alone; ``both`` guides them too (their words never).
        hard: masks are cut at 0.5 and the later object wins where two overlap; ``separate`` lets the sides not see each
            other at all, whatever the strength (and is then faster than no guidance), ``cross_text`` also hides an
            object's words outside of it.

    Raises:
        ValueError: an unknown mode, a value out of its range, masks of the wrong shape or not finite.
    """

    masks: Tensor
    phrases: tuple[str, ...] = ()
    mode: GuidanceMode = "focus_fg"
    strength: float | None = None
    start_percent: float = 0.0
    end_percent: float = 0.52
    blocks: str = "all"
    levels: tuple[int, ...] | None = None
    rows: GuidedRows = "both"
    hard: bool = False

    def __post_init__(self) -> None:
        masks = self.masks[None] if self.masks.ndim == 3 else self.masks
        if masks.ndim != 4 or 0 in masks.shape[1:]:
            raise ValueError(
                f"masks have shape {tuple(self.masks.shape)}; give [objects, frames, height, width] with at least one "
                "frame and pixel."
            )
        masks = masks.detach().to("cpu", torch.float32)
        if not bool(torch.isfinite(masks).all()):
            raise ValueError("masks hold NaN or infinite values; refine or redraw them so that all lie in 0..1.")
        if masks.numel() and not (0.0 <= float(masks.min()) and float(masks.max()) <= 1.0):
            raise ValueError(
                f"mask values reach from {float(masks.min()):g} to {float(masks.max()):g}; scale them to 0..1."
            )
        object.__setattr__(self, "masks", masks)
        object.__setattr__(self, "phrases", tuple(self.phrases))
        if self.levels is not None:
            object.__setattr__(self, "levels", tuple(self.levels))
        self._check_choices()
        self._check_ranges()

    def _check_choices(self) -> None:
        for name, value, choices in (
            ("mode", self.mode, get_args(GuidanceMode)),
            ("rows", self.rows, get_args(GuidedRows)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
        if self.phrases and len(self.phrases) != len(self.masks):
            raise ValueError(
                f"{len(self.phrases)} phrases for {len(self.masks)} masks; give one phrase per object, or none."
            )
        if not any(pattern.strip() for pattern in self.blocks.split(",")):
            raise ValueError(f"blocks is {self.blocks!r}; write 'all' or a comma list such as 'mid,up' or 'down.1.*'.")

    def _check_ranges(self) -> None:
        strength = DEFAULT_STRENGTH[self.mode] if self.strength is None else float(self.strength)
        if not math.isfinite(strength) or not 0.0 <= strength <= MAX_STRENGTH:
            raise ValueError(f"strength is {strength:g}; give a value from 0 (no guidance) to {MAX_STRENGTH:g}.")
        object.__setattr__(self, "strength", strength)
        if not 0.0 <= self.start_percent <= self.end_percent <= 1.0:
            raise ValueError(
                f"start_percent {self.start_percent:g} and end_percent {self.end_percent:g} are no part of the "
                "schedule; give 0 <= start <= end <= 1."
            )
        if self.levels is not None and any(level < 0 for level in self.levels):
            raise ValueError(f"levels are {self.levels}; count them from 0, the finest grid.")


def mask_guidance_patch(guide: MaskGuidance, text_spans: TextSpans | None = None) -> Patch:
    """Bind a guide to a prompt's tokens as an attention patch (stub)."""

    def patch(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        return attend(q, k, v, site)

    return patch
