"""Plain attention of some rows of a batch, and what all kernels here have in common.

All of them take q [B, heads, Lq, d], k [B, heads, Lk, d] and v [B, heads, Lk, dv], use the scale ``d ** -0.5`` and add
an optional float ``bias`` (broadcastable to [B, heads, Lq, Lk]) to the logits. None ever holds an Lq x Lk tensor but
the explicit one, and that one only in chunks. Work is cut into pieces of batch rows and heads, so that the copies a
kernel makes stay small beside the tensors it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .rows import RowSet, bias_part, pieces

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


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
