import math

import numpy as np
import pytest
import torch

from mask_guided_video.perception.boxes import (
    Box,
    as_detections,
    clamp_box,
    interpolate_box,
    iou,
    suppress,
)


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


SQUARE = {"x": 1, "y": 2, "width": 3, "height": 4}


def test_boxes_of_other_packs_without_score_or_label():
    assert Box.from_dict({**SQUARE, "score": None, "label": None}) == Box(1, 2, 3, 4)
    assert Box.from_dict({**SQUARE, "x": torch.tensor(1.0), "score": np.float32(0.5)}) == Box(1, 2, 3, 4, "", 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": None}, "the x of a bounding box is None; give a finite number"),
        ({"width": "wide"}, "the width of a bounding box is 'wide'"),
        ({"score": "sure"}, "the score of a bounding box is 'sure'"),
        ({"y": 10**400}, "the y of a bounding box is a whole number of 1329 bits"),
        ({"y": 10**5000}, "the y of a bounding box is a whole number"),
        ({"height": torch.ones(2)}, "the height of a bounding box is tensor"),
        ({"x": [1] * 500}, r"is \[1, 1, .* \.\.\.; give a finite number"),
        ({"score": math.nan}, "not finite"),
    ],
)
def test_what_is_no_number_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        Box.from_dict({**SQUARE, **values})


def test_keys_of_several_kinds_are_listed():
    with pytest.raises(ValueError, match=r"has the keys \['1', 'x'\] and lacks y, width, height"):
        as_detections({1: 2, "x": 3}, 1)


def test_a_drawn_box_is_called_by_its_description():
    drawn = {"x": 1, "y": 2, "width": 3, "height": 4, "metadata": {"type": "obj", "desc": "red ball"}}
    assert Box.from_dict(drawn) == Box(1, 2, 3, 4, "red ball")
    assert Box.from_dict({**drawn, "label": "cat"}).label == "cat"
    assert Box.from_dict({**drawn, "metadata": None}).label == ""


@pytest.mark.parametrize(
    "boxes,message",
    [
        ([None, [{"x": 1, "y": 1, "width": 2, "height": 2}]], "boxes of frame 0 are None; give a list"),
        ([[], "box"], "boxes of frame 1 are 'box'"),
        (["box", {"x": 1, "y": 1, "width": 2, "height": 2}], "a bounding box is 'box'; give a dictionary"),
    ],
)
def test_a_frame_without_a_list_is_named(boxes, message):
    with pytest.raises(ValueError, match=message):
        as_detections(boxes, len(boxes))
