"""Drawn paths: keyframes, their text, masks of them."""

import json

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.masks.keyframes import MAX_KEYFRAMES, interpolate_keyframes, parse_values
from mask_guided_video.perception.masks.mask_paths import (
    MAX_OBJECTS,
    ObjectPath,
    parse_paths,
    path_tracks,
    paths_of_boxes,
    shape_mask,
)


def values(keyframes, frames, curve):
    return [value for (value,) in interpolate_keyframes([(at, (number,)) for at, number in keyframes], frames, curve)]


def still(x=0.5, y=0.5, width=0.5, height=0.5, **others):
    return ObjectPath(((0, (x, y, width, height)),), **others)


def test_lines_between_keyframes_and_still_beyond_them():
    assert values([(1, 2.0), (3, 4.0), (7, 0.0)], 9, "linear") == [2, 2, 3, 4, 3, 2, 1, 0, 0]


def test_held_numbers_jump():
    assert values([(1, 2.0), (3, 4.0)], 5, "hold") == [2, 2, 2, 4, 4]


def test_keyframes_behind_the_end_count_for_the_way():
    assert values([(0, 0.0), (8, 8.0)], 3, "linear") == [0, 1, 2]


def test_smooth_curve_of_evenly_rising_keyframes_is_a_line():
    assert values([(0, 0.0), (2, 2.0), (6, 6.0)], 7, "spline") == pytest.approx(range(7))


def test_smooth_curve_by_hand():
    """Secants 1 and 0 over widths 2 and 2: slopes are 2 (3 h/2 - 0/2 cut to the parabola's 1.5), 0 and 0."""
    # End slope: ((2 * 2 + 2) * 1 - 2 * 0) / 4 = 1.5. Hermite at one half: 0 + 2 / 2 + 2 * (1.5 - 0) / 8.
    assert values([(0, 0.0), (2, 2.0), (4, 2.0)], 5, "spline") == pytest.approx([0, 1.375, 2, 2, 2])


def test_smooth_curve_passes_keyframes_and_overshoots_none():
    keyframes = [(0, 0.1), (3, 0.1), (4, 1.0), (11, 0.9), (12, 0.0), (20, 0.0)]
    curve = values(keyframes, 21, "spline")
    assert [curve[at] for at, _ in keyframes] == pytest.approx([number for _, number in keyframes])
    assert min(curve) >= 0 and max(curve) <= 1
    assert all(before <= after for before, after in zip(curve[:4], curve[1:5], strict=True))


@pytest.mark.parametrize("curve", ["linear", "spline", "hold"])
def test_one_keyframe_holds(curve):
    assert values([(5, 3.0)], 4, curve) == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("keyframes", "frames", "curve", "words"),
    [
        ([], 4, "linear", "there are 0"),
        ([(0, (1.0,))] * (MAX_KEYFRAMES + 1), 4, "linear", "there are 1001"),
        ([(4, (1.0,)), (2, (1.0,))], 8, "linear", "frame 2 comes after frame 4"),
        ([(2, (1.0,)), (2, (1.0,))], 8, "linear", "frame 2 comes after frame 2"),
        ([(-1, (1.0,))], 8, "linear", "frames -1"),
        ([(0, (1.0,)), (1, (1.0, 2.0))], 8, "linear", "equally many"),
        ([(0, (float("nan"),))], 8, "linear", "finite"),
        ([(0, (1.0,))], 0, "linear", "0 frames"),
        ([(0, (1.0,))], 8, "wavy", "'wavy'"),
    ],
)
def test_keyframes_without_meaning_are_refused(keyframes, frames, curve, words):
    with pytest.raises(ValueError, match=words):
        interpolate_keyframes(keyframes, frames, curve)


def test_values_as_text():
    assert parse_values("0: 1, 4: 0.5", 6) == (1, 0.875, 0.75, 0.625, 0.5, 0.5)
    assert parse_values("0: 0\n2\uff1a -1e1;", 3) == (0, -5, -10)
    assert parse_values(" 0.25 ", 2) == (0.25, 0.25)
    assert parse_values(" \n ", 2) == ()


@pytest.mark.parametrize("text", ["0: 1, x", "0 1", "a: 1", "0: nan", "1, 2", "-1: 3", "1.5: 2", "0: __import__('os')"])
def test_wrong_values_are_refused(text):
    with pytest.raises(ValueError, match="not a number at a frame"):
        parse_values(text, 4)


def test_path_of_a_box_by_hand():
    path = ObjectPath(((0, (0.25, 0.5, 0.5, 0.5)), (2, (0.75, 0.5, 0.5, 0.5))), "ball")
    tracks = path_tracks([path], 3, 4, 4)
    expected = torch.tensor(
        [
            [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]],
        ]
    )
    assert torch.equal(tracks.masks[0], (255 * expected).to(torch.uint8))
    assert tracks.labels == ("ball",) and not tracks.misses.any() and tracks.scores.eq(1).all()


def test_an_ellipse_has_its_area_and_no_corners():
    mask = shape_mask("ellipse", Box(10, 20, 60, 40), 100, 100)
    assert mask.sum().item() == pytest.approx(3.14159 * 30 * 20, rel=0.01)
    assert not mask[20, 10] and mask[40, 10] and mask[20, 40]


