"""Peekaboo's evaluation on drawn clips whose values are worked out by hand, in both forms."""

import math

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.tracks import Tracks
from mask_guided_video.recipes.mask_metrics.peekaboo_protocol import (
    draw_corners,
    draw_found,
    measure_clip,
    summarise_clips,
)
from mask_guided_video.recipes.mask_metrics.peekaboo_report import (
    best_boxes,
    peekaboo_of_boxes,
    peekaboo_of_tracks,
    peekaboo_report,
    peekaboo_summary,
)
from mask_guided_video.recipes.mask_metrics.recipe import Finding

# The length of the diagonal of 576 x 320 pixels.
DIAGONAL = 658.9203
SQUARE = (0, 0, 4, 4)


def drawn(*boxes, height=8, width=8):
    return draw_corners(boxes, height, width)


def test_boxes_are_cut_to_whole_pixels_and_to_the_picture():
    (mask,) = drawn((1.9, 2.2, 4.99, 9.5), height=8, width=6)
    assert mask.nonzero().amin(0).tolist() == [2, 1] and mask.nonzero().amax(0).tolist() == [7, 3]
    assert int(mask.sum()) == 6 * 3
    assert not drawn((3.2, 0, 3.9, 8), (5, 0, 2, 8), (0.5, 0.5, 0.5, 0.5), None).any()
    assert drawn((-3, -3, 2, 1)).nonzero().tolist() == [[0, 0, 0], [0, 0, 1]]


def test_a_box_to_the_edge_of_an_odd_picture_keeps_its_last_line():
    masks = draw_found([Box.from_corners(0.1, 0.3, 9.7, 7.0), None, Box(20, 1, 4, 4)], 7, 9)
    assert masks.sum((1, 2)).tolist() == [63, 0, 0]


