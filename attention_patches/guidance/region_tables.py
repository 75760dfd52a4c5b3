"""Which query gains how much from which key: the low-rank tables of a guide at one attention site.

Every bias of mask guidance is ``sum_c query[c] * key[c]`` over a few channels c, so that no mask over all pairs of tokens is
ever made. Queries carry weights in 0..1 and keys carry logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from ..kernels.plain import MAX_BIAS
from ..site import AttentionSite, FoldedAxis
from .regions import FOREGROUND, Regions

GuidanceMode = Literal["focus", "focus_fg", "separate", "cross_text"]

# Keys outside of every mask keep this share in ``focus`` before the strength is applied: log(1e-4) = -9.2.
MASK_FLOOR = 1e-4
# Query label of ``RegionTables.query_region``: sees all keys.
FREE = -1


@dataclass(frozen=True, eq=False)
class RegionTables:
    """The bias of one site for each group of batch rows that shares it.

    Attributes:
        query: [G, Lq, R] float, weights of the queries.
        key: [G, Lk, R] float, logits of the keys.
        guided: the groups in which the bias changes anything; the others are to be left alone.
        query_region: [G, Lq] long for the partition kernel, ``FREE`` for queries that see all keys; None where the
            bias is not a partition.
        key_regions: [G, Lk, regions] bool for the partition kernel.
    """

    query: Tensor
    key: Tensor
    guided: tuple[int, ...]
    query_region: Tensor | None = None
    key_regions: Tensor | None = None


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

    Raises:
        ValueError: a frame of the keys is not among the frames of the call.
    """
    folded = fold(values, site.rows.folded)
    if site.key_frames is None:
        return folded
    place = {frame: index for index, frame in enumerate(site.frames)}
    missing = [frame for row in site.key_frames for frame in row if frame not in place]
    if missing or len(site.key_frames) != len(folded):
        raise ValueError(
            f"attention {site.kind} in block {site.block!r} has frames {site.frames} but takes its keys from "
            f"{site.key_frames}; the backbone describes its sites wrongly."
        )
    index = torch.tensor([[place[frame] for frame in row] for row in site.key_frames])
    return folded[index].flatten(1, 2)


def video_terms(regions: Regions, mode: GuidanceMode, strength: float, hard: bool) -> tuple[Tensor, Tensor]:
    """Return query weights and key logits [c, T, h, w] of the bias among video tokens; see ``MaskGuidance.mode``.

    Queries of frames without any object have weight 0.
    """
    objects = regions.objects
    guided = regions.guided[None, :, None, None].float()
    if mode == "focus":
        union = objects.amax(dim=0, keepdim=True)
        return guided.expand_as(union), strength * union.clamp(min=MASK_FLOOR).log()
    if mode == "focus_fg":
        total = objects.sum(dim=0, keepdim=True)
        own = torch.where(total >= FOREGROUND, objects / total.clamp(min=MASK_FLOOR), torch.zeros_like(objects))
        return own * guided, strength * objects.clamp(min=MASK_FLOOR).log()
    if mode == "separate":
        members = regions.memberships()
        return members * guided, -(MAX_BIAS if hard else strength) * (1.0 - members)
    return objects[:0], objects[:0]


def text_terms(
    regions: Regions, spans: Sequence[Sequence[int]], text_length: int, mode: GuidanceMode, strength: float, hard: bool
) -> tuple[Tensor, Tensor]:
    """Return query weights [c, T, h, w] and key logits [text tokens, c] of the bias between video and text.

    Only the words of the phrases have logits; begin, end, padding and all other words stay free. An object's words are
    not touched in frames in which the object is not present.
    """
    words = torch.zeros(text_length, len(spans))
    for column, positions in enumerate(spans):
        words[list(positions), column] = 1.0
    present = regions.present[:, :, None, None].float()
    inside, outside = regions.objects * present, (1.0 - regions.objects) * present
    closed = -MAX_BIAS if hard else -strength
    if mode == "separate":
        return outside, closed * words
    if mode == "cross_text" and hard:
        return torch.cat((inside, outside)), torch.cat((strength * words, -MAX_BIAS * words), dim=1)
    if mode == "cross_text":
        return inside, strength * words
    return inside[:0], words[:, :0]


def region_tables(
    site: AttentionSite,
    regions: Regions,
    spans: Sequence[Sequence[int]] | None,
    lengths: tuple[int, int],
    mode: GuidanceMode,
    strength: float,
    hard: bool,
    asking: Regions | None = None,
) -> RegionTables:
    """Make the tables of one site.

    Args:
        site: where the call stands.
        regions: on the site's grid, its frames only: those of the keys.
        spans: token positions of each object's words among the text keys, or None to leave text alone.
        lengths: lengths of the query and of the key sequence. Keys that are neither video nor words of an object are
            free, and so are queries that are not video.
        mode: see ``MaskGuidance``.
        strength: factor on the bias.
        hard: see ``MaskGuidance``.
        asking: regions of the frames of the queries, where those are others.
    """
    query_length, key_length = lengths
    folded = site.rows.folded
    asking = regions if asking is None else asking
    video = range(*site.video.indices(query_length))
    key_video = range(*(site.key_video or site.video).indices(key_length))
    queries, keys = [], []
    if site.kind != "cross":
        weights, _ = video_terms(asking, mode, strength, hard)
        _, logits = video_terms(regions, mode, strength, hard)
        queries.append(fold(weights, folded))
        keys.append(place_tokens(fold_keys(logits, site), key_video, key_length))
    if spans is not None and site.kind in ("cross", "joint"):
        text = range(*(site.text or slice(None)).indices(key_length))
        weights, logits = text_terms(asking, spans, len(text), mode, strength, hard)
        queries.append(fold(weights, folded))
        keys.append(place_tokens(logits[None], text, key_length).expand(len(queries[-1]), -1, -1))
    query = place_tokens(torch.cat(queries, dim=2), video, query_length)
    key = torch.cat(keys, dim=2)
    acting = query.amax(dim=1) > 0.0
    uneven = key.amax(dim=1) > key.amin(dim=1)
    guided = (acting & uneven).any(dim=1).nonzero()[:, 0].tolist()
    if mode == "separate" and hard and site.kind in ("self", "joint"):
        return RegionTables(query, key, tuple(guided), *partition_labels(query, key))
    return RegionTables(query, key, tuple(guided))


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
