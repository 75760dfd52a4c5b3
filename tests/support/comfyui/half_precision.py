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
    if hasattr(network, "patch_embedding"):
        # Wan keeps this layer in single precision.
        network.patch_embedding.float()
    network.dtype = dtype
    model.manual_cast_dtype = None
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, device, device)
