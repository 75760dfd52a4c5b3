"""Focus: attention among video tokens is weighted by the masks.

Source: ours; the logarithm of a mask as a bias is the common form of attention masks with soft edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...site import AttentionKind
from ..call import ModeCall
from ..regions import FOREGROUND
from ..tables import ALL_OBJECTS, BiasTerm, RegionTables, guided_rows, mode_tables
from .mode import MAX_CONSTANT, MaskMode

# Keys outside of every mask keep this share before the exponent: log(1e-4) = -9.2.
MASK_FLOOR = 1e-4


@dataclass(frozen=True)
class Focus(MaskMode):
    """The logits of every query gain exponent * log(max(m_k, 1e-4)), m the union of the objects.

    Two cells, of which the object takes the first, and its word: what is added is ::

                   key 1   key 2    word
        query 1     0.0    -9.2     0.0
        query 2     0.0    -9.2     0.0

    Attributes:
        exponent: of the mask, 0 to 1000.
        hard: masks are cut at 0.5, the later object winning where two overlap.
    """

    end_percent: float = 0.52
    exponent: float = 1.0
    hard: bool = False

    name: ClassVar[str] = "focus"
    summary: ClassVar[str] = "everything looks at the objects"
    kinds: ClassVar[frozenset[AttentionKind]] = frozenset({"self", "joint"})
    strength_constant: ClassVar[str] = "exponent"
    uses_words: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(MAX_CONSTANT, "exponent")

    def tables(self, call: ModeCall) -> RegionTables | None:
        union = call.regions.objects.amax(dim=0, keepdim=True)
        weights = guided_rows(call).expand(1, -1, *call.site.grid[1:])
        logits = self.exponent * union.clamp(min=MASK_FLOOR).log()
        return mode_tables(call, [BiasTerm(weights, video=logits, wanted=union, regions=(ALL_OBJECTS,))])


@dataclass(frozen=True)
class FocusForeground(Focus):
    """As ``Focus``, for queries in an object only, and each object's queries on the object's own keys.

    Two cells, of which the object takes the first, and its word: what is added is ::

                   key 1   key 2    word
        query 1     0.0    -9.2     0.0
        query 2     0.0     0.0     0.0
    """

    name: ClassVar[str] = "focus_fg"
    summary: ClassVar[str] = "each object looks at itself, the background at everything"

    def tables(self, call: ModeCall) -> RegionTables | None:
        queries = call.query_regions.objects
        total = queries.sum(dim=0, keepdim=True)
        own = torch.where(total >= FOREGROUND, queries / total.clamp(min=MASK_FLOOR), torch.zeros_like(queries))
        logits = self.exponent * call.regions.objects.clamp(min=MASK_FLOOR).log()
        return mode_tables(call, [BiasTerm(own * guided_rows(call), video=logits, wanted=call.regions.objects)])
