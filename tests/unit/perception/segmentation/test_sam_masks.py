"""From the mask grid to the frame and back: as SAM does it, only cheaper."""

import pytest
import torch
import torch.nn.functional as functional

from mask_guided_video.perception.segmentation.sam_masks import GUESS_LOGIT, PictureFit


def fit_of(height, width, padded=64, grid=16):
    scale = padded / max(height, width)
    return PictureFit((height, width), (int(height * scale + 0.5), int(width * scale + 0.5)), padded, grid)


def two_steps(logits, fit):
    """SAM's own way: to the square, cut, to the frame."""
    square = functional.interpolate(logits[None], (fit.padded, fit.padded), mode="bilinear", align_corners=False)
    cut = square[..., : fit.reshaped[0], : fit.reshaped[1]]
    return functional.interpolate(cut, fit.original, mode="bilinear", align_corners=False)[0]


def blobs(grid, seed):
    y, x = torch.meshgrid(torch.arange(grid) + 0.5, torch.arange(grid) + 0.5, indexing="ij")
    generator = torch.Generator().manual_seed(seed)
    centres, radii = torch.rand(4, 2, generator=generator) * grid, torch.rand(4, generator=generator) * grid / 3
    distances = [((x - cx) ** 2 + (y - cy) ** 2).sqrt() for cx, cy in centres]
    logits = torch.stack([radius - distance for radius, distance in zip(radii, distances, strict=True)]) * 3
    return logits + torch.randn(logits.shape, generator=generator)


@pytest.mark.parametrize("size", [(48, 64), (37, 91), (200, 51), (64, 64), (9, 13), (1, 1), (3, 120)])
@pytest.mark.parametrize("seed", [0, 1])
def test_masks_are_those_of_the_two_steps(size, seed):
    fit = fit_of(*size)
    logits = blobs(fit.grid, seed)
    exact = two_steps(logits, fit)
    masks = fit.enlarge(logits)
    assert masks.dtype == torch.uint8 and masks.shape == (4, *size)
    assert (masks.int() - (exact.sigmoid() * 255).round().int()).abs().max() <= 1
    # A byte next to one half may fall on either side of it; real edges may not move.
    clear = exact.abs() > 1e-2
    assert torch.equal((masks > 127)[clear], (exact > 0)[clear])


def test_masks_are_those_of_the_library_at_full_size():
    from transformers import SamImageProcessor

    fit = fit_of(720, 1280, 1024, 256)
    logits = blobs(256, 3)[:2]
    expected = SamImageProcessor().post_process_masks(
        [logits[None]], torch.tensor([fit.original]), torch.tensor([fit.reshaped]), binarize=False
    )[0][0]
    assert (fit.enlarge(logits).int() - (expected.sigmoid() * 255).round().int()).abs().max() <= 1


def test_nothing_and_everything():
    fit = fit_of(30, 50)
    assert not fit.enlarge(torch.full((2, 16, 16), -20.0)).any()
    assert (fit.enlarge(torch.full((1, 16, 16), 20.0)) == 255).all()
    assert fit.enlarge(torch.zeros(0, 16, 16)).shape == (0, 30, 50)
    assert not fit.enlarge(torch.full((1, 16, 16), float("nan"))).any()


def test_rough_masks_lie_where_the_frame_lies():
    fit = fit_of(32, 64)
    mask = torch.zeros(32, 64)
    mask[8:24, 32:] = 1
    hint = fit.shrink([mask])[0, 0]
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[2:6, 8:] = True
    assert hint.shape == (16, 16)
    torch.testing.assert_close(hint[inside], torch.full((32,), GUESS_LOGIT), atol=1e-3, rtol=0)
    torch.testing.assert_close(hint[~inside], torch.full((224,), -GUESS_LOGIT), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(48, 64), (37, 91), (200, 51), (300, 300)])
def test_there_and_back_is_the_same_shape(size):
    fit = fit_of(*size)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
    mask = ((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1).float()
    again = fit.enlarge(fit.shrink([mask])[:, 0])[0] > 127
    assert ((again & (mask > 0)).sum() / (again | (mask > 0)).sum()) > 0.88


def test_rough_masks_of_every_kind_say_the_same():
    fit = fit_of(20, 30)
    mask = torch.rand(20, 30) > 0.5
    hints = fit.shrink([mask, mask.float(), (mask * 255).to(torch.uint8), torch.zeros(20, 30)])
    torch.testing.assert_close(hints[0], hints[1])
    torch.testing.assert_close(hints[0], hints[2])
    assert (hints[3] < -GUESS_LOGIT + 1e-3).all()
    with pytest.raises(ValueError, match=r"shape \[20, 31\]; give \[20, 30\]"):
        fit.shrink([torch.zeros(20, 31)])
