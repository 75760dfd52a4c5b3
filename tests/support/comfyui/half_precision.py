"""Tiny models with their weights in half precision."""

from __future__ import annotations

import copy
from typing import Any

import torch
from native_models import tiny

# Of the output's range, in all layers together; guidance itself changes 1 to 15 % of it.
ROUNDING = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def in_half(name: str, dtype: torch.dtype) -> Any:
    """The tiny model with its weights in half precision."""
    import comfy.model_patcher

    whole = tiny(name).patcher.model
    # The core's configs answer for every attribute, those that copying asks for too.
    model = copy.deepcopy(whole, {id(whole.model_config): whole.model_config})
    network = model.diffusion_model.to(dtype)
    # Wan keeps this layer in single precision; MiniMax H3 its first and its last ones.
    for part in ("patch_embedding", "video_patch_proj", "audio_patch_proj", "time_embedder", "rope"):
        if hasattr(network, part):
            getattr(network, part).float()
    if hasattr(network, "video_patch_proj"):
        network.final_layer.video_out.float()
        network.final_layer.audio_out.float()
    network.dtype = dtype
    model.manual_cast_dtype = None
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, device, device)
