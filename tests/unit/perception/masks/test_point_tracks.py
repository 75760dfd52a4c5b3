"""Points over time become paths of objects, and tracks become points."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.perception.masks.mask_paths import path_tracks
from mask_guided_video.perception.masks.point_tracks import PointTracks, paths_of_points, points_of_tracks
from mask_guided_video.perception.tracks import Tracks

NAN = float("nan")


def core(places, visible=None):
    """Places [T][N] of (x, y) in core's form."""
    data = {"track_path": torch.tensor(places, dtype=torch.float64)}
    return data if visible is None else {**data, "track_visibility": torch.tensor(visible)}


def paths(data, height=8, width=16, **values):
    points = PointTracks.of_core(data)
    return paths_of_points(points, points.frames, height, width, **values)


def boxes(path, frames, height=8, width=16):
    return [None if box is None else box.corners for box in path.boxes(frames, height, width)]


def test_the_box_of_an_object_holds_its_visible_points():
    data = core([[(2, 1), (6, 5), (90, 90)], [(4, 1), (8, 3), (5, 2)]], [[True, True, False], [True, True, True]])
    (path,) = paths(data)
    assert boxes(path, 2) == [pytest.approx((2, 1, 6, 5)), pytest.approx((4, 1, 8, 3))]
    (wider,) = paths(data, size=2.0)
    assert boxes(wider, 2)[0] == pytest.approx((1, 0, 7, 6))


def test_each_point_is_an_object_of_its_own():
    first, second = paths(core([[(2, 1), (6, 5)]]), grouping="object_per_point", size=4, labels=("a", "b"))
    assert (first.label, second.label, first.shape) == ("a", "b", "box")
    assert boxes(first, 1) == [pytest.approx((0, -1, 4, 3))] and boxes(second, 1) == [pytest.approx((4, 3, 8, 7))]
    assert [one.label for one in paths(core([[(2, 1), (6, 5)]]), grouping="object_per_point", labels=("c",))] == [
        "c",
        "c",
    ]


def test_a_point_alone_is_a_pixel():
    (path,) = paths(core([[(3.5, 2.5)]]))
    tracks = path_tracks([path], 1, 8, 16)
    assert (tracks.masks[0, 0] > 0).nonzero().tolist() == [[2, 3]]


def test_frames_without_a_visible_point_are_hidden():
    visible = [[False], [True], [False], [False], [True], [False]]
    (path,) = paths(core([[(NAN, NAN)], [(2, 2)], [(0, 0)], [(NAN, 0)], [(8, 4)], [(0, 0)]], visible), size=2)
    assert path.hidden == ((0, 0), (2, 3), (5, 5))
    assert [box is None for box in boxes(path, 6)] == [True, False, True, True, False, True]
    assert boxes(path, 6)[4] == pytest.approx((7, 3, 9, 5))


def test_one_column_of_visibility_is_for_all_points():
    (path,) = paths(core([[(1, 1), (3, 3)], [(1, 1), (3, 3)]], [[1], [0]]))
    assert path.hidden == ((1, 1),)


def test_a_point_that_is_never_visible_stays_an_object():
    one, other = paths(core([[(1, 1), (3, 3)]], [[True, False]]), grouping="object_per_point", size=2)
    assert boxes(one, 1) != [None] and boxes(other, 1) == [None]
    tracks = path_tracks([one, other], 1, 8, 16)
    assert tracks.misses.tolist() == [[False], [True]]


def test_only_bends_are_keyframes_and_no_place_is_lost():
    frames = 40
    places = [[(frame * 0.25, 2.0 if frame < 20 else 2.0 + (frame - 20) * 0.125)] for frame in range(frames)]
    (path,) = paths(core(places), size=1)
    assert [frame for frame, _ in path.keyframes] == [0, 20, 39]
    middles = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in boxes(path, frames)]
    assert middles == [pytest.approx(place[0], abs=0.02) for place in places]


