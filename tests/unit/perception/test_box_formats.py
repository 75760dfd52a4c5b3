"""BBOX tuples and SEGS, there and back; the consumers' arithmetic is done here as the packs do it."""

import math
from collections import namedtuple

import numpy as np
import pytest
import torch

from mask_guided_video.perception.box_formats import (
    SEG,
    crop_region,
    film_to_segs,
    from_bbox,
    from_segs,
    masks_of_segs,
    to_bbox,
    to_segs,
)
from mask_guided_video.perception.boxes import Box

A, B = Box(1, 2, 3, 4), Box(10, 20, 5, 6)


@pytest.mark.parametrize(
    ("boxes", "sides", "nesting", "expected"),
    [
        ((1, 2, 3, 4), "xywh", "every_frame", [[A], [A]]),
        ((1, 2, 4, 6), "xyxy", "one_per_frame", [[A], [A]]),
        ((1.0, 2, 3, 4), "xywh", "list_per_frame", [[A], [A]]),
        ([(1, 2, 3, 4), (10, 20, 5, 6)], "xywh", "one_per_frame", [[A], [B]]),
        ([(1, 2, 3, 4), (10, 20, 5, 6)], "xywh", "every_frame", [[A, B], [A, B]]),
        ([[(1, 2, 4, 6), (10, 20, 15, 26)], []], "xyxy", "list_per_frame", [[A, B], []]),
        ([[[1, 2, 4, 6]]], "xyxy", "list_per_frame", [[A], [A]]),
        ([None, (1, 2, 3, 4)], "xywh", "one_per_frame", [[], [A]]),
        ([(0, 0, 0, 0), (1, 2, 3, 4)], "xywh", "one_per_frame", [[], [A]]),
        ([], "xywh", "every_frame", [[], []]),
        ([], "xywh", "one_per_frame", [[], []]),
        (None, "xyxy", "list_per_frame", [[], []]),
        (np.array([[1, 2, 3, 4], [10, 20, 5, 6]]), "xywh", "one_per_frame", [[A], [B]]),
        ([torch.tensor([[1.0, 2, 4, 6]]), torch.zeros(0, 4)], "xyxy", "list_per_frame", [[A], []]),
    ],
)
def test_bbox_is_read_as_it_is_said_to_be(boxes, sides, nesting, expected):
    assert from_bbox(boxes, 2, sides, nesting) == expected


@pytest.mark.parametrize(
    ("boxes", "sides", "nesting", "message"),
    [
        ([(10, 20, 5, 6)], "xyxy", "every_frame", "check whether it is xywh"),
        ([(1, 2, -3, 4)], "xywh", "every_frame", "check whether it is xyxy"),
        ([(1, 2, 3)], "xywh", "every_frame", "four finite numbers"),
        ([(1, 2, 3, math.nan)], "xywh", "every_frame", "four finite numbers"),
        ([[(1, 2, 3, 4)], [(1, 2, 3, 4)]], "xywh", "every_frame", "choose the nesting"),
        ([(1, 2, 3, 4)] * 3, "xywh", "one_per_frame", "boxes for 3 frames and the video has 2"),
        ("box", "xywh", "every_frame", "holds a str"),
        ([{"x": 1}], "xywh", "every_frame", "holds a dict"),
        ([(1, 2, 3, 4)], "yxyx", "every_frame", "sides is 'yxyx'"),
        ([(1, 2, 3, 4)], "xywh", "flat", "nesting is 'flat'"),
    ],
)
def test_other_bboxes_are_refused(boxes, sides, nesting, message):
    with pytest.raises(ValueError, match=message):
        from_bbox(boxes, 2, sides, nesting)


@pytest.mark.parametrize("sides", ["xywh", "xyxy"])
@pytest.mark.parametrize("nesting", ["one_per_frame", "list_per_frame"])
def test_bbox_round_trips(sides, nesting):
    detections = [[A], [], [B]]
    assert from_bbox(to_bbox(detections, sides, nesting), 3, sides, nesting) == detections


def test_bbox_is_written_in_plain_numbers():
    surer = Box(2, 3, 4, 5, "b", 0.9)
    detections = [[Box(1.5, 2, 3, 4, "a", 0.5), surer], []]
    assert to_bbox(detections, "xywh", "one_per_frame") == [(2, 3, 4, 5), (0, 0, 0, 0)]
    assert to_bbox(detections, "xyxy", "list_per_frame") == [[(1.5, 2, 4.5, 6), (2, 3, 6, 8)], []]
    assert to_bbox([[surer]], "xyxy", "every_frame") == [(2, 3, 6, 8)]
    assert all(type(value) is int for value in to_bbox([[surer]], "xyxy", "every_frame")[0])
    with pytest.raises(ValueError, match="2 frames"):
        to_bbox(detections, "xywh", "every_frame")


