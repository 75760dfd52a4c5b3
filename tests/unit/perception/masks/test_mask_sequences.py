"""Mask sequences: other lengths and sizes, onto a path, wider and softer."""

import pytest
import torch

from mask_guided_video.perception.masks.mask_paths import ObjectPath, path_tracks
from mask_guided_video.perception.masks.mask_sequences import SequenceSettings, make_sequence
from mask_guided_video.perception.tracks import Tracks


def numbered(count, height=4, width=8):
    """Frame n has its n first columns inside, from 1 on, so that frames tell themselves apart."""
    masks = torch.zeros(count, height, width)
    for frame in range(count):
        masks[frame, :, : frame + 1] = 1
    return Tracks.from_masks(masks, ("stair",))


def numbers(tracks):
    return [int((tracks.masks[0, frame][0] > 127).sum()) for frame in range(tracks.frames)]


def disc(x, y, radius=10.0, size=64):
    path = ObjectPath(((0, (x / size, y / size, 2 * radius / size, 2 * radius / size)),), shape="ellipse")
    return path_tracks([path], 1, size, size).object_masks()[0, 0]


def middle(mask):
    rows, columns = (mask > 127).nonzero().float().unbind(1)
    return columns.mean().item() + 0.5, rows.mean().item() + 0.5


def test_defaults_change_nothing():
    tracks = numbered(3)
    assert make_sequence(tracks, SequenceSettings()) is tracks


@pytest.mark.parametrize(
    ("timing", "frames", "expected"),
    [
        ("hold", 8, [1, 1, 2, 2, 3, 3, 4, 4]),
        ("hold", 6, [1, 1, 2, 3, 3, 4]),
        ("hold", 2, [1, 3]),
        ("extend", 6, [1, 2, 3, 4, 4, 4]),
        ("extend", 2, [1, 2]),
        ("repeat", 7, [1, 2, 3, 4, 1, 2, 3]),
        ("repeat", 3, [1, 2, 3]),
        ("exact", 4, [1, 2, 3, 4]),
        ("interpolate", 4, [1, 2, 3, 4]),
        ("interpolate", 2, [1, 4]),
        ("interpolate", 1, [1]),
    ],
)
def test_lengths(timing, frames, expected):
    assert numbers(make_sequence(numbered(4), SequenceSettings(frames=frames, timing=timing))) == expected


def test_the_beginning_is_left_out():
    assert numbers(make_sequence(numbered(5), SequenceSettings(start=2))) == [3, 4, 5]
    assert numbers(make_sequence(numbered(5), SequenceSettings(start=3, frames=5, timing="repeat"))) == [4, 5, 4, 5, 4]


@pytest.mark.parametrize("timing", ["interpolate", "hold", "extend", "repeat", "exact"])
def test_one_mask_is_for_all_frames(timing):
    assert numbers(make_sequence(numbered(1), SequenceSettings(frames=5, timing=timing))) == [1] * 5


def test_a_moving_shape_moves_between_masks():
    """They do not overlap: blended in place, nothing would be left in the middle."""
    tracks = Tracks.from_masks(torch.stack([disc(12, 20), disc(52, 40)]), ("ball",))
    made = make_sequence(tracks, SequenceSettings(frames=5))
    area = (tracks.masks[0, 0] > 127).sum().item()
    for frame in range(5):
        mask = made.masks[0, frame]
        assert middle(mask) == pytest.approx((12 + 10 * frame, 20 + 5 * frame), abs=0.6)
        assert (mask > 127).sum().item() == pytest.approx(area, rel=0.06)
    assert torch.equal(made.masks[0, 0], tracks.masks[0, 0]) and torch.equal(made.masks[0, 4], tracks.masks[0, 1])


def test_a_shape_turns_into_another():
    """Half way between a square and the disc in it: between both, by area and pixel by pixel."""
    square = torch.zeros(64, 64)
    square[12:52, 12:52] = 1
    tracks = Tracks.from_masks(torch.stack([square, disc(32, 32, 20)]))
    half = make_sequence(tracks, SequenceSettings(frames=3)).masks[0, 1] > 127
    first, last = tracks.masks[0, 0] > 127, tracks.masks[0, 1] > 127
    assert bool((half <= first).all()) and bool((last <= half).all())
    assert last.sum() < half.sum() < first.sum()


def test_hard_masks_stay_hard_and_soft_ones_soft():
    hard = Tracks.from_masks(torch.stack([disc(20, 20), disc(40, 40)]))
    soft = Tracks.from_masks(torch.stack([disc(20, 20), disc(40, 40)]) * 0.8)
    settings = SequenceSettings(frames=4, height=50, width=70)
    assert set(make_sequence(hard, settings).masks.tensor().unique().tolist()) == {0, 255}
    made = make_sequence(soft, settings).masks.tensor()
    assert made.max() == 204 and len(made.unique()) > 3


