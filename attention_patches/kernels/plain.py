"""Exact attention kernels for regions: channels, partition, and the explicit reference.

All of them take q [B, heads, Lq, d], k [B, heads, Lk, d] and v [B, heads, Lk, dv], use the scale ``d ** -0.5`` and add an
optional float ``bias`` (broadcastable to [B, heads, Lq, Lk]) to the logits. None ever holds an Lq x Lk tensor but the
explicit one, and that one only in chunks. Work is cut into pieces of batch rows and heads, so that the copies a
kernel makes stay small beside the tensors it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from .rows import RowSet, bias_part, empty_result, pieces, query_blocks

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Region biases are cut off here: exp(-1000) is 0 in every dtype, and 1000 * sqrt(d) is still finite in fp16.
MAX_BIAS = 1000.0
# Head dimensions that fused kernels like are multiples of this.
ALIGNMENT = 8


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Torch's fused attention."""
    return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def plain_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: RowSet,
    out: Tensor,
    bias: Tensor | None = None,
    attend: Kernel = plain_attention,
) -> None:
    """Write the plain attention of some batch rows into ``out``; the kernels treat rows independently."""
    copied = (2 * q.shape[2] + 2 * k.shape[2]) * q.shape[3]
    for begin, end, heads in pieces(q, k, len(rows), copied):
        part = rows.part(begin, end)
        out[part, heads] = attend(q[part, heads], k[part, heads], v[part, heads], bias_part(bias, part, heads))


# --- region channels --------------------------------------------------------------------------------------------------


def open_keys(key_regions: Tensor) -> Tensor:
    """Shift each channel [G, Lk, R] of key logits to a maximum of 0 and limit it to ``-MAX_BIAS``.

    A softmax does not notice the shift, but half precision does: a row whose keys are all suppressed alike keeps its
    normal attention.
    """
    keys = key_regions.float()
    return (keys - keys.amax(dim=1, keepdim=True)).clamp(min=-MAX_BIAS)


