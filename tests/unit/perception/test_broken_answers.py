"""Models whose weights are broken say so: with NaN every comparison fails, and the answer would read "no object"."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_memory_models import SIDE, tiny_edgetam, tiny_film, tiny_sam2, tiny_sam3_tracker

from mask_guided_video.perception.answers import BrokenAnswerError, check_answer
from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.open_models import open_detector, open_tracker
from mask_guided_video.perception.optical_flow import flow_between
from mask_guided_video.perception.segmentation.memory_propagation import MemoryModel
from mask_guided_video.perception.segmentation.sam2 import video_processor
from mask_guided_video.perception.tracking.tracker import ObjectTracker

TOYBOX = Path(__file__).resolve().parents[3] / "toybox"
BOXES = [[Box(8, 12, 16, 18, "a", 0.9)], *([] for _ in range(5))]
BROKEN = pytest.raises(
    BrokenAnswerError, match="segmenter answers with NaN or infinite numbers; its weights are broken"
)


def spoil(module: torch.nn.Module, part: str, value: float = float("nan")) -> None:
    """Fill the weights of a part."""
    names = [name for name, _ in module.named_parameters() if part in name]
    assert names, f"there is no part {part}"
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in names:
                parameter.fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    check_answer("model", torch.tensor([1.0, -2.0]), torch.empty(0))
    with pytest.raises(BrokenAnswerError, match="the model answers with NaN or infinite numbers; mend it."):
        check_answer("model", torch.zeros(2), torch.tensor([1.0, value]), way_out="mend it")


@pytest.mark.parametrize("part", ["mask_decoder", "vision_encoder", "prompt_encoder"])
def test_segmenter_of_single_pictures(part):
    tracker = open_tracker(TOYBOX / "segmenter")
    spoil(tracker.model, part)
    with BROKEN:
        tracker.track(tiny_film(6), BOXES)


@pytest.mark.parametrize("part", ["vision_encoder", "compress_vit", "hq_mask_mlp", "iou_prediction_head"])
def test_segmenter_with_fine_edges(part):
    pytest.importorskip("transformers.models.sam_hq")
    from tiny_sam_hq import build

    from mask_guided_video.perception.segmentation.sam_format import sam_processor
    from mask_guided_video.perception.segmentation.sam_hq import SamHQSegmenter
    from mask_guided_video.perception.tracking.flow_propagation import FlowModel

    model = build()
    spoil(model, part)
    with BROKEN:
        ObjectTracker(FlowModel(SamHQSegmenter(model, sam_processor(64)))).track(tiny_film(6), BOXES)


def memory_tracker(name: str) -> ObjectTracker:
    import transformers

    if name == "edgetam":
        pytest.importorskip("timm")
    if name == "sam3" and not hasattr(transformers, "Sam3TrackerVideoModel"):
        pytest.skip("this transformers has no SAM 3")
    model = {"sam2": tiny_sam2, "edgetam": tiny_edgetam, "sam3": tiny_sam3_tracker}[name]()
    session = getattr(sys.modules[type(model).__module__], type(model).__name__.replace("Model", "InferenceSession"))
    return ObjectTracker(MemoryModel(model, model, session, video_processor(None, SIDE)))


@pytest.mark.parametrize("family", ["sam2", "edgetam", "sam3"])
@pytest.mark.parametrize("part", ["mask_decoder", "vision_encoder", "memory_encoder", "memory_attention"])
def test_models_with_a_memory(family, part):
    tracker = memory_tracker(family)
    spoil(tracker.model, part)
    with BROKEN:
        tracker.track(tiny_film(6), BOXES)


@pytest.mark.parametrize("part", ["decoder", "backbone", "text_backbone"])
def test_detector(part):
    detector = open_detector(TOYBOX / "detector")
    spoil(detector.model, part)
    with pytest.raises(BrokenAnswerError, match="detector answers with NaN"):
        detector.detect(tiny_film(2), ["red ball"])


def test_optical_flow(monkeypatch):
    import cv2

    class Broken:
        def calc(self, first, second, flow):
            return np.full((*first.shape, 2), np.nan, np.float32)

    monkeypatch.setattr(cv2, "DISOpticalFlow_create", lambda preset: Broken())
    picture = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(BrokenAnswerError, match="optical flow answers with NaN .*; check the frames"):
        flow_between(picture, picture)
