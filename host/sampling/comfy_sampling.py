"""Sampling videos with ComfyUI's samplers: previews, progress, cancel and background lock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...backbones.nested_latents import stream_sizes, video_of, with_video
from ...backbones.window_runs import shuffle_once
from ...video_models.sampling.noise import is_rescheduled


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample.

    Attributes:
        steps: denoising steps.
        cfg: classifier-free guidance scale.
        sampler_name, scheduler: ComfyUI's names.
        denoise: 1 starts from noise alone, lower keeps that much more of the given latents.
    """

    steps: int = 25
    cfg: float = 4.0
    sampler_name: str = "ddim"
    scheduler: str = "ddim_uniform"
    denoise: float = 1.0


def checked_latents(latent: dict[str, Any], name: str = "latent", dimensions: int = 5) -> Tensor:
    """The samples of a LATENT of video; the video where it has sound beside it.

    Args:
        latent: ComfyUI's dict.
        name: for messages.
        dimensions: 5 for [batch, channels, frames, height, width]; 4 where frames lie in the batch.

    Raises:
        ValueError: if they have another number of dimensions, or are not finite.
    """
    samples = video_of(latent["samples"])
    if samples.ndim != dimensions:
        wanted = {
            5: "video latents [batch, channels, frames, height, width], for example from Video Noise",
            4: "latents [frames, channels, height, width], for example from Empty Latent Image with as many as frames",
        }[dimensions]
        raise ValueError(f"{name} has shape {tuple(samples.shape)}; connect {wanted}.")
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{name} holds NaN or infinite values; the run that made it went wrong, sample it again.")
    return samples


def sample_film(
    model: Any, positive: Any, negative: Any, noise: Any, latent: dict[str, Any], settings: SamplerSettings
) -> dict[str, Any]:
    """Sample video latents as KSampler does.

    Args:
        model: ComfyUI ``ModelPatcher``.
        positive, negative: CONDITIONING.
        noise: NOISE (``seed`` and ``generate_noise``).
        latent: LATENT with five-dimensional samples; ``noise_mask`` in it is honoured.
        settings: steps, scale, sampler.

    Returns:
        A new LATENT; the given one is not changed.

    Raises:
        ValueError: latents that are not of video, or noise of another size.
    """
    import comfy.sample
    import comfy.utils
    import latent_preview

    checked_latents(latent)
    # Of a plain empty latent the host makes one with sound, where the model makes sound.
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    video = video_of(samples)
    result = {**latent, "samples": samples}
    start = noise.generate_noise(result)
    if stream_sizes(start) != stream_sizes(samples):
        given, wanted = (" and ".join(map(str, stream_sizes(each))) for each in (start, samples))
        raise ValueError(
            f"the noise has shape {given} but the latent {wanted}; connect noise and latent of the same Video Noise "
            "node."
        )
    mask = latent.get("noise_mask")
    if mask is not None:
        mask = with_video(mask, latent_mask(video_of(mask), video.shape))
    if is_rescheduled(start):
        model = model.clone()
        shuffle_once(model.model_options, start)
    result["samples"] = comfy.sample.sample(
        model,
        start,
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        positive,
        negative,
        samples,
        denoise=settings.denoise,
        noise_mask=mask,
        callback=latent_preview.prepare_callback(model, settings.steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=noise.seed,
    )
    return result


def latent_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """A noise mask at the size of the latents, averaged over the pixels of each cell.

    ComfyUI's own resize interpolates over time as well; frames must not leak into each other.

    Args:
        mask: [T, H, W], [T, 1, H, W] or [B, 1, T, H, W], 1 where the video is to change.
        size: of the latents, (B, C, T, h, w). One mask serves all frames.

    Returns:
        [1 or B, 1, T, h, w].

    Raises:
        ValueError: if there are neither one nor T masks.
    """
    frames, height, width = size[2:]
    masks = mask if mask.ndim == 5 else mask.reshape(1, 1, -1, *mask.shape[-2:])
    if masks.shape[2] == 1:
        masks = masks.expand(-1, -1, frames, -1, -1)
    if masks.shape[2] != frames:
        raise ValueError(
            f"there are {masks.shape[2]} masks for {frames} latent frames; give one mask per frame, or one for all."
        )
    return adaptive_avg_pool2d(masks.flatten(0, 2)[:, None].float(), (height, width)).view(-1, 1, frames, height, width)
