"""Measures of films, on pictures small enough to count by hand."""

import pytest
import torch

from mask_guided_video.recipes.measurements import (
    change_outside,
    colour_purity,
    edge_sharpness,
    frames_sha256,
    mask_iou,
    measure_film,
)


def square_mask(size=16, low=4, high=12, frames=1):
    mask = torch.zeros(frames, size, size)
    mask[:, low:high, low:high] = 1
    return mask


def square_film(mask, inside=(1.0, 0.0, 0.0), outside=(0.0, 0.0, 1.0)):
    return mask[..., None] * torch.tensor(inside) + (1 - mask[..., None]) * torch.tensor(outside)


def test_iou_counts_pixels_per_frame():
    first = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    second = torch.tensor([[[0.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert mask_iou(first, second) == pytest.approx((1 / 3 + 1) / 2)
    assert mask_iou(first, torch.zeros_like(first)) == 0.0
    assert mask_iou(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)) is None


def test_iou_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(1, 2, 2\) and \(2, 2, 2\)"):
        mask_iou(torch.zeros(1, 2, 2), torch.zeros(2, 2, 2))


def test_purity_is_the_share_of_one_colour():
    mask = square_mask()
    film = square_film(mask)
    assert colour_purity(film, mask) == 1.0
    film[0, 4:6, 4:12] = torch.tensor([0.0, 1.0, 0.0])
    assert colour_purity(film, mask) == pytest.approx(48 / 64)


def test_purity_falls_when_the_object_leaves_the_mask():
    mask = square_mask()
    film = square_film(torch.roll(mask, 2, dims=2))
    assert colour_purity(film, mask) == pytest.approx(6 / 8)


def test_sharp_edges_score_higher_than_soft_or_displaced_ones():
    mask = square_mask()
    soft = torch.nn.functional.avg_pool2d(mask[:, None], 5, stride=1, padding=2)[:, 0]
    sharp = edge_sharpness(square_film(mask), mask)
    assert sharp > edge_sharpness(square_film(soft), mask) > 0
    assert sharp > edge_sharpness(square_film(torch.roll(mask, 4, dims=2)), mask)
    assert edge_sharpness(torch.full((1, 16, 16, 3), 0.5), mask) == 0.0


def test_edge_of_a_straight_step_is_exact():
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    film = square_film(mask, inside=(1.0, 1.0, 1.0), outside=(0.0, 0.0, 0.0))
    # Of the four columns in the band the two at the step have half of the distance between black and white.
    assert edge_sharpness(film, mask) == pytest.approx(2 * (3**0.5 / 2) / 4)


def test_change_outside_ignores_the_object_and_its_edge():
    mask = square_mask()
    first = square_film(mask)
    second = first.clone()
    second[0, 2:14, 2:14] = 0.0
    assert change_outside(first, second, mask) == 0.0
    second[0, 0] = first[0, 0] + 0.5
    assert change_outside(first, second, mask) == pytest.approx(0.5 * 16 / (256 - 144))


def test_nothing_to_measure_is_none():
    film = torch.rand(2, 8, 8, 3)
    assert measure_film(film, torch.zeros(2, 8, 8)) == {"colour_purity": None, "edge_sharpness": None}
    assert change_outside(film, film, torch.ones(2, 8, 8)) is None
    assert edge_sharpness(film, torch.ones(2, 8, 8)) is None


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 8, 9\)"):
        colour_purity(torch.rand(2, 8, 8, 3), torch.zeros(2, 8, 9))


def test_fingerprint_is_of_the_pixels():
    film = torch.rand(2, 4, 6, 3)
    assert frames_sha256(film) == frames_sha256(film.clone())
    changed = film.clone()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0].round()
    assert frames_sha256(film) != frames_sha256(changed)
    assert frames_sha256(film) != frames_sha256(film.transpose(1, 2).reshape(2, 6, 4, 3))
    assert len(frames_sha256(film)) == 64