def test_a_curve_keeps_within_a_hundredth_of_a_pixel():
    turn = torch.linspace(0, 6.3, 60)
    places = torch.stack([8 + 4 * torch.cos(turn), 4 + 3 * torch.sin(turn)], -1)[:, None]
    (path,) = paths({"track_path": places}, size=1)
    middles = torch.tensor([((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in boxes(path, 60)])
    assert float((middles - places[:, 0]).abs().max()) < 0.0101


@pytest.mark.parametrize(
    "data,values,message",
    [
        (None, {}, "TRACKS need a tensor track_path, but this is None"),
        ({"packed_masks": None}, {}, "has the keys packed_masks; connect"),
        (core([[1.0, 2.0]]), {}, r"track_path of TRACKS has shape \[1, 2\]"),
        ({"track_path": torch.zeros(0, 2, 2)}, {}, r"has shape \[0, 2, 2\]"),
        (core([[(1, 1), (2, 2)]], [[True], [True]]), {}, r"has shape \[2, 1\] for 2 points in 1 frames"),
        ({**core([[(1, 1)]]), "track_visibility": 3}, {}, "track_visibility of TRACKS is 3; give a tensor"),
        (core([[(1, 1)], [(NAN, 2)]]), {}, "point 0 of TRACKS is at .* in frame 1, where it is visible"),
        (core([[(1, 1)]], [[False]]), {}, "1 points, of which none is visible"),
        ({"track_path": torch.zeros(2, 0, 2)}, {}, "0 points, of which none is visible"),
        (core([[(40, 20)], [(50, 30)]]), {}, r"lie outside of 16 x 8 pixels \(x 40 to 50, y 20 to 30\); set width"),
        (core([[(1, 1)] * 65]), {"grouping": "object_per_point"}, "has 65 points, more than 64 objects"),
        (core([[(1, 1)]]), {"labels": ("a", "b")}, r"there are 2 labels \(a, b\) for 1 objects"),
    ],
)
def test_what_is_refused(data, values, message):
    with pytest.raises(ValueError, match=message):
        paths(data, **values)


def test_another_length_names_both():
    with pytest.raises(ValueError, match="TRACKS has 1 frames and the masks 8; set frames to 1"):
        paths_of_points(PointTracks.of_core(core([[(1, 1)]])), 8, 8, 16)


def objects(*films):
    return Tracks.from_masks(torch.tensor(films, dtype=torch.float32))


def test_one_point_is_the_middle_of_the_mask():
    points = points_of_tracks(objects([[[1, 1, 0, 0], [1, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 1, 1]]]))
    assert points.visible.tolist() == [[True], [True]]
    assert points.places[0, 0].tolist() == pytest.approx([(0.5 + 1.5 + 0.5) / 3, (0.5 + 0.5 + 1.5) / 3])
    assert points.places[1, 0].tolist() == [3.0, 1.5]


def test_between_sightings_a_point_is_invisible_on_the_way():
    row = [[[1, 0, 0, 0, 0]], [[0, 0, 0, 0, 0]], [[0, 0, 0, 0, 1]], [[0, 0, 0, 0, 0]]]
    points = points_of_tracks(objects(row, [[[0] * 5]] * 4))
    assert points.visible.tolist() == [[True, False], [False, False], [True, False], [False, False]]
    assert points.places[:, 0, 0].tolist() == [0.5, 2.5, 4.5, 4.5]
    assert points.places[:, 1].abs().sum() == 0


def test_more_points_are_in_the_mask_and_grow_with_its_box():
    masks = torch.zeros(1, 2, 12, 12)
    masks[0, 0, 1:4, 1:4] = 1.0
    masks[0, 1, 2:8, 4:10] = 1.0
    points = points_of_tracks(Tracks.from_masks(masks), 5)
    assert points.places.shape == (2, 5, 2) and points.visible.all()
    for frame in range(2):
        x, y = points.places[frame].T
        assert masks[0, frame, y.long(), x.long()].all()
    small, large = points.places[0] - torch.tensor([1.0, 1.0]), points.places[1] - torch.tensor([4.0, 2.0])
    assert torch.allclose(small * 2, large, atol=1e-5)
    assert len({tuple(place) for place in points.places[1].tolist()}) == 5


def test_points_of_a_rectangle_lead_back_to_its_way():
    masks = torch.zeros(1, 4, 16, 32)
    for frame in range(4):
        masks[0, frame, 4:10, 2 + 6 * frame : 10 + 6 * frame] = 1.0
    tracks = Tracks.from_masks(masks)
    points = PointTracks.of_core(points_of_tracks(tracks).to_core())
    (path,) = paths_of_points(points, 4, 16, 32, size=1)
    for frame, box in enumerate(path.boxes(4, 16, 32)):
        assert (box.x + box.width / 2, box.y + box.height / 2) == pytest.approx((6 + 6 * frame, 7), abs=0.02)


def test_no_object_is_no_point():
    points = points_of_tracks(Tracks.empty(3, 4, 5), 2)
    assert points.places.shape == (3, 0, 2) and points.visible.shape == (3, 0)
    with pytest.raises(ValueError, match="there are 0 points per object"):
        points_of_tracks(Tracks.empty(3, 4, 5), 0)
