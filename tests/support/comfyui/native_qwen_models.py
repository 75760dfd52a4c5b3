"""Tiny models that read their prompt through Qwen 2.5 VL: HunyuanVideo 1.5 and Kandinsky 5, in all their variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from native_wan_models import picture
from tiny_model import TEXT, TinyModel, build
from torch import Tensor

HUNYUAN15 = {
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "vec_in_dim": None,
    "context_in_dim": 32,
    "hidden_size": 48,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 0,
    "axes_dim": [4, 10, 10],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": True,
    "meanflow": False,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
    "meanflow_sum": True,
}
HUNYUAN15_LATENTS = (1, 32, 3, 4, 6)
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
KANDINSKY_LATENTS = (1, 16, 3, 8, 12)


def random(*size: int, seed: int = 6) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def given_first_frame(height: int, width: int) -> Tensor:
    """The mask that the host's nodes leave beside a first picture: its frame is not to be denoised."""
    mask = torch.ones(1, 1, 3, height, width)
    mask[:, :, 0] = 0.0
    return mask


def vision() -> Any:
    """What HunyuanVideo 1.5's picture encoder makes of a picture: 9 tokens instead of 729."""
    output = picture()
    output["last_hidden_state"] = random(1, 9, 1152, seed=5)
    return output


def glyphs() -> Tensor:
    """What ByT5 makes of the words in quotation marks."""
    return random(1, 7, 1472, seed=8)


def concatenated() -> dict[str, Any]:
    """A first picture in further channels, with its mask."""
    return {
        "concat_latent_image": partial(random, *HUNYUAN15_LATENTS),
        "concat_mask": partial(given_first_frame, 4, 6),
    }


def hunyuan15() -> TinyModel:
    make = partial(build, "HunyuanVideo15", HUNYUAN15)
    return TinyModel("hunyuan15", make, HUNYUAN15_LATENTS, 32, extras={"pooled_output": None})


def _variant(name: str, **extras: Any) -> TinyModel:
    return replace(hunyuan15(), name=f"hunyuan15_{name}", extras={**hunyuan15().extras, **extras})


def hunyuan15_masked() -> TinyModel:
    """With padded text, which the core masks."""
    mask = torch.tensor([[1] * (TEXT - 3) + [0] * 3])
    return replace(_variant("masked", attention_mask=mask), cfg=1.0)


def hunyuan15_vision() -> TinyModel:
    """Image to video: tokens of a picture before the text, and its latents beside the film's."""
    return _variant("vision", clip_vision_output=vision, **concatenated())


def hunyuan15_glyphs() -> TinyModel:
    """A prompt with words in quotation marks."""
    return _variant("glyphs", conditioning_byt5small=glyphs)


def hunyuan15_image() -> TinyModel:
    """All of it: picture, glyphs and text."""
    return _variant("image", clip_vision_output=vision, conditioning_byt5small=glyphs, **concatenated())


def hunyuan15_reference() -> TinyModel:
    """A reference latent stands between the text and the film."""
    reference = partial(random, 1, 65, 1, 4, 6, seed=7)
    return replace(_variant("reference", ref_latent=reference, clip_vision_output=vision), cfg=1.0)


def hunyuan15_sr() -> TinyModel:
    """Super-resolution: the film of low resolution in further channels; made for few steps."""
    settings = {**HUNYUAN15, "in_channels": 98, "meanflow": True}
    make = partial(build, "HunyuanVideo15_SR_Distilled", settings)
    low = partial(random, 1, 66, 3, 4, 6)
    return replace(_variant("sr", concat_latent_image=low, conditioning_byt5small=glyphs), make=make)


def kandinsky5() -> TinyModel:
    return TinyModel("kandinsky5", partial(build, "Kandinsky5", KANDINSKY), KANDINSKY_LATENTS, 32, vector=8)


def kandinsky5_pro() -> TinyModel:
    """With the heads of the pro model."""
    settings = {**KANDINSKY, "model_dim": 256, "axes_dims": (32, 48, 48)}
    make = partial(build, "Kandinsky5", settings)
    return replace(kandinsky5(), name="kandinsky5_pro", make=make)


def kandinsky5_image() -> TinyModel:
    """Image to video: the network lays a picture over the first latent frame."""
    extras = {"time_dim_replace": partial(random, 1, 16, 1, 8, 12), "concat_mask": partial(given_first_frame, 8, 12)}
    return replace(kandinsky5(), name="kandinsky5_image", extras=extras)


QWEN_BUILDERS: dict[str, Callable[[], TinyModel]] = {
    "hunyuan15": hunyuan15,
    "hunyuan15_masked": hunyuan15_masked,
    "hunyuan15_vision": hunyuan15_vision,
    "hunyuan15_glyphs": hunyuan15_glyphs,
    "hunyuan15_image": hunyuan15_image,
    "hunyuan15_reference": hunyuan15_reference,
    "hunyuan15_sr": hunyuan15_sr,
    "kandinsky5": kandinsky5,
    "kandinsky5_pro": kandinsky5_pro,
    "kandinsky5_image": kandinsky5_image,
}
