"""FreeLong and FreeLong++: clips longer than the model was trained on, from windows of the native length.

Each frame attends to the frames around it, which keeps detail, and to the whole clip, which keeps it consistent; the
low frequencies over time and space come from the whole clip and the others from the window. FreeLong++ does so with
windows of several lengths. Both act on attention over time: temporal attention of U-Nets and full self-attention of
transformers.

Source: FreeLong (arXiv 2407.19918, aniki-ly/FreeLong); FreeLong++ (arXiv 2507.00162).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import block_patterns, matches_block
from .errors import GuideError
from .kernels.rows import bias_part, empty_result
from .local_windows import (
    WindowBlock,
    centred_windows,
    frame_tokens,
    part_of_keys,
    shifted_windows,
    window_blocks,
    write_windows,
)
from .patch import Attend, AttentionPatch, Run, check_site
from .site import AttentionSite
from .spectral_blend import SpectralBlend, band_cutoffs

logger = logging.getLogger(__name__)

LargestLevel = Literal["local", "blend"]

# Window lengths of FreeLong++ in native lengths; those beyond the first one that covers the clip are left out.
OCTAVES = (1, 2, 4, 8, 16, 32, 64)
# What is blended at a time may take this part of the result ...
PIECE_SHARE = 0.12
# ... or this many bytes, whichever is more: a GPU needs larger pieces to be busy.
PIECE_BYTES_CPU = 2**20
PIECE_BYTES_GPU = 2**25


@dataclass(frozen=True)
class FreeLong:
    """How attention over time sees a long clip.

    Attributes:
        window: frames that each frame attends to locally: the native length of the model in its own (latent) frames.
            Clips that are no longer are left alone.
        temporal_cutoff: standard deviation of the Gaussian low-pass over time, as a part of the highest frequency.
        spatial_cutoff: the same over height and width.
        strength: 0 (plain attention) to 1.
        end_percent: until this part of the schedule, 0..1, the whole clip gives the low frequencies; afterwards there
            are windows only. The paper has 0.5, its code 1.
        largest_level: ``local`` has windows only at the finest grid of U-Nets, as the code has; ``blend`` treats it
            like the others. Transformers have one grid, which is always blended.
        bands: empty for FreeLong. Lengths of windows in native lengths, ascending from 1, for FreeLong++; those beyond
            the first one that covers the clip are left out (``OCTAVES`` fit clips of any length).
        key_stride: in the whole clip, every n-th frame serves as keys: 2 halves its cost.
        blocks: comma list of block name patterns: ``all``, ``mid,up``, ``down.1.*``.

    Raises:
        GuideError: a value out of its range.
    """

    window: int = 16
    temporal_cutoff: float = 0.25
    spatial_cutoff: float = 0.25
    strength: float = 1.0
    end_percent: float = 0.5
    largest_level: LargestLevel = "local"
    bands: tuple[int, ...] = ()
    key_stride: int = 1
    blocks: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        if self.window < 1:
            raise GuideError(f"window is {self.window}; give the native length of the model in frames, at least 1.")
        for name in ("temporal_cutoff", "spatial_cutoff"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise GuideError(f"{name} is {getattr(self, name):g}; give a number above 0, such as 0.25.")
        for name in ("strength", "end_percent"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise GuideError(f"{name} is {getattr(self, name):g}; give a value from 0 to 1.")
        if self.largest_level not in get_args(LargestLevel):
            choices = ", ".join(get_args(LargestLevel))
            raise GuideError(f"largest_level is {self.largest_level!r}; choose one of {choices}.")
        if self.bands and (self.bands[0] != 1 or list(self.bands) != sorted(set(self.bands))):
            raise GuideError(f"bands are {self.bands}; give window lengths that ascend from 1, such as (1, 2, 4).")
        if self.key_stride < 1:
            raise GuideError(f"key_stride is {self.key_stride}; 1 takes every frame as a key, 2 every other one.")
        block_patterns(self.blocks)


@dataclass(frozen=True, eq=False)
class BlendPlan:
    """What to do at the calls of one kind.

    Attributes:
        windows: blocks of each window, ascending.
        whole: whether the whole clip is the widest of them.
        key_stride: see ``FreeLong``.
        strength: see ``FreeLong``.
        blend: filters, one step from each result to the next wider one; None for the narrowest window alone.
    """

    windows: tuple[tuple[WindowBlock, ...], ...]
    whole: bool
    key_stride: int
    strength: float
    blend: SpectralBlend | None

    def write(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, out: Tensor) -> None:
        """Write the attention of some samples and heads into ``out`` [rows, heads, Lq, dv]."""
        tokens = site.video_queries(q.shape[2])
        begin, end = tokens.start, tokens.stop
        others = begin > 0 or end < q.shape[2]
        plain = None
        if self.strength < 1.0 or (self.whole and self.key_stride == 1) or (others and not attend.last):
            plain = attend(q, k, v, site)
        if others:
            for part in (slice(0, begin), slice(end, q.shape[2])):
                out[:, :, part] = _queries(attend, q, k, v, site, part) if plain is None else plain[:, :, part]
        write_windows(attend, q, k, v, site, self.windows[0], out)
        video = out[:, :, begin:end]
        if self.blend is not None:
            narrow = _on_grid(video, site)
            # Several steps in half precision would be rounded as often.
            blended = narrow.float() if len(self.blend.time) > 1 else narrow
            axes = (4, 1, 2) if site.rows.folded == "positions" else (2, 3, 4)
            for step in range(len(self.blend.time)):
                wide = _on_grid(self._wide(step + 1, attend, q, k, v, site, out, plain), site)
                self.blend.add_low_frequencies(blended, narrow, wide, step, axes)
                narrow = wide
            if blended.dtype != video.dtype:
                video.copy_(blended.view(video.shape))
        if plain is not None and self.strength < 1.0:
            video.copy_(plain[:, :, begin:end].lerp(video, self.strength))

    def _wide(
        self,
        index: int,
        attend: Attend,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        site: AttentionSite,
        out: Tensor,
        plain: Tensor | None,
    ) -> Tensor:
        """Return the video's attention in the window ``index`` or in the whole clip."""
        tokens = site.video_queries(q.shape[2])
        begin, end = tokens.start, tokens.stop
        if index < len(self.windows):
            wide = out.new_empty(out.shape)
            write_windows(attend, q, k, v, site, self.windows[index], wide)
            return wide[:, :, begin:end]
        if plain is not None and self.key_stride == 1:
            return plain[:, :, begin:end]
        part = part_of_keys(site, k.shape[2], range(site.grid[0])[:: self.key_stride])
        queries = slice(begin, end)
        bias = part.bias(attend.bias, queries)
        return attend.with_bias(bias)(
            q[:, :, queries], part.take(k, 2), part.take(v, 2), site if attend.last else part.site
        )


