"""Tiny random U-Nets of Stable Diffusion 1 in every form they come in."""

from __future__ import annotations

import re

import torch
from torch import Tensor

WIDTHS = (32, 64)


def tiny_picture_unet(seed: int = 0, widths=WIDTHS, heads: int = 8):
    """Diffusers' U-Net with Stable Diffusion 1's parts at other widths: its last level does not attend."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    levels = len(widths)
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=2, cross_attention_dim=64, attention_head_dim=heads,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    ).eval()  # fmt: skip


def original_unet_names(state: dict[str, Tensor], levels: int, layers: int = 2) -> dict[str, Tensor]:
    """A diffusers U-Net by the names of CompVis's, counted through its blocks one by one."""
    places = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    places |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    places |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    places |= {"mid_block.resnets.1": "middle_block.2"}
    block = 1
    for level in range(levels):
        for layer in range(layers):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{block}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
        block += level < levels - 1
    block = 0
    for level in range(levels):
        for layer in range(layers + 1):
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{block}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        attends = any(name.startswith(f"up_blocks.{level}.attentions.") for name in state)
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{1 + attends}.conv"
    parts = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    renamed = {}
    for name, value in state.items():
        place = max((place for place in places if name.startswith(f"{place}.")), key=len)
        rest = name.removeprefix(f"{place}.")
        if ".resnets." in f".{place}.":
            part, kind = rest.rsplit(".", 1)
            rest = f"{parts[part]}.{kind}"
        renamed[f"{places[place]}.{rest}"] = value.clone()
    assert len(renamed) == len(state) and not any(re.match(r"(down|up)_blocks", name) for name in renamed)
    return renamed
