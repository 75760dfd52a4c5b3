"""What is special in HunyuanVideo 1.5 and Kandinsky 5, beside what is proved of every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from dense_reference import CALLS, DenseGuide, DenseReference
from native_guides import guide_of, patched, relative, spans_of
from native_models import TinyModel, sample, tiny
from native_qwen_models import HUNYUAN15, KANDINSKY, glyphs, vision
from tiny_model import TEXT, build
from token_places import see
from torch import Tensor

from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.latent_time import causal
from mask_guided_video.backbones.registry import family_of, latent_time_of, require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

EXACT, CLEAR = 1e-4, 1e-3


@pytest.mark.parametrize(("name", "family"), [("hunyuan15", "HunyuanVideo 1.5"), ("kandinsky5", "Kandinsky 5")])
def test_what_is_known_of_them(name: str, family: str) -> None:
    found, network = require_supported(tiny(name).patcher)
    assert found.name == family and found.native_frames(network) == 31
    assert latent_time_of(tiny(name).patcher) == causal(4)


def test_the_two_hunyuan_videos_are_told_apart() -> None:
    assert [family_of(tiny(name).patcher.model.diffusion_model).name for name in ("hunyuan", "hunyuan15_sr")] == [
        "HunyuanVideo",
        "HunyuanVideo 1.5",
    ]
    # Nobody has measured where the text is in single blocks of 1.5.
    with_single_blocks = build("HunyuanVideo15", {**HUNYUAN15, "depth_single_blocks": 1})
    with pytest.raises(ValueError, match="model not supported: HunyuanVideo"):
        require_supported(with_single_blocks)


@pytest.mark.parametrize("more", [{"conditioning_byt5small": glyphs}, {"clip_vision_output": vision}])
def test_padded_text_beside_glyphs_or_a_picture_is_an_error_of_the_host(more: dict[str, Any]) -> None:
    """The host lays the mask of the text over all tokens before the video: so it does without the pack."""
    model = tiny("hunyuan15_masked")
    model = replace(model, extras={**model.extras, **more})
    with pytest.raises(RuntimeError) as alone:
        sample(model)
    guided = patched(model, guide_of(model.name, "separate"), spans_of(model.name))
    with pytest.raises(RuntimeError) as with_guide:
        sample(model, guided)
    assert str(with_guide.value) == str(alone.value) and "expand" in str(alone.value)
    # Neither has an error of its own.
    whole = {name: value for name, value in model.extras.items() if name != "attention_mask"}
    assert bool(sample(replace(model, extras=whole), guided).isfinite().all())


@pytest.mark.parametrize("text", [72, 24])
def test_text_as_long_as_the_video_or_as_a_frame(text: int) -> None:
    """Lengths alone would not tell the calls of Kandinsky's text blocks and both of its others apart."""
    model = replace(tiny("kandinsky5"), text=text)
    found = [None if call.site is None else call.site.kind for call in see(model)]
    assert found == [None, None, "self", "cross", "self", "cross"]
    calls = replace(CALLS["kandinsky5"], text=text)
    spans = replace(spans_of("kandinsky5"), length=text)
    guide = guide_of("kandinsky5", "separate")
    reference = DenseReference(model, [DenseGuide(guide, calls, model.latents[-2:], spans)])
    expected = sample(model, reference.hang(model.patcher))
    assert relative(sample(model, patched(model, guide, spans)), expected) < EXACT


def test_prompts_of_other_lengths() -> None:
    """The negative prompt is shorter, so that the host asks for each alone; words stand where each has its own."""
    for name in ("hunyuan15_image", "kandinsky5_image"):
        model = tiny(name)
        guide, spans = guide_of(name, "separate"), spans_of(name)
        guided = sample(model, patched(model, guide, spans), negative=model.conditioning(2, text=TEXT - 4))
        apart = sample(model, ApartReference.of(model, guide, spans), negative=model.conditioning(2, text=TEXT - 4))
        assert relative(guided, apart) < EXACT
        assert relative(guided, sample(model, negative=model.conditioning(2, text=TEXT - 4))) > CLEAR


class ApartReference(DenseReference):
    """Explicit biases for texts of two lengths, the shorter one of the negative prompt."""

    @classmethod
    def of(cls, model: TinyModel, guide: Any, spans: TextSpans | None) -> Any:
        return cls(model, [DenseGuide(guide, CALLS[model.name], model.latents[-2:], spans)]).hang(model.patcher)

    def _mask(self, call: str, q: Tensor) -> Tensor | None:
        (whole,) = self.guides
        length = self.prompts[0].shape[1]
        self.guides = [whole if length == TEXT else replace(whole, calls=replace(whole.calls, text=length), made={})]
        mask = super()._mask(call, q)
        self.guides = [whole]
        return mask


def test_the_given_picture_is_not_changed_and_stays_in_place() -> None:
    """Guidance acts on the frames beside it; what the network lays over the first frame is the host's affair."""
    model = tiny("kandinsky5_image")
    picture = model.conditioning(1)[0][1]["time_dim_replace"]
    before = picture.clone()
    guided = sample(model, patched(model, guide_of(model.name, "separate"), spans_of(model.name)))
    assert torch.equal(picture, before)
    assert relative(guided[:, :, 1:], sample(model)[:, :, 1:]) > CLEAR


def test_kandinskys_hook_around_blocks_is_broken_in_the_host() -> None:
    """Which is why its sites are found without it; once it works, this says so."""
    patcher = tiny("kandinsky5").patcher.clone()
    patcher.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        sample(tiny("kandinsky5"), patcher)


def test_the_picture_model_of_the_same_network_is_told_apart() -> None:
    network = build("Kandinsky5Image", {**KANDINSKY, "visual_embed_dim": 64}).model.diffusion_model
    assert family_of(network) is None and family_of(tiny("kandinsky5").patcher.model.diffusion_model) is not None
