"""Tiny models of every family with random weights, built from ComfyUI's own configs and classes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

TEXT = 12


@dataclass(frozen=True, eq=False)
class TinyModel:
    """A model with what is needed to sample it.

    Attributes:
        name: of the variant.
        patcher: ComfyUI ``ModelPatcher``.
        latents: size of the latents of one film.
        context_dim: channels of the text.
        text: tokens of the text.
        extras: further entries of every condition.
        vector: channels of the pooled text, 0 without.
        cfg: guidance scale to sample with; at 1 there is no unconditional row (HunyuanVideo with a text mask or a
            reference can do but one row at a time).
    """

    name: str
    patcher: Any
    latents: tuple[int, ...]
    context_dim: int
    text: int = TEXT
    extras: dict[str, Any] = field(default_factory=dict)
    vector: int = 0
    cfg: float = 3.0

    @property
    def window_axis(self) -> int:
        return 2 if len(self.latents) == 5 else 0

    def noise(self, seed: int = 0, frames: int | None = None, films: int = 1) -> Tensor:
        size = list(self.latents)
        if frames is not None:
            size[self.window_axis] = frames
        if self.window_axis == 2:
            size[0] = films
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))

    def conditioning(self, seed: int, text: int | None = None) -> list[Any]:
        generator = torch.Generator().manual_seed(1000 + seed)
        embedding = torch.randn(1, text or self.text, self.context_dim, generator=generator)
        extras = {name: value() if callable(value) else value for name, value in self.extras.items()}
        if self.vector:
            extras["pooled_output"] = torch.randn(1, self.vector, generator=generator)
        return [[embedding, extras]]


def randomise(network: Any, seed: int = 0) -> None:
    """Fill all parameters so that every branch matters: gates and modulations of new networks are zero.

    Attention gets larger weights than the rest, so that what it does is clearly seen in the output.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(False)
        gain = 1.5 if "attn" in name or "linear" in name or "time_stack" in name else 0.5
        scale = gain / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
        noise = torch.randn(parameter.shape, generator=generator) * scale
        is_gain = parameter.ndim == 1 and ("norm" in name or name.endswith("scale")) and "bias" not in name
        parameter.copy_(noise + 1.0 if is_gain else noise)
    for buffer in network.buffers():
        if buffer.is_floating_point() and not torch.isfinite(buffer).all():
            buffer.zero_()


def build(config_name: str, unet_config: dict[str, Any]) -> Any:
    """A ``ModelPatcher`` of one of ``comfy.supported_models`` at a size of our own."""
    import comfy.model_patcher
    import comfy.supported_models

    config_class = getattr(comfy.supported_models, config_name)
    config = config_class({**config_class.unet_config, **unet_config})
    config.set_inference_dtype(torch.float32, None)
    with torch.no_grad():
        model = config.get_model({})
        randomise(model.diffusion_model)
    model.eval()
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, device, device)


WAN = {
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": 32,
    "freq_dim": 16,
    "in_dim": 16,
    "out_dim": 16,
    "patch_size": (1, 2, 2),
}
WAN_LATENTS = (1, 16, 3, 8, 12)


def wan() -> TinyModel:
    return TinyModel("wan", build("WAN21_T2V", WAN), WAN_LATENTS, 32)


def wan_odd() -> TinyModel:
    """Latents that are no multiple of the patch."""
    return TinyModel("wan_odd", build("WAN21_T2V", WAN), (1, 16, 3, 7, 11), 32)


def wan_image() -> TinyModel:
    """Image to video: a cross-attention with a picture's tokens beside the one with the text."""

    def picture() -> Any:
        output = importlib.import_module("comfy.clip_vision").Output()
        output["penultimate_hidden_states"] = torch.randn(1, 9, 1280, generator=torch.Generator().manual_seed(5))
        return output

    patcher = build("WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36})
    return TinyModel("wan_image", patcher, WAN_LATENTS, 32, extras={"clip_vision_output": picture})


def wan_reference() -> TinyModel:
    """Fun control's reference picture, whose tokens stand before the film's."""
    patcher = build("WAN21_T2V", {**WAN, "in_dim_ref_conv": 16})
    reference = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(6))
    return TinyModel("wan_reference", patcher, WAN_LATENTS, 32, extras={"reference_latents": [reference]})


