"""Decoding long videos slice by slice, so that neither the decoder nor the caller holds them whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Video frames that a VAE decodes at once by default, and those that two slices share.
FRAMES_PER_PART = 32
OVERLAP = 12


def decode_parts(
    vae: Any, latents: Tensor, frames_per_part: int = FRAMES_PER_PART, overlap: int = OVERLAP
) -> Iterator[Tensor]:
    """Decode latents a few frames at a time.

    Where the VAE sees every frame by itself, slices do not overlap and the video is that of one call. A VAE that mixes
    neighbouring frames decodes some twice: the end of a slice fades into the next one. A VAE whose latent frames are of
    different lengths (MiniMax H3, which cuts the video itself) decodes it in one call.

    Args:
        vae: ComfyUI VAE, of pictures or of video.
        latents: raw, as in a LATENT: [1, C, T, h, w], or [T, C, h, w] with frames in the batch.
        frames_per_part: video frames of a slice, 1 or more; rounded to whole latent frames.
        overlap: video frames that two slices share, 0 or more; rounded up to whole latent frames, of which a VAE that
            compresses time needs one at least. Not used where the VAE sees frames one by one.

    Returns:
        An iterator of frames [n, H, W, 3] in 0..1 on the host's output device. Between slices it can be cancelled.

    Raises:
        ValueError: at once, before any work: no VAE; latents of more than one clip, of another shape or of other
            channels than the VAE's, or not finite; numbers out of range.
    """
    if frames_per_part < 1:
        raise ValueError(f"frames_per_part is {frames_per_part}; decode at least 1 frame at once.")
    if overlap < 0:
        raise ValueError(f"overlap is {overlap}; choose 0 or more frames.")
    clip = _clip(vae, latents)
    factor = time_factor(vae)
    if not is_causal(vae):
        return _whole(vae, clip, frames_per_part)
    shared = math.ceil(overlap / factor) if mixes_frames(vae) else 0
    if factor > 1:
        shared = max(shared, 1)
    # A slice holds at least one latent frame that the one before did not.
    length = max(shared + 1, (frames_per_part - 1) // factor + 1)
    return _faded(vae, clip, factor, length, shared)


def decoded_frames(vae: Any, latents: Tensor) -> int:
    """How many frames the video of some latents has.

    Raises:
        ValueError: as ``decode_parts``.
    """
    latent_frames = _clip(vae, latents).shape[2]
    return vae.upscale_ratio[0](latent_frames) if isinstance(vae.upscale_ratio, tuple) else latent_frames


def time_factor(vae: Any) -> int:
    """Video frames per latent frame after the first, which stands alone in every VAE that compresses time."""
    return vae.temporal_compression_decode() or 1


def is_causal(vae: Any) -> bool:
    """Whether each latent frame after the first stands for equally many frames, so that a video can be cut anywhere."""
    if not isinstance(vae.upscale_ratio, tuple):
        return True
    return all(vae.upscale_ratio[0](count) == time_factor(vae) * (count - 1) + 1 for count in (2, 7, 12))


def mixes_frames(vae: Any) -> bool:
    """Whether a frame of the video depends on other latent frames than its own: the VAE convolves over time."""
    return time_factor(vae) > 1 or any(weight.ndim == 5 for weight in vae.first_stage_model.parameters())


def _clip(vae: Any, latents: Tensor) -> Tensor:
    """The latents as [1, C, T, h, w]."""
    if vae is None:
        raise ValueError(
            "there is no VAE: the loader had no file to take one from; choose the checkpoint that holds it there, or "
            "load it with a node of its own."
        )
    vae.throw_exception_if_invalid()
    if latents.ndim == 4 and time_factor(vae) == 1:
        latents = latents.transpose(0, 1)[None]
    if latents.ndim != 5:
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}; this VAE decodes videos of [1, channels, frames, height, "
            "width]."
        )
    if latents.shape[0] != 1:
        raise ValueError(f"latents hold {latents.shape[0]} clips; decode them one by one.")
    if latents.shape[1] != vae.latent_channels:
        raise ValueError(
            f"latents have {latents.shape[1]} channels but this VAE decodes {vae.latent_channels}; connect the VAE "
            "that belongs to the model."
        )
    if not bool(torch.isfinite(latents).all()):
        raise ValueError("the latents hold NaN or infinite values; the run that made them went wrong, sample it again.")
    return latents


def _decode(vae: Any, clip: Tensor) -> Tensor:
    """[1, C, T, h, w] to [frames, H, W, 3]."""
    # VAEs of pictures, and Stable Video Diffusion's, take frames in the batch.
    in_batch = vae.latent_dim == 2
    with torch.inference_mode():
        pictures = vae.decode(clip[0].transpose(0, 1) if in_batch else clip)
    return pictures if in_batch else pictures[0]


def _whole(vae: Any, clip: Tensor, length: int) -> Iterator[Tensor]:
    """All in one call, handed on ``length`` frames at a time."""
    yield from _decode(vae, clip).split(length)


def _faded(vae: Any, clip: Tensor, factor: int, length: int, shared: int) -> Iterator[Tensor]:
    """Slices of ``length`` latent frames, ``shared`` of them with the slice before."""
    from comfy.model_management import throw_exception_if_processing_interrupted

    total = clip.shape[2]
    start, tail = 0, None
    while True:
        throw_exception_if_processing_interrupted()
        end = min(start + length, total)
        frames = _decode(vae, clip[:, :, start:end])
        if tail is not None:
            frames = torch.cat([_crossfade(tail, frames[: len(tail)]), frames[len(tail) :]])
        if end == total:
            yield frames
            return
        # The first latent frame of a slice gives one frame, the last of those it stands for.
        following = end - shared
        kept = min(factor * (following - start), len(frames))
        # A copy, so that the rest of the slice is free while the next one is decoded.
        tail = frames[kept:].clone() if kept < len(frames) else None
        yield frames[:kept]
        del frames
        start = following


def _crossfade(first: Tensor, second: Tensor) -> Tensor:
    """From one version of some frames to another, linearly over the second half of them.

    The first half stays as it was: most video decoders look back only, so the end of a slice is as good as its middle,
    while the next slice begins without knowing what was before.
    """
    steps = torch.linspace(-1.0, 1.0, len(first) + 2, device=first.device)[1:-1]
    share = steps.clamp(min=0.0).view(-1, 1, 1, 1)
    return first * (1.0 - share) + second * share
