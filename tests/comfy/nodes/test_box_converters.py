"""Boxes and objects from and to the forms of other packs, in the very structures that those packs make and read."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.tracks import Tracks

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# As Impact Pack declares it; its nodes also make copies with `_replace`.
ImpactSeg = namedtuple(
    "SEG",
    ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"],
    defaults=[None],
)

BALL = Box(4.0, 5.0, 8.0, 6.0, "ball", 0.9)
CAT = Box(10.5, 2.25, 3.0, 4.0, "cat", 0.4)


def dictionaries(*boxes):
    return [box.to_dict() for box in boxes]


def to_bbox(boxes, **values):
    from mask_guided_video.nodes.box_converters import BoxesToBBOX

    settings = {"format": "xyxy", "nesting": "list_per_frame", "frame": 0, "whole_pixels": True}
    return BoxesToBBOX.execute(boxes, **{**settings, **values}).args[0]


def from_bbox(bbox, **values):
    from mask_guided_video.nodes.box_converters import BBOXToBoxes

    settings = {"format": "xyxy", "nesting": "list_per_frame", "label": ""}
    return BBOXToBoxes.execute(bbox, **{**settings, **values}).args[0]


def to_segs(**values):
    from mask_guided_video.nodes.box_converters import ToSEGS

    return ToSEGS.execute(**{"frame": 0, "crop_factor": 1.0, **values}).args[0]


def from_segs(segs, **values):
    from mask_guided_video.nodes.box_converters import FromSEGS

    return FromSEGS.execute(segs, **{"frame": 0, **values}).args


def two_tracks():
    masks = torch.zeros(2, 3, 24, 32)
    masks[0, :, 5:11, 4:12] = 1.0
    masks[1, 1, 2:6, 20:26] = 1.0
    tracks = Tracks.from_masks(masks, ("ball", "cat"))
    return Tracks(tracks.masks, (3, 8), tracks.labels, tracks.scores * 0.5, tracks.misses)


class TestToBBOX:
    FILM = [dictionaries(CAT, BALL), [], dictionaries(CAT)]

    def test_segment_anything_2_reads_corners_in_a_list_per_frame(self):
        found = to_bbox(self.FILM)
        assert found == [[(10, 2, 14, 7), (4, 5, 12, 11)], [], [(10, 2, 14, 7)]]
        # The pack makes one array per frame of it.
        assert [np.array(boxes).shape for boxes in found] == [(2, 4), (0,), (1, 4)]

    def test_kjnodes_reads_one_box_per_frame(self):
        found = to_bbox(self.FILM, format="xywh", nesting="one_per_frame")
        assert found == [(4, 5, 8, 6), (0, 0, 0, 0), (10, 2, 4, 5)]
        assert all(isinstance(value, int) for box in found for value in box)

    def test_boxes_of_one_frame(self):
        assert to_bbox(self.FILM, nesting="every_frame", frame=2) == [(10, 2, 14, 7)]
        assert to_bbox(self.FILM, nesting="every_frame", frame=1) == []
        assert to_bbox(BALL.to_dict(), nesting="every_frame", frame=7) == [(4, 5, 12, 11)]

    def test_exact_numbers(self):
        assert to_bbox(dictionaries(CAT), format="xywh", whole_pixels=False) == [[(10.5, 2.25, 3, 4)]]

    def test_nothing_found(self):
        assert to_bbox([[], []]) == [[], []] and to_bbox([]) == [[]]
        assert to_bbox([[], []], nesting="one_per_frame") == [(0, 0, 0, 0)] * 2

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="frame is 3 but there are boxes for 3; use 0 to 2"):
            to_bbox(self.FILM, nesting="every_frame", frame=3)
        with pytest.raises(ValueError, match="lacks width, height"):
            to_bbox([{"x": 1, "y": 2}])


class TestFromBBOX:
    def test_points_editor(self):
        """KJNodes' Points Editor: boxes of one picture as tuples of whole numbers."""
        found = from_bbox([(4, 5, 12, 11), (20, 2, 26, 6)], nesting="every_frame", label=" red  ball")
        assert found == dictionaries(Box(4, 5, 8, 6, "red ball"), Box(20, 2, 6, 4, "red ball"))

    def test_one_per_frame_and_none(self):
        found = from_bbox([(4, 5, 8, 6), (0, 0, 0, 0), None], format="xywh", nesting="one_per_frame")
        assert found == [dictionaries(Box(4, 5, 8, 6)), [], []]

    def test_lists_arrays_and_tensors(self):
        rows = [[[4.0, 5.0, 12.0, 11.0]], [[4.0, 5.0, 12.0, 11.0]]]
        expected = [dictionaries(Box(4, 5, 8, 6))] * 2
        for value in (rows, np.array(rows), torch.tensor(rows), [np.array(row) for row in rows]):
            assert from_bbox(value) == expected
        assert from_bbox(torch.tensor(rows)[:, 0], nesting="one_per_frame") == expected
        assert from_bbox((4, 5, 12, 11), nesting="one_per_frame") == expected[:1]

    @pytest.mark.parametrize("format", ["xywh", "xyxy"])
    def test_there_and_back(self, format):
        film = [dictionaries(Box(4, 5, 8, 6)), [], dictionaries(Box(1, 2, 3, 4), Box(5, 6, 7, 8))]
        assert from_bbox(to_bbox(film, format=format), format=format) == film

    def test_what_comes_out_is_read_by_track_masks(self):
        from mask_guided_video.perception.boxes import as_detections

        boxes = from_bbox([(4, 5, 12, 11)], nesting="every_frame")
        assert [len(found) for found in as_detections(boxes, 4)] == [1] * 4

    def test_bad_input_is_named(self):
        for message, value in {
            "check whether it is xywh": [[(8, 6, 4, 5)]],
            "a box is .*give four finite numbers": [[(1, 2, 3)]],
            "finite numbers": [[(1, 2, float("nan"), 4)]],
            "a BBOX holds a dict": [[{"x": 1}]],
        }.items():
            with pytest.raises(ValueError, match=message):
                from_bbox(value)


