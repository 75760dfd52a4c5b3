"""Additive rules as sums of a few terms: weights of video queries times logits of video keys or of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.plain import MAX_BIAS, open_keys
from .modes.mode import ModeCall
from .region_tables import RegionTables, fold, fold_keys, partition_labels, place_tokens
from .regions import Regions

# Closed for good: attention takes no notice of keys with this logit in any dtype.
CLOSED = -MAX_BIAS
# Rules with more different rows of weights than this have soft masks, which close no key completely.
MAX_PATTERNS = 64


@dataclass(frozen=True, eq=False)
class BiasTerm:
    """A part of a bias, over c channels.

    Attributes:
        weights: [c, T of the queries, h, w], weights of the video queries in 0..1.
        video: [c, T of the keys, h, w], logits of the video keys; or None.
        text: [text tokens, c], logits of the words; or None.
    """

    weights: Tensor
    video: Tensor | None = None
    text: Tensor | None = None


def same_region(
    asking: Regions, regions: Regions, gap: float, rows: Tensor | None = None, channels: slice = slice(None)
) -> BiasTerm:
    """Put ``gap`` between cells of different regions: -gap * (1 - <m_q, m_k>), over objects and then the background.

    Args:
        asking: regions of the frames of the queries.
        regions: of the keys.
        gap: at least 0.
        rows: [T of the queries] 0 or 1, frames that are held; those with an object by default.
        channels: regions whose queries are held to their own; those of the others are free.
    """
    rows = asking.guided.float() if rows is None else rows
    weights = asking.memberships()[channels] * rows[None, :, None, None]
    return BiasTerm(weights, video=-gap * (1.0 - regions.memberships()[channels]))


def words(call: ModeCall, *positions: Sequence[int]) -> Tensor:
    """[text tokens, lists] with 1 at the positions of each list."""
    out = torch.zeros(len(call.text), len(positions))
    for column, found in enumerate(positions):
        out[list(found), column] = 1.0
    return out


def other_words(call: ModeCall, *named: Sequence[int]) -> list[int]:
    """Positions of the prompt's own words that are in none of the lists."""
    taken = {position for positions in named for position in positions}
    return [position for position in call.ordinary if position not in taken]


def guided_rows(call: ModeCall) -> Tensor:
    """[1, T, 1, 1], 1 for frames with an object."""
    return call.asking.guided.float()[None, :, None, None]


def present_rows(call: ModeCall) -> Tensor:
    """[R, T, 1, 1], 1 where the object is in the frame: in others its words are left alone."""
    return call.asking.present.float()[:, :, None, None]


def mode_tables(call: ModeCall, terms: Sequence[BiasTerm], partition: bool = False) -> RegionTables | None:
    """Make the tables of a sum of terms, None when there are none.

    Rows in which a hard rule closes every key keep their normal attention.

    Args:
        call: the call.
        terms: their weights are multiplied by the strength of each frame.
        partition: weights are 0 or 1 and logits 0 or ``CLOSED``: smaller dense attentions may be run instead.
    """
    if not terms:
        return None
    query_length, key_length = call.lengths
    site, strength = call.site, call.frame_strength.float()
    queries = torch.cat([fold(term.weights, site.rows.folded) for term in terms], dim=2)
    keys = []
    for term in terms:
        placed = []
        if term.video is not None:
            placed.append(place_tokens(fold_keys(term.video, site), call.video_keys, key_length))
        if term.text is not None:
            placed.append(place_tokens(term.text[None], call.text, key_length).expand(len(queries), -1, -1))
        keys.append(sum(placed))
    key = torch.cat(keys, dim=2)
    # Weights stay in 0..1, where half precision has room for them; what is more goes to the keys and is limited there.
    scale = max(float(strength.max()), 1.0) if len(strength) else 1.0
    factors = (strength / scale)[None, :, None, None].expand(1, -1, *site.grid[1:])
    weights = place_tokens(queries * fold(factors, site.rows.folded), call.video_queries, query_length)
    closed = _closed_rows(place_tokens(queries, call.video_queries, query_length), key)
    query, key = weights.masked_fill(closed[..., None], 0.0), scale * key
    acting = query.amax(dim=1) > 0.0
    uneven = key.amax(dim=1) > key.amin(dim=1)
    guided = tuple((acting & uneven).any(dim=1).nonzero()[:, 0].tolist())
    if partition and bool(((strength == 0.0) | (strength == 1.0)).all()):
        return RegionTables(query, key, guided, *partition_labels(query, key))
    return RegionTables(query, key, guided)


def _closed_rows(query: Tensor, key: Tensor) -> Tensor:
    """[G, Lq] bool, rows in which nothing is left to look at; query [G, Lq, c], key [G, Lk, c]."""
    patterns, which = torch.unique(query.flatten(0, 1), dim=0, return_inverse=True)
    if len(patterns) > MAX_PATTERNS:
        return torch.zeros_like(query[..., 0], dtype=torch.bool)
    most = torch.stack([(patterns @ logits.T).amax(dim=1) for logits in open_keys(key)])
    return (most <= CLOSED / 2.0).gather(1, which.view(query.shape[:2]))
