"""The sampling loop that all models of the LaVie family share when they run by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...attention_patches.attention_energy import AttentionShare
from ...attention_patches.kernels.torch_attention import OVERRIDE_KEY
from ...attention_patches.patch import Patch
from ...attention_patches.site import CONDITIONAL, UNCONDITIONAL
from ...attention_patches.stack import PatchStack
from ..text_encoding import TextEmbedding
from .background_lock import BackgroundLock
from .context_windows import ContextWindow, blend_windows, context_windows
from .first_frame import FirstFrame
from .lever_steps import LeverSteps, clock_start, sampling_mode
from .levers import SamplingLevers
from .noise_schedule import NoiseSchedule
from .schedulers import first_step, make_scheduler, noise_levels

SampleCallback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a U-Net is given besides the noisy latents.

    Attributes:
        positive, negative: prompts, of batch 1 or that of the noise.
        cfg: classifier-free guidance; at 1 the negative prompt is not computed.
        patches: attention patches, outermost first.
        channels: further input channels [1 or B, C', T, h, w], behind those of the latents; the same at every step.
        class_label: the noise level for an upscaler.
        window: frames that the U-Net sees at once; 0 is the whole clip.
        overlap: frames that neighbouring windows share.
    """

    positive: TextEmbedding
    negative: TextEmbedding
    cfg: float
    patches: Sequence[Patch] = ()
    channels: Tensor | None = None
    class_label: int | None = None
    window: int = 0
    overlap: int = 0


def sample_latents(
    unet: nn.Module,
    noise: Tensor,
    conditions: Conditions,
    device: torch.device,
    *,
    steps: int,
    sampler: str = "ddim",
    start_percent: float = 0.0,
    latents: Tensor | None = None,
    background_lock: BackgroundLock | None = None,
    first_frame: FirstFrame | None = None,
    callback: SampleCallback | None = None,
    levers: SamplingLevers | None = None,
) -> Tensor:
    """Denoise to clean latents.

    Args:
        unet: of the LaVie family, with ``config`` and ``dtype``.
        noise: unit noise [B, C, T, h, w].
        conditions: prompts and all else that the U-Net is given.
        device: where to compute.
        steps: of the whole schedule, 1 or more.
        sampler: ``ddim`` (eta 0) or ``euler``.
        start_percent: 0..1; above 0 the part of the schedule before it is skipped and ``latents`` are noised.
        latents: clean latents to start from; needed for a later start.
        background_lock: keeps the surroundings as they were, after every step.
        first_frame: a clean frame that the model is given in place of its first one, and the clip begins with. Context
            windows see it where they hold the beginning of the clip.
        callback: called after every step with (step, total, denoised latents); may raise to cancel.
        levers: what acts on the latents between steps; None is nothing. A crude clip takes the place of ``latents``.

    Returns:
        float32 [B, C, T, h, w].

    Raises:
        ValueError: settings out of range; before any work.
    """
    _check(unet, noise, conditions, steps, start_percent, latents)
    _check_levers(levers, start_percent, noise)
    if first_frame is not None:
        first_frame.check_film(noise.shape)
    with sampling_mode(levers):
        return _sample(
            *(unet, noise, conditions, device, make_scheduler(sampler, unet.config, steps), sampler),
            *(start_percent, latents, background_lock, first_frame, callback, levers or SamplingLevers()),
        )


