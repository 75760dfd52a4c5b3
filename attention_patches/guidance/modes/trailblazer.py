"""TrailBlazer: the probabilities of an object's words, and of the tokens after the prompt, are raised in its box.

Source: TrailBlazer (arXiv 2401.00896) and its code (hohonu-vicml/TrailBlazer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...site import AttentionKind, AttentionSite, GuidedRows
from ..call import ModeCall
from ..edits import EditPart, ProbabilityEdit, replace_keys
from ..labels import CellBoxes, groups_with, of_keys, of_queries, query_strength, word_table
from .mode import MAX_CONSTANT, MaskMode


@dataclass(frozen=True)
class TrailBlazer(MaskMode):
    """P <- P * W + s * max(P) * G for an object's words, after the softmax and without normalising again.

    W is 1 in the object's box and ``weaken`` outside, G a Gaussian in the box (a third of it wide, peak 1). The tokens
    right after the prompt are treated like the words of all objects. With ``temporal`` the probabilities between frames
    a and b are changed at each cell in either box: G there is that of the box of b, else of a, less |a - b| / frames,
    and magnitudes count; all other cells see ``weaken`` of every frame. The published code does so in one layer at 512
    x 512 pixels and never at its own default size, so it is off. Steps: the first 5 of 40.

    Two cells, of which the object takes the first, and its word: shares of attention for logits of 2, 1 and 0, before
    and after, are ::

                  key 1   key 2    word      key 1   key 2    word
        query 1   0.67    0.24    0.09       0.67    0.24    0.19
        query 2   0.67    0.24    0.09       0.67    0.24    0.00

    Attributes:
        strengthen: s, published as 0.125 to 0.15, and 0.5 for several objects.
        weaken: W outside of the box, published as 0.001 to 0.05.
        trailing: how many tokens right after the prompt count as the object's, published as 13 to 15.
        shrink: part of the picture by which boxes are smaller on either side.
        temporal: whether attention over time is changed too.
    """

    end_percent: float = 5 / 40
    rows: GuidedRows = "conditional"
    strengthen: float = 0.15
    weaken: float = 0.001
    trailing: int = 15
    shrink: float = 0.01
    temporal: bool = False

    name: ClassVar[str] = "trailblazer"
    summary: ClassVar[str] = "words are raised in a box by a Gaussian, after the softmax (TrailBlazer)"
    kinds: ClassVar[frozenset[AttentionKind]] = frozenset({"cross", "joint", "temporal"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(MAX_CONSTANT, "strengthen", "trailing")
        self._check_numbers(1.0, "weaken")
        self._check_numbers(0.49, "shrink")

    @property
    def only_words(self) -> bool:
        """Whether there is no guidance without the places of the objects' words."""
        return not self.temporal

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether the mode changes a call."""
        return super().acts_at(site) and (self.temporal or site.kind != "temporal")

    def edit(self, call: ModeCall) -> ProbabilityEdit | None:
        """Raise the words of each object in its box, or the frames of its path."""
        if call.site.kind == "temporal":
            return self._over_time(call)
        return None if call.spans is None else self._words(call, call.spans)

    def _words(self, call: ModeCall, spans: tuple[tuple[int, ...], ...]) -> ProbabilityEdit:
        boxes = CellBoxes.of(call, call.query_boxes, self.shrink)
        strength = query_strength(call)
        # The tokens after the prompt have the boxes of all objects together.
        whole = [torch.cat((each, _any_object(each))) for each in (boxes.inside, boxes.bump)]
        present = torch.cat((boxes.present, _any_object(boxes.present)))
        outside = of_queries(call, (1.0 - whole[0]) * present * strength * (1.0 - self.weaken))
        bump = of_queries(call, whole[1] * strength * self.strengthen)
        trailing = trailing_tokens(call.ordinary, len(call.text), self.trailing)
        words = word_table((*spans, trailing), len(call.text), call.device)
        text = slice(call.text.start, call.text.stop)

        def raised(probabilities: Tensor, part: EditPart) -> Tensor:
            weight = (1.0 - outside[part.groups, part.queries] @ words).clamp(min=0.0)[:, None]
            gained = (bump[part.groups, part.queries] @ words)[:, None]
            return replace_keys(probabilities, text, probabilities[..., text] * weight + part.peaks * gained)

        changed = (outside > 0.0) | (bump > 0.0) if bool(words.any()) else torch.zeros_like(bump)
        return ProbabilityEdit(groups_with(changed), probabilities=raised, peak_keys=text)

    def _over_time(self, call: ModeCall) -> ProbabilityEdit:
        of_query, of_key = (CellBoxes.of(call, boxes, self.shrink) for boxes in (call.query_boxes, call.boxes))
        strength = of_queries(call, query_strength(call))[..., 0]
        bump, inside = (of_queries(call, _any_object(each))[..., 0] for each in (of_query.bump, of_query.inside))
        met_bump, met_inside = (of_keys(call, _any_object(each))[..., 0] for each in (of_key.bump, of_key.inside))
        frames = call.site.frames
        query_frames = torch.tensor(frames if call.site.query_frames is None else call.site.query_frames)
        distance = (query_frames[:, None] - torch.tensor(frames)[None]).abs().float().to(call.device) / len(frames)

        def moved(probabilities: Tensor, part: EditPart) -> Tensor:
            groups, queries = part.groups, part.queries
            key_bump, key_inside = met_bump[groups, None], met_inside[groups, None] > 0.0
            query_bump, query_inside = bump[groups, queries, None], inside[groups, queries, None] > 0.0
            gained = torch.where(key_inside, key_bump, query_bump) - distance[queries]
            within = key_inside | query_inside
            gained = torch.where(within, gained, torch.zeros_like(gained))[:, None]
            weight = torch.where(within, 1.0, self.weaken)[:, None]
            changed = (probabilities * weight + self.strengthen * part.peaks * gained).abs()
            return probabilities + strength[groups, queries][:, None, :, None] * (changed - probabilities)

        return ProbabilityEdit(groups_with(strength), probabilities=moved, peak_keys=slice(None))


def _any_object(values: Tensor) -> Tensor:
    return values.amax(dim=0, keepdim=True)


def trailing_tokens(ordinary: tuple[int, ...], length: int, count: int) -> tuple[int, ...]:
    """The first ``count`` tokens after each stretch of the prompt's own words, in a text of ``length`` tokens."""
    own = set(ordinary)
    found = set()
    for last in ordinary:
        for place in range(last + 1, min(last + 1 + count, length)):
            if place in own:
                break
            found.add(place)
    return tuple(sorted(found))