class TestOneClip:
    def test_shared_half(self):
        """Squares of 16 pixels two columns apart, ten frames: 80 pixels shared, 240 in either, centroids 2 apart."""
        clip = measure_clip(drawn(*[SQUARE] * 10), drawn(*[(2, 0, 6, 4)] * 10))
        published, corrected = clip["published"], clip["corrected"]
        assert clip["frames"] == clip["frames_wanted"] == clip["frames_detected"] == clip["detections"] == 10
        assert corrected["iou"] == 1 / 3 and published["iou"] == pytest.approx(80 / 240.00001, abs=1e-12)
        assert published["centroid_distance"] == pytest.approx(2 / DIAGONAL, rel=1e-6)
        assert corrected["centroid_distance"] == pytest.approx(2 / math.sqrt(128))
        assert (published["ap50"], corrected["ap50"]) == (0, 0) and published["covered"] and corrected["covered"]

    def test_frames_without_a_detection(self):
        """Four frames, wanted at 4..7; found there in two.

        Of 64 wanted pixels 32 are shared. The published centroid of an empty mask is the corner: both axes are 5.5
        away in two of four frames, so that the mean is 5.5 * sqrt(2) / 2 = 3.889087 pixels.
        """
        box = (4, 4, 8, 8)
        clip = measure_clip(drawn(box, box, box, box), drawn(box, None, box, None))
        published, corrected = clip["published"], clip["corrected"]
        assert published["centroid_distance"] == pytest.approx(3.889087 / DIAGONAL, rel=1e-6)
        assert corrected["centroid_distance"] == 0
        assert corrected["iou"] == 0.5 and published["iou"] == pytest.approx(32 / 64.00001, abs=1e-12)
        assert published["ap50"] == corrected["ap50"] == 1
        assert (clip["frames_detected"], clip["frames_wanted"]) == (2, 4)
        assert not corrected["covered"], "two of four frames are not more than half"

    def test_volume_is_not_the_mean_of_frames(self):
        """A frame of 4 pixels that agree and one of 64 that are missed: 4 / 68, where frames average to one half."""
        clip = measure_clip(drawn((0, 0, 2, 2), (0, 0, 8, 8)), drawn((0, 0, 2, 2), None))
        assert clip["corrected"]["iou"] == 4 / 68

    def test_exactly_half_is_a_hit_only_in_the_corrected_form(self):
        """8 of 16 pixels: the published 1e-5 makes it less than one half."""
        clip = measure_clip(drawn(SQUARE), drawn((0, 0, 4, 2)))
        assert (clip["published"]["ap50"], clip["corrected"]["ap50"]) == (0, 1)

    def test_centroid_of_another_shape(self):
        """A letter T of 8 x 8, its bar two lines high: rows hold 8, 8, then 2 pixels; columns 2, but for two of 8.

        Published row: the first of the fullest is 0, the last with a pixel 7, so 3.5; the pixels' own mean is
        (8 * 0 + 8 * 1 + 2 * (2 + 3 + 4 + 5 + 6 + 7)) / 28 = 62 / 28. Published column: first fullest 3, last 7, so 5;
        the pixels' own mean is 3.5. The other mask fills the picture: (3.5, 3.5) either way.
        """
        letter = torch.zeros(1, 8, 8, dtype=torch.bool)
        letter[0, :2] = True
        letter[0, :, 3:5] = True
        clip = measure_clip(letter, torch.ones(1, 8, 8, dtype=torch.bool))
        assert clip["published"]["centroid_distance"] == pytest.approx(1.5 / DIAGONAL, rel=1e-6)
        assert clip["corrected"]["centroid_distance"] == pytest.approx((3.5 - 62 / 28) / math.sqrt(128))

    def test_other_lengths_compare_what_both_have(self):
        """Nine detections, three of them compared: covered as published, by all three in the corrected form."""
        clip = measure_clip(drawn(*[SQUARE] * 3), drawn(*[SQUARE] * 9))
        assert (clip["frames"], clip["detections"], clip["frames_detected"]) == (3, 9, 3)
        assert clip["published"]["covered"] and clip["corrected"]["covered"]
        assert clip["published"]["ap50_frames"] == 9 and clip["corrected"]["ap50_frames"] == 3
        clip = measure_clip(drawn(*[SQUARE] * 9), drawn(*[SQUARE] * 3))
        assert clip["frames"] == 3 and not clip["published"]["covered"]

    def test_nothing_found(self):
        clip = measure_clip(drawn(SQUARE, SQUARE), drawn(None, None))
        published, corrected = clip["published"], clip["corrected"]
        assert published["iou"] == corrected["iou"] == 0
        assert published["ap50"] is None and corrected["ap50"] is None and corrected["centroid_distance"] is None
        # Centroids of the wanted square: rows and columns 0 to 3, so 1.5 away from the corner in both.
        assert published["centroid_distance"] == pytest.approx(1.5 * math.sqrt(2) / DIAGONAL, rel=1e-6)

    def test_nothing_wanted(self):
        clip = measure_clip(drawn(None, None), drawn(SQUARE, None))
        assert clip["frames_wanted"] == 0 and clip["corrected"]["ap50"] == 0
        assert not clip["published"]["counts"] and not clip["corrected"]["counts"]
        # Four pixels are wanted, and the published script wants five.
        clip = measure_clip(drawn((0, 0, 2, 2)), drawn((0, 0, 2, 2)))
        assert not clip["published"]["counts"] and clip["corrected"]["counts"]

    def test_a_detection_too_small_to_draw_still_counts_as_one(self):
        clip = measure_clip(drawn(SQUARE), drawn((1.2, 1.2, 1.8, 1.8)), [True])
        assert clip["detections"] == 1 and clip["published"]["ap50"] is None and clip["published"]["ap50_frames"] == 1
        assert clip["corrected"]["ap50_frames"] == 0 and clip["corrected"]["covered"]

    def test_wrong_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"\[1, 8, 8\] and found ones \[1, 8, 6\]"):
            measure_clip(drawn(SQUARE), drawn(SQUARE, width=6))
        with pytest.raises(ValueError, match="1 found masks and 2 marks"):
            measure_clip(drawn(SQUARE), drawn(SQUARE), [True, False])


class TestManyClips:
    def clips(self):
        """Ten frames each.

        a: found exactly. b: found in ten, all 8 columns away: no overlap. c: found exactly in four. d: never found.
        """
        wanted = drawn(*[SQUARE] * 10, width=16)
        away = (8, 0, 12, 4)
        return [
            measure_clip(wanted, wanted),
            measure_clip(wanted, drawn(*[away] * 10, width=16)),
            measure_clip(wanted, drawn(*[SQUARE] * 4, *[None] * 6, width=16)),
            measure_clip(wanted, drawn(*[None] * 10, width=16)),
        ]

    def test_published(self):
        """Covered are a and b. Distances in pixels: 0, 8, and 1.5 * sqrt(2) in six of ten and in all frames."""
        found = summarise_clips(self.clips())["published"]
        corner = 1.5 * math.sqrt(2)
        assert found["clips"] == 4 and found["coverage"] == 0.5
        assert found["miou"] == pytest.approx(0.5) and found["miou_all_clips"] == pytest.approx((1 + 0 + 0.4 + 0) / 4)
        assert found["centroid_distance"] == pytest.approx((8 + 0.6 * corner + corner) / 4 / DIAGONAL, rel=1e-6)
        assert found["ap50"] == pytest.approx((10 + 0 + 4) / 24) and found["ap50_clip_mean"] == pytest.approx(2 / 3)

    def test_corrected(self):
        """d has no distance: 0, 8 and 0 pixels on a diagonal of sqrt(64 + 256)."""
        found = summarise_clips(self.clips())["corrected"]
        assert found["clips"] == 4 and found["coverage"] == 0.5 and found["miou"] == 0.5
        assert found["miou_all_clips"] == pytest.approx(0.35)
        assert found["centroid_distance"] == pytest.approx(8 / 3 / math.sqrt(320))
        assert found["ap50"] == pytest.approx(14 / 24) and found["ap50_clip_mean"] == pytest.approx(2 / 3)

    def test_short_clips_are_never_covered_as_published(self):
        found = summarise_clips([measure_clip(drawn(*[SQUARE] * 8), drawn(*[SQUARE] * 8))])
        assert found["published"]["coverage"] == 0 and found["published"]["miou"] is None
        assert found["corrected"]["coverage"] == 1 and found["corrected"]["miou"] == 1

    def test_clips_in_which_nothing_is_wanted_do_not_count(self):
        nothing = measure_clip(drawn(None, None), drawn(SQUARE, SQUARE))
        found = summarise_clips([nothing])
        assert all(found[form]["clips"] == 0 and found[form]["miou_all_clips"] is None for form in found)
        assert summarise_clips([]) == found


