"""Attention of regions that do not see each other: one smaller attention for each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .plain import Kernel, plain_attention
from .rows import RowSet, bias_part, pieces


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
