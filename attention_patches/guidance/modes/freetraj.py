"""FreeTraj: cells of different regions see each other with hardly any logit, and words are laid into boxes.

Its starting noise goes with any mode: ``video_models.trajectory_noise``.

Source: FreeTraj (arXiv 2406.16863) and its code (arthur-qiu/FreeTraj).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...checks import check_choice
from ...kernels.channels import MAX_BIAS
from ...kernels.partition import Side
from ...site import GuidedRows
from ..call import ModeCall
from ..edits import Edit, EditPart, ProbabilityEdit, replace_keys
from ..labels import CellBoxes, RegionLabels, groups_with, of_queries, query_strength, word_table
from .mode import MAX_CONSTANT, MaskMode

CrossRule = Literal["exact", "clean"]


@dataclass(frozen=True)
class FreeTraj(MaskMode):
    """Logits between cells of different regions times ``coefficient``; words of an object added in its box.

    Regions are the boxes of the objects and the background, within a frame and over time at one cell. Words: outside of
    its box an object's words are hidden. Inside, ``exact`` does what the published code does: it hides every token,
    which leaves all of them equally likely; ``clean`` hides all but the object's own words. After the softmax a
    Gaussian (a third of the box wide, peak 1) times ``boost`` / (box area as a part of the picture) / (words of the
    object) is added to the object's words, without normalising again. Steps: the first 6 of 50, both halves.
    Self-attention costs what it always does: queries of a region meet the keys of the others times ``coefficient``, in
    one attention per region.

    Two cells, of which the object takes the first, and its word: shares of attention for logits of 2, 1 and 0, before
    and after, are ::

                  key 1   key 2    word      key 1   key 2    word
        query 1   0.67    0.24    0.09       0.79    0.11    0.61
        query 2   0.67    0.24    0.09       0.21    0.57    0.21

    Attributes:
        coefficient: factor on logits between regions, 0..1; 1 leaves them alone.
        boost: of the words in the box.
        cross: ``exact`` or ``clean``.
    """

    end_percent: float = 6 / 50
    cross_rows: GuidedRows = "both"
    coefficient: float = 0.01
    boost: float = 0.25
    cross: CrossRule = "exact"

    name: ClassVar[str] = "freetraj"
    summary: ClassVar[str] = "logits between box and background times 0.01, words laid into the box (FreeTraj)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(1.0, "coefficient")
        self._check_numbers(MAX_CONSTANT, "boost")
        check_choice("cross", self.cross, get_args(CrossRule))

    def edit(self, call: ModeCall) -> ProbabilityEdit | None:
        """Keep regions apart among video tokens, and lay words into boxes where they are known."""
        if call.site.kind == "self":
            return self._as_sides(RegionLabels.of(call.boxes_filled()))
        logits: list[Edit] = []
        guided: set[int] = set()
        probabilities = None
        if call.site.kind != "cross":
            labels = RegionLabels.of(call.boxes_filled())
            guided.update(labels.guided())
            logits.append(self._between_regions(labels))
        if call.spans is not None and any(call.spans):
            words = _Words.of(call, call.spans)
            guided.update(groups_with(words.strength))
            logits.append(words.hide_and_open if self.cross == "clean" else words.hide_all)
            probabilities = words.adding(self.boost)
        if not guided:
            return None

        def changed(values: Tensor, part: EditPart) -> Tensor:
            for edit in logits:
                values = edit(values, part)
            return values

        return ProbabilityEdit(tuple(sorted(guided)), changed, probabilities)

    def _factors(self, labels: RegionLabels) -> Tensor:
        """[groups, Lq], factor on the logits of each query with keys of another region."""
        return (1.0 - (1.0 - self.coefficient) * labels.strength).clamp(min=0.0)

    def _as_sides(self, labels: RegionLabels) -> ProbabilityEdit | None:
        """The same factor as one on the keys, for the queries of each region: no probabilities are needed for that."""
        factors, guided = self._factors(labels), labels.guided()
        found = []
        for group in guided:
            keys, sides = labels.keys[group], []
            alike = torch.stack((labels.queries[group].float(), factors[group]), dim=1)
            kinds, kind = torch.unique(alike, dim=0, return_inverse=True)
            for at, (label, factor) in enumerate(kinds.tolist()):
                # Keys that are not video are of every region.
                own = (keys == int(label)) | (keys == 0)
                scaled = factor != 1.0 and not bool(own.all())
                queries = (kind == at).nonzero()[:, 0] if len(kinds) > 1 else None
                sides.append(Side(queries, None, torch.where(own, 1.0, factor) if scaled else None))
            found.append(tuple(sides))
        return ProbabilityEdit(guided, sides=tuple(found)) if found else None

    def _between_regions(self, labels: RegionLabels) -> Edit:
        factor = self._factors(labels)

        def apart(values: Tensor, part: EditPart) -> Tensor:
            # Keys that are not video are of every region, and so are those of queries that are left alone: their factor
            # is 1.
            alike = labels.same(part) | (labels.keys[part.groups] == 0)[:, None, None]
            own = factor[part.groups, part.queries][:, None, :, None]
            return values * torch.where(alike, 1.0, own)

        return apart


@dataclass(frozen=True, eq=False)
class _Words:
    """Where the words of objects are hidden and where they are added.

    Attributes:
        inside: [groups, Lq, R], 1 in the object's box.
        outside: [groups, Lq, R], 1 outside of it, in frames that hold the object.
        bump: [groups, Lq, R], the Gaussian over the area of the box and the number of its words.
        strength: [groups, Lq].
        table: [R, text tokens], 1 for the words of each object.
        text: where the text stands among the keys.
    """

    inside: Tensor
    outside: Tensor
    bump: Tensor
    strength: Tensor
    table: Tensor
    text: slice

    @classmethod
    def of(cls, call: ModeCall, spans: tuple[tuple[int, ...], ...]) -> _Words:
        boxes = CellBoxes.of(call, call.query_boxes)
        counts = torch.tensor([max(len(span), 1) for span in spans])[:, None, None, None]
        area = boxes.area.clamp(min=torch.finfo(torch.float32).tiny)[..., None, None]
        return cls(
            of_queries(call, boxes.inside),
            of_queries(call, (1.0 - boxes.inside) * boxes.present),
            of_queries(call, boxes.bump / (area * counts)),
            of_queries(call, query_strength(call))[..., 0],
            word_table(spans, len(call.text), call.device),
            slice(call.text.start, call.text.stop),
        )

    def _close(self, values: Tensor, part: EditPart, closed: Tensor, rows: Tensor) -> Tensor:
        """Hide tokens [rows, queries, text] in some queries [rows, queries, 1]; not where it would hide all of them."""
        closed = closed & rows & ~closed.all(dim=-1, keepdim=True)
        strength = self.strength[part.groups, part.queries][..., None]
        text = values[..., self.text] - (MAX_BIAS * closed * strength)[:, None]
        return replace_keys(values, self.text, text)

    def _held(self, part: EditPart) -> tuple[Tensor, Tensor]:
        """Whether queries are in a box, [rows, queries, 1], and what is hidden outside, [rows, queries, text]."""
        within = self.inside[part.groups, part.queries].any(dim=-1, keepdim=True)
        return within, (self.outside[part.groups, part.queries] @ self.table) > 0.0

    def hide_all(self, values: Tensor, part: EditPart) -> Tensor:
        """``exact``: outside the objects' words are hidden, inside all tokens, so that they are equally likely."""
        within, hidden = self._held(part)
        text = values[..., self.text]
        level = text.logsumexp(dim=-1, keepdim=True) - math.log(text.shape[-1])
        weight = (within * self.strength[part.groups, part.queries][..., None]).clamp(max=1.0)[:, None]
        values = replace_keys(values, self.text, text + weight * (level - text))
        return self._close(values, part, hidden, ~within)

    def hide_and_open(self, values: Tensor, part: EditPart) -> Tensor:
        """``clean``: outside the objects' words are hidden, inside all others."""
        within, hidden = self._held(part)
        own = (self.inside[part.groups, part.queries] @ self.table) > 0.0
        return self._close(values, part, torch.where(within, ~own, hidden), torch.ones_like(within))

    def adding(self, boost: float) -> Edit:
        """Add the Gaussian to the probabilities."""

        def added(probabilities: Tensor, part: EditPart) -> Tensor:
            strength = boost * self.strength[part.groups, part.queries][..., None]
            gained = (self.bump[part.groups, part.queries] * strength) @ self.table
            return replace_keys(probabilities, self.text, probabilities[..., self.text] + gained[:, None])

        return added
