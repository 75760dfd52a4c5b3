"""Whole runs: samplers, schedule, cancel, errors in the middle, a second queue, and that nothing is left behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from dense_reference import OVERRIDE
from family_rows import rows
from native_guides import dense, first_predictions, guide_of, patched, relative, spans_of
from native_models import BUILDERS, TinyModel, sample, tiny
from tiny_model import flat
from torch import Tensor

from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.backbones.registry import install_patches

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

FAMILIES = sorted(BUILDERS)
# One of each way in which sites are found.
SOME = ["wan", "ltx", "hunyuan", "hunyuan15_image", "mochi", "minimax_h3", "cosmos", "kandinsky5_image", "sd15", "svd"]
# Parts of the schedule that begin or end with it.
ENDS = [(0.0, 0.4), (0.4, 1.0)]


class Stop(Exception):
    """Raised in the middle of a run."""


# --- the whole loop ---------------------------------------------------------------------------------------------------


def by_k_sampler(model: TinyModel, patcher: Any, noise_seed: int = 3, steps: int = 3) -> Any:
    import nodes

    latent = {"samples": model.empty()}
    settings = (noise_seed, steps, model.cfg, "euler", "simple", model.conditioning(1), model.conditioning(2), latent)
    return nodes.KSampler().sample(patcher, *settings, denoise=1.0)[0]["samples"]


def by_custom_sampler(model: TinyModel, patcher: Any, noise_seed: int = 3, steps: int = 3) -> Any:
    import comfy_extras.nodes_custom_sampler as custom

    def run(node: Any, **inputs: Any) -> Any:
        """Call a node of the older or the newer making."""
        call = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
        out = call(**inputs)
        return (out.result if hasattr(out, "result") else out)[0]

    guider = run(
        custom.CFGGuider,
        model=patcher,
        positive=model.conditioning(1),
        negative=model.conditioning(2),
        cfg=model.cfg,
    )
    return run(
        custom.SamplerCustomAdvanced,
        noise=run(custom.RandomNoise, noise_seed=noise_seed),
        guider=guider,
        sampler=run(custom.KSamplerSelect, sampler_name="euler"),
        sigmas=run(custom.BasicScheduler, model=patcher, scheduler="simple", steps=steps, denoise=1.0),
        latent_image={"samples": model.empty()},
    )["samples"]


@pytest.mark.parametrize("name", rows(FAMILIES))
def test_both_core_samplers_make_the_same_guided_film(name: str) -> None:
    model = tiny(name)
    guide, spans = guide_of(name, "separate"), spans_of(name)
    guided = patched(model, guide, spans)
    samples = by_k_sampler(model, guided)
    film = flat(samples)
    assert samples.shape == model.latents and torch.isfinite(film).all()
    assert torch.equal(film, flat(by_custom_sampler(model, guided)))
    assert relative(film, flat(by_k_sampler(model, model.patcher))) > 1e-3
    reference = dense(model, guide, spans)
    assert relative(film, flat(by_k_sampler(model, reference.hang(model.patcher)))) < 1e-3
    assert reference.model_calls == 3


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "uni_pc", "euler_ancestral"])
def test_other_samplers_run(sampler: str) -> None:
    model = tiny("wan")
    guided = patched(model, guide_of("wan", "separate"), spans_of("wan"))
    film = sample(model, guided, steps=3, sampler=sampler)
    reference = dense(model, guide_of("wan", "separate"), spans_of("wan")).hang(model.patcher)
    assert relative(film, sample(model, reference, steps=3, sampler=sampler)) < 1e-4


# --- the schedule -----------------------------------------------------------------------------------------------------


# What tells the families apart is how their sampling says how far it is; which part it is, is the same in all.
@pytest.mark.parametrize("name", rows(["wan", "ltx", "hunyuan", "mochi", "minimax_h3", "sd15", "svd"]))
@pytest.mark.parametrize("part", [(0.3, 0.7), *(pytest.param(part, marks=pytest.mark.slow) for part in ENDS)])
def test_guidance_acts_in_its_part_of_the_schedule(name: str, part: tuple[float, float]) -> None:
    model, spans = tiny(name), spans_of(name)
    guide = guide_of(name, "separate", start_percent=part[0], end_percent=part[1])
    guided = shifted(name, patched(model, guide, spans))
    sampling = guided.get_model_object("model_sampling")
    highest, lowest = (sampling.percent_to_sigma(percent) for percent in part)
    seen: list[bool] = []

    def acts(sigma: float) -> bool:
        # The first step stands at the very start, where percent_to_sigma(0) is infinite.
        seen.append(lowest - 1e-4 <= sigma <= highest + 1e-4)
        return seen[-1]

    reference = dense(model, guide, spans, active=acts).hang(shifted(name, model.patcher))
    film, expected = (sample(model, patcher, steps=6) for patcher in (guided, reference))
    assert relative(film, expected) < 1e-3
    assert 0 < sum(seen) < len(seen) == 6
    assert relative(film, sample(model, shifted(name, model.patcher), steps=6)) > 5e-4


def shifted(name: str, patcher: Any) -> Any:
    """The model with the shift node of the core, put after whatever is there."""
    import comfy_extras.nodes_model_advanced as advanced

    if name not in ("wan", "hunyuan", "mochi"):
        return patcher
    return advanced.ModelSamplingSD3().patch(patcher, 9.0)[0]


# --- nothing is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rows(SOME, ("wan", "ltx", "hunyuan", "hunyuan15_image", "cosmos", "kandinsky5_image")))
@pytest.mark.parametrize("end", ["finished", "cancelled", "error in the model"])
def test_original_and_patched_model_are_as_before(name: str, end: str) -> None:
    import comfy.model_management
    import comfy.sample

    model = tiny(name)
    weights = {key: value.clone() for key, value in model.patcher.model.diffusion_model.state_dict().items()}
    options = repr(model.patcher.model_options)
    plain = sample(model)
    patch = GuidePatch(guide_of(name, "separate"), spans_of(name))
    guided = install_patches(model.patcher, [patch])
    good = sample(model, guided)
    assert not torch.equal(good, plain)

    if end == "cancelled":

        def cancel(step: int, *_: Any) -> None:
            raise comfy.model_management.InterruptProcessingException

        noise = model.noise()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            settings = (model.conditioning(1), model.conditioning(2), model.empty())
            comfy.sample.sample(
                guided, noise, 2, model.cfg, "euler", "simple", *settings, disable_pbar=True, callback=cancel, seed=0
            )
    elif end == "error in the model":
        failing = guided.clone()
        with pytest.raises(Stop):
            sample(model, fail_at_call(failing, 3))
    assert patch._plans == {} and patch._pyramids == {}
    assert torch.equal(sample(model, guided), good)
    assert torch.equal(sample(model), plain)
    assert repr(model.patcher.model_options) == options
    assert all(
        torch.equal(value, weights[key]) for key, value in model.patcher.model.diffusion_model.state_dict().items()
    )


def fail_at_call(patcher: Any, number: int) -> Any:
    """Let an attention call of the model raise."""
    options = patcher.model_options["transformer_options"]
    previous, calls = options[OVERRIDE], []

    def failing(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        if len(calls) == number:
            raise Stop
        return previous(function, *args, **kwargs)

    options[OVERRIDE] = failing
    return patcher


def test_other_packs_functions_are_let_go() -> None:
    """Markers hold on to what they are laid around for a run only."""
    model = tiny("wan")
    guided = patched(model, guide_of("wan", "focus"), None)

    def other(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return extra["original_block"](args)

    also = guided.clone()
    also.set_model_patch_replace(other, "dit", "double_block", 0)
    sample(model, also)
    gone = weakref.ref(other)
    del also, other
    gc.collect()
    assert gone() is None


def test_clone_of_a_patched_model_guides_the_same() -> None:
    model = tiny("wan")
    guided = patched(model, guide_of("wan", "separate"), spans_of("wan"))
    first = first_predictions(model, guided)
    assert torch.equal(first_predictions(model, guided.clone().clone())["positive"], first["positive"])
