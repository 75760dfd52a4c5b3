"""A film and its objects over time in one picture."""

import pytest
import torch

from mask_guided_video.perception.mask_stack import MaskStack
from mask_guided_video.perception.pictures.drawing import colour_of
from mask_guided_video.perception.pictures.film_strip import (
    LANE,
    LANE_GAP,
    LANE_HEIGHT,
    MARGIN,
    NAME_WIDTH,
    PAPER,
    spread,
    strip_over_time,
)
from mask_guided_video.perception.tracks import Tracks


def tracks_of(frames=10, objects=2, size=32):
    masks = torch.zeros(objects, frames, size, size)
    masks[:, :, 8:20, 8:20] = 1
    return Tracks.from_masks(masks, ("ball",) * objects)


def lane_of(strip, number, lanes):
    """Pixels of a lane: [LANE_HEIGHT, w, 3] in whole numbers, counted from below."""
    bottom = strip.shape[1] - MARGIN - 2 * 18
    top = bottom - (lanes - number) * (LANE_HEIGHT + LANE_GAP)
    return (strip[0, top : top + LANE_HEIGHT, MARGIN + NAME_WIDTH : -MARGIN] * 255).round().to(torch.uint8)


def share_of_ink(lane, identity, first, last):
    """Share of the pixels of a part of a lane (0..1 of its width) that have the object's full colour."""
    part = lane[:, round(first * lane.shape[1]) : round(last * lane.shape[1])]
    ink = (torch.tensor(colour_of(identity), dtype=torch.float32) * 0.82).to(torch.uint8)
    return float((part == ink).all(-1).float().mean())


def test_frames_are_spread_evenly_from_first_to_last():
    assert spread(100, 5) == [0, 25, 50, 74, 99]
    assert spread(3, 8) == [0, 1, 2] and spread(1, 8) == [0] and spread(9, 1) == [0]


def test_lanes_show_when_an_object_was_seen_filled_and_missed():
    tracks = tracks_of()
    tracks.scores[0, :5] = 0.5
    tracks.misses[1, 4:8] = True
    for frame in (6, 7):
        tracks.masks.write(1, frame, torch.zeros(32, 32))
    strip = strip_over_time(torch.rand(10, 32, 32, 3), tracks)
    assert strip.ndim == 4 and strip.shape[0] == 1 and 0 <= strip.min() and strip.max() <= 1
    first, second = lane_of(strip, 0, 2), lane_of(strip, 1, 2)
    assert share_of_ink(first, 1, 0, 0.5) == pytest.approx(0.5, abs=0.05)
    assert share_of_ink(first, 1, 0.5, 1) == pytest.approx(1.0, abs=0.05)
    assert share_of_ink(second, 2, 0, 0.4) > 0.95
    assert share_of_ink(second, 2, 0.4, 0.6) == pytest.approx(1 / 3, abs=0.1)
    assert tuple(second[5, round(0.68 * second.shape[1])].tolist()) == LANE


def test_pictures_hold_the_masks_of_their_frames():
    frames = torch.zeros(3, 32, 32, 3)
    strip = strip_over_time(frames, tracks_of(3, 1), picture_height=64)
    picture = strip[0, MARGIN : MARGIN + 64, MARGIN + NAME_WIDTH : MARGIN + NAME_WIDTH + 64]
    assert picture[28, 28, 1] > 0.2 and not picture[60, 60].any()
    assert torch.equal((strip[0, 2, 2] * 255).round(), torch.tensor(PAPER).float())


def test_one_missed_frame_in_a_long_film_is_seen():
    frames = 5000
    masks = MaskStack(frames, 4, 4)
    masks.add_object()
    misses = torch.zeros(1, frames, dtype=torch.bool)
    misses[0, 2500] = True
    tracks = Tracks(masks, (1,), ("dot",), torch.ones(1, frames), misses)
    lane = lane_of(strip_over_time(torch.zeros(frames, 4, 4, 3, dtype=torch.uint8), tracks), 0, 1)
    empty = (lane == torch.tensor(LANE)).all(-1).all(0).nonzero().flatten()
    assert empty.tolist() == [lane.shape[1] // 2]


@pytest.mark.parametrize(("height", "width"), [(20, 400), (400, 20), (33, 47), (1, 1)])
def test_any_shape_of_frames_and_masks(height, width):
    strip = strip_over_time(torch.rand(4, height, width, 3), tracks_of(4, 1))
    assert strip.shape[0] == 1 and strip.shape[2] <= 2 * MARGIN + NAME_WIDTH + 4 * (480 + 4)


def test_many_pictures_make_rows_and_many_objects_are_counted():
    frames = torch.rand(40, 16, 16, 3)
    one, two = (strip_over_time(frames, tracks_of(40, 1), count=count) for count in (8, 16))
    assert one.shape[2] == two.shape[2] and two.shape[1] - one.shape[1] == 160 + 18 + 4
    few, many = (strip_over_time(frames, tracks_of(40, objects), max_lanes=3) for objects in (3, 30))
    assert few.shape == many.shape and not torch.equal(few, many)


def test_no_object_and_one_frame():
    strip = strip_over_time(torch.rand(1, 16, 16, 4), Tracks.empty(1, 16, 16))
    assert strip.shape[0] == 1 and strip.shape[2] == 2 * MARGIN + NAME_WIDTH + 320


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="masks for 3 frames and 4 frames"):
        strip_over_time(torch.rand(4, 8, 8, 3), tracks_of(3))
    for name in ("count", "picture_height", "max_lanes"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            strip_over_time(torch.rand(3, 8, 8, 3), tracks_of(3), **{name: 0})
