"""The gains that a run finds for a guide that asks for a share of attention, kept for each block, head and branch.

Gains are found on the first guided call of a block, from a few hundred of its queries, and hold for the rest of the
run: early steps decide where things are, and a gain that changed from step to step would chase its own effect.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.channels import open_keys
from ..kernels.rows import bias_part
from ..site import CONDITIONAL, AttentionSite
from .attention_share import KeyLevels, SolvedGain, key_levels, level_sums, sample_size, sampled_queries, solve_gain
from .tables import ALL_OBJECTS, Raised, RaisedChannel, RegionTables

# How often the gains of regions that overlap are found beside one another at most, and which change is none.
ROUNDS = 12
SETTLED = 0.01


@dataclass(frozen=True, eq=False)
class RaisedRows:
    """The batch rows of one chunk whose gains are found together.

    Attributes:
        chunk: its number.
        rows: rows of the batch.
        groups: for each of them its group in the tables.
        table: with ``raised``.
    """

    chunk: int
    rows: tuple[int, ...]
    groups: tuple[int, ...]
    table: RegionTables


@dataclass(frozen=True)
class BlockShare:
    """What one region has of the attention of one block, before and after; means over heads and queries.

    Attributes:
        kind: ``words`` of the region, or its own part of the ``video``.
        region: number of the object, as many as there are for the background, or ``ALL_OBJECTS``.
        attention: kind of attention.
        block: its name.
        conditional: whether the rows are those of the positive prompt.
        before: the share without guidance, 0..1.
        wanted: the goal.
        reached: the share with the gains that were found.
        gain: mean and largest gain of the heads.
    """

    kind: str
    region: int
    attention: str
    block: str
    conditional: bool
    before: float
    wanted: float
    reached: float
    gain: tuple[float, float]


@dataclass(eq=False)
class ShareBook:
    """The gains of one run; see the module."""

    found: dict[Hashable, dict[tuple[str, int], SolvedGain]] = field(default_factory=dict)
    shares: list[BlockShare] = field(default_factory=list)
    # Of calls all of whose regions are known: looking at a gain would make a GPU wait.
    settled: dict[Hashable, Tensor | None] = field(default_factory=dict)

    @torch.no_grad()
    def gains(self, site: AttentionSite, rows: RaisedRows, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor | None:
        """The factor on each channel of the tables for each head, [heads, R]; None where nothing is left to do.

        Args:
            site: of the call.
            rows: the rows of one chunk.
            q, k: of the whole batch, [B, heads, L, d].
            bias: of the call, or None.
        """
        raised, known = _raised(rows), self.found.setdefault(_place(site, rows), {})
        call = _place(site, rows), raised.channels, raised.alone
        if call in self.settled:
            return self.settled[call]
        missing = [channel for channel in raised.channels if (channel.kind, channel.region) not in known]
        for channel, solved in _solve(rows, raised, missing, q, k, bias).items():
            known[channel.kind, channel.region] = solved
            self.shares.append(_block_share(site, rows.chunk, raised, channel, solved))
        factors = torch.ones(q.shape[1], rows.table.key.shape[2], device=q.device)
        for channel in raised.channels:
            found = known.get((channel.kind, channel.region))
            # Of a region that is not in this window there is no query, so that its channel is empty.
            factors[:, channel.channel] = 0.0 if found is None else found.gain
        idle = raised.alone and not bool((factors[:, [channel.channel for channel in raised.channels]] > 0.0).any())
        if all((channel.kind, channel.region) in known for channel in raised.channels):
            self.settled[call] = None if idle else factors
        return None if idle else factors

    def knows(self, site: AttentionSite, rows: RaisedRows) -> bool:
        """Whether it is known which part of an edit these rows take."""
        return _place(site, rows) in self.found

    @torch.no_grad()
    def note_edit(self, site: AttentionSite, rows: RaisedRows, before: Tensor, after: Tensor) -> None:
        """Find which part of an edit brings each head to the share: shares rise in proportion to it.

        Args:
            site: of the call.
            rows: the rows of one chunk.
            before, after: attention without and with the edit whose values were ``key_columns``, [rows, heads, Lq, 2R].
        """
        raised, known = _raised(rows), self.found.setdefault(_place(site, rows), {})
        count = len(raised.channels)
        shares = []
        for attention in (before, after):
            wanted, counted = attention[..., :count].float(), attention[..., count:].float()
            shares.append(wanted / counted.clamp(min=torch.finfo(torch.float32).tiny))
        weights = raised.weights[list(rows.groups)].to(before.device)
        inside = (weights >= weights.amax(dim=(0, 1)) / 2.0) & (weights > 0.0)
        means: dict[RaisedChannel, tuple[Tensor, Tensor]] = {}
        for region, channel in enumerate(raised.channels):
            of_region = inside[..., region]
            if bool(of_region.any()):
                start, end = (share[..., region].transpose(1, 2)[of_region].mean(dim=0) for share in shares)
                means[channel] = start, end
        if not means:
            del self.found[_place(site, rows)]
            return
        low, high = (torch.stack(values).mean(dim=0) for values in zip(*means.values(), strict=True))
        room = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        part = ((raised.goal.share - low) / room).clamp(0.0, 1.0)
        part = torch.where(high > low, part, torch.zeros_like(part))
        for channel, (start, end) in means.items():
            solved = SolvedGain(part, start, start + part * (end - start))
            known[channel.kind, channel.region] = solved
            self.shares.append(_block_share(site, rows.chunk, raised, channel, solved))

    def part(self, site: AttentionSite, rows: RaisedRows) -> Tensor:
        """The part of an edit that each head takes, [heads] in 0..1; 0 where no region was in the call."""
        known = self.found.get(_place(site, rows), {})
        return next(iter(known.values())).gain if known else torch.zeros(1)


def _raised(rows: RaisedRows) -> Raised:
    raised = rows.table.raised
    if raised is None:
        raise ValueError("these tables ask for no share; make rows only of those that do.")
    return raised


def _place(site: AttentionSite, rows: RaisedRows) -> Hashable:
    """What gains are kept by: a block, and a branch of guidance in it."""
    branch = site.rows.chunks[rows.chunk], site.rows.prompts[rows.chunk : rows.chunk + 1]
    return site.kind, site.block, site.index, branch


def key_columns(rows: RaisedRows, total: int) -> Tensor:
    """What each key is, [total, Lk, 2R]: for each channel whether it is wanted, and then whether it is counted.

    Args:
        rows: those of the batch that are filled.
        total: rows of the batch.
    """
    raised, table = _raised(rows), rows.table
    channels, length = [channel.channel for channel in raised.channels], table.key.shape[1]
    wanted = (table.key[list(rows.groups)][..., channels] >= raised.scale / 2.0).float()
    counted = torch.stack([_counted(raised, channel, length) for channel in raised.channels], dim=1).float()
    columns = torch.zeros(total, length, 2 * len(channels))
    columns[list(rows.rows)] = torch.cat((wanted * counted, counted.expand_as(wanted)), dim=2)
    return columns


def _counted(raised: Raised, channel: RaisedChannel, length: int) -> Tensor:
    """Which keys a share is a part of, bool [Lk]."""
    of_words, of_video = raised.counted
    kept = range(length) if raised.goal.among == "all" else of_words if channel.kind == "words" else of_video
    counted = torch.zeros(length, dtype=torch.bool)
    counted[kept.start : kept.stop] = True
    return counted


def _block_share(
    site: AttentionSite, chunk: int, raised: Raised, channel: RaisedChannel, solved: SolvedGain
) -> BlockShare:
    return BlockShare(
        channel.kind,
        channel.region,
        site.kind,
        site.block,
        site.rows.chunks[chunk] == CONDITIONAL,
        float(solved.before.mean()),
        raised.goal.share,
        float(solved.reached.mean()),
        (float(solved.gain.mean()), float(solved.gain.max())),
    )


@dataclass(frozen=True, eq=False)
class _Samples:
    """Queries of one channel that are looked at.

    Attributes:
        weights: [n] of the queries in the channel.
        others: [n, R] of the queries in all raised channels, with 0 in its own.
        pieces: for each batch row q [heads, n', d], k [heads, Lk, d], what the fixed channels and the call add to the
            logits, the closeness of its keys in all raised channels [Lk, R], and its keys by closeness.
    """

    weights: Tensor
    others: Tensor
    pieces: tuple[tuple[Tensor, Tensor, Tensor, Tensor, KeyLevels], ...]

    def solve(self, gains: Tensor, share: float) -> SolvedGain:
        """Find the gain beside those of the other channels, [heads, R]."""
        sums, levels_of, first = [], [], 0
        for q, k, added, closeness, levels in self.pieces:
            others = self.others[first : first + q.shape[1]]
            first += q.shape[1]
            bias = added
            if bool((others > 0.0).any()):
                bias = added + (others[None] * gains[:, None]) @ closeness.T
            sums.append(level_sums(q, k, levels, bias))
            levels_of.append(levels.closeness.expand(q.shape[1], -1))
        # Frames that are rows have keys of other levels each.
        most = max(part.shape[2] for part in sums)
        whole = torch.cat([pad(part, (0, most - part.shape[2]), value=-torch.inf) for part in sums], dim=1)
        closeness = torch.cat([pad(part, (0, most - part.shape[1])) for part in levels_of])
        return solve_gain(whole, closeness, self.weights, share)


def _solve(
    rows: RaisedRows, raised: Raised, channels: Sequence[RaisedChannel], q: Tensor, k: Tensor, bias: Tensor | None
) -> dict[RaisedChannel, SolvedGain]:
    """Find the gains of some channels; those without a query in the call are left out."""
    found: dict[RaisedChannel, SolvedGain] = {}
    samples = {channel: _samples(rows, raised, channel, q, k, bias) for channel in channels}
    gains = torch.zeros(q.shape[1], len(raised.channels), device=q.device)
    # Cells at a border belong to several regions by halves: there each gain depends on the others'.
    overlapping = any(seen is not None and bool((seen.others > 0.0).any()) for seen in samples.values())
    for _ in range(ROUNDS if overlapping else 1):
        before = gains.clone()
        for channel, seen in samples.items():
            if seen is not None:
                found[channel] = seen.solve(gains, raised.goal.share)
                gains[:, raised.channels.index(channel)] = found[channel].gain
        if bool(((gains - before).abs() < SETTLED).all()):
            break
    return found


def _samples(
    rows: RaisedRows, raised: Raised, channel: RaisedChannel, q: Tensor, k: Tensor, bias: Tensor | None
) -> _Samples | None:
    """Choose queries of a channel; None where there are none."""
    table, at = rows.table, raised.channels.index(channel)
    columns = [one.channel for one in raised.channels]
    weights = raised.weights[list(rows.groups)][..., columns]
    chosen = sampled_queries(weights[..., at], sample_size(weights[..., at].numel()))
    if not chosen:
        return None
    counted = _counted(raised, channel, k.shape[2])
    fixed = [number for number in range(table.key.shape[2]) if number not in columns]
    of_queries, pieces = [], []
    for place, queries in chosen:
        row, group = rows.rows[place], rows.groups[place]
        closeness = table.key[group][:, columns] / raised.scale
        added = _added(table, group, queries, fixed).to(q.device)[None]
        given = bias_part(bias, slice(row, row + 1))
        if given is not None:
            added = added + (given[0] if given.shape[2] == 1 else given[0][:, queries.to(q.device)])
        levels = key_levels(closeness[:, at], counted)
        pieces.append((q[row][:, queries.to(q.device)], k[row], added, closeness.to(q.device), levels))
        of_queries.append(weights[place, queries])
    whole = torch.cat(of_queries).to(q.device)
    others = whole.clone()
    others[:, at] = 0.0
    return _Samples(whole[:, at], others, tuple(pieces))


def _added(table: RegionTables, group: int, queries: Tensor, channels: Sequence[int]) -> Tensor:
    """What some channels of a table add to the logits of some queries, [n, Lk]."""
    logits = open_keys(table.key[group : group + 1])[0]
    return table.query[group, queries][:, list(channels)] @ logits[:, list(channels)].T


def shares_by_region(shares: Iterable[BlockShare]) -> dict[tuple[str, int], list[BlockShare]]:
    """Shares on the positive prompt, in the order of the calls, by kind and region."""
    groups: dict[tuple[str, int], list[BlockShare]] = {}
    for share in shares:
        if share.conditional:
            groups.setdefault((share.kind, share.region), []).append(share)
    return groups


def shares_told(shares: Iterable[BlockShare], names: Sequence[str]) -> list[str]:
    """One line per region and kind: the share of attention before, wanted and reached, over blocks and heads.

    Args:
        shares: of a run.
        names: of the objects, in their order.
    """
    lines = []
    for (kind, region), found in shares_by_region(shares).items():
        name, count = region_name(region, names), len(found)
        before = math.fsum(share.before for share in found) / count
        reached = math.fsum(share.reached for share in found) / count
        gain = math.fsum(share.gain[0] for share in found) / count
        least = min(found, key=lambda share: share.reached)
        lines.append(
            f"{name}, share of attention on its own {kind}: {100 * before:.1f} % before, {100 * found[0].wanted:g} % "
            f"wanted, {100 * reached:.1f} % reached in {count} calls (least in {least.attention} {least.block}: "
            f"{100 * least.reached:.1f} %; gain {gain:.1f}, at most {max(share.gain[1] for share in found):.1f})."
        )
    return lines


def region_name(region: int, names: Sequence[str]) -> str:
    """How a report calls a region."""
    if region == ALL_OBJECTS:
        return "all objects"
    if region == len(names):
        return "the background"
    return names[region] or f"object {region + 1}"
