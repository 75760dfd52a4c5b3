"""How much of a query's attention lies on the keys that a guide wants, and which gain brings it to a wanted share.

The logits of two models differ by factors, and so do those of two heads: the same gain is nothing in one and everything
in the other. A share means the same everywhere. With l the logits of a query as the model has them, w the query's
weight and c the closeness of each key to what is wanted (1 for wanted keys, 0 for the others), a gain g makes ::

    share(g) = sum over wanted keys of exp(l + g w c) / sum over counted keys of exp(l + g w c)

of it. One query with keys of two kinds has a closed form, ``g w = logit(wanted share) - logit(share(0))``; the mean of
many has none, but it only rises with g, so halving an interval finds it. The exponentials are summed once per kind of
key, so that a step of the search touches no key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_number

ShareAmong = Literal["kind", "all"]

# More is not asked of any head: what is left of the attention is what makes a picture of it.
MAX_SHARE = 0.99
# Largest gain of a head. Heads whose attention is almost one-hot elsewhere need the most.
MAX_GAIN = 200.0
# Keys of equal closeness are counted together. Of more different ones than this it is rounded to ``STEPS`` steps; one
# half is on a border of two, so that what is wanted stays so.
MAX_LEVELS = 24
STEPS = 15
# Queries that are looked at for a region, and batch rows that they are taken from.
SAMPLES = 256
SAMPLED_ROWS = 16
# Part of all queries that are looked at at most, so that a look costs next to nothing beside the call, and the fewest.
SAMPLED_PART = 1 / 64
FEWEST_SAMPLES = 128
# Most logits that are held at a time.
MAX_LOGITS = 2**24
HALVINGS = 40


@dataclass(frozen=True)
class ShareGoal:
    """What share of its attention a query shall have on what is wanted.

    Attributes:
        share: 0..0.99.
        among: which keys are counted. ``kind``: an object's words among all words, its own region among all of the
            video; in cross-attention and in self-attention these are all keys. ``all``: all keys, in joint attention
            too, where heads that hardly read the text would then be made to.

    Raises:
        GuideError: a share out of its range.
    """

    share: float
    among: ShareAmong = "kind"

    def __post_init__(self) -> None:
        check_number("share", self.share, MAX_SHARE, meaning="no guidance")
        check_choice("share_among", self.among, get_args(ShareAmong))


class SolvedGain(NamedTuple):
    """Per head: the gain, the mean share without and with it; [heads] each."""

    gain: Tensor
    before: Tensor
    reached: Tensor


class KeyLevels(NamedTuple):
    """Keys by how close they are to what is wanted.

    Attributes:
        closeness: [levels] in 0..1; from 0.5 on keys are wanted.
        level: [Lk] long, the level of each key, -1 for keys that are not counted.
    """

    closeness: Tensor
    level: Tensor


def key_levels(closeness: Tensor, counted: Tensor | None = None) -> KeyLevels:
    """Sort keys by their closeness.

    Args:
        closeness: [Lk] in 0..1.
        counted: [Lk] bool; all when None.
    """
    values, level = torch.unique(closeness.float(), return_inverse=True)
    if len(values) > MAX_LEVELS:
        values, level = torch.unique((closeness.float() * STEPS).round() / STEPS, return_inverse=True)
    return KeyLevels(values, level if counted is None else torch.where(counted, level, -1))


def level_sums(q: Tensor, k: Tensor, levels: KeyLevels, bias: Tensor | None = None) -> Tensor:
    """Logarithm of the summed exponentials of the logits of each level, float32 [heads, n, levels].

    Args:
        q: [heads, n, d], some queries of one batch row.
        k: [heads, Lk, d], all keys of that row.
        levels: of the keys.
        bias: added to the logits, broadcastable to [heads, n, Lk].
    """
    heads, count = q.shape[:2]
    turn = max(1, MAX_LOGITS // max(count * k.shape[1], 1))
    sums = torch.full((heads, count, len(levels.closeness)), -torch.inf, device=q.device)
    keys_of = [(at, (levels.level == at).nonzero()[:, 0].to(k.device)) for at in range(len(levels.closeness))]
    for head in range(0, heads, turn):
        of_heads = slice(head, min(head + turn, heads))
        logits = (q[of_heads].float() * q.shape[2] ** -0.5) @ k[of_heads].float().transpose(1, 2)
        if bias is not None:
            logits = logits + (bias if bias.shape[0] == 1 else bias[of_heads]).float()
        for level, keys in keys_of:
            if len(keys):
                sums[of_heads, :, level] = logits[:, :, keys].logsumexp(dim=2)
    return sums


def share_of(sums: Tensor, closeness: Tensor, weights: Tensor, gain: Tensor) -> Tensor:
    """The mean share of the wanted keys under a gain, [heads].

    Args:
        sums: [heads, n, levels] of ``level_sums``.
        closeness: [levels], or [n, levels] where queries have keys of different levels.
        weights: [n], the queries' weights.
        gain: [heads].
    """
    closeness = closeness.expand(sums.shape[1], -1).to(sums.device)
    logits = sums + gain[:, None, None] * (weights[:, None] * closeness)[None]
    wanted = torch.where(closeness >= 0.5, logits, -torch.inf).logsumexp(dim=2)
    shares = (wanted - logits.logsumexp(dim=2)).exp()
    # Nothing is counted for a query all of whose keys are closed.
    return torch.nan_to_num(shares, nan=0.0).mean(dim=1)


def solve_gain(sums: Tensor, closeness: Tensor, weights: Tensor, share: float, most: float = MAX_GAIN) -> SolvedGain:
    """Find the least gain from 0 to ``most`` whose mean share is at least ``share``, for each head.

    Args:
        sums, closeness, weights: as in ``share_of``.
        share: that is wanted, 0..1.
        most: largest gain.

    Returns:
        Gain 0 for heads that have the share already, and for those in which no gain moves it; ``most`` for those whose
        share stays below.
    """
    low = torch.zeros(sums.shape[0], device=sums.device)
    high = torch.full_like(low, most)
    before, ceiling = share_of(sums, closeness, weights, low), share_of(sums, closeness, weights, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        enough = share_of(sums, closeness, weights, middle) >= share
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    gain = torch.where((before >= share) | (ceiling <= before), torch.zeros_like(high), high)
    return SolvedGain(gain, before, share_of(sums, closeness, weights, gain))


def sampled_queries(weights: Tensor, most: int = SAMPLES) -> list[tuple[int, Tensor]]:
    """Choose queries that belong to a region, evenly spread, from a few batch rows.

    Args:
        weights: [rows, Lq] of the queries, 0 for those that are not of the region. Of soft masks the half that belongs
            most is taken.
        most: how many queries, about.

    Returns:
        (row, indices of its queries) of each chosen row; empty where no query has a weight.
    """
    largest = float(weights.max()) if weights.numel() else 0.0
    if largest <= 0.0:
        return []
    inside = weights >= largest / 2.0
    rows = _spread(inside.any(dim=1).nonzero()[:, 0], SAMPLED_ROWS).tolist()
    each = max(most // len(rows), 1)
    return [(row, _spread(inside[row].nonzero()[:, 0], each)) for row in rows]


def sample_size(queries: int) -> int:
    """How many of a call's queries are looked at."""
    return max(min(SAMPLES, int(queries * SAMPLED_PART)), FEWEST_SAMPLES)


def _spread(found: Tensor, most: int) -> Tensor:
    """At most ``most`` of the entries of a vector, evenly spread."""
    if len(found) <= most:
        return found
    return found[torch.linspace(0, len(found) - 1, most).round().long()]