def test_regions_are_as_large_as_wanted_and_stay_inside():
    assert crop_region([10, 10, 20, 20], 100, 100, 3.0) == [0, 0, 30, 30]
    assert crop_region([40, 40, 50, 60], 100, 100, 2.0) == [35, 30, 55, 70]
    assert crop_region([90, 0, 100, 100], 100, 100, 2.0) == [80, 0, 100, 100]
    assert crop_region([3, 3, 4, 4], 8, 8, 1.0) == [3, 3, 4, 4]


def impact_combined_mask(segs):
    """As the pack's segs_to_combined_mask adds them up."""
    (height, width), segments = segs
    mask = np.zeros((height, width), np.uint8)
    for seg in segments:
        x0, y0, x1, y1 = seg.crop_region
        mask[y0:y1, x0:x1] |= (seg.cropped_mask * 255).astype(np.uint8)
    return mask


def test_boxes_and_masks_become_segs_and_come_back():
    masks = torch.zeros(2, 40, 60, dtype=torch.uint8)
    masks[0, 5:15, 10:20] = 255
    masks[1, 30:38, 40:59] = 255
    boxes = [Box(10, 5, 10, 10, "ball", 0.75), Box(40, 30, 19, 8, "dog", 0.5)]
    frame = torch.rand(40, 60, 4)
    segs = to_segs(boxes, masks, 40, 60, crop_factor=2.0, frame=frame)
    assert segs[0] == (40, 60) and [seg.label for seg in segs[1]] == ["ball", "dog"]
    first = segs[1][0]
    assert first.crop_region == [5, 0, 25, 20] and first.bbox == [10, 5, 20, 15] and first.confidence == 0.75
    assert first.cropped_mask.dtype == np.float32 and first.cropped_mask.shape == (20, 20)
    assert first.cropped_image.shape == (1, 20, 20, 3) and first.control_net_wrapper is None
    assert (impact_combined_mask(segs) == masks.amax(0).numpy()).all()
    assert torch.equal(masks_of_segs(segs)[:, 0] * 255, masks.float())
    assert from_segs(segs, 3, 40, 60, frame=1) == [[], boxes, []]
    assert from_segs([segs, ((40, 60), [])], 2, 40, 60) == [boxes, []]
    assert from_segs(segs, 1, 80, 120)[0][0] == Box(20, 10, 20, 20, "ball", 0.75)


def test_segs_without_masks_fill_the_boxes_and_leave_out_what_is_outside():
    segs = to_segs([Box(-3.5, 2.5, 10, 5), Box(70, 0, 5, 5)], None, 40, 60, crop_factor=1.0)
    assert len(segs[1]) == 1 and segs[1][0].bbox == [0, 2, 7, 8]
    assert impact_combined_mask(segs).sum() == 255 * 7 * 6
    assert to_segs([], None, 40, 60) == ((40, 60), [])
    assert masks_of_segs(((40, 60), [])).shape == (0, 1, 40, 60)


def test_a_film_is_one_seg_per_object_with_a_mask_per_frame():
    masks = torch.zeros(2, 3, 40, 60)
    masks[0, 0, 5:15, 10:20] = 1.0
    masks[0, 2, 10:20, 30:40] = 1.0
    segs = film_to_segs(masks, ["ball", "never"], [0.5, 0.25], 40, 60, crop_factor=1.0)
    (seg,) = segs[1]
    assert seg.crop_region == seg.bbox == [10, 5, 40, 20] and seg.cropped_mask.shape == (3, 15, 30)
    assert torch.equal(masks_of_segs(segs), masks[:1])
    assert from_segs(segs, 3, 40, 60) == [[Box(10, 5, 10, 10, "ball", 0.5)], [], [Box(30, 10, 10, 10, "ball", 0.5)]]
    with pytest.raises(ValueError, match="3 frames and the video has 4"):
        from_segs(segs, 4, 40, 60)
    with pytest.raises(ValueError, match="1 labels"):
        film_to_segs(masks, ["ball"], [0.5, 0.5], 40, 60)


def test_segs_of_the_pack_itself_are_read():
    theirs = namedtuple(
        "SEG",
        ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"],
        defaults=[None],
    )
    mask = np.ones((4, 6))
    item = theirs(None, mask, np.array([0.5], np.float32), (2, 1, 8, 5), np.array([3, 2, 7, 5]), "face")
    assert from_segs(((10, 12), [item]), 1, 10, 12) == [[Box(3, 2, 4, 3, "face", 0.5)]]
    assert masks_of_segs(((10, 12, 3), [item])).sum() == 24