def _queries(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, part: slice) -> Tensor:
    """Plain attention of some queries; only where nobody reads the site."""
    if part.start == part.stop:
        return q.new_empty(*q.shape[:2], 0, v.shape[3])
    bias = attend.bias
    bias = bias if bias is None or bias.shape[2] == 1 else bias[:, :, part]
    return attend.with_bias(bias)(q[:, :, part], k, v, site)


def _on_grid(video: Tensor, site: AttentionSite) -> Tensor:
    """View [rows, heads, tokens, d] as [samples, H, W, heads, T, d] or, not folded, [samples, heads, T, H, W, d]."""
    frames, height, width = site.grid
    if site.rows.folded == "positions":
        return video.unflatten(0, (-1, height, width))
    return video.unflatten(2, (frames, height, width))


class FreeLongPatch(AttentionPatch):
    """FreeLong as an attention patch.

    Calls over no more frames than a window, or at strength 0, go through to the bit. Windows and filters are made once
    per kind of call.

    Args:
        settings: window, cut-offs and schedule; the paper's by default.
    """

    chooses_frames = "FreeLong"

    def __init__(self, settings: FreeLong | None = None) -> None:
        super().__init__()
        self.settings = settings or FreeLong()
        self._patterns = block_patterns(self.settings.blocks)

    def check_run(self, run: Run) -> None:
        """Say so when the clip is too short for FreeLong to do anything."""
        if 0.0 < self.settings.strength and run.token_frames <= self.settings.window:
            logger.info(
                "the clip has %d latent frames, no more than the window of %d: FreeLong leaves it as it is.",
                run.clip_frames,
                self.settings.window,
            )

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether a call is changed: attention over time, of more frames than a window has, not split yet."""
        if self.settings.strength == 0.0 or site.grid[0] <= self.settings.window or site.query_frames is not None:
            return False
        over_time = site.kind == "temporal" or (site.kind in ("self", "joint") and site.rows.folded == "none")
        return over_time and any(matches_block(site.block, pattern) for pattern in self._patterns)

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Attend to windows and to the whole clip; tensors [B, heads, L, d].

        Raises:
            GuideError: the tensors do not have the sizes that the site says.
        """
        if not self.acts_at(site):
            return attend(q, k, v, site)
        check_site(q, site)
        plan = self.planned(self._make_plan, site.grid, frame_tokens(site), self._blends(site), q.device)
        out = empty_result(q, v)
        # Windows alone need no room beside the result.
        cut = attend.last and (plan.blend is not None or plan.strength < 1.0)
        for rows, heads in _pieces(out, site) if cut else ((slice(None), slice(None)),):
            part = attend.with_bias(bias_part(attend.bias, rows, heads))
            plan.write(part, q[rows, heads], k[rows, heads], v[rows, heads], site, out[rows, heads])
        return out

    def _blends(self, site: AttentionSite) -> bool:
        """Whether wider windows give the low frequencies of a call; otherwise there is the narrowest window only."""
        at_largest = site.kind == "temporal" and site.level == 0 and self.settings.largest_level == "local"
        return not at_largest and 0.0 < self.settings.end_percent >= site.progress

    def _make_plan(self, grid: tuple[int, int, int], size: int, blends: bool, device: torch.device) -> BlendPlan:
        return make_plan(self.settings, grid, size, blends, device)


