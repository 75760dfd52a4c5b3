"""Tiny random models of LaVie's interpolation and upscaling stage, native and by themselves, on the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_model import randomise
from torch import Tensor

SIZES = {
    "block_out_channels": (16, 32),
    "attention_levels": (True, True),
    "layers_per_block": 1,
    "num_heads": 2,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "rotary_dim": 8,
}


def stage_config(stage: str, **sizes: Any) -> Any:
    """A config with a text of 32 channels unless told otherwise."""
    from mask_guided_video.video_models.lavie.config import LaVieConfig, UpscalerConfig

    values = {**SIZES, **sizes}
    if stage == "upscaling":
        return UpscalerConfig(only_cross_attention=(True, False), **values)
    if stage == "interpolation":
        return LaVieConfig(stage=stage, in_channels=8, native_frames=61, **values)
    return LaVieConfig(**values)


def stage_state(config: Any, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a U-Net, as a file holds them."""
    from mask_guided_video.video_models.lavie.files import make_unet, unet_state

    with torch.inference_mode(False), torch.no_grad():
        unet = make_unet(config)
        randomise(unet, seed)
        return unet_state(unet.state_dict())


@dataclass(frozen=True)
class Stage:
    """The same weights twice.

    Attributes:
        model, clip, vae: ComfyUI's.
        alone: ``Interpolator`` or ``Upscaler``.
    """

    model: Any
    clip: Any
    vae: Any
    alone: Any

    def prompt(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))


def make_stage(stage: str, folder: Path) -> Stage:
    """Build it with the text encoder and VAE of the tiny text-to-video model's folder."""
    from diffusers import AutoencoderKL
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    from mask_guided_video.host.models.lavie_models import native_model
    from mask_guided_video.host.models.native_text import native_clip
    from mask_guided_video.host.models.native_vae import diffusers_vae
    from mask_guided_video.video_models.frame_coding import FrameCoder
    from mask_guided_video.video_models.interpolation import Interpolator
    from mask_guided_video.video_models.lavie.files import make_unet
    from mask_guided_video.video_models.text_encoding import PromptEncoder
    from mask_guided_video.video_models.upscaling import Upscaler

    config = stage_config(stage)
    state = stage_state(config)
    vae, scaling = diffusers_vae(folder / "vae")
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    unet = make_unet(config)
    unet.load_state_dict(state, strict=False)
    coder = FrameCoder(AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True).float())
    alone = (Upscaler if stage == "upscaling" else Interpolator)(unet, PromptEncoder(encoder, tokenizer), coder)
    clip = native_clip(encoder, tokenizer, tokenizer.model_max_length)
    return Stage(native_model(state, config, scaling), clip, vae, alone)
