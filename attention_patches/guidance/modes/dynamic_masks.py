"""Dynamic mask guidance, ``dmg``: a reconstruction, since the paper's own formulas for its two attentions are not
public.

Self-attention holds object and background apart, so that with keys of the first frame an object takes its looks from
the first frame's object, wherever its mask went; cross-attention keeps the object's words off the background and
strengthens them inside; attention over time at one cell may be held to the frames in which the cell is on the same
side.

Source of the idea: Feng, Yang, Li, "Resource-Efficient Motion Control for Video Generation via Dynamic Mask Guidance"
(arXiv 2503.18386), of which abstract, loss and figure captions are public; keys of the first frame: LAMP (arXiv
2310.10769). Both rules and all constants here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ...checks import check_choice
from ...site import AttentionSite, KeySource
from ..call import ModeCall
from ..regions import Regions
from ..tables import ALL_OBJECTS, BiasTerm, RegionTables, mode_tables, other_words, present_rows, same_region, words
from .mode import MAX_CONSTANT, MaskMode

Direction = Literal["both", "fg_only", "bg_only"]
TextRule = Literal["exclude", "strict"]


class _Phase(NamedTuple):
    """What acts at a part of the schedule: the gap among video tokens, whether words, and their gain."""

    gap: float
    words: bool
    gain: float


@dataclass(frozen=True)
class DynamicMasks(MaskMode):
    """The reconstruction of dynamic mask guidance.

    With regions r (objects and background), memberships m_q of a query cell, m_k of a key cell, and words T_r of object
    r the logits gain

    - self: -gamma_self * (1 - <m_q, m_k>);
    - temporal: -gamma_temporal * (1 - <m_q, m_k>), over the frames of one cell;
    - cross: beta * m_q,r on T_r, -gamma_cross * (1 - m_q,r) on T_r; with a background phrase also
      -gamma_cross * m_q,background on all words of the prompt that are neither the background's nor an object's; with
      ``strict`` also -gamma_cross * m_q,r on all words that are not T_r. Begin, end and padding are never touched.

    A frame in which an object covers the whole grid, or none is, is left alone. Two cells, of which the object takes
    the first, and its word: what is added with ``gamma_self`` 4 is ::

                   key 1   key 2    word
        query 1     0.0    -4.0     4.0
        query 2    -4.0     0.0   -20.0

    The values by default are those that followed foreign masks best on the Toybox, whose weights know nothing of masks
    or of given first frames. There ``gamma_self`` and ``keys`` cost more than they bring, so that both are off; models
    tuned with masks want them (``gamma_self`` 2 to 8, ``keys`` first_self).

    Attributes:
        gamma_self: 0 (off) to 1000 (the sides do not see each other).
        gamma_temporal: the same over time at one cell.
        gamma_cross: how much words of an object are weakened outside of it, 0 to 1000.
        beta: how much they are strengthened inside, 0 to 1000.
        beta_decay_percent: beta falls linearly to 0 over this first part of the schedule; 0 keeps it as it is.
        direction: whose queries ``gamma_self`` and ``gamma_temporal`` hold: both sides, the objects' only (``fg_only``)
            or the background's only (``bg_only``).
        text_rule: ``exclude`` keeps objects' words off everything else; ``strict`` also other words off the objects.
        self_end_percent, cross_end_percent, temporal_end_percent: where each part ends, if before ``end_percent``.
        masks: ``hard`` cuts masks at one half, ``soft`` takes shares of cells.
        per_object: several objects do not see each other either; otherwise all are one foreground.
        keys: which frames give keys and values of self-attention.
    """

    end_percent: float = 1.0
    blocks: str = "all"
    gamma_self: float = 0.0
    gamma_temporal: float = 4.0
    gamma_cross: float = 20.0
    beta: float = 4.0
    beta_decay_percent: float = 0.0
    direction: Direction = "both"
    text_rule: TextRule = "exclude"
    self_end_percent: float = 1.0
    cross_end_percent: float = 0.8
    temporal_end_percent: float = 1.0
    masks: Literal["hard", "soft"] = "hard"
    per_object: bool = True
    keys: KeySource = "self"

    name: ClassVar[str] = "dmg"
    summary: ClassVar[str] = "object and background apart, words of the object inside of it (a reconstruction)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(MAX_CONSTANT, "gamma_self", "gamma_temporal", "gamma_cross", "beta")
        ends = ("self_end_percent", "cross_end_percent", "temporal_end_percent")
        self._check_numbers(1.0, "beta_decay_percent", *ends)
        check_choice("direction", self.direction, get_args(Direction))
        check_choice("text_rule", self.text_rule, get_args(TextRule))
        check_choice("masks", self.masks, ("hard", "soft"))
        check_choice("keys", self.keys, get_args(KeySource))

    @property
    def hard(self) -> bool:
        return self.masks == "hard"

    @property
    def default_key_source(self) -> KeySource:
        return self.keys

    def phase(self, site: AttentionSite) -> _Phase:
        """What acts at this part of the schedule."""
        gap, end = self.gamma_self, self.self_end_percent
        if site.kind == "temporal":
            gap, end = self.gamma_temporal, self.temporal_end_percent
        if site.kind == "cross" or site.progress > end:
            gap = 0.0
        if site.kind not in ("cross", "joint") or site.progress > self.cross_end_percent:
            return _Phase(gap, False, 0.0)
        kept = 1.0
        if self.beta_decay_percent:
            kept = max(1.0 - max(site.progress, 0.0) / self.beta_decay_percent, 0.0)
        return _Phase(gap, True, self.beta * kept)

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether the mode changes a call."""
        phase = self.phase(site)
        return super().acts_at(site) and (phase.words or phase.gap > 0.0)

    def tables(self, call: ModeCall) -> RegionTables | None:
        rows = _divided_rows(call.query_regions)
        terms = []
        if call.phase.gap > 0.0:
            terms.append(self._sides(call, call.phase.gap, rows))
        if call.spans is not None and call.phase.words:
            terms += self._words(call, call.spans, rows)
        return mode_tables(call, terms)

    def _sides(self, call: ModeCall, gap: float, rows: Tensor) -> BiasTerm:
        if not self.per_object:
            queries, keys = _united(call.query_regions), _united(call.regions)
        else:
            queries, keys = call.query_regions, call.regions
        channels = {"both": slice(None), "fg_only": slice(0, -1), "bg_only": slice(-1, None)}[self.direction]
        # Over time the gap holds a cell to its side and is nobody's lever.
        term = same_region(queries, keys, gap, rows, channels, closed=call.site.kind == "temporal")
        if self.per_object or term.wanted is None:
            return term
        return replace(term, regions=tuple([ALL_OBJECTS, len(call.regions.objects)][channels]))

    def _words(self, call: ModeCall, spans: Sequence[Sequence[int]], rows: Tensor) -> list[BiasTerm]:
        regions, named = call.query_regions, words(call, *spans)
        rows = rows[None, :, None, None]
        present = present_rows(call) * rows
        inside, outside = regions.objects * present, (1.0 - regions.objects) * present
        terms = [BiasTerm(outside, text=-self.gamma_cross * named)]
        if call.phase.gain:
            terms.append(BiasTerm(inside, text=call.phase.gain * named, wanted=named))
        if call.background:
            others = words(call, other_words(call, call.background, *spans))
            terms.append(BiasTerm(regions.background[None] * rows, text=-self.gamma_cross * others))
        if self.text_rule == "strict":
            # An object's words are kept off the other objects already.
            others = words(call, other_words(call, *spans))
            terms.append(BiasTerm(inside.sum(dim=0, keepdim=True), text=-self.gamma_cross * others))
        return terms


def _united(regions: Regions) -> Regions:
    """All objects as one."""
    return Regions(regions.objects.sum(dim=0, keepdim=True), regions.present.any(dim=0, keepdim=True))


def _divided_rows(regions: Regions) -> Tensor:
    """[T], 1 for frames that have both foreground and background at this level."""
    background = regions.background.flatten(1)
    divided = (background.amax(dim=1) > 0.0) & (background.amin(dim=1) < 1.0)
    return (divided & regions.guided).to(torch.float32)
