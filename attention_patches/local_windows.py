"""Attention within windows of frames, in blocks of queries: never a mask over all pairs of frames or of tokens.

Windows count frames by their order in the call, as the model does: the frames of a context window are neighbours to it
wherever they stand in the clip. Tokens that are not video (text, reference pictures, keys of an earlier patch) are seen
by every query.

Source of the window rule: FreeLong (arXiv 2407.19918) and its code for LaVie; of the centred one: FreeLong++
(arXiv 2507.00162).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .patch import Attend
from .site import AttentionSite, Span

# Frames of one token each go together in blocks of this many, which meet twice as many keys in a window of 16: smaller
# blocks would meet fewer but keep the kernels busy with themselves.
BLOCK_FRAMES = 16

Bounds = tuple[tuple[int, int], ...]


def shifted_windows(frames: int, window: int) -> Bounds:
    """For each frame the frames it sees, first and last + 1: those at most ``window // 2`` away.

    An inner frame sees ``window + 1`` frames when ``window`` is even. Where the clip ends and fewer than ``window``
    remain, the window is shifted back inside.

    Args:
        frames: of the clip.
        window: frames of a window; 0 < window.
    """
    half, bounds = window // 2, []
    for frame in range(frames):
        first, last = max(0, frame - half), min(frames, frame + half + 1)
        if last - first < window:
            first, last = (0, min(frames, window)) if first == 0 else (max(0, frames - window), frames)
        bounds.append((first, last))
    return tuple(bounds)


def centred_windows(frames: int, radius: int) -> Bounds:
    """For each frame the frames less than ``radius`` away, first and last + 1; fewer where the clip ends."""
    return tuple((max(0, frame - radius + 1), min(frames, frame + radius)) for frame in range(frames))


@dataclass(frozen=True, eq=False)
class WindowBlock:
    """Neighbouring frames whose queries go together.

    Attributes:
        queries: the frames that ask.
        keys: the frames that any of them sees.
        closed: [queries, keys] bool, True where a frame is outside of a window; None when all see all.
    """

    queries: slice
    keys: slice
    closed: Tensor | None = None


def window_blocks(
    bounds: Sequence[tuple[int, int]], frame_tokens: int, device: torch.device | str = "cpu"
) -> tuple[WindowBlock, ...]:
    """Cut the frames of a call into blocks.

    Frames of one token each are put together by ``BLOCK_FRAMES``. Larger ones are put together only where they see the
    same frames, so that their block needs no mask.

    Args:
        bounds: of ``shifted_windows`` or ``centred_windows``.
        frame_tokens: tokens of a frame in one sequence.
        device: of the masks.
    """
    most = BLOCK_FRAMES if frame_tokens == 1 else 1
    blocks, begin = [], 0
    for end in range(1, len(bounds) + 1):
        if end < len(bounds) and (end - begin < most or bounds[end] == bounds[begin] == bounds[end - 1]):
            continue
        part = torch.tensor(bounds[begin:end])
        first, last = int(part[:, 0].min()), int(part[:, 1].max())
        frame = torch.arange(first, last)
        closed = (frame < part[:, :1]) | (frame >= part[:, 1:])
        blocks.append(
            WindowBlock(slice(begin, end), slice(first, last), closed.to(device) if bool(closed.any()) else None)
        )
        begin = end
    return tuple(blocks)


def frame_tokens(site: AttentionSite) -> int:
    """Tokens of one frame in one sequence of a call whose sequence runs over time."""
    return 1 if site.rows.folded == "positions" else site.grid[1] * site.grid[2]


def write_windows(
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    site: AttentionSite,
    blocks: Sequence[WindowBlock],
    out: Tensor,
) -> None:
    """Write the windowed attention of the video queries into ``out``; its other rows are not touched.

    Args:
        attend: the attention to call, with the bias that belongs to q and k.
        q: [B, heads, Lq, d].
        k: [B, heads, Lk, d].
        v: [B, heads, Lk, dv].
        site: of the call; its sequence runs over time (batch rows folded by ``positions`` or not at all).
        blocks: of ``window_blocks``.
        out: [B, heads, Lq, dv].
    """
    size = frame_tokens(site)
    start = site.video_queries(q.shape[2]).start
    for block in blocks:
        queries = slice(start + size * block.queries.start, start + size * block.queries.stop)
        of_block = part_of_keys(site, k.shape[2], range(site.grid[0])[block.keys], block.queries)
        bias = of_block.bias(attend.bias, queries)
        if block.closed is not None:
            bias = close(bias, block.closed, of_block, q)
        out[:, :, queries] = attend.with_bias(bias)(
            q[:, :, queries], of_block.take(k, 2), of_block.take(v, 2), site if attend.last else of_block.site
        )


def close(bias: Tensor | None, closed: Tensor, part: KeyPart, q: Tensor) -> Tensor:
    """Close the pairs [queries, video keys] of ``closed`` in a bias [B or 1, heads or 1, queries or 1, keys or 1]."""
    queries, keys = closed.shape
    lengths = (part.before, keys, part.after)
    if bias is None:
        bias = q.new_zeros(1, 1, queries, sum(lengths))
    bias = bias.expand(-1, -1, queries, sum(lengths))
    least = torch.finfo(bias.dtype).min
    if not part.before and not part.after:
        return bias.masked_fill(closed, least)
    before, video, after = bias.split(lengths, dim=3)
    return torch.cat((before, video.masked_fill(closed, least), after), dim=3)


@dataclass(frozen=True, eq=False)
class KeyPart:
    """Some frames of the keys of a call, and all of its keys that are not video.

    Attributes:
        site: of a call in which some frames of queries meet these keys.
        spans: where these keys are in the whole key sequence: runs of it, one after another.
        before, after: how many keys stand before and after the video.
    """

    site: AttentionSite
    spans: tuple[slice, ...]
    before: int
    after: int

    def take(self, tensor: Tensor, axis: int) -> Tensor:
        """Take these keys along an axis of all keys; a view where they lie together."""
        parts = [tensor.narrow(axis, span.start, span.stop - span.start) for span in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)

    def bias(self, bias: Tensor | None, queries: slice) -> Tensor | None:
        """Take the part of a bias [B or 1, heads or 1, Lq or 1, Lk or 1] for some queries and these keys."""
        if bias is None:
            return None
        bias = bias if bias.shape[2] == 1 else bias[:, :, queries]
        return bias if bias.shape[3] == 1 else self.take(bias, 3)


def part_of_keys(site: AttentionSite, key_length: int, frames: Sequence[int], queries: slice = slice(None)) -> KeyPart:
    """Describe a call in which the frames ``queries`` (video only) meet the frames ``frames`` and all other keys.

    Args:
        site: of the whole call.
        key_length: Lk of the whole call.
        frames: of the keys, in their order, counted in the call; one that is named twice is there twice.
        queries: frames of the queries, counted in the call.
    """
    size = frame_tokens(site)
    video = site.video_keys(key_length)
    begin, end = video.start, video.stop
    query_frames = site.frames[queries]
    text = site.text
    if text is not None and text.start >= end:
        removed = end - begin - size * len(frames)
        text = Span(text.start - removed, text.stop - removed)
    part = replace(
        site,
        grid=(len(frames), *site.grid[1:]),
        frames=tuple(site.frames[frame] for frame in frames),
        query_frames=query_frames,
        video=Span(0, size * len(query_frames)),
        key_video=Span(begin, begin + size * len(frames)),
        text=text,
    )
    places = ((begin + size * frame, begin + size * (frame + 1)) for frame in frames)
    return KeyPart(part, _runs(((0, begin), *places, (end, key_length))), begin, key_length - end)


def _runs(places: Iterable[tuple[int, int]]) -> tuple[slice, ...]:
    """Join places, first and last + 1, that follow each other in the sequence; empty ones are left out."""
    runs: list[slice] = []
    for first, last in places:
        if first == last:
            continue
        if runs and runs[-1].stop == first:
            runs[-1] = slice(runs[-1].start, last)
        else:
            runs.append(slice(first, last))
    return tuple(runs)
