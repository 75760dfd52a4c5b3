"""All that a mode of mask guidance sees of an attention call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..site import AttentionSite
from .attention_share import ShareGoal
from .regions import Regions


class CallTensors(NamedTuple):
    """What plans must know of the tensors of a call: numbers of queries and keys, width of a head, dtype and device."""

    queries: int
    keys: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> CallTensors:
        """Of q [B, heads, Lq, d] and k [B, heads, Lk, d]."""
        return cls(q.shape[2], k.shape[2], q.shape[3], q.dtype, q.device)


@dataclass(frozen=True, eq=False)
class ModeCall:
    """All that a mode sees of one kind of attention call and of some batch rows of it.

    Attributes:
        site: the layout of the call; it says nothing of block and schedule.
        phase: what the mode's ``phase`` said of the call.
        regions: of the frames of the keys (``site.frames``), on the site's grid.
        query_regions: of the frames of the queries.
        lengths: of queries and keys.
        spans: positions of each object's words among the text keys of these rows; None where no words are known.
        ordinary: positions of all the prompt's own words (not begin, end, padding).
        background: positions of the words that name what is outside of all objects.
        begin: positions of begin-of-text tokens.
        frame_strength: [T of the queries], factor on what the mode does in each frame; the guide's strength included.
        boxes: [R, T of the keys, 4], box of each object as (left, top, right, bottom) in fractions of the picture;
            zeros where it is not in the frame.
        query_boxes: [R, T of the queries, 4].
        boxes_filled: makes the same call with every mask filled up to its box; boxes may overlap.
        device: of the call.
        goal: the share of attention that is wanted in place of the mode's own strength, or None.
    """

    site: AttentionSite
    phase: Any
    regions: Regions
    query_regions: Regions
    lengths: tuple[int, int]
    spans: tuple[tuple[int, ...], ...] | None
    ordinary: tuple[int, ...]
    background: tuple[int, ...]
    begin: tuple[int, ...]
    frame_strength: Tensor
    boxes: Tensor
    query_boxes: Tensor
    boxes_filled: Callable[[], ModeCall]
    device: torch.device
    goal: ShareGoal | None = None

    @property
    def text(self) -> range:
        """Where the text stands among the keys."""
        return self.site.text_keys(self.lengths[1])

    @property
    def video_keys(self) -> range:
        """Where the video stands among the keys."""
        return self.site.video_keys(self.lengths[1])

    @property
    def video_queries(self) -> range:
        """Where the video stands among the queries."""
        return self.site.video_queries(self.lengths[0])
