"""The trained Toybox detector and segmenter on drawn clips: what a user of the demo relies on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mask_guided_video.perception.open_models import open_detector, open_tracker
from mask_guided_video.perception.segmentation.sam_format import original_sam, to_original
from mask_guided_video.toybox import world

TOYBOX = Path(__file__).resolve().parents[3] / "toybox"


@pytest.fixture(scope="module")
def detector():
    return open_detector(TOYBOX / "detector")


@pytest.fixture(scope="module")
def tracker():
    return open_tracker(TOYBOX / "segmenter")


@pytest.fixture(scope="module")
def clip():
    generator = np.random.default_rng(11)
    scene = world.scene_from_words([("red", "ball", "right"), ("blue", "square", "still")], "sand", generator)
    return world.render(scene)


def overlap(first, second):
    return float((first & second).sum() / (first | second).sum())


def test_both_objects_are_found_followed_and_named(detector, tracker, clip):
    frames = torch.from_numpy(clip.frames)
    tracks = tracker.track(frames, detector.detect(frames, ["red ball", "blue square"]))
    assert sorted(tracks.labels) == ["blue square", "red ball"]
    for label, truth in zip(["red ball", "blue square"], clip.masks, strict=True):
        found = tracks.select([tracks.labels.index(label)]).union() > 0.5
        assert overlap(found, torch.from_numpy(truth)) > 0.85
    assert not tracks.misses.any()


def test_what_is_not_there_is_not_found(detector, clip):
    frames = torch.from_numpy(clip.frames)
    for phrase in ("green triangle", "yellow ball", "car"):
        assert sum(map(len, detector.detect(frames, [phrase]))) == 0


def test_articles_make_no_difference(detector, clip):
    frames = torch.from_numpy(clip.frames[:2])
    plain, article = (detector.detect(frames, [phrase])[0] for phrase in ("red ball", "a red ball"))
    assert len(plain) == len(article) == 1
    assert plain[0].x == pytest.approx(article[0].x, abs=2.0)


def test_a_frame_without_boxes_is_followed(detector, tracker, clip):
    frames = torch.from_numpy(clip.frames)
    detections = detector.detect(frames, ["red ball"])
    detections[3] = []
    tracks = tracker.track(frames, detections)
    assert tracks.ids == (1,) and not tracks.misses.any()
    assert overlap(tracks.masks[0, 3] > 127, torch.from_numpy(clip.masks[0, 3])) > 0.8


def test_one_prompt_is_followed_through_the_clip(tracker, clip):
    from mask_guided_video.perception.boxes import Box
    from mask_guided_video.perception.tracking.track_settings import TrackSettings

    frames = torch.from_numpy(clip.frames)
    detections = [[] for _ in frames]
    x0, y0, x1, y1 = clip.boxes[0, 0].tolist()
    detections[0] = [Box.from_corners(x0, y0, x1, y1)]
    tracks = tracker.track(frames, detections, TrackSettings(extend=8, minimum_seen=1))
    assert overlap(tracks.masks[0, -1] > 127, torch.from_numpy(clip.masks[0, -1])) > 0.7


@torch.no_grad()
def test_the_segment_anything_package_reads_the_segmenter(tracker, clip):
    pytest.importorskip("segment_anything")
    from segment_anything import SamPredictor

    model = tracker.model
    sam = original_sam(model.config).eval()
    sam.load_state_dict(to_original(model.state_dict()))
    predictor = SamPredictor(sam)
    frame = (clip.frames[0] * 255).round().astype(np.uint8)
    predictor.set_image(frame)
    box = clip.boxes[0, 0]
    masks, scores, logits = predictor.predict(box=box)
    inputs = tracker.propagation.segmenter.processor(images=frame, input_boxes=[[box.tolist()]], return_tensors="pt")
    ours = model(**inputs, multimask_output=True)
    assert np.abs(logits - ours.pred_masks[0, 0].numpy()).max() < 1e-3
    assert overlap(torch.from_numpy(masks[scores.argmax()]), torch.from_numpy(clip.masks[0, 0])) > 0.8
