"""Frames of a clip take mean and spread from one another between sampling steps, as in LAMP (AdaIN)."""

from __future__ import annotations

import torch
from torch import Tensor

# Added to variances, so that a flat frame has a spread to divide by.
SMALLEST_VARIANCE = 1e-8
# LAMP takes frame 2 from frame 1 after 30 of its 50 steps.
SWITCH = 0.6


def take_statistics(latents: Tensor, reference: Tensor) -> Tensor:
    """Give frames mean and standard deviation of others, per frame and channel over height and width.

    Args:
        latents: [B, C, T, h, w].
        reference: [1 or B, C, 1 or T, h', w'].

    Returns:
        New tensor [B, C, T, h, w].

    Source: AdaIN (arXiv 1703.06868); variances are unbiased with 1e-8 added, as in LAMP (arXiv 2310.10769).
    """
    mean, spread = _statistics(latents)
    wanted_mean, wanted_spread = _statistics(reference.to(latents))
    return (latents - mean) / spread * wanted_spread + wanted_mean


def match_after_step(latents: Tensor, first: Tensor, step: int, steps: int, switch: float = SWITCH) -> Tensor:
    """What LAMP does to a clip's latents after each step of its sampler.

    Up to the part ``switch`` of the steps, frames 3 to T take the statistics of frame 2, which stays. After it, frame 2
    first takes those of the clean first frame, then frames 3 to T those of the new frame 2. After the last step all
    frames but the first take those of the first.

    Args:
        latents: the sampler's, at the noise level that the step ended at and in the scaling in which the variance of
            the noisy latents stays near one (that of DDIM), [B, C, T, h, w].
        first: clean first frame, [1 or B, C, 1, h, w].
        step: number of the step that was taken, 0 for the first.
        steps: how many there are.
        switch: 0..1; LAMP's 30 of 50 steps are 0.6.

    Returns:
        New tensor [B, C, T, h, w]; its first frame is as it was.

    Source: LAMP (arXiv 2310.10769), AdaIN after every step of sampling.
    """
    start, second, later = latents[:, :, :1], latents[:, :, 1:2], latents[:, :, 2:]
    if second.shape[2] == 0:
        return latents.clone()
    if step / steps > switch:
        second = take_statistics(second, first)
    later = take_statistics(later, second)
    rest = torch.cat([second, later], dim=2)
    if step == steps - 1:
        rest = take_statistics(rest, first)
    return torch.cat([start, rest], dim=2)


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over height and width, [B, C, T, 1, 1] each."""
    cells = latents.shape[-2] * latents.shape[-1]
    # The unbiased variance of a single cell does not exist; it has none.
    variance = latents.var(dim=(-2, -1), correction=min(1, cells - 1), keepdim=True)
    return latents.mean(dim=(-2, -1), keepdim=True), (variance + SMALLEST_VARIANCE).sqrt()
