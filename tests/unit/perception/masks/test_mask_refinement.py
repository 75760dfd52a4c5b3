"""Masks refined over time: bounded in memory, exact over any length, gaps filled by flow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from mask_guided_video.perception.mask_stack import MaskStack
from mask_guided_video.perception.masks.mask_refinement import (
    RefinementSettings,
    refine_masks,
    refine_tracks,
)
from mask_guided_video.perception.tracks import Tracks
from mask_guided_video.toybox import world

EVERYTHING = RefinementSettings(
    fill_gaps=2,
    median_frames=3,
    hysteresis_high=0.7,
    hysteresis_low=0.3,
    component_share=0.5,
    fill_holes=4,
    grow=1,
    box=True,
    box_padding=1,
    feather=2,
)


def moving_squares(frames=7, objects=2, height=20, width=31):
    masks = torch.zeros(objects, frames, height, width)
    for number in range(objects):
        for frame in range(frames):
            masks[number, frame, 4:10, 3 + 2 * frame + number : 9 + 2 * frame + number] = 1
    masks[:, 3] = 0
    return masks


def random_volume(seed, frames=6, side=12):
    """Blobs of soft values."""
    noise = torch.rand(1, 1, frames, side, side, generator=torch.Generator().manual_seed(seed))
    smooth = functional.avg_pool3d(noise, 3, 1, 1, count_include_pad=False)[0, 0]
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min())).contiguous()


def spread_until_nothing_changes(mask, low, high):
    """The definition of hysteresis, step by step."""
    kept = mask > high
    while True:
        spread = functional.max_pool2d(kept[:, None].float(), 3, 1, 1)[:, 0] > 0
        spread[1:] |= kept[:-1]
        spread[:-1] |= kept[1:]
        grown = (spread & (mask > low)) | kept
        if torch.equal(grown, kept):
            return mask * kept
        kept = grown


@pytest.mark.parametrize("seed", range(6))
def test_hysteresis_is_exact_over_space_and_time(seed):
    volume = random_volume(seed)
    expected = spread_until_nothing_changes(volume, 0.5, 0.85)
    assert 0 < (expected > 0).sum() <= (volume > 0.5).sum()
    assert torch.equal(refine_masks(volume, hysteresis_low=0.5, hysteresis_high=0.85), expected)


def test_hysteresis_goes_back_in_time_through_parts_that_join_later():
    volume = torch.zeros(4, 1, 7)
    volume[0] = torch.tensor([0.4, 0, 0, 0, 0.4, 0, 0.4])
    volume[1] = torch.tensor([0.4, 0, 0, 0, 0.4, 0, 0.0])
    volume[2] = torch.tensor([0.4, 0.4, 0.4, 0.4, 0.4, 0, 0])
    volume[3, 0, 2] = 0.9
    refined = refine_masks(volume, hysteresis_low=0.3, hysteresis_high=0.8)
    expected = volume.clone()
    expected[0, 0, 6] = 0
    assert torch.equal(refined, expected)


@pytest.mark.parametrize("window", [3, 5, 9])
@pytest.mark.parametrize("hard", [True, False])
def test_median_is_the_median(window, hard):
    volume = random_volume(window)
    volume = (volume > 0.5).float() if hard else volume
    reach = window // 2
    index = torch.arange(-reach, len(volume) + reach).clamp(0, len(volume) - 1)
    expected = volume[index].unfold(0, window, 1).median(dim=-1).values
    assert torch.equal(refine_masks(volume, median_frames=window), expected)
    tracks = refine_tracks(Tracks.from_masks(volume), RefinementSettings(median_frames=window))
    assert torch.allclose(tracks.object_masks()[0], expected, atol=1 / 255)


def test_steps_are_done_in_the_order_of_the_settings():
    mask = torch.zeros(1, 21, 21)
    mask[0, 6:14, 6:14] = 1
    mask[0, 9, 9] = 0
    mask[0, 1, 1] = 1
    # The far speck goes before the box is taken, the hole is filled before the mask shrinks, the box is padded last.
    refined = refine_masks(mask, component_share=1, fill_holes=1, grow=-1, box=True, box_padding=2)
    expected = torch.zeros(1, 21, 21)
    expected[0, 5:15, 5:15] = 1
    assert torch.equal(refined, expected)
    assert torch.equal(refine_masks(mask, component_share=1, fill_holes=1, grow=-3)[0, 9:11, 9:11], torch.ones(2, 2))
    soft = refine_masks(mask, box=True, feather=4)
    assert 0 < soft[0, 0, 5] < 1


def test_uint8_masks_are_read_and_the_input_stays():
    masks = moving_squares()
    before = masks.clone()
    refined = refine_masks(masks, grow=1, fill_gaps=1)
    assert torch.equal(masks, before)
    assert torch.equal(refine_masks((masks * 255).to(torch.uint8), grow=1, fill_gaps=1), refined)
    view = torch.rand(5, 6, 4).permute(2, 0, 1)
    assert torch.equal(refine_masks(view), view) and refine_masks(view).data_ptr() != view.data_ptr()


@pytest.mark.parametrize("soft", [False, True])
def test_tracks_are_refined_as_their_masks_are(tmp_path, soft):
    masks = moving_squares() * (0.8 if soft else 1.0)
    tracks = Tracks.from_masks(masks, ("a", "b"))
    before = tracks.masks.tensor()
    frames = torch.rand(7, 20, 31, 3)
    values = {name: getattr(EVERYTHING, name) for name in EVERYTHING.__dataclass_fields__}
    expected = refine_masks(tracks.object_masks(), **values, frames=frames)
    for folder in (None, tmp_path):
        refined = refine_tracks(tracks, EVERYTHING, frames, folder)
        assert (refined.object_masks() - expected).abs().max() < 2 / 255
        assert refined.masks.depth == "byte" and refined.masks.folder == folder
    assert torch.equal(tracks.masks.tensor(), before)
    assert refined.ids == tracks.ids and refined.labels == ("a", "b")
    assert torch.equal(refined.misses, tracks.misses) and refined.masks.any(0, 3)


def test_hard_masks_stay_bits_and_nothing_to_do_does_nothing():
    tracks = Tracks.from_masks(moving_squares())
    assert refine_tracks(tracks, RefinementSettings(grow=2, median_frames=3)).masks.depth == "bit"
    assert refine_tracks(tracks, RefinementSettings()) is tracks
    nobody = Tracks.empty(4, 5, 6)
    assert refine_tracks(nobody, EVERYTHING, torch.zeros(4, 5, 6, 3)) is nobody


def test_one_frame_and_odd_sizes():
    refined = refine_tracks(Tracks.from_masks(torch.ones(1, 1, 5)), EVERYTHING, torch.zeros(1, 3, 2, 4))
    assert torch.equal(refined.object_masks(), torch.ones(1, 1, 1, 5))
    assert refine_masks(torch.zeros(2, 1, 1, 1), grow=3, feather=9, box=True).shape == (2, 1, 1, 1)


def test_frames_are_read_one_at_a_time(monkeypatch):
    keys = []
    read = MaskStack.__getitem__
    monkeypatch.setattr(MaskStack, "__getitem__", lambda stack, key: keys.append(key) or read(stack, key))
    refine_tracks(Tracks.from_masks(moving_squares()), EVERYTHING, torch.rand(7, 20, 31, 3))
    assert keys and all(isinstance(part, int) for key in keys for part in key)


def test_progress_goes_up_to_the_end_and_cancels_at_once():
    tracks = Tracks.from_masks(moving_squares())
    calls = []
    refine_tracks(tracks, EVERYTHING, torch.rand(7, 20, 31, 3), progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done) and set(totals) == {done[-1]} == {2 * 7 * 6}

    def cancel(step, total):
        calls.append(step)
        if step == 16:
            raise InterruptedError

    calls = []
    with pytest.raises(InterruptedError):
        refine_tracks(tracks, EVERYTHING, progress=cancel)
    assert calls == [1, 2, 3, 4, 5, 6, 7, 14, 15, 16]


def overlap(found, truth):
    return float((found & truth).sum() / (found | truth).sum())


def filled_overlaps(clip, gap, frames):
    """How well the middle of a film is filled when its masks are taken out."""
    count = clip.masks.shape[1]
    truth = torch.from_numpy(clip.masks[0])
    start = (count - gap) // 2
    known = truth.float()
    known[start : start + gap] = 0
    refined = refine_masks(known, fill_gaps=gap, frames=frames) > 0.5
    return np.mean([overlap(refined[frame], truth[frame]) for frame in range(start, start + gap)])


@pytest.mark.parametrize(("count", "gap"), [(8, 2), (16, 4)])
def test_flow_fills_gaps_better_than_the_moved_shape(count, gap):
    generator = np.random.default_rng(5)
    clips = []
    for motion in ("bounce", "bounce", "left"):
        scene = world.scene_from_words([("red", "ball", motion)], "sand", generator)
        clips.append(world.render(scene, count))
    moved = [filled_overlaps(clip, gap, None) for clip in clips]
    flowed = [filled_overlaps(clip, gap, torch.from_numpy(clip.frames)) for clip in clips]
    # Constant speed explains straight motion and not bouncing; the pictures show both.
    assert np.mean(flowed[:2]) > 0.85 and np.mean(flowed[:2]) > np.mean(moved[:2]) + 0.15
    assert min(flowed[2:]) > 0.9 and np.mean(flowed[2:]) > np.mean(moved[2:]) - 0.02


def test_flow_that_makes_no_sense_falls_back_to_the_moved_shape():
    mask = torch.zeros(6, 64, 64)
    mask[0, 10:30, 8:28] = 1
    mask[5, 10:30, 33:53] = 1
    noise = torch.rand(6, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    filled = refine_masks(mask, fill_gaps=4, frames=noise)
    plain = refine_masks(mask, fill_gaps=4)
    for frame in range(1, 5):
        assert overlap(filled[frame] > 0.5, plain[frame] > 0.5) > 0.5


def test_frames_of_another_size_serve_and_of_another_number_are_refused():
    clip = world.render(world.scene_from_words([("red", "ball", "bounce")], "sand", np.random.default_rng(1)), 16)
    large = torch.from_numpy(clip.frames).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert filled_overlaps(clip, 4, large) > 0.85
    with pytest.raises(ValueError, match="3 frames and masks for 16"):
        filled_overlaps(clip, 4, large[:3])
    tracks = Tracks.from_masks(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="1 frames and masks for 2"):
        refine_tracks(tracks, EVERYTHING, torch.zeros(1, 4, 4, 3))
