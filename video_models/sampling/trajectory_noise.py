"""Starting noise that already moves along a path: the same piece of noise in the object's box of every frame.

Low frequencies of the starting noise decide where things appear. One random piece per object is copied into its box
of each frame; the low frequencies of that noise video are kept and all others come from fresh noise. It acts before
any attention does and works with every mode of guidance.

Source: FreeTraj (arXiv 2406.16863), noise initialisation, and its code (arthur-qiu/FreeTraj).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...attention_patches.checks import checked_masks
from ...attention_patches.guidance.regions import FOREGROUND, guard_thin_objects, pool_area, pool_time
from ...attention_patches.latent_time import LatentTime

# The published filter: order of the Butterworth, and where it is down to one half, as a part of the highest frequency.
ORDER = 4
SPATIAL_CUTOFF = 0.25
TEMPORAL_CUTOFF = 0.1
# The grid that they were published for: frames, rows and columns of the latents of VideoCrafter's clips.
PUBLISHED_GRID = (16, 40, 64)


def fitted_cutoffs(size: Sequence[int]) -> tuple[float, float]:
    """Cut-offs over space and time at which as many waves fit into the clip as on the published grid, at most 1.

    A frequency is counted against the grid's highest, so that on a coarser grid the published number is a longer
    wave: on 16 x 16 cells it is half the picture, and nothing smaller would follow a path.

    Args:
        size: frames, rows and columns of the latents.

    Raises:
        ValueError: a length below 1.
    """
    if min(size) < 1:
        raise ValueError(f"the latents' size is {tuple(size)}; give frames, rows and columns.")
    frames, rows, columns = size
    spatial = SPATIAL_CUTOFF * math.sqrt(PUBLISHED_GRID[1] * PUBLISHED_GRID[2] / (rows * columns))
    return min(spatial, 1.0), min(TEMPORAL_CUTOFF * PUBLISHED_GRID[0] / frames, 1.0)


def butterworth_weights(
    size: tuple[int, int, int],
    order: int = ORDER,
    spatial_cutoff: float = SPATIAL_CUTOFF,
    temporal_cutoff: float = TEMPORAL_CUTOFF,
) -> Tensor:
    """How much of each frequency of a video passes, float64 [T, h, w] in the order of an FFT: 1 at the constant.

    ``1 / (1 + (d / spatial_cutoff)^(2 * order))`` with ``d^2 = (spatial_cutoff / temporal_cutoff * n_t)^2 + n_h^2 +
    n_w^2`` for frequencies n in -1..1, where 1 is half a turn per frame or cell.

    Args:
        size: frames, rows and columns.
        order: of the filter, at least 1; a high one cuts sharply.
        spatial_cutoff, temporal_cutoff: 0..1, frequencies over space and over time of which one half passes.

    Raises:
        ValueError: a value out of its range.
    """
    if order < 1:
        raise ValueError(f"the order of the filter is {order}; give at least 1, such as {ORDER}.")
    for name, value in (("spatial", spatial_cutoff), ("temporal", temporal_cutoff)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"the {name} cutoff is {value:g}; give a number above 0, such as {SPATIAL_CUTOFF:g}.")
    time, rows, columns = (2.0 * torch.fft.fftfreq(count, dtype=torch.float64) for count in size)
    time = time * (spatial_cutoff / temporal_cutoff)
    square = time[:, None, None] ** 2 + rows[:, None] ** 2 + columns**2
    return 1.0 / (1.0 + (square / spatial_cutoff**2) ** order)


def mix_low_frequencies(low: Tensor, high: Tensor, weights: Tensor) -> Tensor:
    """Low frequencies of one noise video and high ones of another.

    The two are weighted by w and 1 - w as published, so that frequencies at the cut-off lose up to half of their
    variance.

    Args:
        low, high: [B, C, T, h, w] real.
        weights: w for each frequency, [T, h, w] of ``butterworth_weights``.

    Returns:
        [B, C, T, h, w] float32.
    """
    # The filter is linear: what is to be kept of the one is what the other must lose.
    difference = torch.fft.fftn(low.double() - high.double(), dim=(-3, -2, -1)) * weights
    return (high.double() + torch.fft.ifftn(difference, dim=(-3, -2, -1)).real).float()


def object_boxes(masks: Tensor, frames: int, height: int, width: int, latent_time: LatentTime | None = None) -> Tensor:
    """Boxes around the objects on a grid of cells, long [R, frames, 4].

    Args:
        masks: [R, F, H, W] in 0..1; F as in ``latent_frame_groups``.
        frames, height, width: of the latents.
        latent_time: see ``AttentionSite``.

    Returns:
        First row, last row + 1, first column, last column + 1; all 0 where an object is not in a frame.

    Raises:
        ValueError: the masks' frames do not fit those of the latents.
    """
    masks = pool_time(masks, frames, "max", latent_time)
    pooled, present = guard_thin_objects(pool_area(masks, height, width), masks)
    inside = (pooled >= FOREGROUND) & present[..., None, None]
    edges = []
    for taken in (inside.any(dim=3), inside.any(dim=2)):
        count = taken.shape[2]
        position = torch.arange(count)
        edges.append(torch.where(taken, position, count).amin(dim=2))
        edges.append(torch.where(taken, position + 1, 0).amax(dim=2))
    return torch.stack(edges, dim=2) * inside.any(dim=3).any(dim=2)[..., None]


def trajectory_noise(
    noise: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    *,
    order: int = ORDER,
    spatial_cutoff: float = SPATIAL_CUTOFF,
    temporal_cutoff: float = TEMPORAL_CUTOFF,
    latent_time: LatentTime | None = None,
) -> Tensor:
    """FreeTraj: starting noise whose low frequencies follow the objects.

    Args:
        noise: [B, C, T, h, w] unit normal; low frequencies outside of the boxes are its.
        masks: [R, F, H, W] in 0..1 in pixels, or [F, H, W] for one object; the boxes around them count. F may be 1, T
            or the pixel frames of a causal autoencoder. Where boxes of an object differ in size, those cut off by an
            edge of the picture show the other part of its piece; where two overlap, the later object's is seen.
        generator: CPU generator; draws one piece per object and then the fresh noise.
        order, spatial_cutoff, temporal_cutoff: see ``butterworth_weights``.
        latent_time: see ``AttentionSite``.

    Returns:
        New tensor of the same shape and type; ``noise`` itself where no mask holds an object.

    Raises:
        ValueError: noise that is not five-dimensional, masks of a wrong shape or length, or a value out of its range.
    """
    if noise.ndim != 5:
        raise ValueError(
            f"the noise has shape {tuple(noise.shape)}; video noise is [batch, channels, frames, height, width]."
        )
    batch, channels, *size = noise.shape
    weights = butterworth_weights(tuple(size), order, spatial_cutoff, temporal_cutoff)
    boxes = object_boxes(checked_masks(masks), *size, latent_time)
    if not bool(boxes.any()):
        return noise
    moving = noise.detach().to("cpu", torch.float32, copy=True)
    for of_object in boxes:
        rows, columns = (int((of_object[:, at + 1] - of_object[:, at]).max()) for at in (0, 2))
        piece = torch.randn(batch, channels, rows, columns, generator=generator)
        for frame, (top, bottom, left, right) in enumerate(of_object.tolist()):
            shown = piece[..., _shown(top, bottom, rows), :][..., _shown(left, right, columns)]
            moving[:, :, frame, top:bottom, left:right] = shown
    fresh = torch.randn(noise.shape, generator=generator)
    return mix_low_frequencies(moving, fresh, weights).to(noise)


def _shown(first: int, last: int, length: int) -> slice:
    """The part of a piece that a box shows: its end where the box begins at the edge of the picture, else its start."""
    visible = last - first
    return slice(length - visible, length) if first == 0 else slice(0, visible)
