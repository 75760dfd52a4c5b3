"""What a mode of mask guidance is: a rule of where words and frames may look, told what it must know of each call."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ...checks import block_patterns, check_choice, check_number, check_percents, matches_block
from ...frame_keys import KeySource
from ...site import AttentionKind, AttentionSite
from ..edits import ProbabilityEdit
from ..mask_guidance import GuidedRows
from ..region_tables import RegionTables
from ..regions import MaskRule, Regions

# Largest factor of a mode's constant; what a rule closes is closed at any factor above 0.
MAX_CONSTANT = 1000.0


@dataclass(frozen=True, eq=False)
class ModeCall:
    """All that a mode sees of one kind of attention call and of some batch rows of it.

    Attributes:
        site: where the call stands.
        regions: of the frames of the keys (``site.frames``), on the site's grid.
        asking: of the frames of the queries.
        lengths: of queries and keys.
        spans: positions of each object's words among the text keys of these rows; None where no words are known.
        ordinary: positions of all the prompt's own words (not begin, end, padding).
        background: positions of the words that name what is outside of all objects.
        begin: positions of begin-of-text tokens.
        frame_strength: [T of the queries], factor on what the mode does in each frame; the guide's strength included.
        boxes: [R, T of the keys, 4], box of each object as (left, top, right, bottom) in fractions of the picture;
            zeros where it is not in the frame.
        asking_boxes: [R, T of the queries, 4].
        boxed: makes the same call with every mask filled up to its box; boxes may overlap.
        device: of the call.
    """

    site: AttentionSite
    regions: Regions
    asking: Regions
    lengths: tuple[int, int]
    spans: tuple[tuple[int, ...], ...] | None
    ordinary: tuple[int, ...]
    background: tuple[int, ...]
    begin: tuple[int, ...]
    frame_strength: Tensor
    boxes: Tensor
    asking_boxes: Tensor
    boxed: Callable[[], ModeCall]
    device: torch.device

    @property
    def text(self) -> range:
        """Where the text stands among the keys."""
        if self.site.kind not in ("cross", "joint"):
            return range(0)
        return range(*(self.site.text or slice(None)).indices(self.lengths[1]))

    @property
    def video_keys(self) -> range:
        """Where the video stands among the keys."""
        if self.site.kind == "cross":
            return range(0)
        return range(*(self.site.key_video or self.site.video).indices(self.lengths[1]))

    @property
    def video_queries(self) -> range:
        """Where the video stands among the queries."""
        return range(*self.site.video.indices(self.lengths[0]))


@dataclass(frozen=True)
class MaskMode(ABC):
    """A rule with its constants; a subclass per rule, each with the published constants as defaults.

    A subclass gives ``tables`` or ``edit``, never both for one call.

    Attributes:
        start_percent: the mode begins at this part of the schedule, 0..1.
        end_percent: and ends at this one.
        blocks: comma list of block name patterns: ``all``, ``mid,up``, ``down.1.*``.
        rows: batch rows that are guided among video tokens: ``conditional``, or ``both`` halves of classifier-free
            guidance.
        cross_rows: batch rows in which words are guided. In unconditional ones the places are those of the positive
            prompt's words.
        mask_rule: how masks come to the cells of a grid; see ``pool_space``.

    Raises:
        ValueError: a constant out of its range.
    """

    start_percent: float = 0.0
    end_percent: float = 1.0
    blocks: str = "all"
    rows: GuidedRows = "both"
    cross_rows: GuidedRows = "conditional"
    mask_rule: MaskRule = "area"

    name: ClassVar[str]
    # One sentence for the list of modes.
    summary: ClassVar[str]
    # Calls that the mode may change.
    kinds: ClassVar[frozenset[AttentionKind]] = frozenset({"self", "cross", "temporal", "joint"})
    # Whether only words are guided, so that there is nothing to do without their places.
    only_words: ClassVar[bool] = False
    # Whether queries of one frame meet the keys of all of them where a model attends frame by frame.
    space_time: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_percents(self.start_percent, self.end_percent)
        block_patterns(self.blocks)
        check_choice("rows", self.rows, get_args(GuidedRows))
        check_choice("cross_rows", self.cross_rows, get_args(GuidedRows))
        check_choice("mask_rule", self.mask_rule, get_args(MaskRule))

    def _check_numbers(self, most: float, *names: str) -> None:
        """Raise ValueError unless constants lie in 0..most."""
        for name in names:
            check_number(name, getattr(self, name), most)

    @property
    def hard(self) -> bool:
        """Whether masks are cut at 0.5, the later object winning where two overlap."""
        return True

    @property
    def default_key_source(self) -> KeySource:
        """Which frames give the keys of frame-by-frame self-attention, unless the guide says otherwise."""
        return "self"

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether the mode changes a call: kind, schedule and block."""
        return (
            site.kind in self.kinds
            and self.start_percent <= max(site.progress, 0.0) <= self.end_percent
            and any(matches_block(site.block, pattern) for pattern in block_patterns(self.blocks))
        )

    def phase(self, site: AttentionSite) -> Hashable:
        """Return what ``tables`` and ``edit`` depend on besides kind, sizes and frames of a call, such as progress."""
        return None

    def tables(self, call: ModeCall) -> RegionTables | None:
        """Return what is added to the logits, as query weights times key logits, or None for nothing."""
        return None

    def edit(self, call: ModeCall) -> ProbabilityEdit | None:
        """Return what is changed in logits or probabilities where adding is not enough, or None for nothing."""
        return None
