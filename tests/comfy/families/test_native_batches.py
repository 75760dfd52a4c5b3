"""Several films, several prompts, one call of the model or many, and every attention backend: the same guidance.

All but the backends are compared with the explicit biases of ``dense_reference``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from dense_reference import CALLS, OVERRIDE, DenseGuide, DenseReference
from family_rows import all_but, rows
from native_guides import dense, first_predictions, guide_of, left_alone, patched, relative, spans_of
from native_models import BUILDERS, TEXT, TinyModel, tiny
from torch import Tensor

from mask_guided_video.attention_patches.guidance import plan as guidance_plan
from mask_guided_video.backbones.host_hooks import prompt_name

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

FAMILIES = sorted(BUILDERS)
BOTH_PROMPTS = [name for name in FAMILIES if tiny(name).cfg > 1.0]
WITH_WORDS = [name for name in BOTH_PROMPTS if CALLS[name].has_words]
# U-Nets take the whole batch for one film, and VACE wants as many controls as films.
SEVERAL_FILMS = [
    name for name in BOTH_PROMPTS if tiny(name).window_axis == 2 and "vace_frames" not in tiny(name).extras
]
# Calls that the host gives no options: music and speech, and the refiners of MiniMax H3's two prompts, which nobody can
# guide.
UNSEEN = {"wan_dancer": 3, "wan_speech": 1, **dict.fromkeys((name for name in CALLS if name.startswith("minimax")), 4)}
# Those of the connectors that read the text of two prompts, for film and for sound.
UNSEEN |= {name: 4 for name in BUILDERS if name.startswith("ltxav")}
EXACT = 1e-4
CLEAR = 1e-3
BACKENDS = ("attention_basic", "attention_split", "attention_sub_quad", "attention_pytorch")


@pytest.fixture(autouse=True)
def by_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for prompt in found:
        # Models that sample without a negative prompt predict nothing for it.
        if float(expected[prompt].abs().max()) > 0.0:
            assert relative(found[prompt], expected[prompt]) < EXACT


def two_prompts(model: TinyModel) -> list[Any]:
    """What Conditioning (Combine) makes of two positive prompts."""
    return model.conditioning(1) + model.conditioning(3)


@pytest.mark.parametrize("name", rows(SEVERAL_FILMS))
def test_two_films_in_a_batch(name: str) -> None:
    model = tiny(name)
    guide, spans = guide_of(name, "separate", rows="conditional"), spans_of(name)
    noise = model.noise(films=2)
    both = first_predictions(model, patched(model, guide, spans), noise=noise)
    agree(both, first_predictions(model, dense(model, guide, spans).hang(model.patcher), noise=noise))
    for index in range(2):
        alone = first_predictions(model, patched(model, guide, spans), noise=noise[index : index + 1])
        agree({prompt: value[index : index + 1] for prompt, value in both.items()}, alone)
    assert torch.equal(both["negative"], first_predictions(model, model.patcher, noise=noise)["negative"])


@pytest.mark.parametrize("name", rows(WITH_WORDS))
@pytest.mark.parametrize("mode", ["cross_text", "separate"])
def test_words_of_one_of_two_positive_prompts(name: str, mode: str) -> None:
    model, guide = tiny(name), guide_of(name, mode)
    meant = model.conditioning(3)[0][0]
    spans = spans_of(name, frozenset([prompt_name(meant)]))
    chunks: list[list[int]] = []

    def watch(apply_model: Any, args: dict[str, Any]) -> Tensor:
        chunks.append(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    model_with_guide = patched(model, guide, spans)
    model_with_guide.set_model_unet_function_wrapper(watch)
    found = first_predictions(model, model_with_guide, positive=two_prompts(model))
    assert chunks == [[1, 0, 0]]
    reference = dense(model, guide, spans, prompt=meant)
    agree(found, first_predictions(model, reference.hang(model.patcher), positive=two_prompts(model)))
    if mode == "separate" and CALLS[name].text > TEXT:
        # A few hidden words among a thousand rows make too little of a difference.
        return
    # Words of both prompts make another film.
    all_prompts = first_predictions(model, patched(model, guide, spans_of(name)), positive=two_prompts(model))
    assert relative(all_prompts["positive"], found["positive"]) > CLEAR


@pytest.mark.parametrize("name", rows(BOTH_PROMPTS))
def test_one_call_and_one_call_per_condition_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = tiny(name), guide_of(name, "separate", rows="conditional")
    spans = spans_of(name, frozenset([prompt_name(model.conditioning(3)[0][0])]))
    together = first_predictions(model, patched(model, guide, spans), positive=two_prompts(model))
    # As on a machine with little memory, where the host asks for each condition alone.
    monkeypatch.setattr(model.patcher.model, "memory_required", lambda *_, **__: 1e30)
    reference = dense(model, guide, spans, prompt=model.conditioning(3)[0][0])
    alone = first_predictions(model, patched(model, guide, spans), positive=two_prompts(model))
    expected = first_predictions(model, reference.hang(model.patcher), positive=two_prompts(model))
    assert reference.model_calls == 3
    agree(alone, expected)
    agree(together, alone)
    plain = first_predictions(model, model.patcher, positive=two_prompts(model))
    assert left_alone(name, alone["negative"], plain["negative"])
    assert relative(alone["positive"], plain["positive"]) > CLEAR


@pytest.mark.parametrize("name", ["sd15", "sd15_odd", "sdxl"])
def test_a_longer_negative_prompt_repeats_the_words(name: str) -> None:
    """For U-Nets the host repeats texts up to a common length: a positive prompt of 12 tokens becomes one of 24."""
    model, guide = tiny(name), guide_of(name, "cross_text")
    negative = model.conditioning(2, text=24)
    found = first_predictions(model, patched(model, guide, spans_of(name)), negative=negative)
    one = dense(model, guide, spans_of(name)).guides[0]
    repeated = DenseReference(model, [twice_the_text(one)])
    agree(found, first_predictions(model, repeated.hang(model.patcher), negative=negative))


def twice_the_text(guide: DenseGuide) -> DenseGuide:
    spans = guide.spans
    positions = tuple(tuple(list(span) + [word + 12 for word in span]) for span in spans.positions)
    return replace(
        guide,
        calls=replace(guide.calls, text=24),
        spans=replace(spans, positions=positions, length=24),
        made={},
    )


# --- backends ---------------------------------------------------------------------------------------------------------


def use_backend(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Make every model file of ComfyUI call this attention function; returns what is noted at each call."""
    from comfy.ldm.modules import attention

    function, called = getattr(attention, name), []
    usual = {attention.optimized_attention, attention.optimized_attention_masked}

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        called.append(name)
        return function(*args, **kwargs)

    for module in [module for key, module in sys.modules.items() if key.startswith("comfy.ldm")]:
        for attribute in ("optimized_attention", "optimized_attention_masked"):
            if getattr(module, attribute, None) in usual:
                monkeypatch.setattr(module, attribute, noted)
    return called


