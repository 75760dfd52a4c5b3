"""What steers where things appear besides words' attention: gradient steps on the latents, and a crude clip held inside
the mask at the beginning.

Windows are noise levels, not shares of steps: ``noise / (noise + signal)``, 1 for pure noise and 0 for clean latents.
For rectified flow that is sigma itself; for models whose variance is kept it is ``s / (1 + s)`` with ``s = sqrt((1 -
alpha_bar) / alpha_bar)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attention_patches.attention_energy import AttentionShare, ShareRecord

# Latents [B, C, T, h, w] to the energy of each clip [B], differentiable.
Energy = Callable[[Tensor], Tensor]


def noise_level(sigma: float) -> float:
    """The level 0..1 at which noise has ``sigma`` times the signal's scale."""
    return sigma / (1.0 + sigma)


@dataclass(frozen=True)
class DescentSettings:
    """How latents go down the energy before a step.

    Attributes:
        until: noise level 0..1 down to which steps are preceded by it.
        step: length of a gradient step, in spreads of the latents' noise: root mean square over a clip.
        iterations: gradient steps before each sampling step at most, 0 (nothing) to 100.
        enough: energy 0..1 at which the latents are left as they are.
        least_fall: a step that lowers the energy by less than this part of it is the last one.

    Raises:
        ValueError: a value out of its range.
    """

    until: float = 0.55
    step: float = 0.1
    iterations: int = 3
    enough: float = 0.1
    least_fall: float = 0.015

    def __post_init__(self) -> None:
        for name, most in (("until", 1.0), ("step", 10.0), ("iterations", 100), ("enough", 1.0), ("least_fall", 1.0)):
            value = getattr(self, name)
            # NaN fails the comparison too.
            if not 0 <= value <= most:
                raise ValueError(f"the energy's {name} is {value}; choose 0 to {most:g}.")


@dataclass(frozen=True, eq=False)
class EnergyDescent:
    """Gradient descent of the energy of attention.

    Attributes:
        share: measures attention; its masks say where the words are to be seen.
        settings: how far.
    """

    share: AttentionShare
    settings: DescentSettings = DescentSettings()

    @property
    def is_active(self) -> bool:
        """Whether it asks for anything at all."""
        return self.settings.iterations > 0 and self.settings.step > 0.0 and self.share.has_objects

    def acts_at(self, level: float) -> bool:
        """Say whether a step at this noise level is preceded by gradient steps."""
        return self.is_active and level >= self.settings.until


def descend(latents: Tensor, energy: Energy, spread: float, settings: DescentSettings) -> tuple[Tensor, list[float]]:
    """Take gradient steps down the energy of each clip.

    A step that raises a clip's energy is taken back and tried again at half its length. Each iteration is one forward
    and one backward pass; the result of the last one is not measured.

    Args:
        latents: [B, C, T, h, w].
        energy: of latents, [B].
        spread: of the noise in the latents, in their scaling.
        settings: length and stopping.

    Returns:
        The latents that were reached, and the mean energy of each measurement.
    """
    shape = (-1, *[1] * (latents.ndim - 1))
    base, found, gradient = latents, torch.full((len(latents),), float("inf"), device=latents.device), None
    sizes, seen = torch.full_like(found, settings.step * spread), []
    current, active = latents, torch.ones_like(found, dtype=torch.bool)
    for _ in range(settings.iterations):
        with torch.enable_grad():
            asked = current.detach().requires_grad_(True)
            values = energy(asked)
            (slope,) = torch.autograd.grad(values.sum(), asked)
        values = values.detach()
        seen.append(float(values.mean()))
        better = values < found
        slope = slope / slope.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-12).view(shape)
        sizes = torch.where(better, sizes, sizes / 2.0)
        active = active & (values > settings.enough) & ~(better & (found - values < settings.least_fall * found))
        gradient = slope if gradient is None else torch.where(better.view(shape), slope, gradient)
        base = torch.where(better.view(shape), current, base)
        found = torch.where(better, values, found)
        if not bool(active.any()):
            break
        current = base - torch.where(active, sizes, 0.0).view(shape) * gradient
    else:
        return current.detach(), seen
    return base.detach(), seen


@dataclass(frozen=True, eq=False)
class DualClock:
    """A crude clip that the result begins as, and is held to inside a mask for longer than outside.

    Sampling begins with the noised crude clip at the first step whose noise level is ``start`` or less. After every
    step to a level of ``hold`` or more the latents inside the mask are the noised crude clip again, always with the
    same noise; below it they are free.

    Source: Time-to-Move (arXiv 2511.08633), dual-clock denoising.

    Attributes:
        latents: of the crude clip, clean, [1 or B, C, T, h, w].
        mask: [1 or B, 1, T or 1, h, w] in 0..1; 1 is held.
        start: noise level 0..1; 1 begins with the first step.
        hold: noise level 0..``start``.

    Raises:
        ValueError: shapes that do not fit each other, or a value out of its range.
    """

    latents: Tensor
    mask: Tensor
    start: float = 0.6
    hold: float = 0.4

    def __post_init__(self) -> None:
        if self.latents.ndim != 5 or self.mask.ndim != 5 or self.mask.shape[1] != 1:
            raise ValueError(
                f"the crude clip has latents {tuple(self.latents.shape)} and mask {tuple(self.mask.shape)}; give "
                "[B, C, T, h, w] and [B, 1, T, h, w]."
            )
        for axis, name in ((0, "batch"), (2, "frames"), (3, "height"), (4, "width")):
            have, want = self.mask.shape[axis], self.latents.shape[axis]
            if have != want and not (have == 1 and axis in (0, 2)):
                raise ValueError(f"the crude clip's mask has {name} {have} and its latents {want}; make both alike.")
        if not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            raise ValueError("the crude clip's mask has values outside 0..1 (or NaN); clamp it before.")
        if not 0.0 <= self.hold <= self.start <= 1.0:
            raise ValueError(
                f"the crude clip begins at noise level {self.start} and is held to {self.hold}; both lie in 0..1, and "
                "the second is not above the first."
            )

    def holds_at(self, level: float) -> bool:
        """Say whether the latents at this noise level are held."""
        return level >= self.hold

    def blend(self, latents: Tensor, noised: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] with the noised crude clip inside the mask."""
        mask = self.mask.to(latents)
        return noised.to(latents) * mask + latents * (1.0 - mask)


# Called with what was measured at the look, and the denoised latents; raises to give the run up.
Judge = Callable[[ShareRecord, Tensor], None]


@dataclass(frozen=True, eq=False)
class Look:
    """A look at where the words are seen, once, before the first step at or below a noise level.

    Attributes:
        share: measures attention.
        level: noise level 0..1.
        judge: see ``Judge``; the pass that it costs is conditional and without other patches.
        maps: keep maps of where the words are seen.
    """

    share: AttentionShare
    level: float
    judge: Judge
    maps: bool = False


@dataclass(frozen=True, eq=False)
class SamplingLevers:
    """What acts on the latents of a run between its steps.

    Attributes:
        energy: gradient steps before the first sampling steps.
        dual_clock: a crude clip to begin with.
        look: a check of what was reached.
        report: takes the mean energies of each sampling step, where there were gradient steps.
    """

    energy: EnergyDescent | None = None
    dual_clock: DualClock | None = None
    look: Look | None = None
    report: Callable[[int, list[float]], None] | None = None