def make_plan(
    settings: FreeLong, grid: tuple[int, int, int], size: int, blends: bool, device: torch.device
) -> BlendPlan:
    """Make the windows and filters for the calls of one grid.

    Args:
        settings: of the patch.
        grid: of the video tokens, (T, H, W).
        size: tokens of a frame in one sequence.
        blends: whether wider windows give the low frequencies.
        device: of the call.
    """
    frames, window = grid[0], settings.window
    if settings.bands:
        covering = next((index for index, scale in enumerate(settings.bands) if scale * window >= frames), None)
        scales = settings.bands if covering is None else settings.bands[: covering + 1]
        windowed = scales if covering is None else scales[:-1]
        bounds = [centred_windows(frames, max(scale * window // 2, 1)) for scale in windowed]
        cutoffs, whole = band_cutoffs(scales, settings.temporal_cutoff), covering is not None
    else:
        bounds, cutoffs, whole = [shifted_windows(frames, window)], [settings.temporal_cutoff], True
    if not blends or not cutoffs:
        bounds, cutoffs, whole = bounds[:1], [], False
    blocks = tuple(window_blocks(of_window, size, device) for of_window in bounds)
    blend = SpectralBlend.gaussian(grid, cutoffs, settings.spatial_cutoff, device) if cutoffs else None
    return BlendPlan(blocks, whole, settings.key_stride, settings.strength, blend)


def _pieces(out: Tensor, site: AttentionSite) -> Iterator[tuple[slice, slice]]:
    """Cut the batch into samples and heads whose results are blended at a time."""
    heads = out.shape[1]
    rows = site.rows.folded_size
    floor = (PIECE_BYTES_CPU if out.device.type == "cpu" else PIECE_BYTES_GPU) / out.element_size()
    of_head = rows * out.shape[2] * out.shape[3]
    turn = min(max(int(max(PIECE_SHARE * out.numel(), floor) / max(of_head, 1)), 1), heads)
    for begin in range(0, out.shape[0], rows):
        for head in range(0, heads, turn):
            yield slice(begin, begin + rows), slice(head, min(head + turn, heads))