def _sample(
    unet: nn.Module,
    noise: Tensor,
    conditions: Conditions,
    device: torch.device,
    scheduler: Any,
    sampler: str,
    start_percent: float,
    latents: Tensor | None,
    background_lock: BackgroundLock | None,
    first_frame: FirstFrame | None,
    callback: SampleCallback | None,
    levers: SamplingLevers,
) -> Tensor:
    first = first_step(scheduler, unet.config, start_percent)
    if levers.dual_clock is not None:
        first += clock_start(noise_levels(sampler, scheduler, first, unet.config), levers.dual_clock)
        latents = levers.dual_clock.latents
    timesteps = scheduler.timesteps[first:]
    if sampler == "euler":
        scheduler.set_begin_index(first)
    noise = noise.to(device, torch.float32)
    clean = torch.zeros_like(noise) if latents is None else latents.to(noise).expand_as(noise)
    levels = noise_levels(sampler, scheduler, first, unet.config)
    sample = levels.noised(clean, noise, 0)
    denoiser = _Denoiser(unet, conditions, noise.shape, device)

    def measure(seen: Tensor, number: int, share: AttentionShare) -> None:
        seen = seen if first_frame is None else first_frame.placed(seen)
        denoiser.measure(seen, timesteps[number], levels.sigma(number), share)

    acting = LeverSteps(levers, levels, noise, measure)
    try:
        for number, timestep in enumerate(timesteps):
            sample = acting.before(sample, number)
            seen = scheduler.scale_model_input(sample, timestep)
            if first_frame is not None:
                seen = first_frame.placed(seen)
            result = scheduler.step(denoiser(seen, timestep, levels.sigma(number)), timestep, sample)
            sample, denoised = result.prev_sample, result.pred_original_sample
            if first_frame is not None:
                scale = levels.to_unit_variance(number + 1)
                sample = first_frame.matched(sample * scale, number, len(timesteps)) / scale
                denoised = first_frame.placed(denoised)
            sample = acting.after(sample, number)
            if background_lock is not None:
                kept = background_lock.latents.to(noise).expand_as(noise)
                sample = background_lock.blend(sample, levels.noised(kept, noise, number + 1))
            if callback is not None:
                callback(number + 1, len(timesteps), denoised)
            acting.look(sample, number, denoised)
    finally:
        denoiser.stack.release()
    return sample if first_frame is None else first_frame.placed(sample)


def check_settings(config: NoiseSchedule, steps: int, cfg: float) -> None:
    """Refuse numbers that no model can be sampled with.

    Raises:
        ValueError: steps beyond the schedule, or a scale that is negative or not finite.
    """
    if not 1 <= steps <= config.num_train_timesteps:
        raise ValueError(f"steps is {steps}; choose 1 to {config.num_train_timesteps}.")
    if not math.isfinite(cfg) or cfg < 0:
        raise ValueError(f"cfg is {cfg}; choose 0 or more (1 = no guidance by the prompt).")


def step_progress(config: NoiseSchedule, steps: int, sampler: str, start_percent: float) -> list[float]:
    """Where in the schedule the steps of ``sample_latents`` lie, as ``AttentionSite`` counts it.

    Raises:
        ValueError: an unknown sampler, or steps beyond the schedule.
    """
    check_settings(config, steps, cfg=1.0)
    scheduler = make_scheduler(sampler, config, steps)
    timesteps = scheduler.timesteps[first_step(scheduler, config, start_percent) :]
    return [1.0 - float(timestep) / (config.num_train_timesteps - 1) for timestep in timesteps]


