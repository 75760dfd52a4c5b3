"""Tiny models of every family with random weights, built from ComfyUI's own configs and classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from native_ltx_models import (
    ltx,
    ltx_guided,
    ltx_masked_guide,
    ltx_weak_guide,
    ltxav,
    ltxav_23,
    ltxav_25,
    ltxav_masked_guide,
    ltxav_silent,
    ltxav_weak_guide,
    text_mask,
)
from native_minimax_models import minimax_h3, minimax_h3_keyframes, minimax_h3_odd, minimax_h3_references
from native_qwen_models import QWEN_BUILDERS
from native_wan_models import (
    WAN,
    WAN_LATENTS,
    wan,
    wan_animate,
    wan_animate2,
    wan_animate2_still,
    wan_bernini,
    wan_camera,
    wan_camera22,
    wan_dancer,
    wan_humo,
    wan_image,
    wan_odd,
    wan_reference,
    wan_scail,
    wan_scail2,
    wan_small,
    wan_speech,
    wan_vace,
    wan_vace_reference,
)
from tiny_model import TEXT, TinyModel, build, flat, randomise, zeros_like
from torch import Tensor

__all__ = ["BUILDERS", "TEXT", "UNET", "WAN", "WAN_LATENTS", "TinyModel", "build", "randomise", "sample", "tiny"]


HUNYUAN = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 8,
    "context_in_dim": 32,
    "hidden_size": 48,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [4, 10, 10],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}


def hunyuan() -> TinyModel:
    make = partial(build, "HunyuanVideo", HUNYUAN)
    return TinyModel("hunyuan", make, (1, 16, 3, 8, 12), 32, vector=8)


def hunyuan_masked() -> TinyModel:
    """With padded text, which the core masks."""
    extras = {"attention_mask": text_mask}
    make = partial(build, "HunyuanVideo", HUNYUAN)
    return TinyModel("hunyuan_masked", make, (1, 16, 3, 8, 12), 32, extras=extras, vector=8, cfg=1.0)


def hunyuan_reference() -> TinyModel:
    """A reference latent stands before the film."""
    reference = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(7))
    make = partial(build, "HunyuanVideo", HUNYUAN)
    extras = {"ref_latent": reference}
    return TinyModel("hunyuan_reference", make, (1, 16, 3, 8, 12), 32, extras=extras, vector=8, cfg=1.0)


def mochi() -> TinyModel:
    config = {
        "depth": 2,
        "patch_size": 2,
        "num_heads": 4,
        "hidden_size_x": 96,
        "hidden_size_y": 48,
        "mlp_ratio_x": 128.0,
        "mlp_ratio_y": 2.0,
        "learn_sigma": False,
        "in_channels": 12,
        "qk_norm": True,
        "qkv_bias": False,
        "use_t5": True,
        "t5_feat_dim": 32,
        "t5_token_length": TEXT,
        "timestep_scale": 1000.0,
        "posenc_preserve_area": True,
    }
    make = partial(build, "GenmoMochi", config)
    return TinyModel("mochi", make, (1, 12, 3, 8, 12), 32, extras={"attention_mask": text_mask})


COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 48,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 32,
    "text_embed_dim": 32,
    "num_layers": 2,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": TEXT,
}


def build_cogvideox(config_name: str, **settings: Any) -> Any:
    """CogVideoX whose attention is heard in what comes out: its gates are small where weights are random."""
    patcher = build(config_name, {**COGVIDEOX, **settings})
    for block in patcher.model.diffusion_model.blocks:
        block.attn_out.weight.mul_(300.0)
    return patcher


def cogvideox() -> TinyModel:
    """With learned positions."""
    return TinyModel("cogvideox", partial(build_cogvideox, "CogVideoX_T2V"), (1, 16, 3, 8, 12), 32)


def cogvideox_image() -> TinyModel:
    """With a picture in further channels, and rotary positions."""
    make = partial(build_cogvideox, "CogVideoX_I2V", in_channels=32, use_rotary_positional_embeddings=True)
    extras = {"concat_latent_image": torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(6))}
    return TinyModel("cogvideox_image", make, (1, 16, 3, 8, 12), 32, extras=extras)


def cogvideox15() -> TinyModel:
    """CogVideoX 1.5: a token covers two latent frames."""
    make = partial(build_cogvideox, "CogVideoX_T2V", patch_size_t=2, use_rotary_positional_embeddings=True)
    return TinyModel("cogvideox15", make, (1, 16, 4, 8, 12), 32)


def cogvideox15_odd() -> TinyModel:
    """VOID, whose latents have further channels, with an odd number of latent frames: core fills them up."""
    settings = {"patch_size_t": 2, "in_channels": 48, "use_rotary_positional_embeddings": True}
    extras = {"concat_latent_image": torch.randn(1, 32, 3, 8, 12, generator=torch.Generator().manual_seed(6))}
    make = partial(build_cogvideox, "CogVideoX_Inpaint", **settings)
    return TinyModel("cogvideox15_odd", make, (1, 16, 3, 8, 12), 32, extras=extras)


def cosmos() -> TinyModel:
    config = {
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 48,
        "block_config": "FA-CA-MLP",
        "concat_padding_mask": True,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": False,
        "pos_emb_interpolation": "crop",
        "block_x_format": "THWBD",
        "affline_emb_norm": True,
        "use_adaln_lora": True,
        "adaln_lora_dim": 16,
        "num_blocks": 2,
        "num_heads": 2,
        "crossattn_emb_channels": 32,
        "extra_per_block_abs_pos_emb": True,
        "extra_per_block_abs_pos_emb_type": "learnable",
        "rope_h_extrapolation_ratio": 1.0,
        "rope_w_extrapolation_ratio": 1.0,
        "rope_t_extrapolation_ratio": 2.0,
    }
    return TinyModel("cosmos", partial(build, "CosmosT2V", config), (1, 16, 3, 8, 12), 32)


PREDICT2 = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 17,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 48,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 32,
    "extra_per_block_abs_pos_emb": False,
    "min_fps": 1,
    "max_fps": 30,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
}


def cosmos_predict2() -> TinyModel:
    return TinyModel("cosmos_predict2", partial(build, "CosmosI2VPredict2", PREDICT2), (1, 16, 3, 8, 12), 32)


UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 2],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}


def sd15() -> TinyModel:
    return TinyModel("sd15", partial(build, "SD15", UNET), (4, 4, 8, 12), 32)


def sd15_odd() -> TinyModel:
    return TinyModel("sd15_odd", partial(build, "SD15", UNET), (3, 4, 7, 10), 32)


def sdxl() -> TinyModel:
    config = {
        **UNET,
        "transformer_depth": [0, 2, 2],
        "transformer_depth_output": [0, 0, 2, 2, 2, 2],
        "transformer_depth_middle": 2,
        "use_linear_in_transformer": True,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
    }
    return TinyModel("sdxl", partial(build, "SDXL", config), (3, 4, 8, 12), 32, vector=1280)


def svd() -> TinyModel:
    config = {
        **UNET,
        "in_channels": 8,
        "model_channels": 64,
        "use_linear_in_transformer": True,
        "adm_in_channels": 768,
        "num_classes": "sequential",
        "use_temporal_attention": True,
        "use_temporal_resblock": True,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1],
    }
    return TinyModel("svd", partial(build, "SVD_img2vid", config), (6, 4, 8, 12), 32, text=1)


BUILDERS: dict[str, Callable[[], TinyModel]] = {
    "wan": wan,
    "wan_odd": wan_odd,
    "wan_image": wan_image,
    "wan_reference": wan_reference,
    "wan_vace": wan_vace,
    "wan_vace_reference": wan_vace_reference,
    "wan_5b": wan_small,
    "wan_camera": wan_camera,
    "wan_camera22": wan_camera22,
    "wan_humo": wan_humo,
    "wan_speech": wan_speech,
    "wan_animate": wan_animate,
    "wan_animate2": wan_animate2,
    "wan_animate2_still": wan_animate2_still,
    "wan_scail": wan_scail,
    "wan_scail2": wan_scail2,
    "wan_dancer": wan_dancer,
    "wan_bernini": wan_bernini,
    "ltx": ltx,
    "ltx_guided": ltx_guided,
    "ltx_weak_guide": ltx_weak_guide,
    "ltx_masked_guide": ltx_masked_guide,
    "ltxav": ltxav,
    "ltxav_silent": ltxav_silent,
    "ltxav_23": ltxav_23,
    "ltxav_25": ltxav_25,
    "ltxav_weak_guide": ltxav_weak_guide,
    "ltxav_masked_guide": ltxav_masked_guide,
    "hunyuan": hunyuan,
    "hunyuan_masked": hunyuan_masked,
    "hunyuan_reference": hunyuan_reference,
    "mochi": mochi,
    "minimax_h3": minimax_h3,
    "minimax_h3_odd": minimax_h3_odd,
    "minimax_h3_keyframes": minimax_h3_keyframes,
    "minimax_h3_references": minimax_h3_references,
    "cogvideox": cogvideox,
    "cogvideox_image": cogvideox_image,
    "cogvideox15": cogvideox15,
    "cogvideox15_odd": cogvideox15_odd,
    "cosmos": cosmos,
    "cosmos_predict2": cosmos_predict2,
    **QWEN_BUILDERS,
    "sd15": sd15,
    "sd15_odd": sd15_odd,
    "sdxl": sdxl,
    "svd": svd,
}


@cache
def tiny(name: str) -> TinyModel:
    """The tiny model of a name, built once."""
    return BUILDERS[name]()


def sample(
    model: TinyModel,
    patcher: Any = None,
    *,
    steps: int = 2,
    cfg: float | None = None,
    seed: int = 0,
    noise: Any = None,
    positive: Any = None,
    negative: Any = None,
    sampler: str = "euler",
    noise_mask: Any = None,
) -> Tensor:
    """Run ComfyUI's sampling on a tiny model; of nested latents the flat pack is returned, sound included."""
    import comfy.sample

    noise = model.noise(seed) if noise is None else noise
    with torch.inference_mode():
        film = comfy.sample.sample(
            patcher or model.patcher,
            noise,
            steps,
            model.cfg if cfg is None else cfg,
            sampler,
            "simple",
            positive or model.conditioning(1),
            negative or model.conditioning(2),
            zeros_like(noise),
            disable_pbar=True,
            seed=seed,
            noise_mask=noise_mask,
        )
    return flat(film)
