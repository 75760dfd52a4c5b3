"""What a mode of mask guidance is: a rule of where words and frames may look."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, get_args

from ...checks import check_choice, check_number
from ...patch import Scope
from ...site import AttentionKind, AttentionSite, GuidedRows, KeySource
from ..call import ModeCall
from ..edits import ProbabilityEdit
from ..regions import MaskRule
from ..tables import RegionTables

# Largest factor of a mode's constant; what a rule closes is closed at any factor above 0.
MAX_CONSTANT = 1000.0
# Largest factor on all that a mode does.
MAX_STRENGTH = 10.0


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
        GuideError: a constant out of its range.
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
    # The constant that is the mode's strength; empty where the mode has several, and its strength is a factor on all.
    strength_constant: ClassVar[str] = ""
    # Whether the places of the objects' words make a difference.
    uses_words: ClassVar[bool] = True
    # Whether queries of one frame meet the keys of all of them where a model attends frame by frame.
    space_time: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("cross_rows", self.cross_rows, get_args(GuidedRows))
        # Checks where and when too.
        _ = self.scope
        check_choice("mask_rule", self.mask_rule, get_args(MaskRule))

    def _check_numbers(self, most: float, *names: str) -> None:
        """Raise GuideError unless constants lie in 0..most."""
        for name in names:
            check_number(name, getattr(self, name), most)

    @cached_property
    def scope(self) -> Scope:
        """Where and when the mode acts."""
        return Scope(self.start_percent, self.end_percent, self.blocks, self.rows)

    @property
    def only_words(self) -> bool:
        """Whether only words are guided, so that there is nothing to do without their places."""
        return False

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
        return site.kind in self.kinds and self.scope.includes(site)

    def phase(self, site: AttentionSite) -> Any:
        """What ``tables`` and ``edit`` depend on of block and schedule, hashable; it is their ``ModeCall.phase``."""
        return None

    def tables(self, call: ModeCall) -> RegionTables | None:
        """Return what is added to the logits, as query weights times key logits, or None for nothing."""
        return None

    def edit(self, call: ModeCall) -> ProbabilityEdit | None:
        """Return what is changed in logits or probabilities where adding is not enough, or None for nothing."""
        return None
