"""Gradient steps down the energy of attention before the steps of any of ComfyUI's samplers.

They are taken inside of the guider's prediction (``PREDICT_NOISE``), once for each noise level of the run. Samplers
hand over the very tensor that they go on with, so that the latents that were reached are written into it. A noise mask
makes a tensor of its own on the way: then the sampler would not see the change, and the run is refused.

Source: Comfy-Org/ComfyUI, comfy/samplers.py (``CFGGuider``) and comfy/model_base.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from ...backbones.nested_latents import SHAPES_KEY, is_pack
from ...backbones.registry import install_patches
from ...video_models.sampling.levers import EnergyDescent, descend
from .first_frame_lock import as_film, like_latents
from .noise_levels import level_of, scaled_noise

logger = logging.getLogger(__name__)

# Takes a noise level and the energies that were measured there.
Report = Callable[[float, list[float]], None]

# Functions of samplers that give the model a copy of their latents.
COPYING_SAMPLERS = frozenset({"sample_unipc", "sample_unipc_bh2"})
ENERGY_KEY = "mask_guided_video_attention_energy"


def install_energy(model: Any, descent: EnergyDescent, report: Report | None = None) -> Any:
    """Return a clone of a model that goes down the energy of attention before its first sampling steps.

    Args:
        model: ComfyUI ``ModelPatcher``; it is not changed.
        descent: what is measured and how far it goes. Where it asks for nothing the clone is as the model.
        report: takes the noise level and the energies of each descent.

    Raises:
        ModelNotSupported: the model's attention sites are not known.
    """
    from comfy.patcher_extension import WrappersMP

    if not descent.is_active:
        return install_patches(model, [])
    patched = install_patches(model, [descent.share])

    def run(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_pack(kwargs.get(SHAPES_KEY)):
            raise ValueError("attention energy does not know latents with sound beside the video; take the node out.")
        if len(args) > 3 and args[3] is not None or kwargs.get("denoise_mask") is not None:
            raise ValueError(
                "attention energy cannot go together with a noise mask, which keeps its changes from the sampler; "
                "take one of them out."
            )
        _check_sampler(args[1])
        _lay(executor.class_obj.model_options, descent, report)
        return executor(noise, *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, ENERGY_KEY, run)
    return patched


def _check_sampler(sampler: Any) -> None:
    """Refuse samplers that hand over a copy: what is written there never reaches them."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if name in COPYING_SAMPLERS:
        raise ValueError(
            "attention energy cannot work with uni_pc, which gives the model a copy of its latents; choose euler, "
            "ddim, heun or dpmpp_2m."
        )


def _lay(model_options: dict[str, Any], descent: EnergyDescent, report: Report | None) -> None:
    """Write into the options of one run what its predictions go through."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    done: set[float] = set()

    def predict(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        guider, sigma = executor.class_obj, float(timestep.flatten()[0])
        sampling = guider.inner_model.model_sampling
        # Samplers of higher order ask more than once for a step; those in between have levels of their own.
        level = level_of(sampling, sigma)
        if sigma not in done and descent.acts_at(level):
            done.add(sigma)
            options = args[0] if args else kwargs.get("model_options", {})
            try:
                found, energies = _descended(guider, x, timestep, options, descent)
            except RuntimeError as error:
                if "autograd formula" not in str(error):
                    raise
                raise ValueError(
                    "attention energy cannot go backwards through this model: ComfyUI computes a part of it by a "
                    f"kernel without a gradient ({error}). Take the node out, or use Dual Clock Sampler."
                ) from error
            x.copy_(found)
            logger.info("attention energy at noise level %.3f: %s", level, ", ".join(f"{e:.3f}" for e in energies))
            if report is not None:
                report(level, energies)
        return executor(x, timestep, *args, **kwargs)

    add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, ENERGY_KEY, predict, model_options.setdefault("transformer_options", {})
    )


def _descended(
    guider: Any, x: Tensor, timestep: Tensor, options: dict[str, Any], descent: EnergyDescent
) -> tuple[Tensor, list[float]]:
    """Latents after the gradient steps, and the energies on the way; the model is as it was."""
    import comfy.samplers

    network, share = guider.inner_model, descent.share
    with torch.inference_mode(False), in_training(), differentiable(network), allow_mutation_on_saved_tensors():
        # (Blocks of some models add to their input in place.)
        film, level = as_film(x.clone()).clone(), timestep.clone()

        def energy(latents: Tensor) -> Tensor:
            with share.recording() as record:
                given = like_latents(latents, x)
                comfy.samplers.calc_cond_batch(network, [guider.conds["positive"]], given, level, options)
            return record.energy()

        spread = scaled_noise(network.model_sampling, float(timestep.flatten()[0]))
        found, energies = descend(film, energy, spread, descent.settings)
        return like_latents(found, x), energies


@contextmanager
def in_training() -> Iterator[None]:
    """Let the host use functions that can be differentiated, as it does while it trains."""
    import comfy.model_management as host

    before = host.in_training
    host.in_training = True
    try:
        yield
    finally:
        host.in_training = before


@contextmanager
def differentiable(network: nn.Module) -> Iterator[None]:
    """Give a network copies of those weights that were made in inference mode, which autograd cannot work with.

    The weights themselves come back at the end. For that time they are in memory twice.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in network.modules():
            for table, wrap in ((module._parameters, _as_parameter), (module._buffers, torch.clone)):
                for name, value in table.items():
                    if value is not None and value.is_inference():
                        kept.append((table, name, value))
                        table[name] = wrap(value)
        yield
    finally:
        for table, name, value in kept:
            table[name] = value


def _as_parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
