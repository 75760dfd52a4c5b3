"""The blend by frequencies: literal values, the published form of the filter, and transforms written out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mask_guided_video.attention_patches import spectral_blend as module
from mask_guided_video.attention_patches.free_long import OCTAVES
from mask_guided_video.attention_patches.spectral_blend import (
    AxisFilter,
    SpectralBlend,
    band_cutoffs,
    gaussian_weights,
)

CUTOFFS = (0.25, 0.25)


def band_weights(size: int, scales: Sequence[int], cutoff: float = 0.25) -> Tensor:
    """Share of the window of each scale (ascending) at each frequency over time, [scales, size]; they sum to one."""
    edges = [gaussian_weights(size, edge) for edge in band_cutoffs(scales, cutoff)]
    upper = torch.stack([torch.ones(size, dtype=torch.float64), *edges])
    lower = torch.stack([*edges, torch.zeros(size, dtype=torch.float64)])
    return upper - lower


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
    SpectralBlend.gaussian(grid, cutoffs[:1], cutoffs[1], local.device).add_low_frequencies(
        out, local, wide, 0, positive
    )
    return out


def centred(size: int, cutoff: float) -> Tensor:
    """Weights with the constant in the middle, as papers draw them."""
    return torch.fft.fftshift(gaussian_weights(size, cutoff))


def published(size: int, cutoff: float) -> Tensor:
    """The published code's weights, with 2n/N - 1 for the frequency: off centre for odd sizes."""
    frequency = 2.0 * torch.arange(size, dtype=torch.float64) / size - 1.0
    return torch.exp(-0.5 * (frequency / cutoff) ** 2)


