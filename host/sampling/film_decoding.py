"""Decoding long videos slice by slice, so that neither the decoder nor the caller holds them whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...attention_patches.latent_time import CAUSAL_FACTORS, CHUNKS_OF_17, PICTURES, LatentTime, causal

# Video frames that a VAE decodes at once by default, and those that two slices share.
FRAMES_PER_PART = 32
OVERLAP = 12
# Latent frames that tell the VAEs in use apart by the frames that they make of them.
COUNTS = (2, 7)


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
    slices = _slices(video_time(vae), clip.shape[2], frames_per_part, overlap if mixes_frames(vae) else 0)
    return _faded(vae, clip, slices)


def decoded_frames(vae: Any, latents: Tensor) -> int:
    """How many frames the video of some latents has.

    Raises:
        ValueError: as ``decode_parts``.
    """
    latent_frames = _clip(vae, latents).shape[2]
    return vae.upscale_ratio[0](latent_frames) if isinstance(vae.upscale_ratio, tuple) else latent_frames


def video_time(vae: Any) -> LatentTime:
    """How many frames of a video each latent frame of a VAE stands for.

    Raises:
        ValueError: a VAE that counts time in a way that nobody knows.
    """
    ratio = vae.upscale_ratio
    if not isinstance(ratio, tuple):
        return PICTURES
    # A number that tells all of these apart.
    frames = [ratio[0](count) for count in COUNTS]
    times = (PICTURES, *map(causal, CAUSAL_FACTORS), CHUNKS_OF_17)
    found = next((time for time in times if [time.pixel_frames(count) for count in COUNTS] == frames), None)
    if found is None:
        raise ValueError(
            f"this VAE makes {frames[0]} and {frames[1]} frames of {COUNTS[0]} and {COUNTS[1]} latent frames, which is "
            "no way of counting time that is known here; use VAE Decode and core's Save Video."
        )
    return found


def time_factor(vae: Any) -> int:
    """Video frames per latent frame after the first, which stands alone in every VAE that compresses time."""
    return vae.temporal_compression_decode() or 1


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


class _Slices(NamedTuple):
    """How a clip is cut: latent frames of a slice, those shared with the next one, frames that a slice is ahead."""

    length: int
    shared: int
    frames: int


def _slices(time: LatentTime, latent_frames: int, frames_per_part: int, overlap: int) -> _Slices:
    """Cut a clip so that each slice is a clip of its own to the VAE: it begins with a cycle of the VAE's time."""
    cycle, in_cycle = len(time.cycle), sum(time.cycle)
    # The first frame after a cut stands alone, as the first one of the clip does.
    shared = max(math.ceil(overlap * cycle / in_cycle), int(time.compresses))
    shared += (latent_frames - shared) % cycle
    # A slice holds at least one cycle that the one before did not.
    fitting = next(count for count in itertools.count(1) if time.pixel_frames(count + 1) > frames_per_part)
    ahead = max((fitting - shared) // cycle, 1)
    return _Slices(shared + cycle * ahead, shared, in_cycle * ahead)


def _faded(vae: Any, clip: Tensor, slices: _Slices) -> Iterator[Tensor]:
    """The slices of a clip, each one fading into the next."""
    from comfy.model_management import throw_exception_if_processing_interrupted

    total = clip.shape[2]
    start, tail = 0, None
    while True:
        throw_exception_if_processing_interrupted()
        end = min(start + slices.length, total)
        frames = _decode(vae, clip[:, :, start:end])
        if tail is not None:
            frames = torch.cat([_crossfade(tail, frames[: len(tail)]), frames[len(tail) :]])
        if end == total:
            yield frames
            return
        following = end - slices.shared
        kept = min(slices.frames, len(frames))
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
