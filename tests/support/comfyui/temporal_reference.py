"""FreeLong on attention over time by its definition: whole masks over all pairs of frames, whole complex spectra."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong

Grid = tuple[int, int]


def seen_frames(frames: int, settings: FreeLong, scale: int | None) -> Tensor:
    """Which frames each one sees, [frames, frames] bool: a window of FreeLong, of FreeLong++, or all (scale 0)."""
    index = torch.arange(frames)
    away = (index[:, None] - index).abs()
    if scale == 0:
        return torch.ones(frames, frames, dtype=torch.bool)
    if scale is not None:
        return away < max(scale * settings.window // 2, 1)
    seen = away <= settings.window // 2
    for frame in range(frames):
        if seen[frame].sum() < settings.window:
            # The clip ends here, and the window is moved back inside.
            nearest = index < settings.window if frame < frames // 2 else index >= frames - settings.window
            seen[frame] = nearest
    return seen


def low_pass(size: int, cutoff: float) -> Tensor:
    """Gaussian weights of the frequencies of an axis in the order of an FFT; 1 is the highest."""
    index = torch.arange(size, dtype=torch.float64)
    frequency = torch.minimum(index, size - index) / (size / 2)
    return torch.exp(-(frequency**2) / (2 * cutoff**2))


def scales_of(settings: FreeLong, frames: int) -> tuple[list[int | None], list[float]]:
    """Windows from the narrowest to the whole clip (0), and the cut-off over time at each step."""
    if not settings.bands:
        return [None, 0], [settings.temporal_cutoff]
    scales: list[int | None] = []
    cutoffs = []
    for scale in settings.bands:
        covers = scale * settings.window >= frames
        scales.append(0 if covers else scale)
        if len(scales) > 1:
            cutoffs.append(2 * settings.temporal_cutoff / scale)
        if covers:
            break
    return scales, cutoffs


def attend_over_time(
    settings: FreeLong,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    grid: Grid,
    level: int,
    bias: Tensor | None = None,
) -> Tensor:
    """FreeLong on one call [films * cells, frames, heads * d], at every step of the schedule.

    Args:
        settings: windows, cut-offs and strength.
        q, k, v, heads: of the call.
        grid: rows and columns of the cells.
        level: 0 at the finest grid, where ``local`` has windows only.
        bias: [frames, frames], added to all scores.
    """
    rows, frames, _ = q.shape
    if frames <= settings.window:
        settings = FreeLong(1, strength=0.0)
    parts = [tensor.double().unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (q, k, v)]

    def attend(scale: int | None) -> Tensor:
        scores = parts[0] @ parts[1].mT / parts[0].shape[-1] ** 0.5
        scores = scores if bias is None else scores + bias
        scores = scores.masked_fill(~seen_frames(frames, settings, scale), -torch.inf)
        return scores.softmax(-1) @ parts[2]

    plain = attend(0)
    scales, cutoffs = scales_of(settings, frames)
    local_only = settings.end_percent == 0.0 or (level == 0 and settings.largest_level == "local")
    # [films, rows, columns, heads, frames, d]
    results = [attend(scale).unflatten(0, (-1, *grid)) for scale in scales[: 1 if local_only else None]]
    out = results[0]
    axes = (4, 1, 2)
    space = low_pass(grid[0], settings.spatial_cutoff)[:, None] * low_pass(grid[1], settings.spatial_cutoff)
    for narrow, wide, cutoff in zip(results, results[1:], cutoffs, strict=False):
        weights = low_pass(frames, cutoff)[:, None] * space[:, :, None, None, None]
        out = out + torch.fft.ifftn(torch.fft.fftn(wide - narrow, dim=axes) * weights, dim=axes).real
    out = plain.lerp(out.flatten(0, 2), settings.strength)
    assert out.shape[0] == rows
    return out.transpose(1, 2).flatten(2).to(q)


def attention_of_motion_modules(
    settings: FreeLong, grids: Sequence[Grid], chunks: int = 2, bias: Tensor | None = None
) -> Callable[..., Tensor]:
    """Make the attention function of motion modules, which tells levels apart by the number of cells."""
    levels = {rows * columns: (level, (rows, columns)) for level, (rows, columns) in enumerate(grids)}

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        assert mask is None
        level, grid = levels[q.shape[0] // chunks]
        return attend_over_time(settings, q, k, v, heads, grid, level, bias)

    return attend