def transformed(local: Tensor, wide: Tensor, axis_weights: list[Tensor]) -> Tensor:
    """The published blend: both spectra whole, weights P and 1 - P, real part; [..., T, H, W] in float64."""
    time, height, width = axis_weights
    weights = time[:, None, None] * height[:, None] * width
    spectra = [
        torch.fft.fftshift(torch.fft.fftn(values.double(), dim=(-3, -2, -1)), dim=(-3, -2, -1))
        for values in (local, wide)
    ]
    mixed = spectra[1] * weights + spectra[0] * (1.0 - weights)
    return torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=(-3, -2, -1)), dim=(-3, -2, -1)).real


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_filter_over_time_literal() -> None:
    expected = [0.000335, 0.011109, 0.135335, 0.606531, 1.0, 0.606531, 0.135335, 0.011109]
    torch.testing.assert_close(centred(8, 0.25), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    # With two rows of one cell each, the published form has the cell's own axes at -1: exp(-1) at a cut-off of 1.
    space = published(1, 1.0) ** 2
    expected = [0.000123, 0.004087, 0.049787, 0.223130, 0.367879, 0.223130, 0.049787, 0.004087]
    torch.testing.assert_close(
        published(8, 0.25) * space, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_profile_of_the_long_filter() -> None:
    weights = gaussian_weights(128, 0.25)
    expected = torch.tensor([1.0, 0.998049, 0.882497, 0.606531, 0.135335, 0.000430], dtype=torch.float64)
    torch.testing.assert_close(weights[[0, 1, 8, 16, 32, 63]], expected, atol=1e-6, rtol=0)


def test_constant_is_the_centre_of_odd_sizes_too() -> None:
    expected = torch.tensor([0.005976, 0.278037, 1.0, 0.278037, 0.005976], dtype=torch.float64)
    torch.testing.assert_close(centred(5, 0.25), expected, atol=1e-6, rtol=0)
    expected = torch.tensor([0.000335, 0.056135, 0.726149, 0.726149, 0.056135], dtype=torch.float64)
    torch.testing.assert_close(published(5, 0.25), expected, atol=1e-6, rtol=0)
    code = published(128, 0.25)[64] * published(5, 0.25)[2] * published(8, 0.25)[4]
    assert float(code) == pytest.approx(0.726149, abs=1e-6)
    for size in range(1, 12):
        assert gaussian_weights(size, 0.25)[0] == 1.0


def test_blend_literal() -> None:
    wide = torch.arange(8.0)[:, None, None].expand(8, 2, 2)
    local = (torch.arange(8.0) % 2)[:, None, None].expand(8, 2, 2)
    out = spectral_blend(local, wide, CUTOFFS)
    expected = [2.247025, 2.404972, 1.675642, 3.517696, 3.482305, 5.324358, 4.595028, 4.752975]
    torch.testing.assert_close(out[:, 0, 0], torch.tensor(expected), atol=2e-6, rtol=0)
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


@pytest.mark.parametrize("grid", [(8, 4, 8), (8, 5, 8), (7, 5, 3), (1, 1, 1), (2, 1, 9), (9, 1, 1)])
def test_constants_pass(grid: tuple[int, int, int]) -> None:
    out = spectral_blend(torch.full(grid, 1.0), torch.full(grid, 3.0), CUTOFFS)
    torch.testing.assert_close(out, torch.full(grid, 3.0), atol=2e-6, rtol=0)


def test_the_published_filter_loses_a_part_of_constants_at_odd_sizes() -> None:
    for grid, expected in (((8, 4, 8), 3.0), ((8, 5, 8), 2.452298)):
        out = transformed(torch.full(grid, 1.0), torch.full(grid, 3.0), [published(size, 0.25) for size in grid])
        torch.testing.assert_close(out, torch.full(grid, expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", [(8, 4, 6), (24, 2, 2), (9, 5, 7), (16, 5, 8), (1, 3, 4), (33, 1, 1)])
@pytest.mark.parametrize("cutoffs", [(0.25, 0.25), (0.1, 0.7)])
@pytest.mark.parametrize("longest", [0, 256])
def test_equals_whole_transforms(
    grid: tuple[int, int, int], cutoffs: tuple[float, float], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MATRIX_AXIS", longest)
    local, wide = random(3, *grid), random(3, *grid, seed=1)
    weights = [centred(grid[0], cutoffs[0]), centred(grid[1], cutoffs[1]), centred(grid[2], cutoffs[1])]
    expected = transformed(local, wide, weights)
    torch.testing.assert_close(spectral_blend(local, wide, cutoffs).double(), expected, atol=3e-6, rtol=1e-5)
    if all(size % 2 == 0 or size == 1 for size in grid) and 1 not in grid:
        code = [
            published(size, cutoff) for size, cutoff in zip(grid, (cutoffs[0], cutoffs[1], cutoffs[1]), strict=True)
        ]
        torch.testing.assert_close(expected, transformed(local, wide, code))


def test_any_axes_and_layout() -> None:
    local, wide = random(2, 9, 5, 4, 6), random(2, 9, 5, 4, 6, seed=1)
    expected = spectral_blend(local, wide, CUTOFFS)
    for order in ((0, 2, 3, 4, 1), (3, 0, 4, 1, 2), (2, 3, 4, 0, 1)):
        axes = tuple(order.index(axis) for axis in (2, 3, 4))
        moved = spectral_blend(local.permute(order), wide.permute(order).contiguous(), CUTOFFS, axes)
        torch.testing.assert_close(moved, expected.permute(order))
    assert torch.equal(local, random(2, 9, 5, 4, 6))


def test_long_axes_are_filtered_by_transforms() -> None:
    size = module.MATRIX_AXIS + 45
    axis_filter = AxisFilter.gaussian(size, 0.25)
    assert axis_filter.matrix is None
    values = random(2, size, 3)
    spectrum = torch.fft.fft(values.double(), dim=1) * gaussian_weights(size, 0.25)[:, None]
    torch.testing.assert_close(
        axis_filter.apply(values, 1).double(), torch.fft.ifft(spectrum, dim=1).real, atol=3e-6, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    local, wide = 100.0 * random(2, 12, 5, 4).to(dtype), 100.0 * random(2, 12, 5, 4, seed=1).to(dtype)
    out = spectral_blend(local, wide, CUTOFFS)
    assert out.dtype == dtype and bool(out.isfinite().all())
    expected = spectral_blend(local.float(), wide.float(), CUTOFFS)
    assert torch.equal(out, expected.to(dtype))


def test_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    local, wide = random(2, 3, 9, 5, 4, 6), random(2, 3, 9, 5, 4, 6, seed=1)
    whole = spectral_blend(local, wide, CUTOFFS, (2, 3, 4))
    monkeypatch.setattr(module, "PART_BYTES_CPU", 2000)
    torch.testing.assert_close(spectral_blend(local, wide, CUTOFFS, (2, 3, 4)), whole)


def test_wide_cutoff_takes_all_of_the_wide() -> None:
    local, wide = random(6, 4, 5), random(6, 4, 5, seed=1)
    torch.testing.assert_close(spectral_blend(local, wide, (1e6, 1e6)), wide)
    torch.testing.assert_close(
        spectral_blend(local, wide, (1e-6, 1e-6)), local + (wide - local).mean(), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("size", [1, 2, 7, 8, 81, 128])
@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 2, 4), (1, 3, 5), OCTAVES])
def test_bands_sum_to_one_at_every_bin(size: int, scales: tuple[int, ...]) -> None:
    bands = band_weights(size, scales)
    assert bands.shape == (len(scales), size)
    torch.testing.assert_close(bands.sum(dim=0), torch.ones(size, dtype=torch.float64))
    assert bool((bands >= 0.0).all())
    # The constant belongs to the widest window.
    assert bands[:, 0].tolist() == [0.0] * (len(scales) - 1) + [1.0]


def test_band_edges() -> None:
    assert band_cutoffs((1, 2, 4, 8)) == [0.25, 0.125, 0.0625]
    bands = band_weights(8, (1, 2, 4))
    torch.testing.assert_close(bands[0], 1.0 - gaussian_weights(8, 0.25))
    torch.testing.assert_close(bands[2], gaussian_weights(8, 0.125))


def test_several_bands_equal_their_weights() -> None:
    grid, scales = (12, 5, 4), (1, 2, 4)
    results = [random(3, *grid, seed=seed) for seed in range(3)]
    blend = SpectralBlend.gaussian(grid, band_cutoffs(scales), 0.25)
    out = results[0].clone()
    for step in range(2):
        blend.add_low_frequencies(out, results[step], results[step + 1], step, (1, 2, 3))
    time = band_weights(12, scales)
    space = gaussian_weights(5, 0.25)[:, None] * gaussian_weights(4, 0.25)
    shares = [1.0 - (1.0 - time[0])[:, None, None] * space, *(band[:, None, None] * space for band in time[1:])]
    spectrum = sum(
        torch.fft.fftn(values.double(), dim=(1, 2, 3)) * share for values, share in zip(results, shares, strict=True)
    )
    torch.testing.assert_close(sum(shares), torch.ones(grid, dtype=torch.float64))
    torch.testing.assert_close(out.double(), torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real, atol=3e-6, rtol=1e-5)