def region_channels(
    query_regions: Tensor, key_regions: Tensor, strength: float, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Make the channels to append to q and k so that the logits gain ``strength * <query_regions, key_regions>``.

    The keys' channels are shifted and limited by ``open_keys``. In half precision the rounding of the keys' channels goes
    into further channels where the alignment leaves room.

    Args:
        query_regions: [G, Lq, R] weights in 0..1.
        key_regions: [G, Lk, R] values.
        strength: factor on the bias.
        head_dim: d of q and k.
        dtype: of q and k.

    Returns:
        Channels [G, Lq, c] and [G, Lk, c] in ``dtype``, d + c a multiple of 8.
    """
    keys = open_keys(strength * key_regions.float())
    queries = query_regions.float()
    count = keys.shape[-1]
    channels = math.ceil((head_dim + count) / ALIGNMENT) * ALIGNMENT - head_dim
    root = math.sqrt(head_dim + channels)
    # A power of two on the queries' side keeps hard memberships exact in every dtype.
    factor = 2.0 ** round(math.log2(root))
    queries = queries * factor
    keys = keys * (root / factor)
    if dtype != torch.float32 and 2 * count <= channels:
        rounded = keys.to(dtype).float()
        queries, keys = torch.cat((queries, queries), -1), torch.cat((rounded, keys - rounded), -1)
    spare = (0, channels - keys.shape[-1])
    return pad(queries, spare).to(dtype), pad(keys, spare).to(dtype)


def channel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_channels: Tensor,
    key_channels: Tensor,
    bias: Tensor | None = None,
    attend: Kernel = plain_attention,
) -> Tensor:
    """One call with channels appended; q, k, v [B, heads, L, d], channels [B or 1, L, c] of ``region_channels``."""
    longer_q = longer_queries(q, query_channels)
    return attend(longer_q, *longer_keys(k, v, key_channels), bias)[..., : v.shape[3]]


def longer_queries(q: Tensor, channels: Tensor) -> Tensor:
    """Append channels [B or 1, Lq, c] to q [B, heads, Lq, d] and keep the scale of d."""
    # The kernel divides by sqrt(d + c); the tensors' own products shall be divided by sqrt(d).
    scale = math.sqrt((q.shape[3] + channels.shape[2]) / q.shape[3])
    return torch.cat((q * scale, channels[:, None].expand(*q.shape[:3], -1)), dim=3)


def longer_keys(k: Tensor, v: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Append channels [B or 1, Lk, c] to k [B, heads, Lk, d], and zeros to v: fused kernels want them equally wide."""
    longer = torch.cat((k, channels[:, None].expand(*k.shape[:3], -1)), dim=3)
    spare = max(longer.shape[3] - v.shape[3], 0)
    return longer, torch.cat((v, v.new_zeros(1, 1, 1, spare).expand(*v.shape[:3], -1)), dim=3)


def channel_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    channels: tuple[Tensor, Tensor],
    rows: RowSet,
    groups: RowSet,
    out: Tensor,
    bias: Tensor | None = None,
    attend: Kernel = plain_attention,
) -> None:
    """Write the region attention of some batch rows into ``out``.

    Args:
        q: [B, heads, Lq, d]; k and v likewise.
        k: keys.
        v: values.
        channels: of ``region_channels``, [G, Lq, c] and [G, Lk, c].
        rows: M rows of the batch.
        groups: for each of them the group of channels, in 0..G-1.
        out: [B, heads, Lq, dv].
        bias: of the whole batch.
        attend: the attention to call.
    """
    width = q.shape[3] + channels[0].shape[2]
    of_keys = 2 * k.shape[2] * width
    for begin, end, heads in pieces(q, k, len(rows), 2 * q.shape[2] * width + of_keys):
        part, group = rows.part(begin, end), groups.part(begin, end)
        mask, values = bias_part(bias, part, heads), v[part, heads]
        single = end - begin == 1 and heads.stop - heads.start == 1
        keys = longer_keys(k[part, heads], values, channels[1][group])
        for block in query_blocks(q, k, 2 * width, of_keys) if single else (slice(0, q.shape[2]),):
            own = mask if mask is None or mask.shape[2] == 1 else mask[:, :, block]
            queries = longer_queries(q[part, heads, block], channels[0][group][:, block])
            out[part, heads, block] = attend(queries, *keys, own)[..., : v.shape[3]]
            del queries
        # Otherwise these copies would live on while the next ones are made.
        del keys


def region_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_regions: Tensor,
    key_regions: Tensor,
    strength: float = 1.0,
    *,
    bias: Tensor | None = None,
    attend: Kernel = plain_attention,
) -> Tensor:
    """Attention whose logits gain ``strength * <query_regions, key_regions>``, without a mask tensor.

    R channels are appended: q' = [q, sqrt(d) * query_regions], k' = [k, strength * key_regions], at the scale of d.

    Args:
        q: [B, heads, Lq, d].
        k: [B, heads, Lk, d].
        v: [B, heads, Lk, dv].
        query_regions: [B or 1, Lq, R].
        key_regions: [B or 1, Lk, R].
        strength: factor on the bias; 0 calls ``attend`` with the tensors as they are.
        bias: additive mask that is kept.
        attend: the attention to call.

    Returns:
        [B, heads, Lq, dv].
    """
    if strength == 0:
        return attend(q, k, v, bias)
    channels = region_channels(query_regions, key_regions, strength, q.shape[3], q.dtype)
    rows = range(q.shape[0])
    size = max(len(query_regions), len(key_regions))
    channels = (channels[0].expand(size, -1, -1), channels[1].expand(size, -1, -1))
    groups = (
        RowSet.of(rows, q.device) if size > 1 else RowSet(torch.zeros(len(rows), dtype=torch.long, device=q.device))
    )
    out = empty_result(q, v)
    channel_rows(q, k, v, channels, RowSet.of(rows, q.device), groups, out, bias, attend)
    return out