@pytest.mark.parametrize("name", rows(FAMILIES))
def test_all_attention_backends_agree(name: str) -> None:
    model, guide, spans = tiny(name), guide_of(name, "separate", rows="conditional"), spans_of(name)
    expected = first_predictions(model, dense(model, guide, spans).hang(model.patcher))
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patches:
            called = use_backend(patches, backend)
            plain = first_predictions(model, model.patcher)
            assert len(called) == len(CALLS[name].each) + UNSEEN.get(name, 0)
            guided = first_predictions(model, patched(model, guide, spans))
            agree(guided, expected)
            assert left_alone(name, guided["negative"], plain["negative"])


@pytest.mark.parametrize(
    "name", rows(["wan", "ltx", "hunyuan_masked", "mochi", "cosmos", "sd15", "svd"], all_but("svd"))
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_chosen_by_an_override_agree(name: str, backend: str) -> None:
    from comfy.ldm.modules import attention

    model, guide, spans = tiny(name), guide_of(name, "separate"), spans_of(name)
    function, called = getattr(attention, backend), []

    def choose(_: Any, *args: Any, **kwargs: Any) -> Tensor:
        called.append(1)
        return function(*args, **kwargs)

    chosen = model.patcher.clone()
    chosen.model_options["transformer_options"][OVERRIDE] = choose
    found = first_predictions(model, patched(model, guide, spans, chosen))
    assert called
    agree(found, first_predictions(model, dense(model, guide, spans).hang(model.patcher)))
