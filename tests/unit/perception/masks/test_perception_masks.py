import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.mask_shapes import box_of_mask, mask_iou, moved_shape
from mask_guided_video.perception.masks.mask_refinement import refine_masks
from mask_guided_video.perception.tracks import Tracks


def square_mask(frames=1, size=16, start=4, stop=8):
    mask = torch.zeros(frames, size, size)
    mask[:, start:stop, start:stop] = 1
    return mask


def test_defaults_change_nothing():
    masks = torch.rand(2, 3, 9, 7)
    assert torch.equal(refine_masks(masks), masks)
    assert torch.equal(refine_masks(masks[0]), masks[0])
    assert refine_masks(torch.zeros(0, 3, 9, 7)).shape == (0, 3, 9, 7)


def test_growing_one_pixel_makes_a_cross_and_shrinking_takes_it_back():
    mask = torch.zeros(1, 5, 5)
    mask[0, 2, 2] = 1
    cross = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0.0]])
    assert torch.equal(refine_masks(mask, grow=1)[0], cross)
    assert torch.equal(refine_masks(cross[None], grow=-1), mask)
    assert torch.equal(refine_masks(torch.ones(1, 5, 5), grow=-2), torch.ones(1, 5, 5))


def test_median_over_time_removes_a_flash_and_fills_a_flicker():
    pixel = torch.tensor([0.0, 0, 1, 0, 0, 1, 1, 0, 1, 1]).view(-1, 1, 1)
    expected = torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1, 1, 1]).view(-1, 1, 1)
    assert torch.equal(refine_masks(pixel, median_frames=3), expected)
    assert torch.equal(refine_masks(pixel[:1], median_frames=5), pixel[:1])


def test_hysteresis_keeps_weak_pixels_only_beside_strong_ones():
    row = torch.tensor([[[0.9, 0.5, 0.4, 0.1, 0.5, 0.5]]])
    kept = torch.tensor([[[0.9, 0.5, 0.4, 0.0, 0.0, 0.0]]])
    assert torch.equal(refine_masks(row, hysteresis_low=0.3, hysteresis_high=0.8), kept)
    over_time = torch.tensor([0.9, 0.5, 0.1, 0.5]).view(4, 1, 1)
    refined = refine_masks(over_time, hysteresis_low=0.3, hysteresis_high=0.8)
    assert refined.flatten().tolist() == pytest.approx([0.9, 0.5, 0.0, 0.0])


def test_feather_softens_the_edge_and_keeps_empty_frames_empty():
    masks = torch.cat([square_mask(start=2, stop=14), torch.zeros(1, 16, 16)])
    soft = refine_masks(masks, feather=4)
    assert soft[0, 8, 8] > 0.99 and 0.0 < soft[0, 8, 1] < 0.5 < soft[0, 8, 2] < 1.0
    assert not soft[1].any()
    assert refine_masks(torch.ones(1, 2, 3), feather=50).shape == (1, 2, 3)


def test_empty_frames_between_others_are_filled_with_the_shape_moved():
    mask = torch.zeros(4, 16, 16)
    mask[0, 2:6, 2:6] = 1
    mask[3, 2:6, 8:12] = 1
    filled = refine_masks(mask, fill_gaps=2)
    assert box_of_mask(filled[1]) == Box(4, 2, 4, 4)
    assert box_of_mask(filled[2]) == Box(6, 2, 4, 4)
    assert torch.equal(refine_masks(mask, fill_gaps=1), mask)
    assert torch.equal(refine_masks(torch.zeros(4, 16, 16), fill_gaps=3), torch.zeros(4, 16, 16))


@pytest.mark.parametrize(
    "settings",
    [
        {"median_frames": 2},
        {"feather": -1},
        {"feather": float("nan")},
        {"fill_gaps": -1},
        {"hysteresis_low": 0.6, "hysteresis_high": 0.5},
        {"component_share": 1.5},
        {"fill_holes": -2},
        {"box_padding": -1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        refine_masks(torch.zeros(1, 4, 4), **settings)


def test_masks_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        refine_masks(torch.full((1, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="shape"):
        refine_masks(torch.zeros(4, 4))


def test_moved_shape_follows_the_box():
    mask = (square_mask()[0] * 255).to(torch.uint8)
    moved = moved_shape([mask], [Box(4, 4, 4, 4)], [1], Box(6, 2, 8, 4))
    assert box_of_mask(moved) == Box(6, 2, 8, 4)
    assert mask_iou(mask, mask) == 1.0
    assert mask_iou(torch.zeros_like(mask), torch.zeros_like(mask)) == 0.0


def test_tracks_union_and_report():
    masks = torch.zeros(2, 3, 4, 4)
    masks[0, :2, :2] = 1
    masks[1, :, 3, 3] = 1
    tracks = Tracks.from_masks(masks, ("ball", "square"))
    assert torch.equal(tracks.union(), masks.amax(0))
    assert torch.equal(tracks.object_masks(), masks)
    assert tracks.report().splitlines()[0] == "1 ball: seen in 2 of 3 frames, mean score 1.00, missed in 2"
    assert tracks.select([1]).labels == ("square",)


def test_no_tracks_still_have_all_frames():
    tracks = Tracks.empty(5, 6, 7)
    assert tracks.union().shape == (5, 6, 7) and not tracks.union().any()
    assert tracks.object_masks().shape == (0, 5, 6, 7)
    assert tracks.report() == "no object in 5 frames"


def test_tracks_of_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        Tracks(torch.zeros(1, 2, 4, 4), (1,), ("",), torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="scores"):
        Tracks(
            torch.zeros(1, 2, 4, 4, dtype=torch.uint8),
            (1,),
            ("",),
            torch.zeros(1, 3),
            torch.zeros(1, 2, dtype=torch.bool),
        )


def test_frames_are_checked():
    assert Film(torch.zeros(4, 5, 3)).read([0]).shape == (1, 4, 5, 3)
    assert Film(torch.full((2, 4, 5, 4), 2.0)).read([0, 1]).max() == 1.0
    with pytest.raises(ValueError, match="at least one frame"):
        Film(torch.zeros(0, 4, 5, 3))
    frames = torch.zeros(3, 4, 5, 3)
    frames[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="frame 2"):
        Film(frames).read([0, 1, 2])
