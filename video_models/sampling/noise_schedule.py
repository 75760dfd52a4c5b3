"""Noise schedules of the LaVie family: betas linear in the step, 1e-4 to 0.02, or Stable Diffusion's, whose square
roots are linear.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class NoiseSchedule(Protocol):
    """The schedule in a model's config."""

    @property
    def num_train_timesteps(self) -> int:
        """Steps that it was trained on."""

    @property
    def beta_start(self) -> float:
        """Of the first step."""

    @property
    def beta_end(self) -> float:
        """Of the last step."""

    @property
    def beta_schedule(self) -> str:
        """``linear`` or ``scaled_linear``."""

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""


def alphas_cumprod(config: NoiseSchedule) -> Tensor:
    """Share of signal power left at each training step: float64 [num_train_timesteps]."""
    if config.beta_schedule == "scaled_linear":
        return square_root_alphas_cumprod(config)
    betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64)
    return torch.cumprod(1.0 - betas, dim=0)


def square_root_alphas_cumprod(config: NoiseSchedule) -> Tensor:
    """As ``alphas_cumprod`` where the betas' square roots are linear, as in Stable Diffusion: the small frames that an
    upscaler is given are noised by it, whatever schedule its latents have.
    """
    ends = config.beta_start**0.5, config.beta_end**0.5
    betas = torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise; ``alpha_bar`` broadcasts."""
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The v-prediction target: sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x (arXiv 2202.00512)."""
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
