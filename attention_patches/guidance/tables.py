"""Which query gains how much from which key: the low-rank tables of a mode at one attention site.

Every bias of mask guidance is ``sum_c query[c] * key[c]`` over a few channels c, so that no mask over all pairs of
tokens is ever made. Queries carry weights in 0..1 and keys carry logits. A mode writes its bias as a few terms,
``mode_tables`` lays them on the sequences of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..kernels.channels import MAX_BIAS, open_keys
from ..site import AttentionSite, FoldedAxis
from .attention_share import ShareGoal
from .call import ModeCall
from .regions import Regions

# Closed for good: attention takes no notice of keys with this logit in any dtype.
CLOSED = -MAX_BIAS
# Rules with more different rows of weights than this have soft masks, which close no key completely.
MAX_PATTERNS = 64
# Query label of a partition: sees all keys.
FREE = -1
# Region of a channel that is for all objects together.
ALL_OBJECTS = -1


@dataclass(frozen=True, eq=False)
class RegionTables:
    """The bias of one site for each group of batch rows that shares it.

    Attributes:
        query: [G, Lq, R] float, weights of the queries.
        key: [G, Lk, R] float, logits of the keys.
        guided: the groups in which the bias changes anything; the others are to be left alone.
        partition: for the partition kernel the region of each query, [G, Lq] long, ``FREE`` for those that see all
            keys, and which keys the queries of a region see, [G, Lk, regions] bool; None where the bias is not a
            partition.
        raised: the channels whose gain each head finds for itself, where a share is asked for.
    """

    query: Tensor
    key: Tensor
    guided: tuple[int, ...]
    partition: tuple[Tensor, Tensor] | None = None
    raised: Raised | None = None


class RaisedChannel(NamedTuple):
    """A channel of tables whose gain is found.

    Attributes:
        channel: its number.
        region: of the objects, as many as there are for the background, or ``ALL_OBJECTS``.
        kind: whether the region's words are raised, or its own part of the video.
    """

    channel: int
    region: int
    kind: Literal["words", "video"]


@dataclass(frozen=True, eq=False)
class Raised:
    """The channels of tables whose gain each head finds for itself; their keys hold closeness in place of logits.

    Attributes:
        channels: which they are.
        goal: the share that is wanted.
        weights: [G, Lq, R], as ``RegionTables.query`` but at strength 1.
        scale: what the closeness of the keys was multiplied by.
        counted: keys that a share is a part of, for words and for the video.
        alone: whether nothing but these channels acts.
    """

    channels: tuple[RaisedChannel, ...]
    goal: ShareGoal
    weights: Tensor
    scale: float
    counted: tuple[range, range]
    alone: bool


def fold(values: Tensor, folded: FoldedAxis) -> Tensor:
    """Arrange [c, T, h, w] as [groups, tokens, c] the way the site's batch axis is folded."""
    patterns = {
        "none": "c t h w -> 1 (t h w) c",
        "frames": "c t h w -> t (h w) c",
        "positions": "c t h w -> (h w) t c",
    }
    return rearrange(values, patterns[folded])


def fold_keys(values: Tensor, site: AttentionSite) -> Tensor:
    """Arrange [c, T, h, w], values of the frames ``site.frames``, as [groups, video keys, c].

    As ``fold``, but where frames meet other frames (``AttentionSite.key_frames``) each group gets the values of those,
    one frame behind the other.
    """
    folded = fold(values, site.rows.folded)
    if site.key_frames is None:
        return folded
    place = {frame: index for index, frame in enumerate(site.frames)}
    index = torch.tensor([[place[frame] for frame in row] for row in site.key_frames])
    return folded[index].flatten(1, 2)


def place_tokens(values: Tensor, positions: range, length: int) -> Tensor:
    """Put [G, tokens, c] at ``positions`` of a sequence of ``length`` tokens; the rest is 0."""
    if len(positions) == length:
        return values
    out = values.new_zeros(values.shape[0], length, values.shape[2])
    out[:, positions.start : positions.stop] = values
    return out


