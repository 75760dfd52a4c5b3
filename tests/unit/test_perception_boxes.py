import math

import pytest

from mask_guided_video.perception.association import associate, extrapolate, fill_order, guess_box, keep_tracks
from mask_guided_video.perception.boxes import Box, as_detections, clamp_box, interpolate_box, iou, suppress


def test_iou_of_half_overlapping_boxes_is_a_third():
    assert iou(Box(0, 0, 4, 2), Box(2, 0, 4, 2)) == pytest.approx(1 / 3)
    assert iou(Box(0, 0, 4, 2), Box(4, 0, 4, 2)) == 0.0
    assert iou(Box(1, 1, 3, 3), Box(1, 1, 3, 3)) == 1.0


def test_clamp_cuts_to_the_frame_and_drops_what_is_outside():
    assert clamp_box(Box(-2, 3, 6, 10, "ball", 0.5), height=8, width=10) == Box(0, 3, 4, 5, "ball", 0.5)
    assert clamp_box(Box(10, 0, 5, 5), height=8, width=10) is None


def test_suppression_keeps_the_best_of_overlapping_boxes_in_order_of_score():
    low, high, apart = Box(0, 0, 10, 10, "a", 0.4), Box(1, 0, 10, 10, "b", 0.9), Box(30, 0, 5, 5, "a", 0.5)
    assert suppress([low, high, apart], 0.7) == [high, apart]
    assert suppress([low, high, apart], 1.0) == [high, apart, low]
    assert suppress([], 0.7) == []


def test_dictionary_form_round_trips_and_reads_plain_boxes():
    box = Box(1.5, 2, 3, 4, "red ball", 0.75)
    assert Box.from_dict(box.to_dict()) == box
    assert Box.from_dict({"x": 1, "y": 2, "width": 3, "height": 4}) == Box(1, 2, 3, 4)


@pytest.mark.parametrize("sides", [(0, 0, 0, 5), (0, 0, 5, -1), (math.nan, 0, 1, 1), (0, 0, math.inf, 1)])
def test_impossible_boxes_are_refused(sides):
    with pytest.raises(ValueError, match="box"):
        Box(*sides)


def test_missing_side_is_named():
    with pytest.raises(ValueError, match="height"):
        Box.from_dict({"x": 1, "y": 2, "width": 3})


def test_detections_are_read_from_every_wire_form():
    plain = {"x": 1, "y": 2, "width": 3, "height": 4}
    box = Box(1, 2, 3, 4)
    assert as_detections(plain, 2) == [[box], [box]]
    assert as_detections([box, box], 2) == [[box, box], [box, box]]
    assert as_detections([[plain], []], 2) == [[box], []]
    assert as_detections([[plain]], 3) == [[box]] * 3
    assert as_detections([], 2) == [[], []]
    with pytest.raises(ValueError, match="2 frames and the clip has 3"):
        as_detections([[plain], []], 3)
    with pytest.raises(ValueError, match="dictionary"):
        as_detections([[(1, 2, 3, 4)], []], 2)


def test_interpolation_between_boxes():
    first, second = Box(0, 0, 10, 10, "ball", 0.9), Box(10, 20, 20, 10, "ball", 0.5)
    assert interpolate_box(first, second, 0.5) == Box(5, 10, 15, 10, "ball", 0.5)


def test_extrapolation_carries_speed_on_in_both_directions():
    boxes = {2: Box(10, 0, 10, 10), 3: Box(14, 0, 10, 10)}
    assert extrapolate(boxes, 5) == Box(22, 0, 10, 10)
    assert extrapolate(boxes, 0) == Box(2, 0, 10, 10)
    assert guess_box({0: Box(0, 0, 4, 4), 4: Box(8, 0, 4, 4)}, 1).x == 2.0


def test_two_objects_keep_their_numbers_across_a_gap():
    ball = [Box(4 * frame, 0, 12, 12, "ball", 0.9) for frame in range(6)]
    square = [Box(40, 30, 12, 12, "square", 0.8) for _ in range(6)]
    detections = [[ball[0], square[0]], [square[1], ball[1]], [square[2]], [square[3]], [ball[4], square[4]], [ball[5]]]
    tracks = associate(detections, max_gap=3)
    assert [track.label for track in tracks] == ["ball", "square"]
    assert sorted(tracks[0].boxes) == [0, 1, 4, 5]
    assert sorted(tracks[1].boxes) == [0, 1, 2, 3, 4]


def test_an_object_that_returns_too_late_gets_a_new_number():
    box = Box(0, 0, 10, 10, "ball")
    tracks = associate([[box], [], [], [], [box]], max_gap=2)
    assert [sorted(track.boxes) for track in tracks] == [[0], [4]]


def test_objects_that_cross_are_told_apart_by_their_phrases():
    left_to_right = [Box(4 * frame, 0, 10, 10, "red ball") for frame in range(7)]
    right_to_left = [Box(24 - 4 * frame, 0, 10, 10, "blue ball") for frame in range(7)]
    tracks = associate([list(pair) for pair in zip(left_to_right, right_to_left, strict=True)], max_gap=2)
    assert len(tracks) == 2
    assert all(box.label == track.label for track in tracks for box in track.boxes.values())


def test_fleeting_tracks_are_dropped_and_the_surest_kept():
    detections = [[Box(0, 0, 9, 9, "a", 0.5), Box(40, 0, 9, 9, "b", 0.9)] for _ in range(3)]
    detections[1].append(Box(20, 40, 9, 9, "c", 0.99))
    tracks = associate(detections, max_gap=2)
    assert [track.label for track in keep_tracks(tracks, 2, None)] == ["a", "b"]
    assert [track.label for track in keep_tracks(tracks, 1, 1)] == ["b"]


def test_gaps_are_filled_from_their_ends_inwards():
    tracks = associate([[], [], [Box(0, 0, 9, 9)], [], [], [], [Box(0, 0, 9, 9)], []], max_gap=3)
    assert fill_order(tracks, 8, max_gap=3, extend=1) == [[1, 3, 5, 7, 4]]
    assert fill_order(tracks, 8, max_gap=2, extend=0) == [[]]
