"""Attention with its logits written out, in chunks that never hold all pairs of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .plain import Kernel, plain_attention
from .rows import RowSet, bias_part, empty_result, pieces


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
            that returns the part for them. Rows that it closes completely (-inf everywhere) keep their normal
            attention.
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