@pytest.mark.parametrize("shape", ["box", "ellipse"])
@pytest.mark.parametrize("middle", [0.0, 3.0, 3.5, 6.99])
def test_tiny_shapes_keep_a_pixel(shape, middle):
    mask = shape_mask(shape, Box(middle - 0.005, middle - 0.005, 0.01, 0.01), 7, 7)
    assert mask.sum() == 1 and mask[int(middle), int(middle)]


def test_objects_leave_the_frame_and_are_hidden():
    leaving = ObjectPath(((0, (0.5, 0.5, 0.25, 0.25)), (4, (1.5, 0.5, 0.25, 0.25))), "leaves")
    tracks = path_tracks([leaving, still(label="hidden", hidden=((1, 2), (4, 9)))], 5, 16, 16)
    assert tracks.misses.tolist() == [[False, False, False, True, True], [False, True, True, False, True]]
    assert [tracks.masks.any(0, frame) for frame in range(5)] == [True, True, True, False, False]
    assert tracks.scores.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 1, 0]]
    # Half of it is outside at frame 2: the middle is on the border.
    assert int((tracks.masks[0, 2] > 0).sum()) * 2 == int((tracks.masks[0, 0] > 0).sum())


def test_no_paths_are_no_objects():
    assert path_tracks((), 3, 4, 5).masks.shape == (0, 3, 4, 5)
    assert parse_paths("  ") == ()


def test_text_of_paths():
    text = json.dumps(
        [
            {
                "label": "  red   ball ",
                "shape": "ellipse",
                "curve": "spline",
                "hidden": [[2, 3]],
                "keyframes": [
                    {"frame": 0, "x": 0.25, "y": 1, "width": 0.5, "height": 0.25},
                    {"frame": 4, "x": -1, "y": 0.5, "width": 0.75},
                ],
            },
            {"keyframes": [{"frame": 1, "x": 0, "y": 0, "width": 1, "height": 1}]},
        ]
    )
    ball, other = parse_paths(text)
    places = ((0, (0.25, 1.0, 0.5, 0.25)), (4, (-1.0, 0.5, 0.75, 0.25)))
    assert ball == ObjectPath(places, "red ball", "ellipse", "spline", ((2, 3),))
    assert other == ObjectPath(((1, (0.0, 0.0, 1.0, 1.0)),))


def test_a_single_object_needs_no_list():
    text = '{"keyframes": [{"frame": 0, "x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}]}'
    assert parse_paths(text) == (still(),)


def _with(**changes):
    keyframe = {"frame": 0, "x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5} | changes.pop("keyframe", {})
    return json.dumps([{"keyframes": [keyframe]} | changes])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "is int"),
        ("[3]", "object 1 of the path is 3"),
        (json.dumps([{"keyframes": []}]), "lacks a list of 1 to"),
        (json.dumps([{}] * (MAX_OBJECTS + 1)), f"{MAX_OBJECTS + 1} objects"),
        (" " * 1_000_001 + "x", "1000002 characters"),
        (_with(colour="red"), "'colour'"),
        (_with(label=3), "label is 3"),
        (_with(shape="star"), "'star'"),
        (_with(curve="wavy"), "'wavy'"),
        (_with(hidden=[[5, 3]]), "frames 5 to 3"),
        (_with(hidden=[3]), "hidden holds 3"),
        (_with(hidden="all"), "hidden is 'all'"),
        (_with(keyframe={"frame": 0.5}), "frame is 0.5"),
        (_with(keyframe={"frame": True}), "frame is True"),
        (_with(keyframe={"frame": -1}), "frames -1"),
        (_with(keyframe={"frame": 10**9}), "frames 1000000000"),
        (_with(keyframe={"x": "left"}), "x is 'left'"),
        (_with(keyframe={"x": None}), "x is None"),
        (_with(keyframe={"x": 10**400}), "x is 1000"),
        (_with(keyframe={"x": 64}), r"at \(64, 0.5\)"),
        (_with(keyframe={"width": 0}), "0 x 0.5"),
        (_with(keyframe={"width": None}), "must give both"),
        (_with(keyframe={"height": 11}), "0.5 x 11"),
        (_with(keyframe={"z": 1}), "'z'"),
        ('[{"keyframes": [{"frame": 0, "x": NaN, "y": 0, "width": 1, "height": 1}]}]', "x is nan"),
    ],
)
def test_wrong_text_is_refused_with_its_place(text, words):
    with pytest.raises(ValueError, match=words):
        parse_paths(text)


def test_given_boxes_are_keyframes():
    boxes = [[Box(0, 0, 2, 2, "a", 0.5), Box(4, 4, 2, 2, "a", 0.9), Box(0, 0, 8, 4, "b")], [], [Box(6, 4, 2, 2, "a")]]
    first, second = paths_of_boxes(boxes, 8, 8)
    assert first == ObjectPath(((0, (0.625, 0.625, 0.25, 0.25)), (2, (0.875, 0.625, 0.25, 0.25))), "a")
    assert second == ObjectPath(((0, (0.5, 0.25, 1.0, 0.5)),), "b")
    assert [box.x for box in first.boxes(3, 8, 8)] == [4, 5, 6]
    assert paths_of_boxes([[], []], 8, 8) == ()
