"""An original file of SAM 2.1 of full size, with random weights."""

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.prompts import ObjectPrompt
from mask_guided_video.perception.segmentation import sam2
from mask_guided_video.perception.segmentation.sam2_format import HIERA_SIZES, to_original
from mask_guided_video.weight_files.reading import read_state

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


def full_size(version: str, width: int, blocks: tuple[int, ...]):
    """A published size with random weights."""
    size = HIERA_SIZES[width, blocks]
    config = transformers.Sam2VideoConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": width,
                "blocks_per_stage": list(blocks),
                "embed_dim_per_stage": [width * 2**stage for stage in range(4)],
                "num_attention_heads_per_stage": [size.heads * 2**stage for stage in range(4)],
                "window_size_per_stage": list(size.windows),
                "global_attention_blocks": list(size.global_blocks),
            },
            "backbone_channel_list": [width * 2**stage for stage in range(4)][::-1],
        },
        enable_occlusion_spatial_embedding=version == "2.1",
        enable_temporal_pos_encoding_for_object_pointers=version == "2.1",
    )
    return transformers.Sam2VideoModel(config)


def test_a_full_size_original_file_opens_and_runs(tmp_path):
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": to_original(full_size("2.1", 96, (1, 2, 7, 2)).state_dict())}, path)
    model = sam2.load_state(read_state(path), path)
    propagator = model.follow(Film(torch.rand(2, 720, 1280, 3)))
    assert propagator.prompt(0, {1: ObjectPrompt(0, box=Box(100, 100, 400, 300))})[1].mask.shape == (720, 1280)
    assert propagator.step(1)[1].mask.shape == (720, 1280)
