"""FreeTraj's starting noise: the filter, the pieces in the boxes, what is kept of either noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mask_guided_video.attention_patches.latent_time import causal
from mask_guided_video.video_models.sampling.trajectory_noise import (
    SPATIAL_CUTOFF,
    TEMPORAL_CUTOFF,
    butterworth_weights,
    fitted_cutoffs,
    mix_low_frequencies,
    object_boxes,
    trajectory_noise,
)


def moving_box(frames: int = 8, size: int = 16, cells: int = 6) -> Tensor:
    """One square [1, frames, 64, 64] that moves one cell of 4 pixels to the right per frame."""
    masks = torch.zeros(1, frames, size * 4, size * 4)
    for frame in range(frames):
        left = 4 * (1 + frame)
        masks[0, frame, 16 : 16 + 4 * cells, left : left + 4 * cells] = 1.0
    return masks


def film(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_the_filter_on_4x4_cells_by_hand() -> None:
    weights = butterworth_weights((1, 4, 4))
    # Frequencies 0, 1/2, -1, -1/2 over both axes; a quarter is where one half passes, and the power is 8 of d / 0.25.
    assert float(weights[0, 0, 0]) == 1.0
    assert float(weights[0, 0, 1]) == pytest.approx(1 / (1 + 2.0**8))
    assert float(weights[0, 2, 0]) == pytest.approx(1 / (1 + 4.0**8))
    assert float(weights[0, 3, 1]) == pytest.approx(1 / (1 + 2.0**4 * 2.0**8))


@pytest.mark.parametrize("size", [(16, 8, 12), (17, 7, 9), (1, 5, 4)])
def test_the_filter_as_published(size: tuple[int, int, int]) -> None:
    """The written-out loop: positions from -1, the constant in the middle of the shifted spectrum."""
    weights = torch.fft.fftshift(butterworth_weights(size))
    middle = [count // 2 for count in size]
    for t in range(size[0]):
        for h in range(size[1]):
            for w in range(size[2]):
                step = [2.0 * (at - mid) / count for at, mid, count in zip((t, h, w), middle, size, strict=True)]
                distance = (0.25 / 0.1 * step[0]) ** 2 + step[1] ** 2 + step[2] ** 2
                assert float(weights[t, h, w]) == pytest.approx(1 / (1 + (distance / 0.25**2) ** 4))


def test_half_passes_at_the_cutoffs() -> None:
    weights = butterworth_weights((20, 16, 16))
    assert float(weights[1, 0, 0]) == pytest.approx(0.5) and float(weights[0, 2, 0]) == pytest.approx(0.5)


def test_mix_keeps_each_noise_where_it_belongs() -> None:
    low, high = film(0, 1, 2, 6, 8, 8), film(1, 1, 2, 6, 8, 8)
    axes = (-3, -2, -1)
    assert torch.allclose(mix_low_frequencies(low, high, torch.ones(6, 8, 8)), low, atol=1e-6)
    assert torch.equal(mix_low_frequencies(low, high, torch.zeros(6, 8, 8)), high)
    weights = butterworth_weights((6, 8, 8))
    mixed = torch.fft.fftn(mix_low_frequencies(low, high, weights), dim=axes)
    expected = torch.fft.fftn(low, dim=axes) * weights + torch.fft.fftn(high, dim=axes) * (1.0 - weights)
    torch.testing.assert_close(mixed, expected.to(mixed.dtype), atol=1e-4, rtol=1e-4)


def test_boxes_follow_the_masks() -> None:
    masks = moving_box()
    masks[:, 3] = 0.0
    boxes = object_boxes(masks, 8, 16, 16)
    assert boxes[0, 0].tolist() == [4, 10, 1, 7] and boxes[0, 7].tolist() == [4, 10, 8, 14]
    assert boxes[0, 3].tolist() == [0, 0, 0, 0]
    # Pixel frames of a causal autoencoder: the union of the four that a latent frame covers.
    boxes = object_boxes(moving_box(9), 3, 16, 16, causal(4))
    assert boxes[0].tolist() == [
        [4, 10, 1, 7],
        [4, 10, 2, 11],
        [4, 10, 6, 15],
    ]


def test_the_pieces_of_all_frames_are_alike_at_low_frequencies() -> None:
    """Without the fresh noise every frame would have the very same piece in its box."""
    noise, masks = film(0, 1, 4, 8, 16, 16), moving_box()
    whole = trajectory_noise(noise, masks, torch.Generator().manual_seed(5), spatial_cutoff=1e6, temporal_cutoff=1e6)
    first = whole[:, :, 0, 4:10, 1:7]
    for frame in range(8):
        torch.testing.assert_close(whole[:, :, frame, 4:10, 1 + frame : 7 + frame], first, atol=1e-5, rtol=1e-5)
    outside = torch.ones(8, 16, 16, dtype=torch.bool)
    for frame in range(8):
        outside[frame, 4:10, 1 + frame : 7 + frame] = False
    torch.testing.assert_close(whole[:, :, outside], noise[:, :, outside], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first, noise[:, :, 0, 4:10, 1:7], atol=0.1)


def test_low_frequencies_follow_the_path_and_the_rest_is_fresh() -> None:
    noise, masks = film(0, 1, 4, 8, 16, 16), moving_box()
    made = trajectory_noise(noise, masks, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    piece = torch.randn(1, 4, 6, 6, generator=generator)
    fresh = torch.randn(1, 4, 8, 16, 16, generator=generator)
    moving = noise.clone()
    for frame in range(8):
        moving[:, :, frame, 4:10, 1 + frame : 7 + frame] = piece
    axes, weights = (-3, -2, -1), butterworth_weights((8, 16, 16))
    expected = torch.fft.fftn(moving, dim=axes) * weights + torch.fft.fftn(fresh, dim=axes) * (1.0 - weights)
    torch.testing.assert_close(torch.fft.fftn(made, dim=axes), expected.to(torch.complex64), atol=1e-3, rtol=1e-3)
    assert made.dtype == noise.dtype and float(made.std()) == pytest.approx(1.0, abs=0.05)


def test_same_seed_same_noise_and_the_given_one_is_untouched() -> None:
    noise, masks = film(0, 2, 4, 5, 7, 9), moving_box(5)
    kept = noise.clone()
    first, again, other = (trajectory_noise(noise, masks, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(noise, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_stays(dtype: torch.dtype) -> None:
    made = trajectory_noise(film(0, 1, 4, 8, 16, 16).to(dtype), moving_box(), torch.Generator())
    assert made.dtype == dtype and bool(made.isfinite().all())


def test_masks_without_an_object_change_nothing() -> None:
    noise = film(0, 1, 4, 8, 16, 16)
    assert trajectory_noise(noise, torch.zeros(2, 8, 64, 64), torch.Generator()) is noise
    assert trajectory_noise(noise, torch.zeros(0, 8, 64, 64), torch.Generator()) is noise


def test_an_object_that_leaves_the_frame_keeps_its_piece() -> None:
    """Cut off at the left edge it shows the right part of its piece, at the right edge the left part."""
    masks = torch.zeros(1, 3, 8, 8)
    masks[0, 0, 2:6, 0:2] = masks[0, 1, 2:6, 2:6] = masks[0, 2, 2:6, 5:8] = 1.0
    noise = film(0, 1, 2, 3, 8, 8)
    made = trajectory_noise(noise, masks, torch.Generator(), spatial_cutoff=1e6, temporal_cutoff=1e6)
    piece = made[:, :, 1, 2:6, 2:6]
    torch.testing.assert_close(made[:, :, 0, 2:6, 0:2], piece[..., 2:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made[:, :, 2, 2:6, 5:8], piece[..., :3], atol=1e-5, rtol=1e-5)


def test_two_objects_have_pieces_of_their_own_and_the_later_one_is_in_front() -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, 0:4, 0:4] = masks[1, :, 2:6, 2:6] = 1.0
    made = trajectory_noise(film(0, 1, 1, 4, 8, 8), masks, torch.Generator(), spatial_cutoff=1e6, temporal_cutoff=1e6)
    generator = torch.Generator()
    first, second = (torch.randn(1, 1, 4, 4, generator=generator) for _ in range(2))
    torch.testing.assert_close(made[:, :, 3, 2:6, 2:6], second, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made[:, :, 3, 0:2, 0:4], first[:, :, :2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"masks": torch.zeros(1, 5, 8, 8)}, "5 mask frames do not fit"),
        ({"masks": torch.full((1, 8, 8, 8), math.nan)}, "NaN"),
        ({"noise": torch.zeros(4, 8, 16, 16)}, "batch, channels, frames"),
        ({"order": 0}, "order of the filter is 0"),
        ({"spatial_cutoff": 0.0}, "spatial cutoff is 0"),
        ({"temporal_cutoff": math.inf}, "temporal cutoff is inf"),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], said: str) -> None:
    given = {"noise": film(0, 1, 4, 8, 16, 16), "masks": moving_box(), **changes}
    with pytest.raises(ValueError, match=said):
        trajectory_noise(generator=torch.Generator(), **given)


class TestFittedCutoffs:
    def test_on_the_published_grid_they_are_the_published_ones(self):
        assert fitted_cutoffs((16, 40, 64)) == pytest.approx((SPATIAL_CUTOFF, TEMPORAL_CUTOFF))

    def test_a_grid_of_half_the_size_has_twice_the_frequencies(self):
        assert fitted_cutoffs((8, 20, 32)) == pytest.approx((2 * SPATIAL_CUTOFF, 2 * TEMPORAL_CUTOFF))

    def test_they_end_at_the_highest_frequency(self):
        assert fitted_cutoffs((1, 2, 2)) == (1.0, 1.0)
        with pytest.raises(ValueError, match="frames, rows and columns"):
            fitted_cutoffs((0, 2, 2))