class TestToSEGS:
    def test_fields_are_impact_packs(self):
        image = torch.rand(3, 24, 32, 3)
        (height, width), segments = to_segs(tracks=two_tracks(), image=image, frame=1)
        assert (height, width) == (24, 32) and [seg.label for seg in segments] == ["ball", "cat"]
        seg = ImpactSeg(*segments[0])
        assert seg._fields == segments[0]._fields and seg.control_net_wrapper is None
        assert list(seg.bbox) == list(seg.crop_region) == [4, 5, 12, 11] and seg.confidence == 0.5
        assert seg.cropped_mask.dtype == np.float32 and seg.cropped_mask.shape == (6, 8) and seg.cropped_mask.all()
        assert np.array_equal(seg.cropped_image, image[1:2, 5:11, 4:12].numpy())
        assert segments[1]._replace(label="dog").label == "dog"

    def test_region_is_larger_and_stays_inside(self):
        _, (ball,) = to_segs(tracks=two_tracks(), frame=0, crop_factor=3.0)
        x0, y0, x1, y1 = ball.crop_region
        assert (x1 - x0, y1 - y0) == (24, 18) and x0 == 0 and y0 == 0 and ball.cropped_image is None
        assert ball.cropped_mask.shape == (18, 24) and ball.cropped_mask.sum() == 48

    def test_whole_film(self):
        _, segments = to_segs(tracks=two_tracks(), frame=-1)
        assert [tuple(seg.cropped_mask.shape) for seg in segments] == [(3, 6, 8), (3, 4, 6)]
        assert [seg.confidence for seg in segments] == [0.5, 0.5]
        boxes, mask = from_segs(((24, 32), segments))
        assert [len(found) for found in boxes] == [1, 2, 1] and torch.equal(mask, two_tracks().union())

    def test_boxes(self):
        image = torch.rand(2, 24, 32, 4)
        (_, _), (seg,) = to_segs(boxes=[[], dictionaries(BALL)], image=image, frame=1)
        assert list(seg.bbox) == [4, 5, 12, 11] and seg.cropped_mask.all() and seg.cropped_image.shape[-1] == 3
        assert to_segs(boxes=[[], []], image=image) == ((24, 32), [])
        assert to_segs(boxes=Box(90, 90, 5, 5).to_dict(), image=image) == ((24, 32), [])
        assert to_segs(tracks=Tracks.empty(3, 24, 32), frame=-1) == ((24, 32), [])

    def test_bad_input_is_named(self):
        image = torch.rand(3, 24, 32, 3)
        for message, values in {
            "neither of tracks and boxes": {},
            "both of tracks and boxes": {"tracks": two_tracks(), "boxes": []},
            "boxes say nothing of the size": {"boxes": []},
            "the whole video, which boxes cannot be": {"boxes": [], "image": image, "frame": -1},
            "frame is 3 but the video has 3 frames": {"tracks": two_tracks(), "frame": 3},
            "3 frames of 32 x 24 pixels and the video 2": {"tracks": two_tracks(), "image": image[:2]},
        }.items():
            with pytest.raises(ValueError, match=message):
                to_segs(**values)


