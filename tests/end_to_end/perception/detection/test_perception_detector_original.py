"""A GroundingDINO file of full size in the original format, with random weights."""

import pytest
import torch
from original_grounding_dino import build, write

from mask_guided_video.perception.detection import grounding_dino_original as original
from mask_guided_video.perception.detection.detector import ObjectDetector
from mask_guided_video.weight_files.reading import read_state

pytestmark = pytest.mark.slow
pytest.importorskip("groundingdino")


def test_the_full_size_model_loads_from_a_file_and_runs(tmp_path, monkeypatch):
    model = build(tmp_path / "bert-base-uncased", full_size=True)
    assert sum(value.numel() for value in model.parameters()) == 172_839_682
    path = tmp_path / "groundingdino_swint_ogc.pth"
    write(model, path)
    del model
    grounding = original.load_state(read_state(path), path)
    monkeypatch.setattr(original, "SHORT_SIDE", 256)
    found = ObjectDetector(grounding).detect(torch.rand(1, 64, 64, 3), ["red ball"], 0.0, 0.0, 1.0)
    assert 0 < len(found[0]) <= 900
