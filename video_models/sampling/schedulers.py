"""Diffusers' schedulers, set up for the LaVie family so that they agree with ComfyUI's ``ddim_uniform``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .noise_schedule import NoiseSchedule, alphas_cumprod

SAMPLERS = ("ddim", "euler")


def make_scheduler(sampler: str, config: NoiseSchedule, steps: int) -> Any:
    """A diffusers scheduler with its timesteps set: 1, 1 + 1000 // steps, ... from the highest down.

    The last step ends in clean latents, as in ComfyUI; diffusers' default for LaVie ends at alpha_bar[0]. All
    stages of LaVie are sampled so; LaVie's interpolation script takes 999 to 0 in equal steps, which differs by little.

    Raises:
        ValueError: an unknown sampler.
    """
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    shared = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    if sampler == "ddim":
        scheduler = DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=True)
    elif sampler == "euler":
        scheduler = EulerDiscreteScheduler(**shared)
    else:
        raise ValueError(f"sampler is {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
    scheduler.set_timesteps(steps)
    # With as many steps as the schedule has, the offset would point past its end.
    scheduler.timesteps = scheduler.timesteps.clamp(max=config.num_train_timesteps - 1)
    return scheduler


def first_step(scheduler: Any, config: NoiseSchedule, start_percent: float) -> int:
    """Index of the first timestep of a later start; at least the last step is taken."""
    last = config.num_train_timesteps - 1
    later = [n for n, timestep in enumerate(scheduler.timesteps) if 1.0 - float(timestep) / last >= start_percent]
    return later[0] if later else len(scheduler.timesteps) - 1


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """The noise level before each step, and 0 after the last.

    Attributes:
        alpha_bar: float64 [steps + 1], 1 at the end.
        scaled: whether the sampler's latents are x / sqrt(alpha_bar) (Euler) instead of x (DDIM).
    """

    alpha_bar: Tensor
    scaled: bool

    def sigma(self, number: int) -> float:
        """sqrt((1 - alpha_bar) / alpha_bar) before step ``number``."""
        return float(((1 - self.alpha_bar[number]) / self.alpha_bar[number]).sqrt())

    def to_unit_variance(self, number: int) -> float:
        """Factor from the sampler's scaling before step ``number`` to that in which the variance stays near one."""
        return float(self.alpha_bar[number].sqrt()) if self.scaled else 1.0

    def noised(self, clean: Tensor, noise: Tensor, number: int) -> Tensor:
        """Clean latents at the level before step ``number``, in the sampler's scaling."""
        if self.scaled:
            return clean + noise * self.sigma(number)
        alpha_bar = float(self.alpha_bar[number])
        return clean * alpha_bar**0.5 + noise * (1 - alpha_bar) ** 0.5


def noise_levels(sampler: str, scheduler: Any, first: int, config: NoiseSchedule) -> NoiseLevels:
    """The levels of a scheduler's steps from ``first`` on."""
    chosen = alphas_cumprod(config)[scheduler.timesteps[first:].long()]
    return NoiseLevels(torch.cat([chosen, torch.ones(1, dtype=chosen.dtype)]), scaled=sampler == "euler")