def test_empty_masks_are_no_shapes_to_blend_with():
    masks = torch.stack([torch.zeros(64, 64), disc(32, 32)])
    made = make_sequence(Tracks.from_masks(masks), SequenceSettings(frames=5))
    assert [made.masks.any(0, frame) for frame in range(5)] == [False, False, True, True, True]
    assert made.misses.tolist() == [[True, True, False, False, False]]
    nothing = make_sequence(Tracks.from_masks(torch.zeros(2, 8, 8)), SequenceSettings(frames=3, dilate=2, feather=1))
    assert not nothing.masks.tensor().any() and nothing.misses.all() and not nothing.scores.any()


def test_no_objects_stay_none():
    made = make_sequence(Tracks.empty(3, 8, 8), SequenceSettings(frames=5, height=4, width=6))
    assert made.masks.shape == (0, 5, 4, 6) and made.scores.shape == (0, 5)


def test_another_size():
    masks = torch.zeros(2, 4, 4)
    masks[:, :2, :2] = 1
    made = make_sequence(Tracks.from_masks(masks), SequenceSettings(height=2, width=8))
    expected = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.uint8) * 255
    assert torch.equal(made.masks[0, 1], expected)


def test_a_thin_thing_keeps_a_pixel():
    masks = torch.zeros(1, 64, 64)
    masks[0, :, 33] = 1
    assert (make_sequence(Tracks.from_masks(masks), SequenceSettings(height=8, width=8)).masks[0, 0] > 127).any()


def test_dilated_and_feathered_in_pixels_of_the_result():
    masks = torch.zeros(1, 16, 16)
    masks[0, 6:10, 6:10] = 1
    wider = make_sequence(Tracks.from_masks(masks), SequenceSettings(height=32, width=32, dilate=3)).masks[0, 0]
    assert (wider[16] > 127).nonzero().flatten().tolist() == list(range(9, 23))
    smaller = make_sequence(Tracks.from_masks(masks), SequenceSettings(dilate=-1)).masks[0, 0]
    assert (smaller > 127).sum() == 4
    soft = make_sequence(Tracks.from_masks(masks), SequenceSettings(feather=4)).masks[0, 0]
    row = soft[8].tolist()
    assert row[:8] == sorted(row[:8]) and row[8:] == sorted(row[8:], reverse=True)
    assert 0 < row[5] < 128 < row[6] < 255


def test_a_shape_follows_a_path():
    path = ObjectPath(((0, (0.25, 0.25, 0.25, 0.5)), (3, (0.75, 0.5, 0.25, 0.5))), "ball", hidden=((1, 1),))
    tracks = Tracks.from_masks(disc(10, 50, 8)[None], ("ball",))
    areas = {}
    for placing in ("stretch", "fit", "keep"):
        made = make_sequence(tracks, SequenceSettings(frames=4, paths=(path,), placing=placing))
        assert made.misses.tolist() == [[False, True, False, False]]
        assert middle(made.masks[0, 0]) == pytest.approx((16, 16), abs=0.6)
        assert middle(made.masks[0, 3]) == pytest.approx((48, 32), abs=0.6)
        areas[placing] = (made.masks[0, 0] > 127).sum().item()
    # 16 x 16 pixels in a box of 16 x 32.
    own = (tracks.masks[0, 0] > 127).sum().item()
    assert areas["keep"] == areas["fit"] == pytest.approx(own, rel=0.05)
    assert areas["stretch"] == pytest.approx(2 * own, rel=0.05)


def test_each_object_has_its_path_and_may_leave_the_picture():
    paths = tuple(ObjectPath(((0, (x, 0.5, 0.25, 0.25)), (2, (x + 1, 0.5, 0.25, 0.25)))) for x in (0.25, 0.75))
    tracks = Tracks.from_masks(torch.stack([disc(10, 10, 8)[None], disc(50, 50, 8)[None]]))
    made = make_sequence(tracks, SequenceSettings(frames=3, paths=paths))
    assert made.misses.tolist() == [[False, False, True], [False, True, True]]


def test_progress_counts_every_mask_and_may_cancel():
    seen = []
    tracks = Tracks.from_masks(torch.ones(2, 3, 4, 4))
    make_sequence(tracks, SequenceSettings(frames=5), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]

    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sequence(tracks, SequenceSettings(frames=5), cancel)


def test_mismatches_say_both_numbers():
    with pytest.raises(ValueError, match="4 masks .* 8 frames"):
        make_sequence(numbered(4), SequenceSettings(frames=8, timing="exact"))
    with pytest.raises(ValueError, match="start is 4 and there are 4 masks"):
        make_sequence(numbered(4), SequenceSettings(start=4))
    path = ObjectPath(((0, (0.5, 0.5, 0.5, 0.5)),))
    with pytest.raises(ValueError, match="2 paths and 1 objects"):
        make_sequence(numbered(4), SequenceSettings(paths=(path, path)))


@pytest.mark.parametrize(
    "settings",
    [
        {"start": -1}, {"frames": -1}, {"frames": 10**6}, {"height": -2}, {"width": 10**6}, {"timing": "faster"},
        {"placing": "left"}, {"feather": -1.0}, {"feather": float("nan")}, {"dilate": 10**6},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SequenceSettings(**settings)