GOOD = SEG(None, np.ones((4, 6), np.float32), 0.5, [2, 1, 8, 5], [3, 2, 7, 5], "face")


@pytest.mark.parametrize(
    ("segs", "message"),
    [
        ("segs", "is a str"),
        (None, "is a NoneType"),
        (((10, 12), [(1, 2)]), "without cropped_image"),
        (((10, 12), [GOOD._replace(crop_region=[2, 1, 9, 5])]), "of one size"),
        (((4, 4), [GOOD]), "of one size"),
        (((10, 12), [GOOD._replace(cropped_mask=np.ones(3))]), "has shape"),
        (((10, 12), [GOOD._replace(confidence=[0.1, 0.2])]), "confidence"),
        (((10, 12), [GOOD._replace(bbox=[7, 2, 3, 5])]), "pixels"),
        (((10, 12), [GOOD, GOOD._replace(cropped_mask=np.ones((2, 4, 6)))]), r"\[1, 2\] frames"),
        ([((10, 12), []), ((10, 12), [])], "SEGS for 2 frames"),
        (((10, 12), [GOOD._replace(bbox=None)]), "the bbox of a SEG is None; give x0, y0, x1 and y1"),
        (((10, 12), [GOOD._replace(bbox=[1, 2, "a", 4])]), "the bbox of a SEG is 'a'"),
        (((10, 12), [GOOD._replace(bbox=[1, 2, math.nan, 4])]), "give four finite numbers"),
        (((10, 12), [GOOD._replace(crop_region=None)]), "the crop region of a SEG is None"),
        (((10, 12), [GOOD._replace(crop_region=None, cropped_mask=None)]), "the crop region of a SEG is None"),
        (((10, 12), [GOOD._replace(crop_region=[0, 0, math.inf, 5])]), "give four finite numbers"),
        (((10, 12), [GOOD._replace(confidence="high")]), "the confidence of a SEG is 'high'"),
        (((10, 12), [GOOD._replace(confidence=10**400)]), "confidence of a SEG is a whole number of 1329 bits"),
        (((10, 12), [GOOD._replace(cropped_mask="mask")]), "the mask of a SEG is 'mask'"),
        (((-4, 12), []), "SEGS are of 12 x -4 pixels"),
    ],
)
def test_broken_segs_say_what_is_wrong(segs, message):
    with pytest.raises(ValueError, match=message):
        from_segs(segs, 1, 10, 12)


def test_segs_without_label_or_confidence_are_read():
    (box,) = from_segs(((10, 12), [GOOD._replace(label=None, confidence=None)]), 1, 10, 12)[0]
    assert (box.label, box.score) == ("", 1.0)
    # The pack's own empty ones.
    assert from_segs(((0, 0), []), 2, 10, 12) == [[], []]


def test_segs_that_no_memory_holds_name_their_numbers():
    with pytest.raises(MemoryError, match=r"take .* PiB, more memory than there is; .*height \(1000000000\)"):
        masks_of_segs(((10**9, 10**9), [GOOD]))


def test_wrong_masks_and_frames_are_refused():
    with pytest.raises(ValueError, match="for 1 boxes"):
        to_segs([A], torch.zeros(2, 40, 60), 40, 60)
    with pytest.raises(ValueError, match=r"crop_factor is 0\.5"):
        to_segs([A], None, 40, 60, crop_factor=0.5)
    with pytest.raises(ValueError, match="use 0 to 1"):
        from_segs(((10, 12), [GOOD]), 2, 10, 12, frame=2)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.tensor(3.0), "a BBOX is 3.0; give four numbers"),
        (np.float32(3), "a BBOX is 3.0"),
        ([10**400, 1, 5, 5], "the side of a box is a whole number of 1329 bits"),
        ([[1, 2, 3, 4], [[10**5000]]], "a box is a list"),
        (["a", "b"], "a BBOX holds a str"),
        (np.array(["a", "b"]), "a box is 'a'"),
        ([1, [1, 2, 3, 4]], r"a box is \[?1\]?;"),
    ],
)
@pytest.mark.parametrize("nesting", ["one_per_frame", "every_frame", "list_per_frame"])
def test_what_is_no_bbox_is_one_sentence(boxes, nesting, message):
    with pytest.raises(ValueError, match=message):
        from_bbox(boxes, 2, "xywh", nesting)
