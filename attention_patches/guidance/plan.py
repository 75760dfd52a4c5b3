"""Run region tables on a batch: who is guided, by which kernel, and who is left alone to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.channels import channel_attention, channel_factors, channel_rows, open_keys, region_channels
from ..kernels.explicit import dense_rows
from ..kernels.partition import Side, partition_sides, side_rows
from ..kernels.plain import Kernel, plain_attention, plain_rows
from ..kernels.rows import RowSet, empty_result
from ..patch import Attend
from ..site import AttentionSite, BatchRows
from .call import CallTensors
from .edits import EditJob, ProbabilityEdit
from .share_book import RaisedRows, ShareBook, key_columns
from .tables import RegionTables

# Below this many tokens in a sequence the gathering of a partition costs more than it saves.
PARTITION_TOKENS = 512
# On a CPU an explicit bias of up to this many pairs (256 tokens with each other) is cheaper than channels. GPU kernels
# tend to refuse masks or to ignore them, so there is none for them.
DENSE_PAIRS = 2**16


@dataclass(frozen=True, eq=False)
class ChannelJob:
    """Batch rows that are guided by region channels: ``groups`` says for each of ``rows`` which channels.

    Attributes:
        rows, groups: of the same length.
        channels: of ``region_channels``.
        raised: where gains are found in the call itself.
        factors: [heads, c], those gains once they are.
    """

    rows: RowSet
    groups: RowSet
    channels: tuple[Tensor, Tensor]
    raised: RaisedRows | None = None
    factors: Tensor | None = None

    def write(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None, kernel: Kernel) -> None:
        """Write the result of these rows into ``out``."""
        channel_rows(q, k, v, self.channels, self.rows, self.groups, out, bias, kernel, self.factors)


@dataclass(frozen=True, eq=False)
class PlainJob:
    """Batch rows that turn out to need nothing."""

    rows: RowSet

    def write(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None, kernel: Kernel) -> None:
        """Write the result of these rows into ``out``."""
        plain_rows(q, k, v, self.rows, out, bias, kernel)


@dataclass(frozen=True, eq=False)
class DenseJob:
    """Batch rows of short sequences that are guided by an explicit bias [G, Lq, Lk]."""

    rows: RowSet
    groups: RowSet
    dense: Tensor

    def write(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None, kernel: Kernel) -> None:
        """Write the result of these rows into ``out``."""
        dense_rows(q, k, v, self.dense, self.rows, self.groups, out, bias, kernel)


@dataclass(frozen=True, eq=False)
class PartitionJob:
    """Batch rows that are guided by partition: each set of rows has its own sides."""

    sides: tuple[tuple[RowSet, tuple[Side, ...]], ...]

    def write(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None, kernel: Kernel) -> None:
        """Write the result of these rows into ``out``."""
        for rows, sides in self.sides:
            for side in sides:
                side_rows(q, k, v, side, rows, out, bias, kernel)


@dataclass(frozen=True, eq=False)
class MixedJob:
    """Batch rows of an edit of which each head takes the part that brings it to the share that is wanted."""

    job: EditJob | PartitionJob
    raised: RaisedRows

    def write_mixed(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        bias: Tensor | None,
        kernel: Kernel,
        site: AttentionSite,
        book: ShareBook,
    ) -> None:
        """Write the result of these rows into ``out``, which holds their plain attention where it was computed."""
        rows = RowSet.of(self.raised.rows, q.device)
        if not book.knows(site, self.raised):
            # Values that say of each key what it is make attention return its shares; the whole call, once in a run.
            of_keys = key_columns(self.raised, len(k)).to(q.device, q.dtype)[:, None].expand(-1, k.shape[1], -1, -1)
            before, after = (q.new_zeros(*q.shape[:3], of_keys.shape[3]) for _ in range(2))
            plain_rows(q, k, of_keys, rows, before, bias)
            self.job.write(q, k, of_keys, after, bias, plain_attention)
            book.note_edit(site, self.raised, before[rows.index], after[rows.index])
        part = book.part(site, self.raised)
        if not bool((part > 0.0).any()):
            return
        edited = torch.empty_like(out)
        self.job.write(q, k, v, edited, bias, kernel)
        part = part.to(out.dtype)[None, :, None, None]
        out[rows.index] = torch.lerp(out[rows.index], edited[rows.index], part.expand_as(out[rows.index]))


Job: TypeAlias = ChannelJob | DenseJob | PartitionJob | PlainJob


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do with the batch of one kind of call.

    Attributes:
        jobs: guided rows, for calls after which nobody reads the site.
        plain: rows that are left alone, or None when all are guided.
        whole: channels for every row of the batch, for calls that must keep the batch whole.
        raised: rows of ``whole`` whose gains are found in the call itself.
        edits: rows that are attended otherwise, whoever reads the site: explicitly, or in parts of their queries.
    """

    jobs: tuple[Job, ...]
    plain: RowSet | None
    whole: tuple[Tensor, Tensor] | None = None
    edits: tuple[EditJob | PartitionJob | MixedJob, ...] = ()
    raised: tuple[RaisedRows, ...] = ()

    def run(
        self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, book: ShareBook | None = None
    ) -> Tensor:
        """Return the attention [B, heads, Lq, dv] with the guided rows guided; gains that are found go into ``book``.

        Rows that are left alone go through the plain call and not through a kernel with zero weights: rounding would
        differ.
        """
        jobs = [_settled(job, q, k, attend.bias, site, book) for job in self.jobs]
        if all(isinstance(job, PlainJob) for job in jobs) and self.whole is None and not self.edits:
            return attend(q, k, v, site)

        def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            return attend.with_bias(bias)(q, k, v, site)

        if self.whole is not None:
            out = self._run_whole(self.whole, attend, q, k, v, site, book)
        elif not attend.last:
            out = attend(q, k, v, site).clone()
        else:
            out = empty_result(q, v)
            if self.plain is not None:
                plain_rows(q, k, v, self.plain, out, attend.bias, kernel)
            for job in jobs:
                job.write(q, k, v, out, attend.bias, kernel)
            for mixed in self.edits:
                if isinstance(mixed, MixedJob):
                    plain_rows(q, k, v, RowSet.of(mixed.raised.rows, q.device), out, attend.bias, kernel)
        for edit in self.edits:
            # Whoever reads the site must not see parts of a call.
            own = kernel if attend.last else plain_attention
            if not isinstance(edit, MixedJob):
                edit.write(q, k, v, out, attend.bias, own)
            elif book is not None:
                edit.write_mixed(q, k, v, out, attend.bias, own, site, book)
        return out

    def _run_whole(
        self,
        whole: tuple[Tensor, Tensor],
        attend: Attend,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        site: AttentionSite,
        book: ShareBook | None,
    ) -> Tensor:
        """Run all rows in one call, and those that are left alone in another."""

        def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            return attend.with_bias(bias)(q, k, v, site)

        factors, left = None, [] if self.plain is None else self.plain.index.tolist()
        if book is not None and self.raised:
            width = whole[1].shape[2]
            factors = torch.ones(q.shape[0], q.shape[1], width, dtype=q.dtype, device=q.device)
            for rows in self.raised:
                gains = book.gains(site, rows, q, k, attend.bias)
                if gains is None:
                    left += rows.rows
                else:
                    factors[list(rows.rows)] = channel_factors(gains, width, q.dtype)
        if len(left) == q.shape[0]:
            return attend(q, k, v, site)
        out = channel_attention(q, k, v, *whole, attend.bias, kernel, factors)
        if left:
            plain = attend(q, k, v, site)
            out = out.clone()
            out[left] = plain[left]
        return out


