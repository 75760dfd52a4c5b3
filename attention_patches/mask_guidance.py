"""Mask guidance: attention follows the masks of the objects, exactly and without a dense mask."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .guidance_plan import Plan, make_plan
from .region_tables import GuidanceMode, region_tables
from .regions import FOREGROUND, MaskPyramid, TimePooling, latent_frame_groups
from .site import CONDITIONAL, AttentionSite
from .stack import Attend
from .text_spans import TextSpans

logger = logging.getLogger(__name__)

GuidedRows = Literal["conditional", "both"]

# The constants of the modes: the exponent of the mask (focus), the logit gap (separate), the logit gain (cross_text).
DEFAULT_STRENGTH: dict[str, float] = {"focus": 1.0, "focus_fg": 1.0, "separate": 8.0, "cross_text": 3.0}
MAX_STRENGTH = 1000.0
# Masks whose width and height relate to each other otherwise than the film's by more than this belong to another film.
MAX_STRETCH = 1.25
# Plans that a patch keeps: grids x kinds of a model times its context windows; all are dropped when there are more.
MAX_PLANS = 256


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
            ("time_pooling", self.time_pooling, get_args(TimePooling)),
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


class MaskGuidancePatch:
    """A guide bound to a prompt's tokens, as an attention patch; see ``mask_guidance_patch``.

    Masks are pooled once per grid, and once per kind of call the tables are made and brought to the device. They stay
    until ``release``; copies of the patch (ComfyUI deep-copies model options) share them.
    """

    def __init__(self, guide: MaskGuidance, text_spans: TextSpans | None = None) -> None:
        if text_spans is not None and len(text_spans.positions) != len(guide.masks):
            raise ValueError(
                f"{len(text_spans.positions)} phrases were found in the prompt but the guide has {len(guide.masks)} "
                "masks; give one phrase per object."
            )
        if text_spans is None and guide.mode == "cross_text" and guide.strength > 0.0:
            raise ValueError(
                "mode cross_text steers the words of the objects but the guide is not bound to a prompt; give phrases "
                "and the prompt's tokens."
            )
        self.guide = guide
        self.text_spans = text_spans
        self._patterns = tuple(pattern.strip() for pattern in guide.blocks.split(",") if pattern.strip())
        self._guides = guide.strength > 0.0 and bool((guide.masks >= FOREGROUND).any())
        self._pyramid = MaskPyramid(guide.masks, guide.hard, guide.time_pooling)
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskGuidancePatch:
        return self

    def release(self) -> None:
        """Drop all tables, on devices too."""
        self._plans = {}
        self._pyramid = MaskPyramid(self.guide.masks, self.guide.hard, self.guide.time_pooling)

    def check_clip(self, clip_frames: int, height: int, width: int, time_factor: int | None = None) -> None:
        """Compare the guide with the clip that is about to be sampled.

        Args:
            clip_frames: frames of the whole clip as the model counts them.
            height, width: of its latents; only their ratio counts.
            time_factor: see ``AttentionSite``.

        Raises:
            ValueError: the masks' frames do not fit, or their pictures have quite another shape.
        """
        if not self._guides:
            return
        latent_frame_groups(self.guide.masks.shape[1], clip_frames, time_factor)
        mask_height, mask_width = self.guide.masks.shape[2:]
        stretch = (mask_width / mask_height) / (width / height)
        if not 1.0 / MAX_STRETCH <= stretch <= MAX_STRETCH:
            raise ValueError(
                f"the masks are {mask_width} x {mask_height} pixels but the film's latents {width} x {height}: on it "
                "they would be distorted; crop the masks to the film's shape, or sample at theirs."
            )

    def check_text(self, prompts: Mapping[str, int]) -> None:
        """Compare the places of the objects' words with the prompts that are about to be sampled.

        Args:
            prompts: for each positive prompt, by its name, how many tokens its text has.

        Raises:
            ValueError: the places were counted in another text.
        """
        spans = self.text_spans
        if not self._guides or spans is None or self.guide.mode not in ("separate", "cross_text"):
            return
        lengths = [length for name, length in prompts.items() if spans.prompts is None or name in spans.prompts]
        for length in lengths:
            spans.repeated(length)
        # Of a prompt that is known by name, more text may have been appended.
        if spans.prompts is None and spans.length and lengths and all(length % spans.length for length in lengths):
            raise ValueError(
                f"the objects' words were found in a text of {spans.length} tokens but the positive prompt has "
                f"{lengths[0]}; give Patch Attention the very prompt and text encoder of the film."
            )
        if prompts and not lengths:
            logger.warning(
                "the objects' words belong to a prompt that is not among the positive ones, so words are not guided; "
                "connect the same conditioning to Patch Attention and to the sampler."
            )

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether this call is guided at all: mode, schedule, level and block."""
        guide = self.guide
        if not self._guides or not guide.start_percent <= max(site.progress, 0.0) <= guide.end_percent:
            return False
        if guide.levels is not None and site.level not in guide.levels:
            return False
        if not any(matches_block(site.block, pattern) for pattern in self._patterns):
            return False
        if guide.rows == "conditional" or site.kind == "cross":
            if CONDITIONAL not in site.rows.chunks:
                return False
        if site.kind == "temporal":
            return guide.mode == "separate"
        if site.kind == "cross":
            return guide.mode in ("separate", "cross_text") and self.text_spans is not None
        return site.kind == "joint" or guide.mode != "cross_text"

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Guide one attention call; tensors [B, heads, L, d].

        Raises:
            ValueError: the tensors do not have the sizes that the site says, or the masks' frames do not fit the clip.
        """
        if not self.acts_at(site):
            return attend(q, k, v, site)
        return self._plan(attend, q, k, site).run(attend, q, k, v, site)

    def _plan(self, attend: Attend, q: Tensor, k: Tensor, site: AttentionSite) -> Plan:
        lengths = (q.shape[2], k.shape[2])
        text = None if site.text is None else (site.text.start, site.text.stop)
        key = (
            *(site.kind, site.grid, site.extent, site.frames, site.clip_frames, site.time_factor),
            *(site.video.start, site.video.stop, text, site.text_part, site.rows, site.query_frames),
            site.key_frames,
            None if site.key_video is None else (site.key_video.start, site.key_video.stop),
            *(lengths, q.shape[3], q.dtype, q.device, attend.last),
        )
        plan = self._plans.get(key)
        if plan is None:
            check_site(q, site)
            if len(self._plans) >= MAX_PLANS:
                self._plans = {}
            plan = self._plans[key] = self._make_plan(attend, q, lengths, site)
        return plan

    def _make_plan(self, attend: Attend, q: Tensor, lengths: tuple[int, int], site: AttentionSite) -> Plan:
        guide = self.guide
        clip = self._pyramid.regions(site.grid[1], site.grid[2], site.clip_frames, site.extent, site.time_factor)
        regions = clip.take(site.frames)
        asking = None if site.query_frames is None else clip.take(site.query_frames)
        chunks = site.rows.chunks
        guided = [index for index, chunk in enumerate(chunks) if guide.rows == "both" or chunk == CONDITIONAL]
        worded: list[int] = []
        spans = None
        if self.text_spans is not None and site.kind in ("cross", "joint"):
            # The words are those of one prompt: the rows of others have other words at these places.
            prompts = site.rows.prompts
            worded = [
                index
                for index, chunk in enumerate(chunks)
                if chunk == CONDITIONAL and self.text_spans.holds_for(prompts, index)
            ]
            spans = self.text_spans.in_part(text_length(site, lengths[1]), site.text_part) if worded else None
        shares = [(tuple(worded), spans)]
        if site.kind != "cross" and guide.mode != "cross_text":
            shares.append((tuple(index for index in guided if index not in worded), None))
        tables = [
            (rows, region_tables(site, regions, spans, lengths, guide.mode, guide.strength, guide.hard, asking))
            for rows, spans in shares
            if rows
        ]
        return make_plan(tables, site.rows, q, attend.last)


def text_length(site: AttentionSite, key_length: int) -> int:
    """Number of text tokens among the keys of a call."""
    return len(range(*(site.text or slice(None)).indices(key_length)))


def matches_block(block: str, pattern: str) -> bool:
    """Say whether ``down.1.0`` is meant by a pattern: ``all``, the name or the start of it, or with ``*`` and ``?``."""
    return pattern == "all" or fnmatchcase(block, pattern) or fnmatchcase(block, f"{pattern}.*")


def check_site(q: Tensor, site: AttentionSite) -> None:
    """Compare a call's queries [B, heads, Lq, d] with what its site says.

    Raises:
        ValueError: batch rows or video tokens are not as many as the site says.
    """
    frames, height, width = site.grid
    asking = frames if site.query_frames is None else len(site.query_frames)
    tokens = {"none": asking * height * width, "frames": height * width, "positions": asking}[site.rows.folded]
    groups = {"none": 1, "frames": frames, "positions": height * width}[site.rows.folded]
    found = len(range(*site.video.indices(q.shape[2])))
    if q.shape[0] != site.rows.total or site.rows.folded_size != groups or found != tokens:
        raise ValueError(
            f"attention {site.kind} in block {site.block!r} has {q.shape[0]} rows and {found} video tokens, but grid "
            f"{site.grid} folded by {site.rows.folded!r} means {site.rows.total} rows and {tokens} tokens; the "
            "backbone describes its sites wrongly."
        )
    if len(site.frames) != frames:
        raise ValueError(
            f"attention {site.kind} in block {site.block!r} has {frames} frames but names {len(site.frames)} of the "
            "clip; the backbone describes its sites wrongly."
        )


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
