"""Stable Diffusion 1's U-Net in files: its tensors by the names of our U-Nets, from either naming that is in use.

diffusers' names are those of LaVie's models, which were made from it; the original's are in the checkpoints that most
people have. Source of the names: CompVis/stable-diffusion, huggingface/diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .parts import VAE_FILES, find_weights, read_config

# A tensor that Stable Diffusion 1 has under either naming; those of 2 and XL have it too, or nothing there.
DIFFUSERS_KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
ORIGINAL_KEY = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
# What its files do not say: betas whose square roots are linear (CompVis/stable-diffusion, configs/stable-diffusion).
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_IN_RESNETS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def picture_unet_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a U-Net for pictures by the names of diffusers' ``UNet2DConditionModel``.

    Args:
        state: its tensors without prefix, in the original's naming or in diffusers'.

    Raises:
        ValueError: it is not a U-Net of Stable Diffusion 1.
    """
    _check_generation(state)
    if DIFFUSERS_KEY in state:
        return dict(state)
    # The block that makes everything smaller is the last of its level.
    first_smaller = min((int(found[1]) for name in state if (found := _SMALLER.match(name))), default=0)
    if first_smaller < 2:
        raise ValueError(
            "the U-Net has no blocks that halve height and width, so it is not Stable Diffusion's; "
            "get the complete file again."
        )
    return {_renamed(name, layers=first_smaller - 1): value for name, value in state.items()}


_SMALLER = re.compile(r"input_blocks\.(\d+)\.0\.op\.")
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)")


def unet_file(folder: Path) -> Path:
    """The U-Net's weights in a folder in diffusers' layout.

    Raises:
        FileNotFoundError: when they are missing.
    """
    return find_weights(folder / "unet", VAE_FILES)


def folder_sizes(folder: Path) -> dict[str, Any]:
    """What a U-Net's folder in diffusers' layout says that shapes do not: heads, groups of norms, kind of prediction.

    Args:
        folder: that the weights lie in.

    Returns:
        Fields of ``LaVieConfig``; empty where it is not such a folder.

    Raises:
        RuntimeError: ``config.json`` cannot be read.
    """
    if folder.name != "unet" or not (folder / "config.json").is_file():
        return {}
    sizes = read_config(folder)
    # diffusers calls the number of heads attention_head_dim in the folders of Stable Diffusion 1.
    found = {
        "num_heads": sizes.get("num_attention_heads") or sizes.get("attention_head_dim"),
        "norm_num_groups": sizes.get("norm_num_groups"),
    }
    schedule = folder.parent / "scheduler" / "scheduler_config.json"
    if schedule.is_file():
        found["prediction_type"] = read_config(schedule.parent, schedule.name).get("prediction_type")
    return {name: value for name, value in found.items() if value is not None}


def _check_generation(state: Mapping[str, Tensor]) -> None:
    later = [
        name for name in state if ".transformer_blocks.1." in name or name.startswith(("label_emb.", "add_embedd"))
    ]
    narrow = [name for name in state if name.endswith("proj_in.weight") and state[name].ndim == 2]
    if later or narrow:
        raise ValueError(
            f"the U-Net has {(later or narrow)[0]} as Stable Diffusion 2 or XL has it; "
            "only Stable Diffusion 1.x can be opened as a video model, so choose one of those."
        )


def _renamed(name: str, layers: int) -> str:
    """A tensor's name in diffusers, by that in the original; unknown ones stay, and are refused later."""
    for old, new in _OUTSIDE.items():
        if name.startswith(f"{old}."):
            return new + _inside(name[len(old) :])
    found = _BLOCK.fullmatch(name)
    if found is None:
        return name
    side, number, part, rest = found[1], int(found[2]), int(found[3]), found[4]
    # Its first input block is the convolution at the beginning.
    level, layer = divmod(number - 1 if side == "input" else number, layers + 1)
    block = f"{'down' if side == 'input' else 'up'}_blocks.{level}."
    if rest.startswith("op."):
        return f"{block}downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{block}upsamplers.0.{rest}"
    return f"{block}{'attentions' if part else 'resnets'}.{layer}{_inside('.' + rest)}"


def _inside(rest: str) -> str:
    """What follows a ResNet's name, in diffusers' words; that of anything else is the same in both."""
    for old, new in _IN_RESNETS.items():
        if rest.startswith(f".{old}."):
            return f".{new}{rest[len(old) + 1 :]}"
    return rest
