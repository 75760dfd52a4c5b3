"""Latents of several streams, as video with sound: the video is the first of them.

The host keeps them in a nested tensor in a LATENT and as one flat pack [B, 1, N] while it samples; ``latent_shapes``
says then what is in the pack.

Source: Comfy-Org/ComfyUI, comfy/nested_tensor.py and comfy/utils.py (pack_latents).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Sizes of the streams of a pack, in their order.
Shapes = Sequence[Sequence[int]]
# Under this name the host tells them to runs and to calls of a model.
SHAPES_KEY = "latent_shapes"


def is_nested(latents: Any) -> bool:
    """Whether the samples of a LATENT, or a noise, hold several streams."""
    return bool(getattr(latents, "is_nested", False))


def video_of(latents: Any) -> Tensor:
    """The video among the samples of a LATENT, [B, C, T, h, w], or the samples themselves where they are one stream."""
    return latents.unbind()[0] if is_nested(latents) else latents


def stream_sizes(latents: Any) -> list[tuple[int, ...]]:
    """Size of each stream in the samples of a LATENT, or in a noise."""
    return [tuple(part.shape) for part in (latents.unbind() if is_nested(latents) else [latents])]


def with_video(latents: Any, video: Tensor) -> Any:
    """Samples of a LATENT with another video; sound and all else stay the very tensors that they were."""
    if not is_nested(latents):
        return video
    from comfy.nested_tensor import NestedTensor

    return NestedTensor([video, *latents.unbind()[1:]])


def is_pack(shapes: Shapes | None) -> bool:
    """Whether latents of these sizes are in one flat pack."""
    return shapes is not None and len(shapes) > 1


def video_size(latents: Tensor, shapes: Shapes | None) -> tuple[int, ...]:
    """Size of the video in latents that the host samples, a flat pack or not."""
    if shapes is None or not is_pack(shapes):
        return tuple(latents.shape)
    return (latents.shape[0], *shapes[0][1:])


def video_in(latents: Tensor, shapes: Shapes | None) -> Tensor:
    """View of the video in latents that the host samples: [B, C, T, h, w] of a flat pack, else the latents."""
    size = video_size(latents, shapes)
    return latents[:, :, : math.prod(size[1:])].reshape(size) if is_pack(shapes) else latents


def with_video_in(latents: Tensor, video: Tensor, shapes: Shapes | None) -> Tensor:
    """Latents that the host samples with another video; the rest of a flat pack is as it was."""
    if not is_pack(shapes):
        return video
    flat = video.reshape(video.shape[0], 1, -1)
    return torch.cat([flat, latents[:, :, flat.shape[2] :].to(flat)], dim=2)


def zeros_like(latents: Any) -> Any:
    """Samples of a LATENT of the same sizes, all zero."""
    if not is_nested(latents):
        return torch.zeros_like(latents)
    from comfy.nested_tensor import NestedTensor

    return NestedTensor([torch.zeros_like(part) for part in latents.unbind()])
