"""Cross text: an object's words act inside of the object.

Source: ours; a gain on the words of a region is the simplest of the rules of paint-with-words and Attend-and-Excite's
kin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...site import AttentionKind
from ..call import ModeCall
from ..tables import CLOSED, BiasTerm, RegionTables, mode_tables, present_rows, words
from .mode import MAX_CONSTANT, MaskMode


@dataclass(frozen=True)
class CrossText(MaskMode):
    """The logits of an object's words gain gain * m_q.

    Two cells, of which the object takes the first, and its word: what is added is ::

                   key 1   key 2    word
        query 1     0.0     0.0     3.0
        query 2     0.0     0.0     0.0

    Attributes:
        gain: 0 to 1000.
        hard: masks are cut at 0.5, the later object winning where two overlap, and the object's words are not seen
            outside of it.
    """

    end_percent: float = 0.52
    gain: float = 3.0
    hard: bool = False

    name: ClassVar[str] = "cross_text"
    summary: ClassVar[str] = "words of an object are stronger inside of it"
    kinds: ClassVar[frozenset[AttentionKind]] = frozenset({"cross", "joint"})
    strength_constant: ClassVar[str] = "gain"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(MAX_CONSTANT, "gain")

    @property
    def only_words(self) -> bool:
        return True

    def tables(self, call: ModeCall) -> RegionTables | None:
        if call.spans is None:
            return None
        named, present = words(call, *call.spans), present_rows(call)
        terms = [BiasTerm(call.query_regions.objects * present, text=self.gain * named, wanted=named)]
        if self.hard:
            terms.append(BiasTerm((1.0 - call.query_regions.objects) * present, text=CLOSED * named))
        return mode_tables(call, terms)
