"""Models whose tokens nobody has measured are refused by name, however much they resemble supported ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from guides import plain_guide
from native_guides import guide_of, masks_of, patched, relative
from native_models import COGVIDEOX, HUNYUAN, LTX, PREDICT2, WAN, WAN_LATENTS, TinyModel, build, sample, tiny

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.backbones.registry import install_patches, require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

WITH_SOUND = {
    **LTX,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 12,
    "audio_cross_attention_dim": 24,
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 16,
    "connector_num_layers": 1,
}
HUNYUAN15 = {
    **HUNYUAN,
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "vec_in_dim": None,
    "depth": 2,
    "depth_single_blocks": 0,
    "guidance_embed": False,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
}
KANDINSKY = {
    "in_text_dim": 32,
    "in_text_dim2": 8,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 64,
    "visual_embed_dim": 132,
    "num_text_blocks": 2,
    "num_visual_blocks": 2,
    "axes_dims": (8, 12, 12),
}
FLUX = {
    "image_model": "flux",
    "out_channels": 16,
    "in_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 8,
    "context_in_dim": 32,
    "hidden_size": 48,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 10, 10],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
# What is built, and what the message names: the class, and the family that it resembles with what tells it apart.
UNSUPPORTED: dict[str, tuple[Callable[[], Any], str]] = {
    "Flux": (partial(build, "Flux", FLUX), "Flux;"),
    "LTX-2": (
        partial(build, "LTXAV", WITH_SOUND),
        r"LTXAVModel \(built like LTX-Video, .*: audio_adaln_single, .* more",
    ),
    "HunyuanVideo 1.5": (
        partial(build, "HunyuanVideo15", HUNYUAN15),
        r"HunyuanVideo \(.*: cond_type_embedding, vision_in",
    ),
    "CogVideoX 1.5": (
        partial(build, "CogVideoX_T2V", {**COGVIDEOX, "patch_size_t": 2}),
        "CogVideoXTransformer3DModel;",
    ),
    "Anima": (
        partial(build, "Anima", {**PREDICT2, "in_channels": 16, "crossattn_emb_channels": 1024}),
        r"Anima \(built like Cosmos Predict2, .*: llm_adapter",
    ),
    "Kandinsky 5": (partial(build, "Kandinsky5", KANDINSKY), "Kandinsky5;"),
}


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_other_models_are_refused_by_name(name: str) -> None:
    make, named = UNSUPPORTED[name]
    with pytest.raises(ValueError, match=f"model not supported: {named}.*attention guidance reaches .*Wan 2.1 / 2.2"):
        install_patches(make(), [GuidePatch(plain_guide(torch.ones(1, 1, 8, 8)))])


def test_a_part_that_nobody_knows_is_enough() -> None:
    patcher = build("WAN21_T2V", WAN)
    assert require_supported(patcher)[0].name == "Wan 2.1 / 2.2"
    patcher.model.diffusion_model.add_module("tail_embedding", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"WanModel \(built like Wan 2.1 / 2.2, .*: tail_embedding\)"):
        require_supported(patcher)


@pytest.fixture(scope="module")
def causal() -> TinyModel:
    return TinyModel("wan", partial(build, "WAN21_CausalAR_T2V", {**WAN, "causal_ar": True}), WAN_LATENTS, 32)


def test_the_causal_model_is_guided_by_ordinary_samplers(causal: TinyModel) -> None:
    guided = patched(causal, guide_of("wan", "separate"), None)
    assert relative(sample(causal, guided), sample(causal)) > 1e-3


def test_its_own_sampler_is_refused_before_anything_is_sampled(causal: TinyModel) -> None:
    calls: list[int] = []

    def count(apply_model: Any, args: dict[str, Any]) -> Any:
        calls.append(1)
        return apply_model(args["input"], args["timestep"], **args["c"])

    guided = patched(causal, guide_of("wan", "separate"), None)
    guided.set_model_unet_function_wrapper(count)
    with pytest.raises(ValueError, match="the sampler ar_video hides the attention .* take an ordinary sampler"):
        sample_in_blocks(causal, guided)
    assert not calls
    # By itself the model runs with it.
    assert torch.isfinite(sample_in_blocks(causal, causal.patcher)).all()


def sample_in_blocks(model: TinyModel, patcher: Any) -> torch.Tensor:
    """Sample as the node SamplerCustom does with the sampler of autoregressive video."""
    import comfy.sample
    import comfy.samplers

    noise, prompts = model.noise(), (model.conditioning(1), model.conditioning(2))
    sampler, sigmas = comfy.samplers.ksampler("ar_video"), torch.tensor([1.0, 0.5, 0.0])
    return comfy.sample.sample_custom(
        patcher, noise, 1.0, sampler, sigmas, *prompts, torch.zeros_like(noise), disable_pbar=True, seed=0
    )


def test_a_kind_of_attention_that_is_never_found_is_named(
    causal: TinyModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a family that a later host runs in other calls than today's."""
    model = TinyModel("wan", partial(build, "WAN21_T2V", WAN), WAN_LATENTS, 32)
    for block in model.patcher.model.diffusion_model.blocks:
        forward = block.self_attn.forward
        monkeypatch.setattr(block.self_attn, "forward", lambda x, freqs, forward=forward, **_: forward(x, freqs))
    guide = plain_guide(masks_of(model), mode="focus", end_percent=1.0)
    with caplog.at_level(logging.WARNING):
        sample(model, patched(model, guide, None))
    told = [record.getMessage() for record in caplog.records if "recognised" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("no call of the self-attention of Wan 2.1 / 2.2 was recognised")


def test_patches_over_frames_are_named_where_each_frame_asks_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Animate 2 with a pose film; without one the whole clip asks at once."""
    free_long = FreeLongPatch(FreeLong(2, end_percent=1.0))
    for name, told in (("wan_animate2", 1), ("wan_animate2_still", 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            film = sample(tiny(name), install_patches(tiny(name).patcher, [free_long]))
        sentences = [
            record.getMessage() for record in caplog.records if "FreeLong has no effect" in record.getMessage()
        ]
        assert len(sentences) == told
        assert torch.equal(film, sample(tiny(name))) == bool(told)
