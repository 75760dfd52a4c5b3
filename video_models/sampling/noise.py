"""Starting noise for video latents: plain, FreeNoise, SpecMix and shared between frames.

All modes draw from one CPU generator seeded by the caller, so the same seed gives the same noise on every machine;
``plain`` draws exactly what ComfyUI's samplers draw for the same seed and size.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

NoiseMode = Literal["plain", "freenoise", "specmix", "shared"]
NOISE_MODES: tuple[str, ...] = get_args(NoiseMode)
# A tensor of noise whose frames repeat on purpose has this attribute.
RESCHEDULED = "mask_guided_video_rescheduled"


def mark_rescheduled(noise: Tensor, rescheduled: bool = True) -> Tensor:
    """Mark a noise tensor as rescheduled or not, so that its frames are not shuffled again."""
    setattr(noise, RESCHEDULED, rescheduled)
    return noise


def is_rescheduled(noise: Tensor) -> bool:
    """Whether ``mark_rescheduled`` marked this very tensor."""
    return getattr(noise, RESCHEDULED, False)


def plain_noise(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent unit normal values.

    Args:
        size: of the latents, (B, C, T, h, w).
        generator: CPU generator.

    Returns:
        float32 CPU tensor of that size.
    """
    return torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")


def reschedule_frames(noise: Tensor, generator: torch.Generator, window: int = 16, stride: int = 4) -> Tensor:
    """FreeNoise: frames after the first ``window`` repeat earlier ones, shuffled within groups of ``stride``.

    Frames f .. f + stride - 1 (f = window, window + stride, ...) become a random permutation of the frames one window
    earlier. Long clips then hold the same noise statistics as native ones. A last group that is not full is cut.

    Args:
        noise: [B, C, T, h, w].
        generator: draws the permutations.
        window: native clip length in latent frames.
        stride: frames in a shuffled group; at most ``window``.

    Returns:
        New tensor of the same shape; equal to ``noise`` when T <= window.

    Source: FreeNoise (arXiv 2310.15169), noise rescheduling.
    """
    if window < 1 or not 1 <= stride <= window:
        raise ValueError(f"window {window} with stride {stride} makes no groups; use 1 <= stride <= window.")
    result = noise.clone()
    frames = noise.shape[2]
    for start in range(window, frames, stride):
        order = torch.randperm(stride, generator=generator) + (start - window)
        kept = order[: frames - start]
        result[:, :, start : start + len(kept)] = result[:, :, kept]
    return result


def spectral_mix_angles(frames: int) -> Tensor:
    """Mixing angle of each frame: 0 in the middle of the clip, pi/2 at both ends. float64 [T]."""
    if frames == 1:
        return torch.zeros(1, dtype=torch.float64)
    middle = (frames - 1) / 2
    position = torch.arange(frames, dtype=torch.float64)
    return (math.pi / 2) * (position - middle).abs() / middle


def spectral_mix(base: Tensor, residual: Tensor) -> Tensor:
    """SpecMix: cos(angle) * base + sin(angle) * residual, angle per frame; the variance stays one.

    Args:
        base: rescheduled noise, [B, C, T, h, w]; leads in the middle of the clip.
        residual: fresh noise of the same shape; leads at the ends.

    Source: FreeLong++ (arXiv 2507.00162), multi-band noise.
    """
    angles = spectral_mix_angles(base.shape[2]).view(1, 1, -1, 1, 1)
    return base * angles.cos().to(base.dtype) + residual * angles.sin().to(base.dtype)


def share_first_frame(
    noise: Tensor, amount: float = 0.2, keep_variance: bool = True, source: Tensor | None = None
) -> Tensor:
    """Give every later frame a part of the first frame's noise.

    Args:
        noise: [B, C, T, h, w].
        amount: 0 (independent frames) to 1 (all frames alike).
        keep_variance: weights sqrt(a) and sqrt(1 - a), which keep unit variance. Without it the weights are a and
            1 - a as in LAMP, whose smaller variance (0.68 at 0.2) calms the clip and dulls detail.
        source: [1 or B, C, 1, h, w], what is shared in place of the first frame's noise, such as the noised first
            frame.

    Returns:
        New tensor of the same shape; its first frame is as it was.

    Raises:
        ValueError: an amount out of range, or a source of another size.

    Source: LAMP (arXiv 2310.10769), shared-noise sampling.
    """
    if not 0.0 <= amount <= 1.0:
        raise ValueError(f"shared amount is {amount}; it must lie between 0 and 1.")
    first = noise[:, :, :1]
    shared = first if source is None else source.to(noise)
    if shared.shape[1:] != first.shape[1:] or shared.shape[0] not in (1, first.shape[0]):
        raise ValueError(
            f"what the frames are to share has shape {tuple(shared.shape)} but a frame of the noise "
            f"{tuple(first.shape)}; make both of the same size."
        )
    if keep_variance:
        mixed = math.sqrt(amount) * shared + math.sqrt(1.0 - amount) * noise
    else:
        mixed = amount * shared + (1.0 - amount) * noise
    return torch.cat([first, mixed[:, :, 1:]], dim=2)


def video_noise(
    size: tuple[int, ...],
    seed: int,
    mode: str = "plain",
    *,
    window: int = 16,
    stride: int = 4,
    shared: float = 0.2,
    keep_variance: bool = True,
) -> Tensor:
    """Seeded starting noise for a clip.

    Args:
        size: of the latents, (B, C, T, h, w).
        seed: 0 .. 2**64 - 1.
        mode: ``plain``, ``freenoise``, ``specmix`` or ``shared``.
        window: native length in latent frames, for ``freenoise`` and ``specmix``.
        stride: group length, for the same.
        shared: part of the first frame's noise in all others, for ``shared``.
        keep_variance: for ``shared``, see :func:`share_first_frame`.

    Returns:
        float32 CPU tensor of that size, marked as rescheduled where its frames are.

    Raises:
        ValueError: unknown mode, size that is not five-dimensional, or values out of range.
    """
    if len(size) != 5:
        raise ValueError(f"latent size is {tuple(size)}; video latents are [batch, channels, frames, height, width].")
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = plain_noise(tuple(size), generator)
    if mode == "plain":
        return noise
    if mode == "shared":
        return share_first_frame(noise, shared, keep_variance)
    if mode not in ("freenoise", "specmix"):
        raise ValueError(f"noise mode is {mode!r}; choose one of {', '.join(NOISE_MODES)}.")
    residual = plain_noise(tuple(size), generator) if mode == "specmix" else None
    result = reschedule_frames(noise, generator, window, stride)
    if residual is not None:
        result = spectral_mix(result, residual)
    return mark_rescheduled(result, size[2] > window)
