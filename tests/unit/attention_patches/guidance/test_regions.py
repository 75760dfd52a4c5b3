"""From pixel masks to token regions: literal small masks."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.attention_patches.guidance.regions import (
    MaskPyramid,
    area_weights,
    guard_thin_objects,
    pool_area,
    pool_time,
    split_overlaps,
)


def test_area_pooling_literal() -> None:
    masks = torch.zeros(2, 16, 16)
    masks[0, 3, 3] = masks[0, 4, 12] = 1.0
    masks[1, :, :8] = 1.0
    masks[1, 8:, 11] = 1.0
    pooled = pool_area(masks, 2, 2)
    torch.testing.assert_close(pooled[0], torch.tensor([[0.015625, 0.015625], [0.0, 0.0]]))
    torch.testing.assert_close(pooled[1], torch.tensor([[1.0, 0.0], [1.0, 0.125]]))


def test_area_weights_of_sizes_that_do_not_divide() -> None:
    expected = torch.tensor([[2 / 3, 1 / 3, 0.0], [0.0, 1 / 3, 2 / 3]])
    torch.testing.assert_close(area_weights(3, 2), expected)
    torch.testing.assert_close(area_weights(2, 3), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    for source, target in ((37, 5), (5, 37), (64, 16), (1, 4), (90, 45)):
        torch.testing.assert_close(area_weights(source, target).sum(dim=1), torch.ones(target))


def test_time_pooling_modes() -> None:
    masks = torch.tensor([1.0, 0.0, 0.5, 0.25, 0.25])[None, :, None, None].expand(1, 5, 2, 2)
    expected = {"max": 0.5, "mean": 0.25, "min": 0.0, "first": 0.0, "last": 0.25}
    for mode, value in expected.items():
        pooled = pool_time(masks, 2, mode)
        assert pooled.shape == (1, 2, 2, 2)
        assert pooled[0, :, 0, 0].tolist() == [1.0, value]
    with pytest.raises(ValueError, match="time pooling is 'median'; choose one of max, mean"):
        pool_time(masks, 2, "median")


def test_thin_object_keeps_its_strongest_cells() -> None:
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., 3, :] = 1.0
    pooled = pool_area(masks, 4, 4)
    assert float(pooled.max()) == 0.25
    guarded, present = guard_thin_objects(pooled, masks)
    assert present.tolist() == [[True]]
    assert guarded[0, 0].tolist() == [[1.0] * 4, [0.0] * 4, [0.0] * 4, [0.0] * 4]


def test_single_pixel_survives_at_every_grid() -> None:
    masks = torch.zeros(1, 2, 64, 64)
    masks[0, 0, 13, 50] = 1.0
    pyramid = MaskPyramid(masks)
    for height, width in ((64, 64), (16, 16), (8, 8), (5, 7), (1, 1)):
        regions = pyramid.regions(height, width, 2)
        assert float(regions.objects[0, 0].max()) == 1.0
        assert regions.present.tolist() == [[True, False]]
        assert regions.guided.tolist() == [True, False]
        assert float(regions.objects[0, 1].max()) == 0.0


def test_faint_mask_is_no_object() -> None:
    regions = MaskPyramid(torch.full((1, 1, 8, 8), 0.49)).regions(4, 4, 1)
    assert not bool(regions.guided.any()) and float(regions.objects.max()) == 0.0


def test_large_objects_are_not_rescaled() -> None:
    masks = torch.zeros(1, 1, 8, 8)
    masks[..., :6, :4] = 1.0
    regions = MaskPyramid(masks).regions(2, 2, 1)
    assert regions.objects[0, 0].tolist() == [[1.0, 0.0], [0.5, 0.0]]
    assert regions.background[0].tolist() == [[0.0, 1.0], [0.5, 1.0]]
    assert MaskPyramid(masks, hard=True).regions(2, 2, 1).objects[0, 0].tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_overlaps() -> None:
    objects = torch.tensor([[1.0, 1.0, 0.4, 0.0], [0.0, 1.0, 0.4, 0.6], [0.0, 0.0, 0.4, 0.2]])[:, None, None]
    soft = split_overlaps(objects, hard=False)[:, 0, 0]
    torch.testing.assert_close(
        soft, torch.tensor([[1.0, 0.5, 1 / 3, 0.0], [0.0, 0.5, 1 / 3, 0.6], [0.0, 0.0, 1 / 3, 0.2]])
    )
    hard = split_overlaps(objects, hard=True)[:, 0, 0]
    assert hard.tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]


def test_object_that_a_later_one_covers_is_not_present() -> None:
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, :, 1:3, 1:3] = 1.0
    masks[1, :, :3, :3] = 1.0
    assert MaskPyramid(masks, hard=True).regions(4, 4, 1).present.tolist() == [[False], [True]]
    assert MaskPyramid(masks).regions(4, 4, 1).present.tolist() == [[True], [True]]


def test_memberships_add_up_to_one() -> None:
    masks = torch.rand(3, 5, 17, 23, generator=torch.Generator().manual_seed(0))
    for hard in (False, True):
        members = MaskPyramid(masks, hard=hard).regions(6, 5, 5).memberships()
        assert members.shape == (4, 5, 6, 5)
        torch.testing.assert_close(members.sum(dim=0), torch.ones(5, 6, 5))


def test_levels_are_made_once_and_windows_are_parts() -> None:
    masks = torch.rand(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    pyramid = MaskPyramid(masks)
    whole = pyramid.regions(4, 4, 6)
    assert pyramid.regions(4, 4, 6) is whole
    window = whole.take((4, 1, 5))
    assert torch.equal(window.objects, whole.objects[:, [4, 1, 5]])
    with pytest.raises(ValueError, match="frame 6 is asked for but the clip has 6 frames"):
        whole.take((5, 6))


def test_no_objects_at_all() -> None:
    regions = MaskPyramid(torch.zeros(0, 2, 8, 8)).regions(4, 4, 2)
    assert not bool(regions.guided.any())
    assert regions.background.tolist() == torch.ones(2, 4, 4).tolist()
