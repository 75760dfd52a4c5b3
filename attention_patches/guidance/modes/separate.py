"""Separate: objects and background see only themselves, in space and over time.

Source: ours, after the masked attention of Mask2Former (arXiv 2112.01527) and Peekaboo (arXiv 2312.07509), with a gap
that may be finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..call import ModeCall
from ..tables import CLOSED, BiasTerm, RegionTables, mode_tables, present_rows, same_region, words
from .mode import MAX_CONSTANT, MaskMode


@dataclass(frozen=True)
class Separate(MaskMode):
    """Logits between different regions lose ``gap``: -gap * (1 - <m_q, m_k>) over objects and background.

    Where phrases are given, an object's words lose as much outside of the object. Two cells, of which the object takes
    the first, and its word: what is added is ::

                   key 1   key 2    word
        query 1     0.0    -8.0     0.0
        query 2    -8.0     0.0    -8.0

    Attributes:
        gap: 0 to 1000.
        hard: masks are cut at 0.5, the later object winning where two overlap, and the regions do not see each other at
            all, whatever the gap, which is faster than no guidance.
    """

    end_percent: float = 0.52
    gap: float = 8.0
    hard: bool = False

    name: ClassVar[str] = "separate"
    summary: ClassVar[str] = "objects and background see only themselves, and words their object"
    strength_constant: ClassVar[str] = "gap"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(MAX_CONSTANT, "gap")

    def tables(self, call: ModeCall) -> RegionTables | None:
        gap = -CLOSED if self.hard else self.gap
        terms = []
        if call.site.kind != "cross":
            terms.append(same_region(call.query_regions, call.regions, gap, closed=self.hard))
        if call.spans is not None:
            outside = (1.0 - call.query_regions.objects) * present_rows(call)
            terms.append(BiasTerm(outside, text=-gap * words(call, *call.spans)))
        return mode_tables(call, terms, partition=self.hard and call.site.kind in ("self", "joint"))