def _settled(job: Job, q: Tensor, k: Tensor, bias: Tensor | None, site: AttentionSite, book: ShareBook | None) -> Job:
    """A job with the gains that its rows are found to need."""
    if book is None or not isinstance(job, ChannelJob) or job.raised is None:
        return job
    gains = book.gains(site, job.raised, q, k, bias)
    if gains is None:
        return PlainJob(job.rows)
    return replace(job, factors=channel_factors(gains, job.channels[1].shape[2], q.dtype))


def make_plan(
    tables: Sequence[tuple[tuple[int, ...], RegionTables]],
    rows: BatchRows,
    tensors: CallTensors,
    partial: bool,
    edits: Sequence[tuple[tuple[int, ...], ProbabilityEdit, RegionTables | None]] = (),
) -> Plan:
    """Lay tables on the batch axis.

    Args:
        tables: for each share of the chunks (their indices) its tables. Chunks that occur in none are left alone.
        rows: how the batch axis is made.
        tensors: of the call.
        partial: calls with a part of the rows, heads or tokens are allowed.
        edits: for each other share of the chunks what is changed in its logits or probabilities; with tables of what
            is wanted, each head takes the part of the change that a share asks for.
    """
    guided: set[int] = set()
    jobs: list[Job] = []
    whole: list[tuple[list[int], list[int], tuple[Tensor, Tensor]]] = []
    raised: list[RaisedRows] = []
    # All rows of a whole batch have the same head dimension, so the same number of channels.
    count = max((table.query.shape[2] for _, table in tables), default=0)
    for chunks, table in tables:
        if not table.guided:
            continue
        pairs = _batch_rows(chunks, table.guided, rows)
        guided.update(row for row, _ in pairs)
        found = _raised_rows(chunks, pairs, table.guided, table)
        if partial:
            jobs.append(_job(pairs, table, tensors, found))
        else:
            raised += [] if found is None else [found]
            spare = (0, count - table.query.shape[2])
            channels = _channels(pad(table.query, spare), pad(table.key, spare), table.guided, tensors)
            whole.append(([row for row, _ in pairs], [group for _, group in pairs], channels))
    edited: list[EditJob | PartitionJob | MixedJob] = []
    for chunks, edit, wanted in edits:
        pairs = _batch_rows(chunks, edit.guided, rows)
        if pairs:
            guided.update(row for row, _ in pairs)
            job = _edit_job(pairs, edit, rows, tensors.device)
            raised_rows = None if wanted is None else _raised_rows(chunks, pairs, edit.guided, wanted)
            edited.append(job if raised_rows is None else MixedJob(job, raised_rows))
    rest = [row for row in range(rows.total) if row not in guided]
    plain = RowSet.of(rest, tensors.device) if rest else None
    batch = _whole_batch(whole, rows.total, tensors) if whole else None
    return Plan(tuple(jobs), plain, batch, tuple(edited), tuple(raised))


