"""Attention with region channels: a bias of low rank as a few channels more of q and k, in any fused kernel.

For query weights r_q [c] and key logits r_k [c] the logits are to gain <r_q, r_k>. So both get longer::

    q' = [      q * s      |  r_q ]      d + c numbers, c made up to a multiple of 8 with zeros
    k' = [      k          |  r_k ]
    v' = [      v          |  0   ]      fused kernels want one width

    q' . k' / sqrt(d + c)  =  q . k / sqrt(d)  +  <r_q, r_k>      with s and r_k scaled to make up for the root
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from .plain import Kernel, plain_attention
from .rows import RowSet, bias_part, pieces, query_blocks

# Region biases are cut off here: exp(-1000) is 0 in every dtype, and 1000 * sqrt(d) is still finite in fp16.
MAX_BIAS = 1000.0
# Head dimensions that fused kernels like are multiples of this.
ALIGNMENT = 8


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

    The keys' channels are shifted and limited by ``open_keys``. In half precision the rounding of the keys' channels
    goes into further channels where the alignment leaves room.

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
    if _has_remainders(count, channels, dtype):
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
    factors: Tensor | None = None,
) -> Tensor:
    """One call with channels appended.

    Args:
        q, k, v: [B, heads, L, d].
        query_channels, key_channels: [B or 1, L, c] of ``region_channels``.
        bias: of the call.
        attend: the attention to call.
        factors: [B or 1, heads, c] of ``channel_factors``; None is 1 everywhere.
    """
    longer_q = longer_queries(q, query_channels)
    return attend(longer_q, *longer_keys(k, v, key_channels, factors), bias)[..., : v.shape[3]]


def channel_factors(factors: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Lay a factor of each region and head on the channels that ``region_channels`` made of them.

    Args:
        factors: [..., R] float.
        channels: c of ``region_channels``.
        dtype: of q and k.

    Returns:
        [..., c] in ``dtype``; 1 for the channels that make up the width.
    """
    if _has_remainders(factors.shape[-1], channels, dtype):
        factors = torch.cat((factors, factors), dim=-1)
    return pad(factors, (0, channels - factors.shape[-1]), value=1.0).to(dtype)


def _has_remainders(count: int, channels: int, dtype: torch.dtype) -> bool:
    """Whether what rounding takes of the keys' channels is in further channels."""
    return dtype != torch.float32 and 2 * count <= channels


def longer_queries(q: Tensor, channels: Tensor) -> Tensor:
    """Append channels [B or 1, Lq, c] to q [B, heads, Lq, d] and keep the scale of d."""
    # The kernel divides by sqrt(d + c); the products of the tensors as they came are to be divided by sqrt(d).
    scale = math.sqrt((q.shape[3] + channels.shape[2]) / q.shape[3])
    return torch.cat((q * scale, channels[:, None].expand(*q.shape[:3], -1)), dim=3)


def longer_keys(k: Tensor, v: Tensor, channels: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Append channels [B or 1, Lk, c] to k [B, heads, Lk, d], and zeros to v: fused kernels want them equally wide.

    ``factors`` [B or 1, heads, c] multiply them for each head.
    """
    added = channels[:, None] if factors is None else channels[:, None] * factors[:, :, None]
    longer = torch.cat((k, added.expand(*k.shape[:3], -1)), dim=3)
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
    factors: Tensor | None = None,
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
        factors: [heads, c] of ``channel_factors``; None is 1 everywhere.
    """
    width = q.shape[3] + channels[0].shape[2]
    of_keys = 2 * k.shape[2] * width
    for begin, end, heads in pieces(q, k, len(rows), 2 * q.shape[2] * width + of_keys):
        part, group = rows.part(begin, end), groups.part(begin, end)
        mask, values = bias_part(bias, part, heads), v[part, heads]
        single = end - begin == 1 and heads.stop - heads.start == 1
        own_factors = None if factors is None else factors[None, heads]
        keys = longer_keys(k[part, heads], values, channels[1][group], own_factors)
        for block in query_blocks(q, k, 2 * width, of_keys) if single else (slice(0, q.shape[2]),):
            own = mask if mask is None or mask.shape[2] == 1 else mask[:, :, block]
            queries = longer_queries(q[part, heads, block], channels[0][group][:, block])
            out[part, heads, block] = attend(queries, *keys, own)[..., : v.shape[3]]
            del queries
        # Otherwise these copies would live on while the next ones are made.
        del keys