def wan_vace() -> TinyModel:
    patcher = build("WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96})
    return TinyModel("wan_vace", patcher, WAN_LATENTS, 32)


def wan_vace_reference() -> TinyModel:
    """VACE's reference picture is the first frame of the latents; the second half of its control is nothing."""
    latent_format = importlib.import_module("comfy.latent_formats").Wan21()
    control = torch.randn(1, 32, 4, 8, 12, generator=torch.Generator().manual_seed(8))
    control[:, 16:, :1] = latent_format.process_out(torch.zeros(1, 16, 1, 8, 12))
    patcher = build("WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96})
    return TinyModel("wan_vace_reference", patcher, (1, 16, 4, 8, 12), 32, extras={"vace_frames": [control]})


def wan_small() -> TinyModel:
    """Wan 2.2's 5B kind: 48 channels."""
    patcher = build("WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48})
    return TinyModel("wan_5b", patcher, (1, 48, 3, 8, 12), 32)


def ltx() -> TinyModel:
    return TinyModel("ltx", build("LTXV", LTX), (1, 128, 3, 4, 5), 32, extras={"attention_mask": text_mask})


def ltx_guided() -> TinyModel:
    """The last of the latents' frames is a guide picture."""

    def keyframes() -> Tensor:
        return torch.zeros(1, 3, 20, dtype=torch.long)

    extras = {"attention_mask": text_mask, "keyframe_idxs": keyframes}
    return TinyModel("ltx_guided", build("LTXV", LTX), (1, 128, 4, 4, 5), 32, extras=extras)


LTX = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "cross_attention_dim": 48}
LTX["caption_channels"] = 32


def text_mask() -> Tensor:
    """The last three tokens of the text are padding."""
    return torch.tensor([[1] * (TEXT - 3) + [0] * 3])


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
}


def hunyuan() -> TinyModel:
    patcher = build("HunyuanVideo", HUNYUAN)
    return TinyModel("hunyuan", patcher, (1, 16, 3, 8, 12), 32, vector=8)


def hunyuan_masked() -> TinyModel:
    """With padded text, which the core masks."""
    extras = {"attention_mask": text_mask}
    patcher = build("HunyuanVideo", HUNYUAN)
    return TinyModel("hunyuan_masked", patcher, (1, 16, 3, 8, 12), 32, extras=extras, vector=8, cfg=1.0)


def hunyuan_reference() -> TinyModel:
    """A reference latent stands before the film."""
    reference = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(7))
    patcher = build("HunyuanVideo", HUNYUAN)
    extras = {"ref_latent": reference}
    return TinyModel("hunyuan_reference", patcher, (1, 16, 3, 8, 12), 32, extras=extras, vector=8, cfg=1.0)


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
    patcher = build("GenmoMochi", config)
    return TinyModel("mochi", patcher, (1, 12, 3, 8, 12), 32, extras={"attention_mask": text_mask})


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
    return TinyModel("cosmos", build("CosmosT2V", config), (1, 16, 3, 8, 12), 32)


def cosmos_predict2() -> TinyModel:
    config = {
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
    return TinyModel("cosmos_predict2", build("CosmosI2VPredict2", config), (1, 16, 3, 8, 12), 32)


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
    return TinyModel("sd15", build("SD15", UNET), (4, 4, 8, 12), 32)


def sd15_odd() -> TinyModel:
    return TinyModel("sd15_odd", build("SD15", UNET), (3, 4, 7, 10), 32)


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
    return TinyModel("sdxl", build("SDXL", config), (3, 4, 8, 12), 32, vector=1280)


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
    return TinyModel("svd", build("SVD_img2vid", config), (6, 4, 8, 12), 32, text=1)


BUILDERS: dict[str, Callable[[], TinyModel]] = {
    "wan": wan,
    "wan_odd": wan_odd,
    "wan_image": wan_image,
    "wan_reference": wan_reference,
    "wan_vace": wan_vace,
    "wan_vace_reference": wan_vace_reference,
    "wan_5b": wan_small,
    "ltx": ltx,
    "ltx_guided": ltx_guided,
    "hunyuan": hunyuan,
    "hunyuan_masked": hunyuan_masked,
    "hunyuan_reference": hunyuan_reference,
    "mochi": mochi,
    "cosmos": cosmos,
    "cosmos_predict2": cosmos_predict2,
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
    noise: Tensor | None = None,
    positive: Any = None,
    negative: Any = None,
    sampler: str = "euler",
) -> Tensor:
    """Run ComfyUI's sampling on a tiny model."""
    import comfy.sample

    noise = model.noise(seed) if noise is None else noise
    with torch.inference_mode():
        return comfy.sample.sample(
            patcher or model.patcher,
            noise,
            steps,
            model.cfg if cfg is None else cfg,
            sampler,
            "simple",
            positive or model.conditioning(1),
            negative or model.conditioning(2),
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=seed,
        )
