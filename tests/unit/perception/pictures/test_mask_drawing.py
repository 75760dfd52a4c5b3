"""Pictures for people: what is drawn where, in which colour, at which size."""

import numpy as np
import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.pictures.drawing import (
    PALETTE,
    colour_of,
    draw_boxes,
    draw_masks,
    draw_objects,
    drawn_size,
)
from mask_guided_video.perception.tracks import Tracks

GREY = 128 / 255


def square_tracks(frames=2, size=64, objects=1, label="ball"):
    masks = torch.zeros(objects, frames, size, size)
    for number in range(objects):
        masks[number, :, size // 4 : size // 2, size // 4 : size // 2] = 1
    return Tracks.from_masks(masks, (label,) * objects)


def colours_in(picture):
    pixels = (picture * 255).round().to(torch.uint8).reshape(-1, 3)
    return {tuple(pixel) for pixel in pixels.unique(dim=0).tolist()}


def test_small_frames_are_enlarged_when_drawn_on():
    frames = torch.zeros(2, 64, 64, 3)
    drawn = draw_boxes(frames, [[Box(10, 10, 20, 20, "ball", 0.5)], []])
    assert drawn.shape == (2, 256, 256, 3)
    assert drawn[0].any() and not drawn[1].any()
    assert draw_boxes(frames, [[], []], enlarge=1).shape == (2, 64, 64, 3)
    with pytest.raises(ValueError, match="enlarge is 0"):
        draw_boxes(frames, [[], []], enlarge=0)


def test_masks_are_drawn_where_they_are_and_nowhere_else():
    frames = torch.full((1, 64, 64, 3), GREY)
    mask = torch.zeros(1, 64, 64)
    mask[0, 20:40, 20:40] = 1
    drawn = draw_masks(frames, mask, labels=False, enlarge=1)
    changed = (drawn != GREY).any(-1)[0]
    assert changed[19:41, 19:41].sum() == changed.sum() == 22 * 22 - 4
    assert torch.equal(draw_masks(frames, Tracks.empty(1, 64, 64), enlarge=1), frames)
    assert torch.equal(draw_masks(frames, mask, outline=False, opacity=0, labels=False, enlarge=1), frames)
    with pytest.raises(ValueError, match="masks for 2 frames and 1 frames"):
        draw_masks(frames, torch.zeros(2, 64, 64))


def test_bytes_four_channels_and_one_picture_are_frames_too():
    drawn = draw_masks(torch.full((64, 64, 4), 128, dtype=torch.uint8), square_tracks(1), enlarge=2)
    assert drawn.shape == (1, 128, 128, 3) and drawn[0, -1, -1, 0] == GREY
    with pytest.raises(ValueError, match="frame 1 holds NaN"):
        draw_masks(torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1).expand(2, 8, 8, 3), square_tracks(2))


def test_an_object_has_one_colour_whatever_is_drawn_with_it():
    tracks = square_tracks(objects=3)
    frames = torch.zeros(2, 64, 64, 3)
    for number in range(3):
        drawn = draw_masks(frames, tracks.select([number]), labels=False)
        assert colour_of(tracks.ids[number]) in colours_in(drawn)
    many = [colour_of(identity) for identity in range(1, 61)]
    assert many[: len(PALETTE)] == list(PALETTE) and len(set(many)) == 60


def test_masks_that_were_filled_have_a_dashed_outline():
    tracks = square_tracks()
    tracks.misses[0, 1] = True
    drawn = draw_masks(torch.full((2, 64, 64, 3), GREY), tracks, labels=False)
    ink = [(frame == torch.tensor(PALETTE[0]) / 255).all(-1).sum() for frame in drawn]
    assert 0.3 < ink[1] / ink[0] < 0.7


def test_only_the_frames_that_are_asked_for_are_drawn():
    frames = torch.rand(5, 32, 32, 3)
    tracks = square_tracks(5, 32)
    drawn = draw_masks(frames, tracks)
    assert torch.equal(draw_masks(frames, tracks, chosen=[3, 0]), drawn[[3, 0]])
    assert draw_masks(frames, tracks, chosen=[]).shape == (0, 256, 256, 3)
    boxes = [[Box(1, 1, 9, 9)]] * 5
    assert torch.equal(draw_boxes(frames, boxes, chosen=[4]), draw_boxes(frames, boxes)[[4]])
    with pytest.raises(ValueError, match="frame 5 is to be drawn; the video has the frames 0 to 4"):
        draw_masks(frames, tracks, chosen=[5])


def test_long_films_are_drawn_within_a_limit():
    limit = 2**30
    height, width = drawn_size(720, 1280, None, 1000, limit)
    assert 0.9 * limit < 1000 * height * width * 12 <= limit and height / width == pytest.approx(720 / 1280, rel=0.01)
    # Small frames are enlarged less, by whole numbers as long as there is room.
    assert drawn_size(64, 64, None, 8, 8 * 200 * 200 * 12) == (192, 192)
    assert drawn_size(64, 64, None, 8) == (256, 256)
    drawn = draw_masks(torch.rand(4, 64, 96, 3), square_tracks(4), max_bytes=4 * 32 * 48 * 12)
    assert drawn.shape == (4, 32, 48, 3)
    with pytest.raises(ValueError, match="max_bytes"):
        draw_masks(torch.rand(1, 64, 96, 3), square_tracks(1), max_bytes=0)


def test_labels_do_not_lie_on_each_other_and_stay_inside():
    tracks = square_tracks(1, 300, objects=4, label="x")
    ground = np.full((300, 300, 3), 128, dtype=np.uint8)
    words = [(f"{identity} x 1.00",) for identity in tracks.ids]
    drawn = draw_objects(ground, tracks, 0, outline=False, opacity=0, words=words)
    black = (drawn == 0).all(-1).sum()
    single = draw_objects(ground, tracks.select([0]), 0, outline=False, opacity=0, words=words[:1])
    assert black > 3.5 * (single == 0).all(-1).sum() > 0
    for identity in tracks.ids:
        assert (drawn == np.array(PALETTE[identity - 1])).all(-1).any()
    corner = Tracks.from_masks(torch.ones(1, 1, 300, 300), ("x",))
    assert (draw_objects(ground, corner, 0, False, 0, words[:1]) == 0).all(-1).any()


def test_words_that_are_too_wide_are_left_out():
    tracks = square_tracks(1, 64)
    ground = np.full((64, 64, 3), 128, dtype=np.uint8)
    short = draw_objects(ground, tracks, 0, words=[("1",)])
    assert np.array_equal(draw_objects(ground, tracks, 0, words=[("1 a very long phrase 1.00", "1")]), short)
    assert np.array_equal(draw_objects(ground, tracks, 0, words=[("",)]), draw_objects(ground, tracks, 0))


def test_progress_is_told_after_every_frame():
    calls = []
    draw_masks(torch.rand(3, 16, 16, 3), square_tracks(3, 16), progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
