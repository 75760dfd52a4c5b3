"""LAMP's sampler in ComfyUI: DDIM whose frames take mean and spread from one another between the steps.

Source: LAMP (arXiv 2310.10769), sampling with AdaIN after every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backbones.nested_latents import video_in, with_video_in
from ...video_models.sampling.latent_statistics import SWITCH, match_after_step
from .first_frame_lock import FIRST_PLACE_KEY, as_film, like_latents
from .stepwise_sampler import Step, StepChange, stepwise_sampler


def lamp_sampler(switch: float = SWITCH) -> Any:
    """A SAMPLER: DDIM with eta 0, statistics matched after every step.

    Args:
        switch: from which part of the steps on (0..1) frame 2 takes the statistics of frame 1.
    """
    return stepwise_sampler([match_statistics(switch)])


def match_statistics(switch: float = SWITCH) -> StepChange:
    """The change of latents after a step that ``latent_statistics.match_after_step`` describes.

    The clean first frame is the one that the prediction holds: that of a first-frame lock, or else what the model takes
    the first frame for.
    """

    def change(x: Tensor, step: Step) -> Tensor:
        place = step.options.get(FIRST_PLACE_KEY, 0)
        video = video_in(x, step.shapes)
        film, denoised = as_film(video), as_film(video_in(step.denoised, step.shapes))[:, :, place:]
        # The host scales latents to a variance near one as it hands them to the network.
        scale = step.sampling.calculate_input(step.sigma, x.new_ones(()))
        matched = match_after_step(film[:, :, place:] * scale, denoised[:, :, :1], step.number, step.steps, switch)
        changed = like_latents(torch.cat([film[:, :, :place], matched / scale], dim=2), video)
        return with_video_in(x, changed, step.shapes)

    return change