class OneBox:
    """Answers one box in even frames, and a worse one beside it."""

    def __init__(self):
        self.asked = []

    def detect(self, frames, phrases, *thresholds, every=1, progress=None):
        self.asked.append((tuple(phrases), thresholds, every))
        best, other = Box(2, 2, 4, 4, phrases[0], 0.9), Box(0, 0, 8, 8, phrases[0], 0.4)
        return [[best, other] if frame % 2 == 0 else [] for frame in range(len(frames))]


class TestReport:
    def film(self, frames=4):
        return Film(torch.zeros(frames, 8, 8, 3))

    def wanted(self, *labels, frames=4):
        return Tracks.from_masks(drawn(*[(2, 2, 6, 6)] * frames).float()[None].repeat(len(labels), 1, 1, 1), labels)

    def test_best_box_of_every_frame(self):
        detector = OneBox()
        boxes = best_boxes(self.film(3), "ball", detector, Finding(0.1, 0.2, detect_every=4))
        assert [box.corners if box else None for box in boxes] == [(2, 2, 6, 6), None, (2, 2, 6, 6)]
        assert detector.asked == [(("ball",), (0.1, 0.2), 1)]

    def test_objects_of_one_phrase_are_looked_for_once(self):
        detector = OneBox()
        clips = peekaboo_of_boxes(self.film(), self.wanted("ball", "ball", "star"), detector)
        assert [clip["phrase"] for clip in clips] == ["ball", "ball", "star"] and len(detector.asked) == 2
        assert all(clip["corrected"]["iou"] == 0.5 and clip["corrected"]["ap50"] == 1 for clip in clips)

    def test_masks_of_another_size_are_brought_to_the_video(self):
        wanted = Tracks.from_masks(drawn(*[(4, 4, 12, 12)] * 4, height=16, width=16).float()[None], ("ball",))
        (clip,) = peekaboo_of_boxes(self.film(), wanted, OneBox())
        assert clip["corrected"]["iou"] == 0.5

    def test_masks_that_are_found(self):
        found = Tracks.from_masks(drawn((4, 2, 8, 6), None, (4, 2, 8, 6), None).float()[None], ("ball",))
        (clip,) = peekaboo_of_tracks(self.film(), self.wanted("ball"), found)
        assert clip["corrected"]["iou"] == 16 / (16 + 16 + 16 + 32) and clip["detections"] == 2
        (clip,) = peekaboo_of_tracks(self.film(), self.wanted("ball"), Tracks.empty(4, 8, 8))
        assert clip["corrected"]["iou"] == 0 and clip["detections"] == 0

    def test_words(self):
        report = peekaboo_report(peekaboo_of_boxes(self.film(), self.wanted("ball"), OneBox()))
        words = peekaboo_summary(report)
        assert "mIoU of covered clips: not defined | not defined\nmIoU of all clips: 0.500 | 0.500" in words
        assert "AP50: 1.000 | 1.000" in words and "objects that count: 1 | 1" in words
        assert "2 of 4 frames have no detection" in words and "wanted in no frame" not in words

    def test_words_of_an_object_that_is_never_wanted(self):
        nothing = Tracks.from_masks(torch.zeros(1, 4, 8, 8), ("ball",))
        words = peekaboo_summary(peekaboo_report(peekaboo_of_boxes(self.film(), nothing, OneBox())))
        assert "1 of 1 objects are wanted in no frame" in words and "objects that count: 0 | 0" in words

    def test_an_object_without_a_phrase(self):
        with pytest.raises(ValueError, match="lacks a phrase to look for"):
            peekaboo_of_boxes(self.film(), self.wanted(""), OneBox())

    def test_masks_of_another_length(self):
        with pytest.raises(ValueError, match="wanted masks for 3 frames and the video has 4"):
            peekaboo_of_boxes(self.film(), self.wanted("ball", frames=3), OneBox())