def dense_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dense: Tensor,
    rows: RowSet,
    groups: RowSet,
    out: Tensor,
    bias: Tensor | None = None,
    attend: Kernel = plain_attention,
) -> None:
    """Write the attention of some batch rows with an explicit bias into ``out``; for short sequences.

    Arguments as ``channel_rows``, with ``dense`` [G, Lq, Lk] in q's dtype.
    """
    copied = 2 * (q.shape[2] + k.shape[2]) * q.shape[3] + q.shape[2] * k.shape[2]
    for begin, end, heads in pieces(q, k, len(rows), copied):
        part = rows.part(begin, end)
        own, given = dense[groups.part(begin, end)][:, None], bias_part(bias, part, heads)
        mask = own if given is None else own + given
        out[part, heads] = attend(q[part, heads], k[part, heads], v[part, heads], mask)


# --- partition --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Side:
    """Queries that meet the same keys.

    Attributes:
        queries: [n] long, positions of the queries, ascending; None is all of them.
        keys: [m] long, positions of the keys they see; None is all of them.
        scale: [m] float, factor on each of these keys, and so on the logits that these queries have with it; None is 1.
    """

    queries: Tensor | None
    keys: Tensor | None
    scale: Tensor | None = None


def partition_sides(query_region: Tensor, key_regions: Tensor) -> tuple[Side, ...]:
    """Sort the tokens of one sequence into sides.

    Args:
        query_region: [Lq] long, the region of each query, 0..R-1, or negative for queries that see all keys.
        key_regions: [Lk, R] bool, the regions that see each key; a key may belong to several.

    Returns:
        One side per region that has queries. A region without keys sees all of them: its rows keep their normal
        attention.
    """
    sides = []
    for region in query_region.unique().tolist():
        member = torch.ones_like(key_regions[:, 0]) if region < 0 else key_regions[:, region]
        everything = bool(member.all()) or not bool(member.any())
        chosen = query_region == region
        queries = None if bool(chosen.all()) else chosen.nonzero()[:, 0]
        sides.append(Side(queries, None if everything else member.nonzero()[:, 0]))
    return tuple(sides)


def _tokens(tensor: Tensor, index: Tensor | None) -> Tensor:
    # In the order in which projections leave tensors in memory, [B, L, heads, d]: so the copy streams.
    return tensor if index is None else tensor.transpose(1, 2).index_select(1, index).transpose(1, 2)


def side_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    side: Side,
    rows: RowSet,
    out: Tensor,
    bias: Tensor | None = None,
    attend: Kernel = plain_attention,
) -> None:
    """Write the attention of one side of some batch rows into ``out``."""
    queries = q.shape[2] if side.queries is None else side.queries.shape[0]
    keys = k.shape[2] if side.keys is None else side.keys.shape[0]
    for begin, end, heads in pieces(q, k, len(rows), 2 * (queries + keys) * q.shape[3]):
        part = rows.part(begin, end)
        mask = bias_part(bias, part, heads)
        if mask is not None:
            mask = mask if mask.shape[2] == 1 else _tokens(mask, side.queries)
            mask = mask if mask.shape[3] == 1 or side.keys is None else mask.index_select(3, side.keys)
        seen = _tokens(k[part, heads], side.keys)
        if side.scale is not None:
            seen = seen * side.scale[:, None].to(seen.dtype)
        result = attend(_tokens(q[part, heads], side.queries), seen, _tokens(v[part, heads], side.keys), mask)
        if side.queries is None:
            out[part, heads] = result
        elif isinstance(part, slice):
            out[part, heads].transpose(1, 2).index_copy_(1, side.queries, result.transpose(1, 2))
        else:
            out[part[:, None], heads, side.queries] = result.transpose(1, 2)
        # Otherwise they would live on while the next ones are made.
        del result, seen


