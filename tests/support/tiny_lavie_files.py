"""Tiny random U-Nets of LaVie's three stages, and files of them in the originals' form."""

from __future__ import annotations

from pathlib import Path

import torch

from mask_guided_video.video_models.lavie.config import LaVieConfig, UpscalerConfig
from mask_guided_video.video_models.lavie.files import make_unet

SIZES = {
    "block_out_channels": (16, 32),
    "attention_levels": (True, True),
    "layers_per_block": 1,
    "num_heads": 2,
    "norm_num_groups": 4,
    "rotary_dim": 8,
}
CONFIGS = {
    "base": LaVieConfig(**SIZES, cross_attention_dim=64),
    "interpolation": LaVieConfig(
        **SIZES, stage="interpolation", in_channels=8, cross_attention_dim=64, native_frames=13
    ),
    "upscaling": UpscalerConfig(**SIZES, only_cross_attention=(True, False), cross_attention_dim=128),
}


def tiny_unet(stage: str, seed: int = 0):
    """A U-Net of a stage in which no layer is silent."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = make_unet(CONFIGS[stage])
        for parameter in unet.parameters():
            if not bool(parameter.any()):
                torch.nn.init.normal_(parameter, std=0.05)
    return unet.eval().requires_grad_(False)


def write_unet(path: Path, stage: str, seed: int = 0) -> Path:
    """``{"ema": state}`` as LaVie's files are, with the sizes that shapes do not tell beside it."""
    torch.save({"ema": tiny_unet(stage, seed).state_dict()}, path)
    CONFIGS[stage].save(path.with_suffix(".json"))
    return path