def same_lengths(embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Repeat text sequences [1, L, C] up to their least common length, which attention does not notice."""
    common = math.lcm(*(text.shape[1] for text in embeddings))
    return [text.repeat(1, common // text.shape[1], 1) for text in embeddings]


class _Denoiser:
    """The U-Net with its conditions, classifier-free guidance, patches and windows; called once a step."""

    def __init__(self, unet: nn.Module, conditions: Conditions, size: torch.Size, device: torch.device) -> None:
        batch, frames = size[0], size[2]
        self.unet = unet.to(device)
        self.cfg = conditions.cfg
        self.chunks = (CONDITIONAL,) if conditions.cfg == 1.0 else (CONDITIONAL, UNCONDITIONAL)
        prompts = [conditions.positive, conditions.negative][: len(self.chunks)]
        embeddings = same_lengths([prompt.embedding.to(device) for prompt in prompts])
        self.context = torch.cat([text.expand(batch, -1, -1) for text in embeddings]).to(unet.dtype)
        self.channels = conditions.channels
        if self.channels is not None:
            self.channels = self.channels.to(device, torch.float32).expand(batch, -1, -1, -1, -1)
        self.inputs: dict[str, Tensor] = {}
        if conditions.class_label is not None:
            self.inputs["class_labels"] = torch.full((batch * len(self.chunks),), conditions.class_label, device=device)
        self.windows = context_windows(frames, conditions.window or frames, conditions.overlap)
        self.options: dict[str, Any] = {"cond_or_uncond": list(self.chunks)}
        self.stack = PatchStack(conditions.patches)
        if conditions.patches:
            self.options[OVERRIDE_KEY] = self.stack.override

    def __call__(self, sample: Tensor, timestep: Tensor, sigma: float) -> Tensor:
        if self.channels is not None:
            sample = torch.cat([sample, self.channels], dim=1)
        return blend_windows(self.windows, lambda window: self._predict(sample, timestep, sigma, window))

    def _predict(self, sample: Tensor, timestep: Tensor, sigma: float, window: ContextWindow) -> Tensor:
        options = {**self.options, "sigmas": torch.tensor([sigma])}
        if len(self.windows) > 1:
            options["context_window"] = window
            sample = sample[:, :, window.index_list[0] : window.index_list[-1] + 1]
        batch = torch.cat([sample] * len(self.chunks)).to(self.unet.dtype)
        timesteps = timestep.to(batch.device).float().expand(len(batch))
        predictions = self.unet(batch, timesteps, self.context, transformer_options=options, **self.inputs).float()
        if len(self.chunks) == 1:
            return predictions
        conditional, unconditional = predictions.chunk(2)
        return unconditional + self.cfg * (conditional - unconditional)

    def measure(self, sample: Tensor, timestep: Tensor, sigma: float, share: AttentionShare) -> None:
        """Run the conditional branch once, with one patch alone and in the mode of autograd that is on."""
        batch = sample.shape[0]
        # Copies: tensors of inference mode cannot be kept for a gradient.
        context, channels = self.context[:batch].clone(), self.channels
        if channels is not None:
            sample = torch.cat([sample, channels.clone()], dim=1)
        options: dict[str, Any] = {"cond_or_uncond": [CONDITIONAL], "sigmas": torch.tensor([sigma])}
        options[OVERRIDE_KEY] = PatchStack([share]).override
        inputs = {name: value[:batch].clone() for name, value in self.inputs.items()}
        timesteps = timestep.to(sample.device).float().expand(batch).clone()
        for window in self.windows:
            seen = sample
            if len(self.windows) > 1:
                options["context_window"] = window
                seen = sample[:, :, window.index_list[0] : window.index_list[-1] + 1]
            self.unet(seen.to(self.unet.dtype), timesteps, context, transformer_options=options, **inputs)


def _check_levers(levers: SamplingLevers | None, start_percent: float, noise: Tensor) -> None:
    """Refuse levers that do not fit the run."""
    clock = None if levers is None else levers.dual_clock
    if clock is None:
        return
    if start_percent > 0.0:
        raise ValueError(f"start_percent is {start_percent} but a crude clip begins at its own level; leave it at 0.")
    if clock.latents.shape[1:] != noise.shape[1:] or clock.latents.shape[0] not in (1, len(noise)):
        raise ValueError(
            f"the crude clip has latents {tuple(clock.latents.shape)} and the noise {tuple(noise.shape)}; make both of "
            "the same size."
        )


def _check(
    unet: nn.Module, noise: Tensor, conditions: Conditions, steps: int, start_percent: float, latents: Tensor | None
) -> None:
    """Refuse settings out of range."""
    config = unet.config
    check_settings(config, steps, conditions.cfg)
    if noise.ndim != 5 or noise.shape[1] != config.out_channels:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; give [B, {config.out_channels}, T, h, w].")
    given = noise.shape[1] + (0 if conditions.channels is None else conditions.channels.shape[1])
    if given != config.in_channels:
        raise ValueError(
            f"the U-Net takes {config.in_channels} channels and would be given {given}; it is of another stage."
        )
    if not 0.0 <= start_percent < 1.0:
        raise ValueError(f"start_percent is {start_percent}; choose 0 to less than 1.")
    if start_percent > 0.0 and latents is None:
        raise ValueError(f"start_percent is {start_percent} but there are no latents to start from; give them.")
    if latents is not None and latents.shape[1:] != noise.shape[1:]:
        raise ValueError(
            f"latents have shape {tuple(latents.shape)} and noise {tuple(noise.shape)}; make both the same."
        )
