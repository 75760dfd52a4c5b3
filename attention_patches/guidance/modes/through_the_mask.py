"""Through-The-Mask: log-masks in self- and cross-attention, over all tokens of space and time.

Source: Yariv et al., "Through-The-Mask: Mask-based Motion Trajectories for Image-to-Video Generation" (arXiv
2501.03059), section 3.3.1 and supplement 10. There they are layers of their own beside a model's, trained at scale;
here the same masks act on the layers that a model has, which no one has trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...errors import GuideError
from ...site import AttentionKind, AttentionSite, GuidedRows
from ..call import ModeCall
from ..tables import CLOSED, BiasTerm, RegionTables, guided_rows, mode_tables, same_region, words
from .mode import MaskMode

# Published: blocks of the encoder of a U-Net, and the share of the blocks of a transformer (10 of 40).
UNET_BLOCKS = 6
TRANSFORMER_SHARE = 0.25


@dataclass(frozen=True)
class ThroughTheMask(MaskMode):
    """Softmax of logits plus the logarithm of a mask of zeros and ones.

    - self: a token sees the tokens of its own object (or of the background) only, among all tokens of the clip; where a
      model attends frame by frame, its frames are joined for it;
    - cross: tokens in the box around an object see the words of its phrase only, in boxes that overlap those of all
      their objects; tokens in no box have nothing left and keep their normal attention.

    Two cells, of which the object takes the first, and its word: what is added, x where closed, is ::

                   key 1   key 2    word
        query 1     0.0      x      0.0
        query 2      x      0.0     0.0

    Published: all steps, both halves, the first blocks.

    Attributes:
        first_blocks: how many blocks from the first on; 0 is the published number: 6 in a U-Net, a quarter in a
            transformer.
    """

    cross_rows: GuidedRows = "both"
    first_blocks: int = 0

    name: ClassVar[str] = "through_the_mask"
    summary: ClassVar[str] = "each object sees itself over space and time and its words only, in the first blocks"
    kinds: ClassVar[frozenset[AttentionKind]] = frozenset({"self", "cross", "joint"})
    space_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_blocks < 0:
            raise GuideError(
                f"first_blocks is {self.first_blocks}; give a number of blocks, or 0 for the published one."
            )

    def acts_at(self, site: AttentionSite) -> bool:
        return super().acts_at(site) and site.index < self._count(site)

    def _count(self, site: AttentionSite) -> int:
        if self.first_blocks:
            return self.first_blocks
        unet = site.rows.folded == "frames" or site.block.startswith(("down", "mid", "up"))
        return UNET_BLOCKS if unet else max(round(TRANSFORMER_SHARE * site.total), 1)

    def tables(self, call: ModeCall) -> RegionTables | None:
        terms = []
        if call.site.kind != "cross":
            terms.append(same_region(call.query_regions, call.regions, -CLOSED, closed=True))
        if call.spans is not None:
            terms += self._words(call, call.spans)
        return mode_tables(call, terms, partition=call.site.kind == "self")

    def _words(self, call: ModeCall, spans: Sequence[Sequence[int]]) -> list[BiasTerm]:
        boxes = call.boxes_filled().query_regions.objects * guided_rows(call)
        inside = boxes.amax(dim=0, keepdim=True)
        named = {position for span in spans for position in span}
        rest = [position for position in range(len(call.text)) if position not in named]
        return [
            BiasTerm(inside * (1.0 - boxes), text=CLOSED * words(call, *spans)),
            BiasTerm(inside, text=CLOSED * words(call, rest)),
        ]
