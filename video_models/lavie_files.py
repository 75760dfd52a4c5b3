"""Reading LaVie-shaped U-Net files: which tensors, and which sizes they imply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .lavie_config import LaVieConfig
from .lavie_unet import LaVieUNet

# Every LaVie-shaped U-Net has it and no other model does.
DETECTION_KEY = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn_temp.time_rel_pos_bias.relative_attention_bias.weight"
)
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "unet.")


def unet_state(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The U-Net's own tensors out of what a checkpoint file holds.

    Published LaVie files keep the averaged weights under ``ema``; other tools add a prefix. Rotary frequencies are
    left out: they are computed, and files of other versions hold rounded values.

    Args:
        contents: what the file's loader returned.

    Returns:
        Tensors by the U-Net's own names.

    Raises:
        ValueError: if this is no LaVie-shaped U-Net.
    """
    for key in ("ema", "state_dict", "model"):
        if isinstance(contents.get(key), Mapping):
            contents = contents[key]
            break
    for prefix in PREFIXES:
        if prefix + DETECTION_KEY in contents:
            return {
                name[len(prefix) :]: value
                for name, value in contents.items()
                if name.startswith(prefix) and isinstance(value, Tensor) and not name.endswith("rotary_emb.freqs")
            }
    raise ValueError(
        f"the file holds {len(contents)} entries but not {DETECTION_KEY}, so it is no LaVie-shaped U-Net; "
        "choose lavie_base.pt or a file trained with this pack."
    )


def infer_config(state: Mapping[str, Tensor], **overrides: Any) -> LaVieConfig:
    """Sizes of the U-Net that a state dict belongs to.

    What shapes cannot tell (how the prediction is meant, schedule, native length) takes LaVie's values unless given.

    Args:
        state: from :func:`unet_state`.
        overrides: fields that win over what was found.
    """
    levels = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("down_blocks."))
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("down_blocks.0.resnets."))
    table = state[DETECTION_KEY]
    first = "down_blocks.0.attentions.0.transformer_blocks.0."
    values: dict[str, Any] = {
        "in_channels": state["conv_in.weight"].shape[1],
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": tuple(
            state[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)
        ),
        "attention_levels": tuple(
            f"down_blocks.{level}.attentions.0.proj_in.weight" in state for level in range(levels)
        ),
        "layers_per_block": layers,
        "num_heads": table.shape[1],
        "relative_buckets": table.shape[0],
        "cross_attention_dim": state[f"{first}attn2.to_k.weight"].shape[1],
    }
    return LaVieConfig(**{**values, **overrides})


def check_unet_state(state: Mapping[str, Tensor], config: LaVieConfig) -> None:
    """Compare the tensors of a file with those of a U-Net.

    Args:
        state: from :func:`unet_state`.
        config: sizes of the U-Net.

    Raises:
        ValueError: tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        tensors = LaVieUNet(config).state_dict()
    expected = {name: value.shape for name, value in tensors.items() if not name.endswith("rotary_emb.freqs")}
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unknown:
        raise ValueError(
            f"the U-Net file lacks {len(missing)} tensors (first: {missing[0] if missing else 'none'}) and has "
            f"{len(unknown)} unknown ones (first: {unknown[0] if unknown else 'none'}); get the complete file again."
        )
    wrong = next((name for name in expected if state[name].shape != expected[name]), None)
    if wrong is not None:
        raise ValueError(
            f"tensor {wrong} has shape {tuple(state[wrong].shape)} where the config wants {tuple(expected[wrong])}; "
            "file and config do not belong together."
        )
