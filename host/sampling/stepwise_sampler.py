"""A sampler of plain steps that lets others change the latents between two of them.

Source: Euler steps along the probability flow, which DDIM with eta 0 is in ComfyUI's scaling (Comfy-Org/ComfyUI,
comfy/k_diffusion/sampling.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...backbones.nested_latents import SHAPES_KEY, Shapes


@dataclass(frozen=True, eq=False)
class Step:
    """What is known after a step.

    Attributes:
        number: of the step, 0 for the first.
        steps: how many there are.
        sigma: noise level that was reached, a scalar; 0 after the last.
        denoised: what the model took the video for, of the latents' shape.
        sampling: ComfyUI's ``model_sampling`` of the model.
        options: the run's ``transformer_options``.
        shapes: of the streams of the latents, where these are in one pack.
    """

    number: int
    steps: int
    sigma: Tensor
    denoised: Tensor
    sampling: Any
    options: dict[str, Any]
    shapes: Shapes | None = None


# Takes the latents after a step, as the sampler holds them, and returns what it goes on with.
StepChange = Callable[[Tensor, Step], Tensor]


def stepwise_sampler(changes: Sequence[StepChange]) -> Any:
    """A SAMPLER that calls each change in turn after every step.

    Args:
        changes: called with latents [B, C, T, h, w] or [T, C, h, w], or with a flat pack of several streams.
    """
    from comfy.samplers import KSAMPLER

    def sample(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any = None, **_: Any
    ) -> Tensor:
        sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
        options = extra_args["model_options"].get("transformer_options", {})
        rows, shapes = x.new_ones(x.shape[0]), _shapes(model.inner_model.conds)
        for number, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            denoised = model(x, sigma * rows, **extra_args)
            x = x + (x - denoised) / sigma * (following - sigma)
            step = Step(number, len(sigmas) - 1, following, denoised, sampling, options, shapes)
            for change in changes:
                x = change(x, step)
            if callback is not None:
                callback({"x": x, "i": number, "denoised": denoised, "sigma": sigma, "sigma_hat": sigma})
        return x

    return KSAMPLER(sample)


def _shapes(conds: Mapping[str, Sequence[Mapping[str, Any]] | None]) -> Shapes | None:
    """What the host has told the conditions of a run of the streams of its latents."""
    told = [cond["model_conds"].get(SHAPES_KEY) for group in conds.values() for cond in group or ()]
    return next((shapes.cond for shapes in told if shapes is not None), None)
