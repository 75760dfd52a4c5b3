"""Noise levels of ComfyUI's models in one measure, 1 for pure noise and 0 for clean latents."""

from __future__ import annotations

from typing import Any

import torch


def scaled_noise(sampling: Any, sigma: float) -> float:
    """What unit noise is multiplied by at ``sigma``, in the sampler's scaling.

    Args:
        sampling: ComfyUI's ``model_sampling``.
        sigma: above 0.
    """
    one, zero = torch.ones(1), torch.zeros(1)
    return float(sampling.noise_scaling(torch.tensor([sigma]), one, zero))


def level_of(sampling: Any, sigma: float) -> float:
    """``noise / (noise + signal)``: sigma itself for rectified flow, ``sigma / (1 + sigma)`` elsewhere.

    Args:
        sampling: ComfyUI's ``model_sampling``.
        sigma: 0 or more.
    """
    if sigma == 0.0:
        return 0.0
    one, zero = torch.ones(1), torch.zeros(1)
    noise, signal = scaled_noise(sampling, sigma), float(sampling.noise_scaling(torch.tensor([sigma]), zero, one))
    return noise / (noise + signal)
