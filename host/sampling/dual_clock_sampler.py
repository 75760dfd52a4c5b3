"""A sampler that begins with a crude film and holds to it inside a mask for longer than outside.

Source: Time-to-Move (arXiv 2511.08633), dual-clock denoising; steps as ``stepwise_sampler``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...attention_patches.guidance.regions import FOREGROUND, pool_area, pool_time
from ...backbones.nested_latents import SHAPES_KEY, is_pack
from ...video_models.sampling.levers import DualClock
from .first_frame_lock import as_film, like_latents
from .noise_levels import level_of


def dual_clock_sampler(clock: DualClock) -> Any:
    """A SAMPLER of Euler steps with two clocks.

    Steps above the clock's start are left out: the film begins as the crude one, noised to the first level that is left
    with the run's own noise. After every step to a level of the hold or more the mask is the noised crude film again.

    Args:
        clock: crude film in raw latents, as a LATENT holds them, and the two noise levels.
    """
    from comfy.samplers import KSAMPLER

    def sample(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any = None, **_: Any
    ) -> Tensor:
        network = model.inner_model.inner_model
        if is_pack(_shapes(model.inner_model.conds)):
            raise ValueError("the dual clock does not know latents with sound beside the video; take another sampler.")
        sampling, noise = network.model_sampling, as_film(model.noise)
        crude = network.process_latent_in(clock.latents.to(noise))
        if crude.shape[1:] != noise.shape[1:]:
            raise ValueError(
                f"the crude film has latents {tuple(crude.shape)} and the video {tuple(noise.shape)}; make both of the "
                "same size."
            )
        crude = crude.expand_as(noise)
        kept = [number for number, sigma in enumerate(sigmas[:-1]) if level_of(sampling, float(sigma)) <= clock.start]
        first = kept[0] if kept else len(sigmas) - 2
        x = like_latents(sampling.noise_scaling(sigmas[first], noise, crude), x)
        rows = x.new_ones(x.shape[0])
        for number in range(first, len(sigmas) - 1):
            sigma, following = sigmas[number], sigmas[number + 1]
            denoised = model(x, sigma * rows, **extra_args)
            x = x + (x - denoised) / sigma * (following - sigma)
            if float(following) > 0.0 and clock.holds_at(level_of(sampling, float(following))):
                held = sampling.noise_scaling(following, noise, crude)
                x = like_latents(clock.blend(as_film(x), held), x)
            if callback is not None:
                callback({"x": x, "i": number, "denoised": denoised, "sigma": sigma, "sigma_hat": sigma})
        return x

    return KSAMPLER(sample)


def _shapes(conds: Mapping[str, Any]) -> Any:
    """What the host has told the conditions of the streams of its latents."""
    told = [cond["model_conds"].get(SHAPES_KEY) for group in conds.values() for cond in group or ()]
    return next((shapes.cond for shapes in told if shapes is not None), None)


def clock_mask(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """The held cells of latents: those that an object covers by half.

    Args:
        masks: [F, H, W] in 0..1; F is 1, the latents' frames, or the pixel frames that they stand for, in equal parts
            behind the first.
        size: of the latents [B, C, T, h, w].

    Returns:
        float [1, 1, T, h, w], 0 or 1.

    Raises:
        ValueError: the frames do not fit.
    """
    pooled = pool_area(pool_time(masks[None], size[2])[0], *size[-2:])
    return (pooled >= FOREGROUND).to(torch.float32)[None, None]