def _raised_rows(
    chunks: Sequence[int], pairs: Sequence[tuple[int, int]], guided: Sequence[int], table: RegionTables
) -> RaisedRows | None:
    """The rows of a table whose gains are found; its chunks come one by one then."""
    if table.raised is None:
        return None
    (chunk,) = chunks
    groups = tuple(guided[position] for _, position in pairs)
    return RaisedRows(chunk, tuple(row for row, _ in pairs), groups, table)


def _job(pairs: Sequence[tuple[int, int]], table: RegionTables, tensors: CallTensors, raised: RaisedRows | None) -> Job:
    """Choose the kernel for the guided rows of one table."""
    device = tensors.device
    if table.partition is not None and tensors.queries >= PARTITION_TOKENS:
        return _partition_job(pairs, table, device)
    rows = RowSet.of([row for row, _ in pairs], device)
    groups = RowSet.of([group for _, group in pairs], device)
    if raised is None and device.type == "cpu" and table.query.shape[1] * table.key.shape[1] <= DENSE_PAIRS:
        chosen = list(table.guided)
        dense = table.query[chosen] @ open_keys(table.key[chosen]).transpose(1, 2)
        return DenseJob(rows, groups, dense.to(tensors.dtype))
    weights, logits = _channels(table.query, table.key, table.guided, tensors)
    return ChannelJob(rows, groups, (weights.to(device), logits.to(device)), raised)


def _edit_job(
    pairs: Sequence[tuple[int, int]], edit: ProbabilityEdit, rows: BatchRows, device: torch.device
) -> EditJob | PartitionJob:
    if edit.sides is None:
        groups = torch.tensor([edit.guided[at] for _, at in pairs], device=device)
        return EditJob(RowSet.of([row for row, _ in pairs], device), groups, rows.folded_size, edit)
    parts = [
        (RowSet.of([row for row, at in pairs if at == position], device), sides)
        for position, sides in enumerate(edit.sides)
    ]
    return PartitionJob(tuple(parts))


def _channels(query: Tensor, key: Tensor, groups: Sequence[int], tensors: CallTensors) -> tuple[Tensor, Tensor]:
    chosen = list(groups)
    return region_channels(query[chosen], key[chosen], 1.0, tensors.head_dim, tensors.dtype)


def _batch_rows(chunks: Sequence[int], groups: Sequence[int], rows: BatchRows) -> list[tuple[int, int]]:
    """Return (batch row, position of its group in ``groups``) for all samples of the chunks."""
    return [
        ((chunk * rows.samples + sample) * rows.folded_size + group, position)
        for chunk in chunks
        for sample in range(rows.samples)
        for position, group in enumerate(groups)
    ]


def _partition_job(pairs: Sequence[tuple[int, int]], table: RegionTables, device: torch.device) -> PartitionJob:
    sides = []
    for position, group in enumerate(table.guided):
        query_region, key_regions = (labels[group].to(device) for labels in table.partition or ())
        found = partition_sides(query_region, key_regions)
        sides.append((RowSet.of([row for row, at in pairs if at == position], device), found))
    return PartitionJob(tuple(sides))


def _whole_batch(
    parts: Sequence[tuple[list[int], list[int], tuple[Tensor, Tensor]]], total: int, tensors: CallTensors
) -> tuple[Tensor, Tensor]:
    """Spread channels over all rows of the batch; rows that are not guided get zeros."""
    out = tuple(torch.zeros(total, *side.shape[1:], dtype=tensors.dtype) for side in parts[0][2])
    for row_list, group_list, channels in parts:
        for target, source in zip(out, channels, strict=True):
            target[row_list] = source[group_list]
    return out[0].to(tensors.device), out[1].to(tensors.device)
