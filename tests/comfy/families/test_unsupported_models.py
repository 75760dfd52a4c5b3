"""Models whose tokens nobody has measured are refused by name, however much they resemble supported ones."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from guides import plain_guide
from native_guides import guide_of, masks_of, patched, relative
from native_models import PREDICT2, WAN, WAN_LATENTS, TinyModel, build, sample, tiny
from native_qwen_models import HUNYUAN15, KANDINSKY

from mask_guided_video.attention_patches.errors import ModelNotSupported
from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.backbones.picture_models import PICTURE_MODELS
from mask_guided_video.backbones.registry import family_of, install_patches, require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

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
HUNYUAN_IMAGE = {
    **HUNYUAN15,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [2, 2],
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [12, 12],
    "meanflow": True,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
JOY_IMAGE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "text_dim": 32,
    "num_layers": 1,
    "rope_dim_list": [8, 12, 12],
}
QWEN_IMAGE = {
    "num_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
KREA = {
    "features": 96,
    "tdim": 32,
    "txtdim": 32,
    "heads": 2,
    "kvheads": 1,
    "layers": 1,
    "txtlayers": 1,
    "txtheads": 2,
    "txtkvheads": 2,
}
BOOGU = {
    "hidden_size": 96,
    "num_layers": 2,
    "num_double_stream_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "axes_dim_rope": (16, 16, 16),
    "instruction_feat_dim": 32,
}
# Picture models, most of them with networks or latents like those of video models: how they are built, and their names.
PICTURES: dict[str, tuple[dict[str, Any], str]] = {
    "Anima": ({**PREDICT2, "in_channels": 16, "crossattn_emb_channels": 1024}, "Anima"),
    "Boogu": (BOOGU, "Boogu"),
    "Flux": (FLUX, "Flux"),
    "HunyuanImage21": (HUNYUAN_IMAGE, "HunyuanImage 2.1"),
    "HunyuanImage21Refiner": (
        {**HUNYUAN_IMAGE, "patch_size": [1, 1, 1], "axes_dim": [4, 10, 10], "byt5": False},
        "The refiner of HunyuanImage 2.1",
    ),
    "JoyImage": (JOY_IMAGE, "JoyImage"),
    "Kandinsky5Image": ({**KANDINSKY, "visual_embed_dim": 64}, "Kandinsky 5 Image"),
    "Krea2": (KREA, "Krea 2"),
    "LongCatImage": ({**FLUX, "vec_in_dim": None, "guidance_embed": False}, "LongCat-Image"),
    "QwenImage": (QWEN_IMAGE, "Qwen-Image"),
}


@pytest.mark.parametrize("config", sorted(PICTURES))
def test_picture_models_are_refused_by_their_names(config: str) -> None:
    settings, named = PICTURES[config]
    patcher = build(config, settings)
    with pytest.raises(
        ModelNotSupported, match=f"model not supported: {named} makes pictures, not videos; attention guidance reaches"
    ):
        require_supported(patcher)
    # Nor is the network alone taken for that of a video model.
    assert family_of(patcher.model.diffusion_model) is None


def test_all_picture_models_are_classes_of_the_host() -> None:
    import comfy.model_base

    # Older hosts have fewer.
    absent = {name for name in PICTURE_MODELS if not hasattr(comfy.model_base, name)}
    assert absent <= {"Boogu", "Ideogram4", "JoyImage", "Krea2", "MageFlow"}


def test_a_part_that_nobody_knows_is_enough_in_1_5() -> None:
    patcher = build("HunyuanVideo15", HUNYUAN15)
    patcher.model.diffusion_model.add_module("sound_in", torch.nn.Linear(1, 1))
    with pytest.raises(ModelNotSupported, match=r"HunyuanVideo \(built like HunyuanVideo 1.5, .*: sound_in\)"):
        require_supported(patcher)


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
