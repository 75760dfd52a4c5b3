"""The lock on latents and its mask."""

import pytest
import torch

from mask_guided_video.video_models.sampling.background_lock import BackgroundLock, lock_mask


def test_blend_keeps_the_outside():
    latents, mask = torch.zeros(1, 2, 1, 1, 3), torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 1, 3)
    lock = BackgroundLock(latents, mask)
    result = lock.blend(torch.full((1, 2, 1, 1, 3), 4.0), torch.full((1, 2, 1, 1, 3), 8.0))
    assert result[0, :, 0, 0].tolist() == [[8.0, 7.0, 4.0]] * 2


def test_blend_is_exact_at_both_ends():
    noised, current = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 4, 2, 4, 4)
    assert torch.equal(BackgroundLock(noised, torch.zeros(1, 1, 1, 4, 4)).blend(current, noised), noised)
    assert torch.equal(BackgroundLock(noised, torch.ones(1, 1, 1, 4, 4)).blend(current, noised), current)


def test_blend_serves_a_batch():
    lock = BackgroundLock(torch.zeros(1, 4, 2, 4, 4), torch.zeros(1, 1, 2, 4, 4))
    result = lock.blend(torch.ones(3, 4, 2, 4, 4), torch.full((1, 4, 2, 4, 4), 2.0))
    assert torch.equal(result, torch.full((3, 4, 2, 4, 4), 2.0))


@pytest.mark.parametrize(
    ("latents", "mask", "message"),
    [
        (torch.zeros(4, 2, 4, 4), torch.zeros(1, 1, 2, 4, 4), "give"),
        (torch.zeros(1, 4, 2, 4, 4), torch.zeros(1, 4, 2, 4, 4), "give"),
        (torch.zeros(1, 4, 2, 4, 4), torch.zeros(1, 1, 3, 4, 4), "frames 3 and its latents 2"),
        (torch.zeros(1, 4, 2, 4, 4), torch.zeros(1, 1, 2, 1, 4), "height 1 and its latents 4"),
        (torch.zeros(1, 4, 2, 4, 4), torch.full((1, 1, 2, 4, 4), 2.0), "outside 0..1"),
        (torch.zeros(1, 4, 2, 4, 4), torch.full((1, 1, 2, 4, 4), float("nan")), "outside 0..1"),
    ],
)
def test_locks_that_do_not_fit(latents, mask, message):
    with pytest.raises(ValueError, match=message):
        BackgroundLock(latents, mask)


def test_mask_is_widened_then_fades():
    pixels = torch.zeros(1, 4, 36)
    pixels[0, :, 17] = 1
    mask = lock_mask(pixels, 1, 9, dilate=1, blur=1)
    assert mask.shape == (1, 1, 1, 1, 9)
    # Widened by one cell, then a fade over two more: what must be free stays 1.
    expected = [0, 1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3, 0]
    assert mask[0, 0, 0, 0].tolist() == pytest.approx(expected)


def test_mask_without_widening_is_every_touched_cell():
    pixels = torch.zeros(2, 8, 8)
    pixels[0, 3, 3] = 1
    mask = lock_mask(pixels, 2, 2, dilate=0, blur=0)
    assert mask[0, 0].tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 0]]]


def test_nothing_and_everything():
    assert lock_mask(torch.zeros(1, 8, 8), 4, 4).max() == 0
    assert lock_mask(torch.ones(1, 8, 8), 4, 4).min() == pytest.approx(1.0)


def test_wrong_input():
    with pytest.raises(ValueError, match="shape"):
        lock_mask(torch.zeros(8, 8), 4, 4)
    with pytest.raises(ValueError, match="dilate is -1"):
        lock_mask(torch.zeros(1, 8, 8), 4, 4, dilate=-1)
