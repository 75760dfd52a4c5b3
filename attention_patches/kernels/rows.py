"""Parts of an attention batch: chosen rows, and pieces of rows and heads that keep copies small."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Copies may take this part of q, k, v and the result together ...
COPY_SHARE = 0.025
# ... or this many bytes, whichever is more: a GPU needs larger pieces to be busy. One head of 32,760 tokens with 128
# and 8 channels in half precision (Wan at 832 x 480 x 81) fits: a little less, and each head would take two calls.
COPY_BYTES_CPU = 2**21
COPY_BYTES_GPU = 36 * 2**20
# Rows of queries that one CPU thread takes at a time in torch's fused kernel.
CPU_QUERY_BLOCK = 256
# Fewest queries worth a call of their own when even one head of one row is too much.
QUERY_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class RowSet:
    """Some rows of a batch axis, as views where they are evenly spaced.

    Attributes:
        index: [M] long, the rows.
        start: first row when they are evenly spaced.
        step: their distance, or 0 when they are not evenly spaced.
    """

    index: Tensor
    start: int = 0
    step: int = 0

    @classmethod
    def of(cls, rows: Sequence[int], device: torch.device | str = "cpu") -> RowSet:
        """Build from row numbers, ascending or not."""
        index = torch.as_tensor(list(rows), dtype=torch.long, device=device)
        steps = {after - before for before, after in zip(rows, rows[1:], strict=False)} or {1}
        step = steps.pop()
        return cls(index, rows[0], step) if rows and not steps and step > 0 else cls(index)

    def __len__(self) -> int:
        return self.index.shape[0]

    def part(self, begin: int, end: int) -> slice | Tensor:
        """Index for the rows ``begin`` to ``end`` of the set."""
        if not self.step:
            return self.index[begin:end]
        return slice(self.start + begin * self.step, self.start + (end - 1) * self.step + 1, self.step)


def copy_budget(q: Tensor, k: Tensor) -> float:
    """Elements that the copies for one call may take beside q [B, heads, Lq, d] and k [B, heads, Lk, d]."""
    floor = COPY_BYTES_CPU if q.device.type == "cpu" else COPY_BYTES_GPU
    return max(COPY_SHARE * 2 * (q.numel() + k.numel()), floor / q.element_size())


def pieces(q: Tensor, k: Tensor, rows: int, slice_elements: int) -> Iterator[tuple[int, int, slice]]:
    """Cut the work into pieces whose copies stay within the budget.

    Args:
        q: [B, heads, Lq, d] and
        k: [B, heads, Lk, d], the tensors that are given.
        rows: how many batch rows are to be done.
        slice_elements: elements that the copies for one row and one head take.

    Yields:
        First and last + 1 of the rows, and the slice of heads.
    """
    heads, query_length = q.shape[1], q.shape[2]
    count = int(copy_budget(q, k) / max(slice_elements, 1))
    if q.device.type == "cpu":
        count = max(count, math.ceil(2 * torch.get_num_threads() / math.ceil(query_length / CPU_QUERY_BLOCK)))
    if count >= heads:
        turn = count // heads
        for begin in range(0, rows, turn):
            yield begin, min(begin + turn, rows), slice(0, heads)
    else:
        turn = max(count, 1)
        for begin in range(rows):
            for head in range(0, heads, turn):
                yield begin, begin + 1, slice(head, min(head + turn, heads))


def bias_part(bias: Tensor | None, rows: slice | Tensor | None = None, heads: slice | None = None) -> Tensor | None:
    """Take the part of a broadcastable bias that belongs to some rows and heads."""
    if bias is None:
        return None
    if rows is not None and bias.shape[0] > 1:
        bias = bias[rows]
    if heads is not None and bias.shape[1] > 1:
        bias = bias[:, heads]
    return bias


def empty_result(q: Tensor, v: Tensor) -> Tensor:
    """[B, heads, Lq, dv], laid out so that joining the heads afterwards costs no copy."""
    batch, heads, length, dim = *q.shape[:3], v.shape[3]
    # Not a transposed view: autograd refuses writes into one by index after writes by slice.
    return q.new_empty_strided((batch, heads, length, dim), (length * heads * dim, dim, heads * dim, 1))


def query_blocks(q: Tensor, k: Tensor, query_width: int, key_elements: int) -> Iterator[slice]:
    """Cut the queries of one head of one row into even blocks, where its copies are over the budget by themselves.

    Args:
        q: [B, heads, Lq, d] and
        k: [B, heads, Lk, d], the tensors that are given.
        query_width: elements that the copies for one query take.
        key_elements: elements that the copies of the keys and values take.
    """
    length = q.shape[2]
    block = max(int(copy_budget(q, k) - key_elements) // query_width, min(QUERY_BLOCK, length), 1)
    # A short block at the end would keep a GPU as long as a full one.
    block = math.ceil(length / math.ceil(length / block)) if length else block
    for begin in range(0, length, block):
        yield slice(begin, min(begin + block, length))
