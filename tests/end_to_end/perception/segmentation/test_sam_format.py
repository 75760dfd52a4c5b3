"""A SAM file of full size, with random weights."""

import pytest
import torch

from mask_guided_video.perception.segmentation import sam
from mask_guided_video.weight_files.reading import read_state

pytestmark = pytest.mark.slow


def test_a_full_size_original_file_loads_and_runs(tmp_path):
    pytest.importorskip("segment_anything")
    from segment_anything import sam_model_registry

    from mask_guided_video.perception.boxes import Box
    from mask_guided_video.perception.frames import Film
    from mask_guided_video.perception.prompts import ObjectPrompt

    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(sam_model_registry["vit_b"]().state_dict(), path)
    segmenter = sam.load_state(read_state(path), path)
    assert segmenter.batch_size == 1
    opened = segmenter.open(Film(torch.rand(1, 720, 1280, 3)))
    sighting = opened.segment(0, [ObjectPrompt(0, box=Box(100, 100, 500, 400))])[0]
    assert sighting.mask.shape == (720, 1280) and 0.0 <= sighting.score <= 1.0