class TestFromSEGS:
    def segs(self, confidence=0.7):
        """What Impact Pack's own detectors make: arrays for confidence and box, a mask of the crop region."""
        mask = np.zeros((10, 12), np.float32)
        mask[2:8, 2:10] = 1.0
        seg = ImpactSeg(None, mask, confidence, [2, 3, 14, 13], np.array([4.0, 5.0, 12.0, 11.0]), "face")
        return (24, 32), [seg]

    @pytest.mark.parametrize("confidence", [0.7, np.float32(0.7), np.array([0.7]), np.array(0.7, np.float32)])
    def test_one_picture(self, confidence):
        boxes, mask = from_segs(self.segs(confidence))
        ((box,),) = boxes
        assert (box["x"], box["y"], box["width"], box["height"], box["label"]) == (4, 5, 8, 6, "face")
        assert box["score"] == pytest.approx(0.7)
        assert mask.shape == (1, 24, 32) and mask.sum() == 48 and mask[0, 5:11, 4:12].all()

    def test_frame_of_a_film_of_another_size(self):
        boxes, mask = from_segs(self.segs(), frame=2, image=torch.rand(4, 48, 64, 3))
        assert [len(found) for found in boxes] == [0, 0, 1, 0] and boxes[2][0]["width"] == 16
        assert mask.shape == (4, 48, 64) and not mask[[0, 1, 3]].any() and mask[2, 12:20, 10:22].min() > 0.9

    def test_nothing_found(self):
        boxes, mask = from_segs(((24, 32), []), image=torch.rand(3, 24, 32, 3))
        assert boxes == [[], [], []] and mask.shape == (3, 24, 32) and not mask.any()
        boxes, mask = from_segs(((24, 32), []))
        assert boxes == [[]] and mask.shape == (1, 24, 32)

    def test_bad_input_is_named(self):
        broken = self.segs()
        for message, segs, values in (
            ("SEGS is a str", "segs", {}),
            ("SEGS are for frame 4 but the video has 3", self.segs(), {"frame": 4, "image": torch.rand(3, 24, 32, 3)}),
            ("without cropped_image", ((24, 32), [object()]), {}),
            ("region and mask must be of one size", ((8, 8), broken[1]), {}),
            ("the confidence of a SEG is", self.segs(float("nan")), {}),
        ):
            with pytest.raises(ValueError, match=message):
                from_segs(segs, **values)