def partition_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_region: Tensor,
    key_regions: Tensor,
    *,
    bias: Tensor | None = None,
    attend: Kernel = plain_attention,
) -> Tensor:
    """Attention in which every query sees the keys of its own region only, as smaller dense attentions.

    Exact, and cheaper than plain attention: with a share f of foreground it does f^2 + (1 - f)^2 of the work.

    Args:
        q: [B, heads, Lq, d].
        k: [B, heads, Lk, d].
        v: [B, heads, Lk, dv].
        query_region: [B or 1, Lq] long, see ``partition_sides``; rows may differ.
        key_regions: [B or 1, Lk, R] bool.
        bias: additive mask that is kept.
        attend: the attention to call.

    Returns:
        [B, heads, Lq, dv].
    """
    out = empty_result(q, v)
    size = max(len(query_region), len(key_regions))
    for group in range(size):
        rows = range(q.shape[0]) if size == 1 else range(group, group + 1)
        row_set = RowSet.of(rows, q.device)
        sides = partition_sides(query_region[group % len(query_region)], key_regions[group % len(key_regions)])
        for side in sides:
            side_rows(q, k, v, side, row_set, out, bias, attend)
    return out


# --- explicit reference -----------------------------------------------------------------------------------------------


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | Callable[[slice, slice], Tensor] | None = None,
    *,
    edit_logits: Callable[[Tensor, slice, slice], Tensor] | None = None,
    edit: Callable[[Tensor, slice, slice], Tensor] | None = None,
    max_elements: int = 2**24,
) -> Tensor:
    """Softmax written out in fp32, in chunks of heads and queries: the reference, and the way to the probabilities.

    Args:
        q: [B, heads, Lq, d].
        k: [B, heads, Lk, d].
        v: [B, heads, Lk, dv].
        bias: additive, broadcastable to [B, heads, Lq, Lk], or a function of a slice of heads and a slice of queries
            that returns the part for them. Rows that it closes completely (-inf everywhere) keep their normal attention.
        edit_logits: called with the logits [B, heads of the slice, queries of the slice, Lk] without the bias and with
            both slices; returns the ones to use. Rows of keys are whole, so that it may look for their extremes.
        edit: the same with the probabilities.
        max_elements: most probabilities that are held at a time.

    Returns:
        [B, heads, Lq, dv] in v's dtype.
    """
    batch, heads, length = q.shape[:3]
    turn = max(1, min(length, max_elements // max(batch * k.shape[2], 1)))
    head_turn = max(1, min(heads, max_elements // max(batch * turn * k.shape[2], 1)))
    out = empty_result(q, v).to(v.dtype)
    for head in range(0, heads, head_turn):
        of_heads = slice(head, min(head + head_turn, heads))
        keys, values = k[:, of_heads].float(), v[:, of_heads].float()
        for query in range(0, length, turn):
            of_queries = slice(query, min(query + turn, length))
            logits = (q[:, of_heads, of_queries].float() * q.shape[3] ** -0.5) @ keys.transpose(2, 3)
            if edit_logits is not None:
                logits = edit_logits(logits, of_heads, of_queries)
            if bias is not None:
                added = bias(of_heads, of_queries) if callable(bias) else _bias_block(bias, of_heads, of_queries)
                closed = torch.isneginf(added).all(dim=-1, keepdim=True)
                logits = logits + torch.where(closed, torch.zeros_like(added), added).float()
            probabilities = logits.softmax(dim=-1)
            if edit is not None:
                probabilities = edit(probabilities, of_heads, of_queries)
            out[:, of_heads, of_queries] = (probabilities @ values).to(v.dtype)
    return out


def _bias_block(bias: Tensor, heads: slice, queries: slice) -> Tensor:
    bias = bias if bias.shape[1] == 1 else bias[:, heads]
    return bias if bias.shape[2] == 1 else bias[:, :, queries]
