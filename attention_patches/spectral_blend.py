"""Join results of attention over windows of different length by their frequencies over time and space.

The lowest frequencies come from the widest window, the highest from the narrowest. All filters are Gaussian and sum to
one at every frequency, so that for two results the blend is ``local + low_pass(global - local)``: one filter on one
tensor. A Gaussian over (time, height, width) is the product of one over each axis, and filtering an axis of a video is
a product with a small circulant matrix; that takes less time and memory than the transforms of three axes. Axes longer
than ``MATRIX_AXIS`` are filtered by a real FFT and its inverse.

Source: FreeLong (arXiv 2407.19918); FreeLong++ (arXiv 2507.00162) for several bands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

# Beyond this many entries an FFT takes less time than a matrix on CPUs.
MATRIX_AXIS = 256
# What is filtered at a time: a part of a CPU's cache, and enough to keep a GPU busy.
PART_BYTES_CPU = 2**21
PART_BYTES_GPU = 2**27


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

    A window of ``scale`` times the native length holds the frequencies up to ``1 / (2 * scale)``, that is ``2 * cutoff
    / scale`` for a cut-off of 0.25 (which is that of scale 2).
    """
    return [2.0 * cutoff / scale for scale in scales[1:]]


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

    def add_low_frequencies(
        self, out: Tensor, narrow: Tensor, wide: Tensor, step: int, axes: tuple[int, int, int]
    ) -> None:
        """Add the low frequencies of ``wide - narrow`` to ``out``, a few frames and then a few rows at a time.

        Filters along different axes commute, so that the space axes go first, frame by frame, while what they work on
        is still in the cache of a CPU.

        Args:
            out: changed in place; may be ``narrow`` itself.
            narrow, wide: of the shape of ``out``, any floating type and memory layout.
            step: from which window to the next.
            axes: where time, height and width are.
        """
        time, height, width = axes
        low = torch.empty(wide.shape, dtype=torch.float32, device=wide.device)
        for frames in _parts(wide, time):
            values = _difference(wide.narrow(time, *frames), narrow.narrow(time, *frames))
            values = self.width.apply(self.height.apply(values, height), width)
            low.narrow(time, *frames).copy_(values)
        for rows in _parts(wide, height):
            values = self.time[step].apply(low.narrow(height, *rows).contiguous(), time)
            out.narrow(height, *rows).add_(values)


def _difference(wide: Tensor, narrow: Tensor) -> Tensor:
    """``wide - narrow`` in contiguous float32, rounded once."""
    if wide.dtype == narrow.dtype == torch.float32:
        return torch.sub(wide, narrow).contiguous()
    return wide.to(torch.float32, memory_format=torch.contiguous_format, copy=True).sub_(narrow)


def _parts(tensor: Tensor, axis: int) -> Iterator[tuple[int, int]]:
    """Cut an axis into parts (begin, length) of which one fits into a cache in float32."""
    size = tensor.shape[axis]
    most = PART_BYTES_CPU if tensor.device.type == "cpu" else PART_BYTES_GPU
    turn = max(most // (4 * tensor.numel() // size), 1)
    for begin in range(0, size, turn):
        yield begin, min(turn, size - begin)
