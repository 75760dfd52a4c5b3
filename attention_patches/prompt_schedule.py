"""Several prompts one after the other in one film: each frame meets the words of its own prompt.

The prompts' text sequences stand one behind the other in the text that the model is given. At cross-attention each
frame attends to the part of its prompt only, so that it is conditioned exactly as by that prompt alone; where one
prompt fades into the next, the results of both are mixed.

Source of the idea: FreeNoise (arXiv 2310.15169), which injects prompts by frames; the mixing of results is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import GuideError
from .kernels.rows import RowSet, bias_part, empty_result
from .latent_time import PICTURES, LatentTime, latent_frame_groups
from .patch import Attend, AttentionPatch, Run, check_site
from .site import CONDITIONAL, AttentionSite, Span, chunk_site


@dataclass(frozen=True)
class PromptSchedule:
    """Which prompt holds in which frames.

    Attributes:
        starts: the frame of the film (pixel frames, from 0) with which each prompt begins, ascending from 0.
        lengths: tokens of each prompt in the joined text sequence, in the same order.
        overlap: frames over which a prompt fades into the next one, half of them before its start and half after; 0
            changes at once.
        prompts: names of the joined text, as in ``BatchRows.prompts``; None is every conditional one.

    Raises:
        GuideError: the numbers of starts and lengths differ, or a value is out of its range.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    overlap: int = 0
    prompts: frozenset[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(self.starts))
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if not self.starts or len(self.starts) != len(self.lengths):
            raise GuideError(f"{len(self.starts)} starts for {len(self.lengths)} texts; give one start per prompt.")
        check_starts(self.starts)
        if min(self.lengths) < 1:
            raise GuideError(f"a prompt has {min(self.lengths)} tokens; every text sequence has at least one.")
        if self.overlap < 0:
            raise GuideError(f"overlap is {self.overlap}; give the frames of a fade, 0 or more.")

    @property
    def total(self) -> int:
        """Tokens of the joined text sequence."""
        return sum(self.lengths)

    def span(self, prompt: int) -> slice:
        """Where a prompt stands in the joined text sequence."""
        first = sum(self.lengths[:prompt])
        return slice(first, first + self.lengths[prompt])

    def weights(self, clip_frames: int, latent_time: LatentTime | None = None) -> Tensor:
        """How much of each prompt each frame gets.

        Args:
            clip_frames: (latent) frames of the whole clip.
            latent_time: see ``AttentionSite``. A latent frame has the mean of the frames that it stands for.

        Returns:
            float64 [clip_frames, prompts] in 0..1 that add up to 1 in every frame.

        Raises:
            GuideError: a prompt begins after the end of the film.
        """
        time = latent_time or PICTURES
        film_frames = time.pixel_frames(clip_frames)
        if self.starts[-1] >= film_frames:
            raise GuideError(
                f"a prompt begins at frame {self.starts[-1]} but the film has {film_frames} frames, 0 to "
                f"{film_frames - 1}; make the film longer, or let the prompt begin earlier."
            )
        weights = frame_weights(self.starts, self.overlap, film_frames)
        groups = latent_frame_groups(film_frames, clip_frames, time)
        return torch.stack([weights[list(group)].mean(dim=0) for group in groups])


def check_starts(starts: Sequence[int]) -> None:
    """Check the frames with which prompts begin.

    Raises:
        GuideError: the first is not 0, or they do not ascend.
    """
    if starts[0] != 0:
        raise GuideError(f"the first prompt begins at frame {starts[0]}; let it begin at 0.")
    for before, after in itertools.pairwise(starts):
        if after <= before:
            raise GuideError(f"a prompt that begins at frame {after} follows one of frame {before}; let them ascend.")


def frame_weights(starts: Sequence[int], overlap: int, frames: int) -> Tensor:
    """How much of each prompt each frame of a film gets, before anything is said of latent frames.

    The fade to a prompt rises linearly from 0 to 1 between ``start - overlap / 2`` and ``start + overlap / 2`` and is
    read in the middle of each frame. Fades that are longer than a prompt lasts pass into each other.

    Returns:
        float64 [frames, prompts].
    """
    middle = torch.arange(frames, dtype=torch.float64)[:, None] + 0.5
    borders = torch.tensor(starts[1:], dtype=torch.float64)
    risen = ((middle - borders) / overlap + 0.5).clamp(0.0, 1.0) if overlap else (middle > borders).double()
    first, last = torch.ones_like(middle), torch.zeros_like(middle)
    return torch.cat((first, risen), dim=1) - torch.cat((risen, last), dim=1)


