"""Attention whose logits or probabilities are changed by hand, in chunks that never hold all pairs of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..kernels.explicit import explicit_attention
from ..kernels.partition import Side
from ..kernels.plain import Kernel
from ..kernels.rows import RowSet, bias_part

# Most probabilities held at a time: a few of such tensors are alive at once, in fp32.
EDIT_ELEMENTS_CPU = 2**21
EDIT_ELEMENTS_GPU = 2**23


@dataclass(frozen=True, eq=False)
class EditPart:
    """Which part of a call an edit is given.

    Attributes:
        groups: [rows] long, for each batch row its group: the frame or the cell that is folded into the batch, 0 where
            none is.
        queries: the part of the query sequence.
        peaks: [rows, 1, 1, 1], see ``ProbabilityEdit.peak_keys``; zeros where nobody asked.
    """

    groups: Tensor
    queries: slice
    peaks: Tensor


# From values [rows, heads, queries, keys] in fp32 and where they stand to the values to use.
Edit: TypeAlias = Callable[[Tensor, EditPart], Tensor]


@dataclass(frozen=True, eq=False)
class ProbabilityEdit:
    """What to change at one kind of call.

    Attributes:
        guided: the groups in which anything changes; the batch rows of the others are left alone to the bit.
        logits: gets the scaled products of queries and keys, before the call's own bias is added.
        probabilities: gets what the softmax makes of them. Nothing is normalised afterwards.
        peak_keys: where given, ``EditPart.peaks`` is the largest probability of these keys before any change, among all
            guided batch rows of the same sample: a first pass over them.
        sides: where given, instead of all this: for each of ``guided`` its queries in parts that see the keys otherwise
            scaled, each an ordinary attention of any kernel.
    """

    guided: tuple[int, ...]
    logits: Edit | None = None
    probabilities: Edit | None = None
    peak_keys: slice | None = None
    sides: tuple[tuple[Side, ...], ...] | None = None


@dataclass(frozen=True, eq=False)
class EditJob:
    """Batch rows that are attended explicitly.

    Attributes:
        rows: rows of the batch, ascending.
        groups: [M] long, for each of them its group.
        folded_size: rows of one sample.
        edit: what to change.
    """

    rows: RowSet
    groups: Tensor
    folded_size: int
    edit: ProbabilityEdit

    def write(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None, kernel: Kernel) -> None:
        """Write the result of these rows into ``out`` [B, heads, Lq, dv]; it takes the kernel's place."""
        most = EDIT_ELEMENTS_CPU if q.device.type == "cpu" else EDIT_ELEMENTS_GPU
        peaks = self._peaks(q, k, v, bias, most) if self.edit.peak_keys is not None else q.new_zeros(len(self.rows))
        for begin, end, rows, tensors, own in self._pieces(q, k, v, bias, most):
            groups = self.groups[begin:end]
            peak = peaks[begin:end, None, None, None]
            out[rows] = explicit_attention(
                *tensors,
                own,
                edit_logits=_placed(self.edit.logits, groups, peak),
                edit=_placed(self.edit.probabilities, groups, peak),
                max_elements=most,
            )

    def _pieces(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, most: int
    ) -> Iterator[tuple[int, int, slice | Tensor, tuple[Tensor, Tensor, Tensor], Tensor | None]]:
        """Yield (begin, end) of rows of the set, these rows of the batch, their q, k and v, and their bias."""
        turn = max(1, most // max(q.shape[1] * q.shape[2] * k.shape[2], 1))
        for begin in range(0, len(self.rows), turn):
            end = min(begin + turn, len(self.rows))
            rows = self.rows.part(begin, end)
            yield begin, end, rows, (q[rows], k[rows], v[rows]), bias_part(bias, rows)

    @torch.no_grad()
    def _peaks(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, most: int) -> Tensor:
        """The largest probability of ``peak_keys`` in the sample of each row of the set, [rows of the set]."""
        found = torch.zeros(len(self.rows), device=q.device)
        for begin, end, _, (queries, keys, values), own in self._pieces(q, k, v, bias, most):
            of_piece = found[begin:end]

            def look(probabilities: Tensor, heads: slice, queries: slice, of_piece: Tensor = of_piece) -> Tensor:
                largest = probabilities[..., self.edit.peak_keys].amax(dim=(1, 2, 3))
                of_piece.copy_(torch.maximum(of_piece, largest))
                return probabilities

            explicit_attention(queries, keys, values[..., :1], own, edit=look, max_elements=most)
        samples = self.rows.index // self.folded_size
        largest = torch.zeros(q.shape[0] // self.folded_size, device=q.device).scatter_reduce(0, samples, found, "amax")
        return largest[samples]


def replace_keys(values: Tensor, keys: slice, part: Tensor) -> Tensor:
    """Replace some keys of values [rows, heads, queries, keys] by ``part``; not in place, so that training goes on."""
    if keys.start == 0 and keys.stop == values.shape[-1]:
        return part
    return values.slice_scatter(part, dim=-1, start=keys.start, end=keys.stop)


def _placed(edit: Edit | None, groups: Tensor, peaks: Tensor) -> Callable[[Tensor, slice, slice], Tensor] | None:
    """Tell an edit the rows; heads are all treated alike."""
    if edit is None:
        return None
    return lambda values, heads, queries: edit(values, EditPart(groups, queries, peaks))
