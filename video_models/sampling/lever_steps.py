"""Levers at work: what a sampling loop does with them between its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...attention_patches.attention_energy import AttentionShare, ShareRecord
from .levers import DualClock, SamplingLevers, descend, noise_level
from .schedulers import NoiseLevels

# Runs the network once on latents of unit variance as the conditional branch sees them; arguments are latents
# [B, C, T, h, w], the number of the step, and the patch that measures.
Measure = Callable[[Tensor, int, AttentionShare], None]


@contextmanager
def sampling_mode(levers: SamplingLevers | None) -> Iterator[None]:
    """The mode of autograd for a run: inference, or where there are gradient steps one that can be left for them."""
    if levers is None or levers.energy is None:
        with torch.inference_mode():
            yield
    else:
        with torch.inference_mode(False), torch.no_grad():
            yield


class LeverSteps:
    """The levers of one run.

    Args:
        levers: of the run.
        levels: noise before each step.
        noise: of the run, [B, C, T, h, w].
        measure: runs the network once.
    """

    def __init__(self, levers: SamplingLevers, levels: NoiseLevels, noise: Tensor, measure: Measure) -> None:
        self._levers, self._levels, self._noise, self._measure = levers, levels, noise, measure
        self._looked = False

    def before(self, sample: Tensor, number: int) -> Tensor:
        """The latents that a step begins with, in the sampler's scaling."""
        descent, level = self._levers.energy, noise_level(self._levels.sigma(number))
        if descent is None or not descent.acts_at(level):
            return sample
        share = descent.share

        def energy(latents: Tensor) -> Tensor:
            with share.recording() as record:
                self._measure(latents, number, share)
            return record.energy()

        scale = self._levels.to_unit_variance(number)
        spread = float((1.0 - self._levels.alpha_bar[number]).sqrt())
        # Outside of inference mode: its tensors cannot be differentiated.
        found, energies = descend((sample * scale).clone(), energy, spread, descent.settings)
        if self._levers.report is not None:
            self._levers.report(number + 1, energies)
        return found / scale

    def after(self, sample: Tensor, number: int) -> Tensor:
        """The latents after a step, in the sampler's scaling."""
        clock = self._levers.dual_clock
        if clock is None or number + 1 >= len(self._levels.alpha_bar) - 1:
            return sample
        if not clock.holds_at(noise_level(self._levels.sigma(number + 1))):
            return sample
        kept = clock.latents.to(self._noise).expand_as(self._noise)
        return clock.blend(sample, self._levels.noised(kept, self._noise, number + 1))

    def look(self, sample: Tensor, number: int, denoised: Tensor) -> None:
        """Look at what was reached, once, after the step that comes to the level of the look.

        Raises:
            Whatever the judge raises.
        """
        look = self._levers.look
        if look is None or self._looked or number + 1 >= len(self._levels.alpha_bar) - 1:
            return
        if noise_level(self._levels.sigma(number + 1)) > look.level:
            return
        self._looked = True
        look.judge(
            self.looked(look.share, look.maps, sample * self._levels.to_unit_variance(number + 1), number + 1), denoised
        )

    def looked(self, share: AttentionShare, maps: bool, latents: Tensor, number: int) -> ShareRecord:
        """What one conditional pass over latents of unit variance measures."""
        with torch.no_grad(), share.recording(maps) as record:
            self._measure(latents, number, share)
        return record


def clock_start(levels: NoiseLevels, clock: DualClock) -> int:
    """Index of the first step whose noise level is that of a crude clip's start or less; at least the last is taken."""
    steps = len(levels.alpha_bar) - 1
    later = (number for number in range(steps) if noise_level(levels.sigma(number)) <= clock.start)
    return next(later, steps - 1)