@dataclass(frozen=True, eq=False)
class PromptPart:
    """The frames of a call that one prompt holds for.

    Attributes:
        prompt: its number.
        frames: their places in the call.
        index: the same, as a slice where they are neighbours.
        weights: [n] float32, how much of the prompt each of them gets.
        mean: of the weights over all frames of the call: for tokens that are of no frame.
    """

    prompt: int
    frames: tuple[int, ...]
    index: slice | Tensor
    weights: Tensor
    mean: float


class PromptSchedulePatch(AttentionPatch):
    """A prompt schedule as an attention patch.

    With a single prompt every call goes through to the bit, and so do rows of other prompts.

    Args:
        schedule: of the joined text that is sampled as the positive prompt.
    """

    def __init__(self, schedule: PromptSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def check_run(self, run: Run) -> None:
        """Compare the schedule with the clip and with the prompts.

        Raises:
            GuideError: a prompt begins after the end of the clip, or the joined text is not among the prompts.
        """
        self.schedule.weights(run.clip_frames, run.latent_time)
        count, names = len(self.schedule.starts), self.schedule.prompts
        if count > 1 and run.prompts and names is not None and not names & set(run.prompts):
            raise GuideError(
                f"the model has a schedule of {count} prompts, but their joined text is not among the "
                "positive prompts that are sampled; connect the conditioning of Prompt Schedule to the sampler, or the "
                "model from before that node."
            )

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether a call is changed: cross-attention of the joined text, with more than one prompt in it."""
        if site.kind != "cross" or site.rows.folded == "positions" or len(self.schedule.starts) == 1:
            return False
        return any(self._holds_for(site, chunk) for chunk in range(len(site.rows.chunks)))

    def _holds_for(self, site: AttentionSite, chunk: int) -> bool:
        rows, names = site.rows, self.schedule.prompts
        return rows.chunks[chunk] == CONDITIONAL and (names is None or not rows.prompts or rows.prompts[chunk] in names)

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Let each frame meet its prompt; tensors [B, heads, L, d].

        Raises:
            GuideError: the text is not the joined one, a prompt begins after the end of the film, or the tensors do not
                have the sizes that the site says.
        """
        if not self.acts_at(site):
            return attend(q, k, v, site)
        if k.shape[2] % self.schedule.total:
            raise GuideError(
                f"the prompt schedule is of {self.schedule.total} text tokens but the model sees {k.shape[2]}; sample "
                "with the joined text of this very schedule."
            )
        check_site(q, site)
        out = empty_result(q, v)
        group = site.rows.samples * site.rows.folded_size
        for chunk in range(len(site.rows.chunks)):
            rows = slice(chunk * group, (chunk + 1) * group)
            part = attend.with_bias(bias_part(attend.bias, rows))
            of_chunk = chunk_site(site, chunk)
            if self._holds_for(site, chunk):
                self._write(part, q[rows], k[rows], v[rows], of_chunk, out[rows])
            else:
                out[rows] = part(q[rows], k[rows], v[rows], of_chunk)
        return out

    def _write(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, out: Tensor) -> None:
        """Write the attention of one chunk's rows into ``out`` [rows, heads, Lq, dv]."""
        out.zero_()
        key = (site.frames, site.clip_frames, site.latent_time, q.device)
        for part in self.planned(self._parts, *key):
            span = self.schedule.span(part.prompt)
            keys, values = (_rows_of(tensor, site, part.index)[:, :, span] for tensor in (k, v))
            bias = _bias_of(attend.bias, site, part.index, span)
            place = part_site(site, part.frames, (span.start, self.schedule.total), span.stop - span.start)
            result = attend.with_bias(bias)(_queries_of(q, site, part.index), keys, values, place)
            _add(out, result, site, part)

    def _parts(
        self, frames: tuple[int, ...], clip_frames: int, latent_time: LatentTime | None, device: torch.device
    ) -> tuple[PromptPart, ...]:
        return tuple(prompt_parts(self.schedule, frames, clip_frames, latent_time, device))


def prompt_parts(
    schedule: PromptSchedule,
    frames: Sequence[int],
    clip_frames: int,
    latent_time: LatentTime | None,
    device: torch.device | str,
) -> Iterator[PromptPart]:
    """Say for each prompt which frames of a call it holds for; prompts of other frames are left out.

    Args:
        schedule: of the whole clip.
        frames, clip_frames, latent_time: see ``AttentionSite``.
        device: of the weights.
    """
    weights = schedule.weights(clip_frames, latent_time)[list(frames)]
    for prompt, column in enumerate(weights.T):
        places = tuple(int(place) for place in column.nonzero())
        if places:
            rows = RowSet.of(places, device)
            chosen = column[list(places)].to(device, torch.float32)
            yield PromptPart(prompt, places, rows.part(0, len(rows)), chosen, float(column.mean()))


def part_site(site: AttentionSite, frames: Sequence[int], text_part: tuple[int, int], length: int) -> AttentionSite:
    """Describe a cross-attention in which some frames of a call meet a part of its text.

    Args:
        site: of the call, its rows folded by ``frames`` or not at all.
        frames: their places in the call.
        text_part: see ``AttentionSite``.
        length: tokens of that part.
    """
    grid, video, rows = (len(frames), *site.grid[1:]), site.video, site.rows
    if rows.folded == "frames":
        rows = replace(rows, folded_size=len(frames))
    else:
        video = Span(video.start, video.start + grid[0] * grid[1] * grid[2])
    return replace(
        site,
        grid=grid,
        frames=tuple(site.frames[place] for place in frames),
        video=video,
        rows=rows,
        text=Span(0, length),
        text_part=text_part,
    )


def _rows_of(tensor: Tensor, site: AttentionSite, index: slice | Tensor) -> Tensor:
    """Rows of some frames; all rows where frames are not folded. Views where frames are neighbours in one sample."""
    if site.rows.folded != "frames":
        return tensor
    return tensor.unflatten(0, (-1, site.grid[0]))[:, index].flatten(0, 1)


def _queries_of(tensor: Tensor, site: AttentionSite, index: slice | Tensor) -> Tensor:
    """Queries of some frames, and those of no frame; [rows, heads, Lq, n] in and out."""
    if site.rows.folded == "frames":
        return _rows_of(tensor, site, index)
    tokens = site.video_queries(tensor.shape[2])
    begin, end = tokens.start, tokens.stop
    video = tensor[:, :, begin:end].unflatten(2, (site.grid[0], -1))[:, :, index].flatten(2, 3)
    if begin == 0 and end == tensor.shape[2]:
        return video
    return torch.cat((tensor[:, :, :begin], video, tensor[:, :, end:]), dim=2)


def _bias_of(bias: Tensor | None, site: AttentionSite, index: slice | Tensor, span: slice) -> Tensor | None:
    """The part of a bias [B or 1, heads or 1, Lq or 1, Lk or 1] for some frames and the text tokens of a span."""
    if bias is None:
        return None
    if bias.shape[0] > 1:
        bias = _rows_of(bias, site, index)
    if bias.shape[2] > 1:
        bias = bias if site.rows.folded == "frames" else _queries_of(bias, site, index)
    return bias if bias.shape[3] == 1 else bias[:, :, :, span]


def _add(out: Tensor, result: Tensor, site: AttentionSite, part: PromptPart) -> None:
    """Add the weighted result for some frames (and for what is of no frame) to [rows, heads, Lq, dv]."""
    weights, count = part.weights.to(out.dtype), len(part.frames)
    if site.rows.folded == "frames":
        out.unflatten(0, (-1, site.grid[0]))[:, part.index] += (
            result.unflatten(0, (-1, count)) * weights[:, None, None, None]
        )
        return
    tokens = site.video_queries(out.shape[2])
    begin, end = tokens.start, tokens.stop
    stop = begin + result.shape[2] - (out.shape[2] - (end - begin))
    video = result[:, :, begin:stop].unflatten(2, (count, -1)) * weights[:, None, None]
    out[:, :, begin:end].unflatten(2, (site.grid[0], -1))[:, :, part.index] += video
    out[:, :, :begin] += result[:, :, :begin] * part.mean
    out[:, :, end:] += result[:, :, stop:] * part.mean
