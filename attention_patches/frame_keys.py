"""Self-attention in which frames look at other frames than themselves: at the first one, the one before, or several.

The main object of the first frame is then kept through the clip, in any video model and without tuning. Where frames
are folded into the batch (U-Nets) each row gets the keys and values of the frames that it looks at, one behind the
other; where all frames are in one sequence (transformers) each frame is a call by itself, so that there is never a mask
over all pairs, and tokens that are not video (text, reference pictures) see and are seen as before. A frame that is
named twice counts twice, as in the published code: the first frame of ``first_prev_self`` weighs double for the frame
after it.

Source: Text2Video-Zero (arXiv 2303.13439) and LAMP (arXiv 2310.10769) look at the first frame, Tune-A-Video (arXiv
2212.11565) at the first and the previous one; the others are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TypeAlias, get_args

import torch
from torch import Tensor

from .checks import check_choice
from .kernels.rows import bias_part, empty_result
from .local_windows import frame_tokens, part_of_keys
from .patch import Attend, AttentionPatch, Scope, check_site
from .site import AttentionSite, GuidedRows, KeySource, Span, chunk_site

# For each frame of a call the frames that it looks at, as places in the call.
KeyPlaces: TypeAlias = tuple[tuple[int, ...], ...]


def key_places(source: KeySource, frames: Sequence[int]) -> KeyPlaces:
    """Say for each frame of a call which ones it looks at.

    Args:
        source: their names, in the order in which their keys stand.
        frames: indices of the call's frames in the whole clip. The first frame is the clip's, where it is in the call,
            and else the call's own (context windows). The previous one is the neighbour in the call, as the model sees
            it; the first frame stands before itself.

    Returns:
        For each frame of the call as many places in the call as the source has names.
    """
    first = frames.index(0) if 0 in frames else 0
    choose: dict[str, Callable[[int], int]] = {
        "first": lambda place: first,
        "prev": lambda place: place if place == first else max(place - 1, 0),
        "self": lambda place: place,
    }
    names = source.split("_")
    return tuple(tuple(choose[name](place) for name in names) for place in range(len(frames)))


@dataclass(frozen=True)
class FirstFrameKeys:
    """Which frames self-attention looks at, and when.

    Attributes:
        source: ``self`` changes nothing; ``first`` is the first frame alone; the others look at several frames, one
            behind the other: ``first_prev`` at the first and the previous one, ``first_self`` at the first one and the
            frame itself, ``first_prev_self`` at all three.
        start_percent: begins at this part of the schedule, 0..1.
        end_percent: ends at this part of the schedule, 0..1.
        blocks: comma list of block name patterns: ``all``, ``mid,up``, ``down.1.*``.
        rows: ``conditional`` leaves unconditional batch rows alone.
        whole_clips: also where all frames are in one sequence. Transformers see motion in that very attention, which
            frames that look at a few others no longer do; without it only models that attend frame by frame are
            changed.

    Raises:
        GuideError: an unknown source or rows, or a value out of its range.
    """

    source: KeySource
    start_percent: float = 0.0
    end_percent: float = 1.0
    blocks: str = "all"
    rows: GuidedRows = "both"
    whole_clips: bool = True

    def __post_init__(self) -> None:
        check_choice("source", self.source, get_args(KeySource))
        self.scope()

    def scope(self) -> Scope:
        """Where and when."""
        return Scope(self.start_percent, self.end_percent, self.blocks, self.rows)


class FirstFrameKeysPatch(AttentionPatch):
    """Keys of other frames as an attention patch; put it before the patches of masks, which follow the keys.

    With the source ``self``, and for calls of a single frame, every call goes through to the bit; so do calls that have
    been split by another patch, or whose model chooses frames by itself.
    """

    chooses_frames = "the choice of first frame keys"

    def __init__(self, settings: FirstFrameKeys) -> None:
        super().__init__()
        self.settings = settings
        self._scope = settings.scope()

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether a call is changed: self-attention of several frames that still look at themselves alone or, in a
        transformer, at the whole clip."""
        settings = self.settings
        folded = site.rows.folded
        if settings.source == "self" or site.kind not in ("self", "joint") or folded == "positions":
            return False
        if folded == "none" and not settings.whole_clips:
            return False
        if site.grid[0] < 2 or site.query_frames is not None or site.key_frames is not None:
            return False
        return self._scope.includes(site) and bool(self._scope.chunks(site))

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Attend to the frames of the source; tensors [B, heads, L, d].

        Raises:
            GuideError: the tensors do not have the sizes that the site says.
        """
        if not self.acts_at(site):
            return attend(q, k, v, site)
        check_site(q, site)
        count, changed = len(site.rows.chunks), self._scope.chunks(site)
        if len(changed) == count:
            return self._attend(attend, q, k, v, site)
        out, size = empty_result(q, v), site.rows.total // count
        for chunk in range(count):
            rows = slice(chunk * size, (chunk + 1) * size)
            part = attend.with_bias(bias_part(attend.bias, rows))
            run = partial(self._attend, part) if chunk in changed else part
            out[rows] = run(q[rows], k[rows], v[rows], chunk_site(site, chunk))
        return out

    def _attend(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        places = key_places(self.settings.source, site.frames)
        if site.rows.folded == "none":
            return attend_in_turns(attend, q, k, v, site, places)
        video = site.video_keys(k.shape[2])
        rows = self.planned(row_table, places, site.rows.total, q.device)
        bias = attend.bias
        if bias is not None and bias.shape[3] > 1:
            # What a bias says of a frame's keys goes with them.
            bias = keys_of_frames(bias, 3, video, rows)
        keys, values = (keys_of_frames(tensor, 2, video, rows) for tensor in (k, v))
        return attend.with_bias(bias)(q, keys, values, folded_site(site, places, k.shape[2]))


def row_table(places: KeyPlaces, total: int, device: torch.device) -> Tensor:
    """[B, n] long: for each of ``total`` batch rows, frames folded into them, those whose keys it gets."""
    clips = torch.arange(0, total, len(places))
    return (clips[:, None, None] + torch.tensor(places)).flatten(0, 1).to(device)


def folded_site(site: AttentionSite, places: KeyPlaces, key_length: int) -> AttentionSite:
    """Describe a call whose frames are folded into the batch and get the keys of the frames at some places.

    Args:
        site: of the call in which each frame has its own keys.
        places: of ``key_places``.
        key_length: Lk of that call.
    """
    video = site.video_keys(key_length)
    added = (len(places[0]) - 1) * len(video)
    text = site.text
    if text is not None and text.start >= video.stop:
        text = Span(text.start + added, text.stop + added)
    return replace(
        site,
        key_video=Span(video.start, video.stop + added),
        text=text,
        key_frames=tuple(tuple(site.frames[place] for place in row) for row in places),
    )


def keys_of_frames(tensor: Tensor, axis: int, video: range, rows: Tensor) -> Tensor:
    """Give each batch row the video keys of other rows, one row's after another's; its other keys stay its own.

    Args:
        tensor: batch in front, [1 or B, ...].
        axis: of the keys.
        video: where those of the row's frame are.
        rows: [B, n] long, for each row those whose keys it gets.

    Returns:
        The tensor with n times as many video keys, laid out as projections leave keys in memory.
    """
    # Rows of whole tokens are copied once, and heads need no second copy.
    own = tensor.transpose(1, axis)
    part = own[:, video.start : video.stop]
    if len(part) == 1:
        part = torch.cat([part] * rows.shape[1], dim=1)
    else:
        part = part.index_select(0, rows.flatten()).unflatten(0, rows.shape).flatten(1, 2)
    if video.start > 0 or video.stop < own.shape[1]:
        part = torch.cat((own[:, : video.start], part, own[:, video.stop :]), dim=1)
    return part.transpose(1, axis)


def attend_in_turns(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, places: KeyPlaces) -> Tensor:
    """Let each frame of a sequence over the whole clip meet the frames at its places and all keys that are not video.

    Neighbours that look at the same frames share a call. Queries that are not video meet all keys as they did.

    Args:
        attend: the attention to call.
        q: [B, heads, Lq, d].
        k: [B, heads, Lk, d].
        v: [B, heads, Lk, dv].
        site: of the call.
        places: of ``key_places``.

    Returns:
        [B, heads, Lq, dv].
    """
    out, size = empty_result(q, v), frame_tokens(site)
    video = site.video_queries(q.shape[2])
    begin, end = video.start, video.stop
    for frames, group in groupby(range(len(places)), key=places.__getitem__):
        neighbours = list(group)
        first, last = neighbours[0], neighbours[-1] + 1
        queries = slice(begin + size * first, begin + size * last)
        part = part_of_keys(site, k.shape[2], frames, slice(first, last))
        bias = part.bias(attend.bias, queries)
        out[:, :, queries] = attend.with_bias(bias)(q[:, :, queries], part.take(k, 2), part.take(v, 2), part.site)
    nobody = replace(site, query_frames=(), video=Span(0, 0), key_video=site.key_video or site.video)
    for queries in (slice(0, begin), slice(end, q.shape[2])):
        if queries.start < queries.stop:
            bias = attend.bias if attend.bias is None or attend.bias.shape[2] == 1 else attend.bias[:, :, queries]
            out[:, :, queries] = attend.with_bias(bias)(q[:, :, queries], k, v, nobody)
    return out
