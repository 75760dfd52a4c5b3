"""Guides that do not fit the film or the model are refused by name, before the model is called even once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from dense_reference import CALLS, latent_frames
from family_rows import pairs
from guides import plain_guide
from native_guides import first_predictions, guide_of, masks_of, patched, relative, spans_of
from native_models import BUILDERS, TEXT, TinyModel, sample, tiny

from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.backbones.registry import require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

FAMILIES = sorted(BUILDERS)
# Pixel frames of the tiny films by their causal factor, and all counts that may be given.
VALID = {name: sorted({1, calls.latents, sum(calls.covered(calls.latents))}) for name, calls in CALLS.items()}


def refused(model: TinyModel, guided: Any, message: str, **settings: Any) -> None:
    """Sampling fails with the message, and no part of the network has run."""
    calls: list[int] = []
    handle = model.patcher.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(ValueError, match=message):
            sample(model, guided, **settings)
        assert not calls
        sample(model, model.patcher, steps=1)
        assert calls
    finally:
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_of_another_length_are_told_the_valid_ones(name: str) -> None:
    model, wrong = tiny(name), VALID[name][-1] + 2
    masks = masks_of(model)[:, :1].expand(-1, wrong, -1, -1)
    guided = patched(model, guide_of(name, "separate", masks=masks), None)
    valid = " or ".join(map(str, VALID[name]))
    refused(model, guided, rf"{wrong} mask frames do not fit .*{CALLS[name].latents}.*give {valid} masks")


@pytest.mark.parametrize(("name", "kind"), pairs(FAMILIES, ["one mask", "latent frames"]))
def test_all_valid_lengths_are_taken(name: str, kind: str) -> None:
    model, calls = tiny(name), CALLS[name]
    all_frames = latent_frames(masks_of(model), calls.covered(calls.latents))
    masks = all_frames if kind == "latent frames" else masks_of(model)[:, :1]
    found = first_predictions(model, patched(model, guide_of(name, "focus", masks=masks), None))
    by_pixels = all_frames if kind == "latent frames" else masks.expand(-1, calls.latents, -1, -1)
    expected = guide_of(name, "focus", masks=masks_of(model) if kind == "latent frames" else by_pixels)
    assert relative(found["positive"], first_predictions(model, patched(model, expected, None))["positive"]) < 1e-5


def test_81_frames_of_wan_are_21_latents() -> None:
    model = tiny("wan")
    noise = model.noise(frames=21)[..., :4, :6]
    masks = torch.zeros(1, 81, 16, 24)
    masks[..., 4:12, 4:12] = 1.0
    film = sample(model, patched(model, plain_guide(masks, mode="focus", end_percent=1.0), None), noise=noise, steps=1)
    assert relative(film, sample(model, noise=noise, steps=1)) > 1e-3
    for frames in (80, 82, 20, 85):
        wrong = plain_guide(masks[:, :1].expand(-1, frames, -1, -1), mode="focus", end_percent=1.0)
        refused(model, patched(model, wrong, None), "give 1 or 21 or 81 masks", noise=noise)


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_of_another_shape_are_refused(name: str) -> None:
    model = tiny(name)
    guided = patched(model, guide_of(name, "separate", masks=masks_of(model).transpose(2, 3)), None)
    refused(model, guided, "masks are .* but the film's latents .*they would be distorted")


# LTX-2 adds rows of its own; ``test_ltx_av`` counts them.
@pytest.mark.parametrize("name", [name for name in FAMILIES if CALLS[name].has_words and CALLS[name].text <= TEXT])
def test_words_of_a_text_of_another_length_are_refused(name: str) -> None:
    model = tiny(name)
    guide = guide_of(name, "cross_text")
    longer = TextSpans(("red ball", "cube"), ((1, 2), (19,)), 20)
    refused(model, patched(model, guide, longer), "'cube' stands at token 19 but the model sees 12 text tokens")
    shorter = TextSpans(("red ball", "cube"), ((1, 2), (4,)), 7)
    refused(model, patched(model, guide, shorter), "in a text of 7 tokens but the positive prompt has 12")
    # Twice the length may be the host's repetition.
    sample(model, patched(model, guide, TextSpans(("red ball", "cube"), ((1, 2), (4,)), 6)), steps=1)


def test_words_of_a_prompt_that_is_not_sampled_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("wan")
    elsewhere = spans_of("wan", frozenset([prompt_name(model.conditioning(7)[0][0])]))
    with caplog.at_level(logging.WARNING):
        sample(model, patched(model, guide_of("wan", "cross_text"), elsewhere), steps=1)
    assert "words belong to a prompt that is not among the positive ones" in caplog.text
    caplog.clear()
    here = spans_of("wan", frozenset([prompt_name(model.conditioning(1)[0][0])]))
    with caplog.at_level(logging.WARNING):
        sample(model, patched(model, guide_of("wan", "cross_text"), here), steps=1)
    assert "words belong" not in caplog.text


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tiny_model_is_known(name: str) -> None:
    family, network = require_supported(tiny(name).patcher)
    words = {
        "wan": "Wan",
        "ltx": "LTX-Video",
        "ltxav": "LTX-2 / 2.3 / 2.5",
        "hunyuan": "Hunyuan",
        "hunyuan15": "HunyuanVideo 1.5",
        "kandinsky5": "Kandinsky 5",
        "mochi": "Mochi",
        "cogvideox": "CogVideoX 1.0",
        "cogvideox15": "CogVideoX 1.5",
        "minimax": "MiniMax H3",
        "cosmos": "Cosmos",
        "svd": "Stable Video",
    }
    assert words.get(name.split("_")[0], "SD1.5") in family.name
    assert family.block_names(network) and bool(family.encoders) == CALLS[name].has_words
