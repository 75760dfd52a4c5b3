"""The rule that two published methods share: words act in their own region only, the more the smaller it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from ...checks import check_choice
from ...site import AttentionKind, AttentionSite
from ..call import ModeCall
from ..tables import CLOSED, BiasTerm, RegionTables, guided_rows, mode_tables, other_words, present_rows, words
from .mode import MAX_CONSTANT, MaskMode

OtherWords = Literal["closed", "background", "free"]


@dataclass(frozen=True)
class RegionWords(MaskMode):
    """Words amplified in their region and closed elsewhere, in cross-attention.

    Regions are the objects and the background, each with the words of its phrase; r is the share of the grid's cells
    that a region takes in a frame.

    - amplify, in the first steps: a cell of a region gains gain * (1 - r) on the region's words;
    - suppress, in all steps: words of a region are closed to cells outside of it, and words of no phrase to all cells.
      Begin, end and padding are never closed, so without a background phrase they are all that the background sees.

    Attributes:
        gain: 0 to 1000.
        amplify_percent: amplification ends at this part of the schedule.
        other_words: what becomes of words that no phrase has: ``closed`` to all cells as published, those of the
            ``background`` (as if they were in its phrase), or ``free``.
    """

    gain: float = 0.0
    amplify_percent: float = 0.0
    other_words: OtherWords = "closed"

    kinds: ClassVar[frozenset[AttentionKind]] = frozenset({"cross", "joint"})

    @property
    def only_words(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(MAX_CONSTANT, "gain")
        self._check_numbers(1.0, "amplify_percent")
        check_choice("other_words", self.other_words, get_args(OtherWords))

    def phase(self, site: AttentionSite) -> bool:
        """Whether words are amplified."""
        return max(site.progress, 0.0) <= self.amplify_percent

    def tables(self, call: ModeCall) -> RegionTables | None:
        if call.spans is None:
            return None
        others, background = other_words(call, call.background, *call.spans), list(call.background)
        if self.other_words == "background":
            background, others = sorted({*background, *others}), []
        guided, present = guided_rows(call), present_rows(call)
        named = words(call, *call.spans, background)
        inside = call.query_regions.memberships()
        seen = torch.cat((present * guided, guided))
        terms = [BiasTerm((1.0 - inside) * seen, text=CLOSED * named)]
        if self.other_words == "closed":
            terms.append(BiasTerm(guided.expand(-1, -1, *inside.shape[2:]), text=CLOSED * words(call, others)))
        if call.phase and self.gain:
            share = inside.mean(dim=(2, 3), keepdim=True)
            terms.append(BiasTerm(inside * (1.0 - share) * seen, text=self.gain * named, wanted=named))
        return mode_tables(call, terms)
