"""VideoGrain: logits of a query's own region are pulled to its largest one, all others to its smallest.

Source: VideoGrain (arXiv 2502.17258) and its code (knightyxp/VideoGrain); the rule is that of DenseDiffusion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...site import AttentionKind, AttentionSite, GuidedRows
from ..call import ModeCall
from ..edits import Edit, EditPart, ProbabilityEdit, replace_keys
from ..labels import RegionLabels, groups_with, word_table
from ..regions import MaskRule
from .mode import MAX_CONSTANT, MaskMode

# Steps of the noise schedule that the published weight counts in.
SCHEDULE_STEPS = 1000


@dataclass(frozen=True)
class VideoGrain(MaskMode):
    """S' = S + w * (max(S) - S) for keys of the query's region and S - w * (S - min(S)) for all others.

    w = c * ((t - 1) / 1000)^5 * (1 - share of the keys that are of the query's region), t from 999 at pure noise down
    to 0. Among video tokens the region is the object or the background, over all frames; where a model attends frame by
    frame, its queries meet the keys of all frames. Among words the region of an object has its words, that of the
    background the words of the background phrase; all other tokens (begin, end, padding, other words) belong to none.
    Queries whose region has no words are left alone. Extremes are taken among video keys and among words apart. Steps:
    the first 15 of 50. As coded, the largest level is not changed.

    Two cells, of which the object takes the first, and its word: logits of 2, 1 and 0 before and after, in the first
    step, are ::

                  key 1   key 2    word      key 1   key 2    word
        query 1   2.00    1.00    0.00       2.00    1.00    0.00
        query 2   2.00    1.00    0.00       1.85    1.15    0.00

    Attributes:
        self_strength: c among video tokens.
        cross_strength: c among words.
        power: of the part of the schedule that is left.
        finest_level: first level of the grid that is changed where a model has several, 0 the finest.
    """

    end_percent: float = 15 / 50
    rows: GuidedRows = "conditional"
    mask_rule: MaskRule = "nearest"
    self_strength: float = 0.3
    cross_strength: float = 1.0
    power: float = 5.0
    finest_level: int = 1

    name: ClassVar[str] = "videograin"
    summary: ClassVar[str] = "logits are pulled to the extremes of their row, over all frames (VideoGrain)"
    kinds: ClassVar[frozenset[AttentionKind]] = frozenset({"self", "cross", "joint"})
    space_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(MAX_CONSTANT, "self_strength", "cross_strength", "power", "finest_level")

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether the mode changes a call; models that take all frames in one sequence have one level only."""
        return super().acts_at(site) and (site.rows.folded == "none" or site.level >= self.finest_level)

    def phase(self, site: AttentionSite) -> float:
        """The weight at this point of the schedule."""
        return self.weight_at(site.progress)

    def weight_at(self, progress: float) -> float:
        """((t - 1) / 1000)^power at a part of the schedule."""
        timestep = (1.0 - min(max(progress, 0.0), 1.0)) * (SCHEDULE_STEPS - 1)
        return max((timestep - 1.0) / SCHEDULE_STEPS, 0.0) ** self.power

    def edit(self, call: ModeCall) -> ProbabilityEdit | None:
        """Pull logits to the extremes, among video tokens and among words."""
        labels, weight = RegionLabels.of(call), call.phase
        regions = len(call.regions.objects) + 1
        pulls: list[Edit] = []
        guided: set[int] = set()
        if call.site.kind != "cross":
            own = labels.strength * (1.0 - labels.key_shares(regions))
            pulls.append(_among_video(labels, weight * self.self_strength * own, call.video_keys))
            guided.update(labels.guided())
        if call.spans is not None:
            words = word_table((*call.spans, call.background), len(call.text), call.device) > 0.0
            shares = words.float().mean(dim=1)
            # Queries that are not video have the label 0.
            region = (labels.queries.long() - 1).clamp(min=0)
            own = labels.strength * torch.where(shares > 0.0, 1.0 - shares, 0.0)[region]
            pulls.append(_among_words(words, region, weight * self.cross_strength * own, call.text))
            guided.update(groups_with(own))
        if not guided or weight == 0.0:
            return None

        def pulled(values: Tensor, part: EditPart) -> Tensor:
            for pull in pulls:
                values = pull(values, part)
            return values

        return ProbabilityEdit(tuple(sorted(guided)), pulled)


def _among_video(labels: RegionLabels, weights: Tensor, video: range) -> Edit:
    keys, weights = slice(video.start, video.stop), weights.clamp(max=1.0)

    def pulled(values: Tensor, part: EditPart) -> Tensor:
        return _pull(values, keys, labels.same(part, keys), weights[part.groups, part.queries])

    return pulled


def _among_words(words: Tensor, region: Tensor, weights: Tensor, text: range) -> Edit:
    keys, weights = slice(text.start, text.stop), weights.clamp(max=1.0)

    def pulled(values: Tensor, part: EditPart) -> Tensor:
        own = words[region[part.groups, part.queries]][:, None]
        return _pull(values, keys, own, weights[part.groups, part.queries])

    return pulled


def _pull(values: Tensor, keys: slice, own: Tensor, weights: Tensor) -> Tensor:
    """Pull the logits of some keys: up where ``own`` [rows, 1, queries, keys], else down; weights [rows, queries]."""
    part = values[..., keys]
    aims = part.amax(dim=-1, keepdim=True), part.amin(dim=-1, keepdim=True)
    weights = weights[:, None, :, None]
    return replace_keys(values, keys, part + weights * (torch.where(own, *aims) - part))
