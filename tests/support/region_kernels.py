"""Region attention over a whole batch, by channels and by partition, for comparison with each other."""

from __future__ import annotations

import torch
from torch import Tensor

from mask_guided_video.attention_patches.kernels.channels import channel_rows, region_channels
from mask_guided_video.attention_patches.kernels.partition import partition_sides, side_rows
from mask_guided_video.attention_patches.kernels.plain import Kernel, plain_attention
from mask_guided_video.attention_patches.kernels.rows import RowSet, empty_result


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
