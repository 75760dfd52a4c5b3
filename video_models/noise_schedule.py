"""The noise schedule of the LaVie family: betas linear in the step, 1e-4 to 0.02.

ComfyUI calls this ``sqrt_linear``; its ``linear`` is Stable Diffusion's, whose square roots are linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lavie_config import LaVieConfig


def alphas_cumprod(config: LaVieConfig) -> Tensor:
    """Share of signal power left at each training step: float64 [num_train_timesteps]."""
    betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64)
    return torch.cumprod(1.0 - betas, dim=0)


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise; ``alpha_bar`` broadcasts."""
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The v-prediction target: sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x (arXiv 2202.00512)."""
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
