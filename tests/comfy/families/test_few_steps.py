"""Guides in runs of few steps, without an unconditional half, and shared by two models: what distilled models do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_reference import CALLS, DenseGuide, DenseReference
from family_rows import rows
from native_guides import guide_of, patched, relative, spans_of
from native_models import BUILDERS, TinyModel, sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# Of the output's range, in single precision; and what guidance changes at least.
EXACT, CLEAR = 1e-4, 1e-3
WORDED = sorted(name for name in BUILDERS if CALLS[name].has_words)
# The eight steps of LTX-2's distilled models, as its users write them.
LTX_DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)


class Progress:
    """A patch that changes nothing and notes where in the schedule each step is."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Progress:
        return self

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        if site.progress not in self.seen:
            self.seen.append(site.progress)
        return attend(q, k, v, site)


def shifted(model: TinyModel, shift: float) -> Any:
    """The model with the shift of its schedule set as the host's node sets it."""
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = Sampling(model.patcher.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    patcher = model.patcher.clone()
    patcher.add_object_patch("model_sampling", sampling)
    return patcher


def sample_part(model: TinyModel, patcher: Any, steps: int, first: int, last: int, latents: Tensor | None) -> Tensor:
    """Some steps of a run, as KSampler (Advanced) samples them with one of two models."""
    import comfy.sample

    noise = model.noise()
    given = torch.zeros_like(noise) if latents is None else latents
    with torch.inference_mode():
        return comfy.sample.sample(
            *(patcher, noise if latents is None else torch.zeros_like(noise), steps, 1.0, "euler", "simple"),
            *(model.conditioning(1), model.conditioning(2), given),
            disable_noise=latents is not None,
            start_step=first,
            last_step=last,
            force_full_denoise=last == steps,
            disable_pbar=True,
        )


@pytest.mark.parametrize("name", rows(WORDED))
@pytest.mark.parametrize("mode", ["separate", "cross_text"])
def test_without_an_unconditional_half_the_guide_is_the_same_bias(name: str, mode: str) -> None:
    model, guide, spans = tiny(name), guide_of(name, mode), spans_of(name)
    reference = DenseReference(model, [DenseGuide(guide, CALLS[name], model.latents[-2:], spans)])
    guided = sample(model, patched(model, guide, spans), steps=1, cfg=1.0)
    assert relative(guided, sample(model, reference.hang(model.patcher), steps=1, cfg=1.0)) < EXACT
    assert relative(guided, sample(model, steps=1, cfg=1.0)) > CLEAR
    # There is one row, and it is conditional: which rows are guided makes no difference.
    both = sample(model, patched(model, guide_of(name, mode, rows="both"), spans), steps=1, cfg=1.0)
    only = sample(model, patched(model, guide_of(name, mode, rows="conditional"), spans), steps=1, cfg=1.0)
    assert torch.equal(both, only)


def test_the_scale_multiplies_what_a_guide_changes_in_conditional_rows() -> None:
    """Why strengths that were found at a scale of 5 look weak at 1: the change itself is as large, not its effect."""
    model, spans = tiny("wan"), spans_of("wan")
    guide = guide_of("wan", "cross_text", rows="conditional")
    changes = []
    for cfg in (1.0, 5.0):
        plain = sample(model, steps=1, cfg=cfg)
        changes.append(sample(model, patched(model, guide, spans), steps=1, cfg=cfg) - plain)
    torch.testing.assert_close(changes[1], 5.0 * changes[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 5.0, 12.0])
def test_the_window_of_a_guide_is_a_part_of_the_schedule_whatever_its_shift(shift: float) -> None:
    model, progress = tiny("wan"), Progress()
    sample(model, install_patches(shifted(model, shift), [progress]), steps=4, cfg=1.0)
    assert progress.seen == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=2e-3)


def test_steps_that_are_written_out_stand_where_their_noise_levels_are() -> None:
    """Five of eight distilled steps are in the first quarter of the schedule: a window in steps would say otherwise."""
    import comfy.sample
    import comfy.samplers

    model, progress = tiny("ltx"), Progress()
    patcher = install_patches(model.patcher, [progress])
    noise = model.noise()
    with torch.inference_mode():
        comfy.sample.sample_custom(
            *(patcher, noise, 1.0, comfy.samplers.sampler_object("euler"), torch.tensor(LTX_DISTILLED)),
            *(model.conditioning(1), model.conditioning(2), torch.zeros_like(noise)),
            disable_pbar=True,
        )
    assert len(progress.seen) == 8 and progress.seen == sorted(progress.seen)
    assert progress.seen == pytest.approx([0.0, 0.06, 0.12, 0.17, 0.22, 0.52, 0.80, 0.94], abs=6e-3)
    sampling = model.patcher.get_model_object("model_sampling")
    levels = [float(sampling.percent_to_sigma(place)) for place in progress.seen]
    # The host gives the very first place a level far above all others.
    assert levels[1:] == pytest.approx(LTX_DISTILLED[1:-1], abs=1e-3)


def test_two_models_share_the_schedule() -> None:
    """High and low noise: four steps, two with each model; a guide up to 0.52 acts in three of them."""
    model, spans = tiny("wan"), spans_of("wan")
    guide = guide_of("wan", "separate", start_percent=0.0, end_percent=0.52)
    guided = patched(model, guide, spans)

    def film(first: Any, second: Any) -> Tensor:
        return sample_part(model, second, 4, 2, 4, sample_part(model, first, 4, 0, 2, None))

    whole = sample_part(model, guided, 4, 0, 4, None)
    assert relative(film(guided, guided), whole) < EXACT
    plain, high, low = film(model.patcher, model.patcher), film(guided, model.patcher), film(model.patcher, guided)
    assert relative(high, plain) > CLEAR and relative(low, plain) > CLEAR
    # What ends with the first model's steps does nothing in the second model.
    early = patched(model, guide_of("wan", "separate", start_percent=0.0, end_percent=0.4), spans)
    assert torch.equal(film(model.patcher, early), plain)
    assert torch.equal(film(early, early), film(early, model.patcher))