def partition_labels(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Read region labels off the tables of a hard ``separate``: which keys a query does not close.

    Queries with the same weights see the same keys: those without a logit in any of their channels. Weights are 0 or 1.
    There may be more such sets than regions, since an object's words are closed only in frames in which it is.
    """
    weights, region = torch.unique((query > 0.0).flatten(0, 1), dim=0, return_inverse=True)
    region = torch.where(weights.any(dim=1)[region], region, FREE).view(query.shape[:2])
    return region, ((key < 0.0).float() @ weights.float().T) == 0.0


@dataclass(frozen=True, eq=False)
class BiasTerm:
    """A part of a bias, over c channels.

    Attributes:
        weights: [c, T of the queries, h, w], weights of the video queries in 0..1.
        video: [c, T of the keys, h, w], logits of the video keys; or None.
        text: [text tokens, c], logits of the words; or None.
        wanted: which keys the term is for, in 0..1 and in the shape of ``video`` or ``text``: where the guide asks for
            a share of attention, these are raised by as much as that takes, in place of the logits. None for what is
            closed in any case.
        regions: of each channel, as in ``RaisedChannel``; None for the objects in their order, and then the background.
    """

    weights: Tensor
    video: Tensor | None = None
    text: Tensor | None = None
    wanted: Tensor | None = None
    regions: tuple[int, ...] | None = None


def same_region(
    queries: Regions,
    keys: Regions,
    gap: float,
    rows: Tensor | None = None,
    channels: slice = slice(None),
    closed: bool = False,
) -> BiasTerm:
    """Put ``gap`` between cells of different regions: -gap * (1 - <m_q, m_k>), over objects and then the background.

    Args:
        queries: regions of the frames of the queries.
        keys: of the keys.
        gap: at least 0.
        rows: [T of the queries] 0 or 1, frames that are held; those with an object by default.
        channels: regions whose queries are held to their own; those of the others are free.
        closed: the gap is one for good, whatever share is asked for.
    """
    rows = queries.guided.float() if rows is None else rows
    weights = queries.memberships()[channels] * rows[None, :, None, None]
    own = keys.memberships()[channels]
    regions = tuple(range(len(keys.objects) + 1))[channels]
    return BiasTerm(weights, video=-gap * (1.0 - own), wanted=None if closed else own, regions=regions)


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
    return call.query_regions.guided.float()[None, :, None, None]


def present_rows(call: ModeCall) -> Tensor:
    """[R, T, 1, 1], 1 where the object is in the frame: in others its words are left alone."""
    return call.query_regions.present.float()[:, :, None, None]


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
    key = torch.cat([_placed_keys(call, term, len(queries)) for term in terms], dim=2)
    # Weights stay in 0..1, where half precision has room for them; what is more goes to the keys and is limited there.
    scale = max(float(strength.max()), 1.0) if len(strength) else 1.0
    factors = (strength / scale)[None, :, None, None].expand(1, -1, *site.grid[1:])
    weights = place_tokens(queries * fold(factors, site.rows.folded), call.video_queries, query_length)
    at_full_strength = place_tokens(queries, call.video_queries, query_length)
    closed = _closed_rows(at_full_strength, key)
    query, key = weights.masked_fill(closed[..., None], 0.0), scale * key
    acting = query.amax(dim=1) > 0.0
    uneven = key.amax(dim=1) > key.amin(dim=1)
    guided = tuple((acting & uneven).any(dim=1).nonzero()[:, 0].tolist())
    channels = raised_channels(call, terms)
    if channels and call.goal is not None:
        fixed = [channel for channel in range(key.shape[2]) if channel not in {found.channel for found in channels}]
        alone = not bool((acting & uneven)[:, fixed].any())
        counted = call.text, call.video_keys
        full = at_full_strength.masked_fill(closed[..., None], 0.0)
        raised = Raised(channels, call.goal, full, scale, counted, alone)
        return RegionTables(query, key, guided, raised=raised)
    if partition and bool(((strength == 0.0) | (strength == 1.0)).all()):
        return RegionTables(query, key, guided, partition_labels(query, key))
    return RegionTables(query, key, guided)


def wanted_tables(call: ModeCall) -> RegionTables | None:
    """What a share counts at a call whose mode changes logits or probabilities, in place of the mode's own terms.

    Returns:
        Objects' queries and their words where words are known, else their own region; None where no object is there.
    """
    present = present_rows(call)
    if call.spans is not None and call.site.kind in ("cross", "joint"):
        named = words(call, *call.spans)
        return mode_tables(call, [BiasTerm(call.query_regions.objects * present, text=named, wanted=named)])
    own = call.regions.objects
    return mode_tables(call, [BiasTerm(call.query_regions.objects * present, video=own, wanted=own)])


def raised_channels(call: ModeCall, terms: Sequence[BiasTerm]) -> tuple[RaisedChannel, ...]:
    """The channels of some terms whose gain is found; none where the guide asks for no share."""
    found: list[RaisedChannel] = []
    first = 0
    for term in terms:
        count = term.weights.shape[0]
        if call.goal is not None and term.wanted is not None:
            kind: Literal["words", "video"] = "video" if term.text is None else "words"
            regions = term.regions or range(count)
            found += [RaisedChannel(first + at, region, kind) for at, region in enumerate(regions)]
        first += count
    return tuple(found)


def _placed_keys(call: ModeCall, term: BiasTerm, groups: int) -> Tensor:
    """Lay the logits of a term on the key sequence, or where its gain is found the closeness of its keys.

    Returns:
        [groups, Lk, c].
    """
    site, length, is_raised = call.site, call.lengths[1], call.goal is not None and term.wanted is not None
    video = term.wanted if is_raised and term.text is None else term.video
    text = term.wanted if is_raised and term.text is not None else term.text
    placed = term.weights.new_zeros(groups, length, term.weights.shape[0])
    if is_raised and video is not None:
        # All but the other regions: words and what else there is keep their level beside the own region.
        placed += 1.0
        placed[:, call.video_keys.start : call.video_keys.stop] = 0.0
    if video is not None:
        placed += place_tokens(fold_keys(video, site), call.video_keys, length)
    if text is not None:
        placed += place_tokens(text[None], call.text, length)
    return placed


def _closed_rows(query: Tensor, key: Tensor) -> Tensor:
    """[G, Lq] bool, rows in which nothing is left to look at; query [G, Lq, c], key [G, Lk, c]."""
    patterns, which = torch.unique(query.flatten(0, 1), dim=0, return_inverse=True)
    if len(patterns) > MAX_PATTERNS:
        return torch.zeros_like(query[..., 0], dtype=torch.bool)
    most = torch.stack([(patterns @ logits.T).amax(dim=1) for logits in open_keys(key)])
    return (most <= CLOSED / 2.0).gather(1, which.view(query.shape[:2]))
