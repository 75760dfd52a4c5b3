"""Checkpoints with every tensor of Stable Diffusion 1 or of its x4 upscaler at its real size, in files of a few
megabytes.

All tensors of one fan-in are views of one short random vector, with overlapping strides, which ``torch.save`` keeps:
the host detects, converts and runs them as it does real files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Neighbours along the axes of a tensor are so far apart in the vector; coprime, so that rows differ.
STRIDES = (1, 7, 3, 5, 2)
VECTOR = 2**17
PICTURE_VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
UNET = {
    "image_size": 32,
    "out_channels": 4,
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "num_heads": 8,
    "use_spatial_transformer": True,
}
SD1_UNET = {
    **UNET,
    "in_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "context_dim": 768,
}
X4_UNET = {
    **UNET,
    "in_channels": 7,
    "model_channels": 256,
    "channel_mult": [1, 2, 2, 4],
    "transformer_depth": [0, 0, 1, 1, 1, 1, 1, 1],
    "context_dim": 1024,
    "use_linear_in_transformer": True,
    "disable_self_attentions": [True, True, True, False],
    "num_classes": 1000,
}


def hollow(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random tensors of these sizes: gains around one, biases zero, weights scaled by their fan-in."""
    vector = torch.randn(VECTOR, generator=torch.Generator().manual_seed(0))
    scaled: dict[float, Tensor] = {}
    tensors = {}
    for name, size in sizes.items():
        if len(size) < 2:
            tensors[name] = torch.tensor(1.0 if name.endswith("weight") else 0.0).expand(size)
            continue
        scale = 0.02 if "embed" in name else float(torch.Size(size[1:]).numel()) ** -0.5
        source = scaled.setdefault(scale, vector * scale)
        tensors[name] = source.as_strided(size, STRIDES[: len(size)])
    return tensors


def sizes_of(make: Any) -> dict[str, tuple[int, ...]]:
    """Names and sizes of a network's tensors, without making them."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in make().state_dict().items()}


def sd1_encoder() -> dict[str, tuple[int, ...]]:
    """Names and sizes of its text encoder, as transformers names them."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    names = sizes_of(lambda: CLIPTextModel(config))
    return {f"text_model.{name.removeprefix('text_model.')}": size for name, size in names.items()}


def save_sd1(path: Path) -> None:
    """A checkpoint of Stable Diffusion 1."""
    _save(path, SD1_UNET, "transformer.", sd1_encoder(), [1, 2, 4, 4])


def save_sd1_folder(folder: Path) -> None:
    """Text encoder and VAE of Stable Diffusion 1 as diffusers lays them out."""
    from diffusers import AutoencoderKL

    levels = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = sizes_of(lambda: AutoencoderKL(**levels, **kinds))
    for place, sizes in (("text_encoder/pytorch_model", sd1_encoder()), ("vae/diffusion_pytorch_model", vae)):
        path = folder / f"{place}.bin"
        path.parent.mkdir(parents=True)
        torch.save(hollow(sizes), path)


def save_picture_unet(folder: Path) -> None:
    """A narrow U-Net of Stable Diffusion 1 as diffusers lays it out, with random weights."""
    from diffusers import UNet2DConditionModel
    from tiny_model import randomise

    with torch.inference_mode(False), torch.no_grad():
        unet = UNet2DConditionModel(
            cross_attention_dim=768,
            block_out_channels=(32, 64),
            layers_per_block=1,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        randomise(unet)
        unet.save_pretrained(folder)


def save_x4(path: Path) -> None:
    """A checkpoint of Stable Diffusion's x4 upscaler, its text encoder in OpenCLIP's layout."""
    width, layers = 1024, 24
    encoder: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, width),
    }
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        encoder |= {f"{block}{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        for name, out, inner in (
            ("attn.in_proj_", 3 * width, width),
            ("attn.out_proj.", width, width),
            ("mlp.c_fc.", 4 * width, width),
            ("mlp.c_proj.", width, 4 * width),
        ):
            encoder |= {f"{block}{name}weight": (out, inner), f"{block}{name}bias": (out,)}
    _save(path, X4_UNET, "model.", encoder, [1, 2, 4])


def _save(
    path: Path, unet: dict[str, Any], prefix: str, encoder: dict[str, tuple[int, ...]], vae_levels: list[int]
) -> None:
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    parts = {
        "model.diffusion_model.": sizes_of(lambda: UNetModel(**unet, operations=comfy.ops.disable_weight_init)),
        f"cond_stage_model.{prefix}": encoder,
        "first_stage_model.": sizes_of(
            lambda: AutoencoderKL(ddconfig={**PICTURE_VAE, "ch_mult": vae_levels}, embed_dim=4)
        ),
    }
    sizes = {start + name: size for start, names in parts.items() for name, size in names.items()}
    torch.save({"state_dict": hollow(sizes)}, path)
