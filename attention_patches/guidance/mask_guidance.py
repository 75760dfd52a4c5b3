"""Mask guidance: attention follows the masks of the objects, exactly and without a dense mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ..checks import (
    block_patterns,
    check_choice,
    check_number,
    check_percents,
    check_phrases,
    checked_masks,
    matches_block,
)
from ..site import AttentionSite
from ..stack import Attend, Patch
from .guide_patch import GuidePatch, chosen_chunks, text_length
from .plan import Plan, make_plan
from .region_tables import GuidanceMode, region_tables
from .regions import FOREGROUND, MaskPyramid, TimePooling
from .text_spans import TextSpans

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
        time_pooling: how the pixel frames of one latent frame become one: max, mean, min, first or last.

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
    time_pooling: TimePooling = "max"

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", checked_masks(self.masks))
        object.__setattr__(self, "phrases", tuple(self.phrases))
        if self.levels is not None:
            object.__setattr__(self, "levels", tuple(self.levels))
        check_choice("mode", self.mode, get_args(GuidanceMode))
        check_choice("rows", self.rows, get_args(GuidedRows))
        check_choice("time_pooling", self.time_pooling, get_args(TimePooling))
        check_phrases(self.phrases, self.masks)
        block_patterns(self.blocks)
        strength = DEFAULT_STRENGTH[self.mode] if self.strength is None else float(self.strength)
        check_number("strength", strength, MAX_STRENGTH, meaning="no guidance")
        object.__setattr__(self, "strength", strength)
        check_percents(self.start_percent, self.end_percent)
        if self.levels is not None and any(level < 0 for level in self.levels):
            raise ValueError(f"levels are {self.levels}; count them from 0, the finest grid.")

    @property
    def mode_name(self) -> str:
        """The mode, for reports."""
        return self.mode

    @property
    def background_phrase(self) -> str:
        """None: these modes know no words of the background."""
        return ""

    @property
    def percents(self) -> tuple[float, float]:
        """Where in the schedule guidance begins and ends."""
        return self.start_percent, self.end_percent

    @property
    def uses_words(self) -> bool:
        """Whether the places of the phrases make a difference."""
        return self.mode in ("separate", "cross_text")

    @property
    def needs_words(self) -> bool:
        """Whether there is no guidance without them."""
        return self.mode == "cross_text"

    @property
    def is_active(self) -> bool:
        """Whether the guide asks for anything at all."""
        return self.strength > 0.0 and bool((self.masks >= FOREGROUND).any())

    def on_blocks(self, names: Sequence[str]) -> MaskGuidance:
        """This guide, whatever blocks a model has."""
        return self

    def pyramid(self) -> MaskPyramid:
        """The masks as attention will see them."""
        return MaskPyramid(self.masks, self.hard, self.time_pooling)

    def bind(self, text_spans: TextSpans | None) -> tuple[Patch, ...]:
        """The patch of this guide for a prompt; see ``mask_guidance_patch``."""
        return (mask_guidance_patch(self, text_spans),)


class MaskGuidancePatch(GuidePatch):
    """A guide bound to a prompt's tokens, as an attention patch; see ``mask_guidance_patch``.

    Masks are pooled once per grid, and once per kind of call the tables are made and brought to the device. They stay
    until ``release``; copies of the patch (ComfyUI deep-copies model options) share them.
    """

    guide: MaskGuidance

    def __init__(self, guide: MaskGuidance, text_spans: TextSpans | None = None) -> None:
        super().__init__(guide, text_spans)
        self._patterns = block_patterns(guide.blocks)
        self._is_active = guide.is_active
        self._pyramid = guide.pyramid()

    def release(self) -> None:
        """Drop all tables, on devices too."""
        super().release()
        self._pyramid = self.guide.pyramid()

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether this call is guided at all: mode, schedule, level and block."""
        guide = self.guide
        if not self._is_active or not guide.start_percent <= max(site.progress, 0.0) <= guide.end_percent:
            return False
        if guide.levels is not None and site.level not in guide.levels:
            return False
        if not any(matches_block(site.block, pattern) for pattern in self._patterns):
            return False
        if not chosen_chunks(site, "conditional" if site.kind == "cross" else guide.rows):
            return False
        if site.kind == "temporal":
            return guide.mode == "separate"
        if site.kind == "cross":
            return guide.uses_words and self.text_spans is not None
        return site.kind == "joint" or guide.mode != "cross_text"

    def make_plan(self, attend: Attend, q: Tensor, lengths: tuple[int, int], site: AttentionSite) -> Plan:
        """Make the tables of each share of the chunks: those whose words are known, and the others."""
        guide = self.guide
        clip = self._pyramid.regions(site.grid[1], site.grid[2], site.clip_frames, site.extent, site.time_factor)
        regions = clip.take(site.frames)
        asking = None if site.query_frames is None else clip.take(site.query_frames)
        guided = chosen_chunks(site, guide.rows)
        worded = self.worded_chunks(site, chosen_chunks(site, "conditional"))
        spans = None
        if worded:
            spans = self.text_spans.in_part(text_length(site, lengths[1]), site.text_part).positions
        shares = [(tuple(worded), spans)]
        if site.kind != "cross" and guide.mode != "cross_text":
            shares.append((tuple(index for index in guided if index not in worded), None))
        tables = [
            (rows, region_tables(site, regions, spans, lengths, guide.mode, guide.strength, guide.hard, asking))
            for rows, spans in shares
            if rows
        ]
        return make_plan(tables, site.rows, q, attend.last)


def mask_guidance_patch(guide: MaskGuidance, text_spans: TextSpans | None = None) -> MaskGuidancePatch:
    """Bind a guide to a prompt's tokens as an attention patch.

    Args:
        guide: masks, mode, strength and schedule. Strength 0 or masks without an object leave every call untouched.
        text_spans: for each object the positions of its words in the conditional text sequence. Without them text
            keys are left alone.

    Returns:
        The patch for a ``PatchStack``; its ``release()`` drops the tables it keeps on devices.

    Raises:
        ValueError: the numbers of phrases and masks differ, or ``cross_text`` is given no spans.
    """
    return MaskGuidancePatch(guide, text_spans)
