"""Join results of attention over windows of different length by their frequencies over time and space.

The lowest frequencies come from the widest window, the highest from the narrowest. All filters are Gaussian and sum to
one at every frequency, so that for two results the blend is ``local + low_pass(global - local)``: one filter on one
tensor. A Gaussian over (time, height, width) is the product of one over each axis, and filtering an axis of a video is a
product with a small circulant matrix; that takes less time and memory than the transforms of three axes. Axes longer
than ``MATRIX_AXIS`` are filtered by a real FFT and its inverse.

Source: FreeLong (arXiv 2407.19918); FreeLong++ (arXiv 2507.00162) for several bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

# Beyond this many entries an FFT takes less time than a matrix on CPUs.
MATRIX_AXIS = 256


def gaussian_weights(size: int, cutoff: float) -> Tensor:
    """Weight of each frequency of an axis, float64 [size] in the order of an FFT: 1 at the constant.

    ``exp(-(n / cutoff)^2 / 2)`` for the frequency n, in -1..1 where 1 is half a turn per entry. For an odd size too the
    constant is the centre, and a constant passes unchanged.

    Args:
        size: entries of the axis.
        cutoff: standard deviation of the Gaussian; infinite lets everything pass.
    """
    frequency = 2.0 * torch.fft.fftfreq(size, dtype=torch.float64)
    return torch.exp(-0.5 * (frequency / cutoff) ** 2)


def band_cutoffs(scales: Sequence[int], cutoff: float = 0.25) -> list[float]:
    """Cut-off over time below which the window of each scale takes over from the one before; the first has none.

    A window of ``scale`` times the native length holds the frequencies up to ``1 / (2 * scale)``, that is ``2 * cutoff /
    scale`` for a cut-off of 0.25 (which is that of scale 2).
    """
    return [2.0 * cutoff / scale for scale in scales[1:]]


def band_weights(size: int, scales: Sequence[int], cutoff: float = 0.25) -> Tensor:
    """Share of the window of each scale (ascending) at each frequency over time, [scales, size]; they sum to one."""
    edges = [gaussian_weights(size, edge) for edge in band_cutoffs(scales, cutoff)]
    upper = torch.stack([torch.ones(size, dtype=torch.float64), *edges])
    lower = torch.stack([*edges, torch.zeros(size, dtype=torch.float64)])
    return upper - lower


@dataclass(frozen=True, eq=False)
class AxisFilter:
    """A low-pass along one axis.

    Attributes:
        weights: of the frequencies 0 .. size // 2, float32.
        matrix: [size, size] float32, the same as a matrix; None where the axis is too long for it.
        size: of the axis.
    """

    weights: Tensor
    matrix: Tensor | None
    size: int

    @classmethod
    def gaussian(cls, size: int, cutoff: float, device: torch.device | str = "cpu") -> AxisFilter:
        """Build from the size of the axis and the cut-off of ``gaussian_weights``."""
        weights = gaussian_weights(size, cutoff)
        matrix = None
        if size <= MATRIX_AXIS:
            response = torch.fft.ifft(weights).real
            index = torch.arange(size)
            matrix = response[(index[:, None] - index) % size].to(device, torch.float32)
        return cls(weights[: size // 2 + 1].to(device, torch.float32), matrix, size)

    def apply(self, values: Tensor, axis: int) -> Tensor:
        """Filter contiguous float32 values along an axis; returns a new tensor, contiguous too."""
        if self.size == 1:
            return values
        shape = values.shape
        outer, inner = prod(shape[:axis]), prod(shape[axis + 1 :])
        values = values.reshape(outer, self.size, inner)
        if self.matrix is not None:
            # One product for all, where the axis is the outermost, is the faster.
            filtered = self.matrix @ values[0] if outer == 1 else self.matrix.expand(outer, -1, -1).bmm(values)
        else:
            spectrum = torch.fft.rfft(values, dim=1)
            spectrum *= self.weights[:, None]
            filtered = torch.fft.irfft(spectrum, n=self.size, dim=1).contiguous()
        return filtered.view(shape)


@dataclass(frozen=True, eq=False)
class SpectralBlend:
    """Blends results of ascending window length on one grid.

    Attributes:
        time: a filter for each step to a wider window, whose cut-off falls from step to step.
        height, width: filters of the space axes.
    """

    time: tuple[AxisFilter, ...]
    height: AxisFilter
    width: AxisFilter

    @classmethod
    def gaussian(
        cls,
        grid: tuple[int, int, int],
        temporal_cutoffs: Sequence[float],
        spatial_cutoff: float,
        device: torch.device | str = "cpu",
    ) -> SpectralBlend:
        """Build from (T, H, W), one cut-off over time per step and the one over space."""
        return cls(
            tuple(AxisFilter.gaussian(grid[0], cutoff, device) for cutoff in temporal_cutoffs),
            AxisFilter.gaussian(grid[1], spatial_cutoff, device),
            AxisFilter.gaussian(grid[2], spatial_cutoff, device),
        )

    def of_step(self, narrow: Tensor, wide: Tensor, step: int, time_axis: int) -> Tensor:
        """Return the low frequencies over time of ``wide - narrow``, of any type, as new float32 values."""
        values = torch.empty(wide.shape, dtype=torch.float32, device=wide.device)
        if wide.dtype == narrow.dtype == torch.float32:
            torch.sub(wide, narrow, out=values)
        else:
            values.copy_(wide).sub_(narrow)
        return self.time[step].apply(values, time_axis)

    def over_space(self, values: Tensor, axes: tuple[int, int]) -> Tensor:
        """Return the low frequencies over (height, width) of contiguous float32 values."""
        return self.width.apply(self.height.apply(values, axes[0]), axes[1])


def spectral_blend(
    local: Tensor, wide: Tensor, cutoffs: tuple[float, float], axes: tuple[int, int, int] = (-3, -2, -1)
) -> Tensor:
    """Blend two tensors: low frequencies of ``wide``, the others of ``local``.

    Args:
        local, wide: floating point, of the same shape.
        cutoffs: (temporal, spatial) cut-off, see ``gaussian_weights``.
        axes: where time, height and width are.

    Returns:
        Tensor of that shape, in the type of ``local``.
    """
    positive = tuple(axis % local.ndim for axis in axes)
    grid = tuple(local.shape[axis] for axis in positive)
    out = local.clone()
    blend = SpectralBlend.gaussian(grid, cutoffs[:1], cutoffs[1], local.device)
    return out.add_(blend.over_space(blend.of_step(local, wide, 0, positive[0]), positive[1:]))
