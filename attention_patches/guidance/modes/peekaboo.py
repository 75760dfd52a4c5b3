"""Peekaboo: foreground and background do not see each other at all, in the first steps.

Source: Jain et al., "PEEKABOO: Interactive Video Generation via Masked-Diffusion" (arXiv 2312.07509) and its code,
microsoft/Peekaboo. Two things differ: an object's words are its phrase wherever it stands as a whole in the prompt,
where the code takes every token that occurs in the phrase; and where a model has two attentions over time in a row, the
result of the second is kept everywhere, where the code keeps it in the foreground only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...site import GuidedRows
from ..call import ModeCall
from ..regions import MaskRule
from ..tables import CLOSED, BiasTerm, RegionTables, guided_rows, mode_tables, present_rows, same_region, words
from .mode import MaskMode


@dataclass(frozen=True)
class Peekaboo(MaskMode):
    """Hard masks in self-attention, over time and in cross-attention.

    - self and temporal: a query sees the keys of its own region only, each object apart from the others and from the
      background; in models whose frames are all in one sequence over space and time.
    - cross: cells of an object see the words of its phrase only. Cells of the background see everything but the
      objects' words and the begin of the text: nobody sees that; end and padding belong to the background.

    Two cells, of which the object takes the first, and its word: what is added, x where closed, is ::

                   key 1   key 2    word
        query 1     0.0      x      0.0
        query 2      x      0.0      x

    Published: the first 2 of 50 steps, middle and later blocks, both halves of classifier-free guidance, masks sampled
    every n-th cell of the latents, -10000 where closed.

    Attributes:
        begin_is_seen: whether the background sees the begin of the text after all.
    """

    end_percent: float = 0.04
    blocks: str = "mid,up"
    cross_rows: GuidedRows = "both"
    mask_rule: MaskRule = "strided"
    begin_is_seen: bool = False

    name: ClassVar[str] = "peekaboo"
    summary: ClassVar[str] = "object and background see only themselves and their words, in the first steps"

    def tables(self, call: ModeCall) -> RegionTables | None:
        terms = []
        if call.site.kind != "cross":
            terms.append(same_region(call.query_regions, call.regions, -CLOSED, closed=True))
        if call.spans is not None:
            terms += self._words(call, call.spans)
        return mode_tables(call, terms, partition=call.site.kind in ("self", "joint"))

    def _words(self, call: ModeCall, spans: Sequence[Sequence[int]]) -> list[BiasTerm]:
        inside = call.query_regions.objects * present_rows(call)
        everything = range(len(call.text))
        of_objects = [[position for position in everything if position not in span] for span in spans]
        objects = BiasTerm(inside, text=CLOSED * words(call, *of_objects))
        hidden = {position for span in spans for position in span}
        if not self.begin_is_seen:
            hidden.update(call.begin)
        background = BiasTerm(
            call.query_regions.background[None] * guided_rows(call), text=CLOSED * words(call, sorted(hidden))
        )
        return [objects, background]
