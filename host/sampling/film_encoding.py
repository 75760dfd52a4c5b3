"""Encoding videos frame by frame, with ComfyUI's VAEs of pictures and with ours of videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .film_decoding import time_factor

# Frames that go to the VAE's device at once.
FRAMES_AT_ONCE = 8


def encode_frames(vae: Any, frames: Tensor) -> Tensor:
    """Encode every frame by itself.

    Args:
        vae: ComfyUI VAE of pictures, or one from Load Video Model. Where height or width is not a multiple of
            its factor, ComfyUI cuts the border.
        frames: [T, H, W, 3] in 0..1.

    Returns:
        Raw latents [1, C, T, h, w].

    Raises:
        ValueError: no VAE, one that puts several frames into a latent frame, or frames smaller than a latent cell.
    """
    from comfy.model_management import throw_exception_if_processing_interrupted

    if vae is None:
        raise ValueError("there is no VAE; choose an SD checkpoint in Load Video Model, or load a VAE.")
    vae.throw_exception_if_invalid()
    factor = time_factor(vae)
    if factor > 1:
        raise ValueError(
            f"this VAE puts {factor} frames into one latent frame, but here each frame is one; connect the VAE of a "
            "Stable Diffusion 1.x checkpoint."
        )
    check_size(vae, *frames.shape[1:3])
    parts = []
    for part in frames.split(FRAMES_AT_ONCE):
        throw_exception_if_processing_interrupted()
        latents = vae.encode(part)
        parts.append(latents if latents.ndim == 5 else latents.transpose(0, 1)[None])
    return torch.cat(parts, dim=2)


def check_size(vae: Any, height: int, width: int) -> None:
    """Make sure that pictures have a latent cell at least.

    Raises:
        ValueError: they are smaller.
    """
    cell = vae.spacial_compression_encode()
    if min(height, width) < cell:
        raise ValueError(f"the video is {width} x {height} pixels; this VAE wants at least {cell} x {cell}.")
