"""Text encoder and VAE inside Stable Diffusion checkpoint files: their names there, and the sizes that shapes give.

Files of the original form keep both under separate prefixes: ``cond_stage_model`` (CLIP as transformers names it in
Stable Diffusion 1, as OpenCLIP does in 2 and in its x4 upscaler) and ``first_stage_model``. Source of the names:
CompVis/stable-diffusion, Stability-AI/stablediffusion, huggingface/diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

VAE_PREFIX = "first_stage_model."
# The second is that of files written by Stability's later code.
OPENCLIP_PREFIXES = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
CLIP_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
# Scale of the latents, not in the tensors: Stable Diffusion's VAE makes one cell of 8 x 8 pixels, the upscaler's of
# 4 x 4.
LATENT_SCALES = {8: 0.18215, 4: 0.08333}
HEAD_CHANNELS = 64
NORM_GROUPS = 32

_RENAMED_IN_VAE = (
    (r"^(\w+coder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"\.mid\.block_(\d)\.", lambda match: f".mid_block.resnets.{int(match[1]) - 1}."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
# Attention in VAEs: the original's names, then those of older diffusers folders.
_RENAMED_IN_ATTENTION = {
    "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
    "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0",
}  # fmt: skip
_RENAMED_IN_OPENCLIP = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, by what follows it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def vae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors by the names of diffusers' ``AutoencoderKL``, whichever form they come in.

    Args:
        state: tensors by the original's names (prefix removed) or by those of any diffusers version.
    """
    levels = _count(state, r"decoder\.up\.(\d+)\.")
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMED_IN_VAE:
            name = re.sub(pattern, replacement, name)
        # The original counts the decoder's levels from the largest pictures, diffusers from the smallest.
        name = re.sub(
            r"^decoder\.up\.(\d+)\.(block|upsample)\.",
            lambda match: (
                f"decoder.up_blocks.{levels - 1 - int(match[1])}."
                + ("resnets." if match[2] == "block" else "upsamplers.0.")
            ),
            name,
        )
        attention = re.search(r"(.*mid_block\.attentions\.0\.)(\w+)\.(weight|bias)$", name)
        if attention and attention[2] in _RENAMED_IN_ATTENTION:
            name = f"{attention[1]}{_RENAMED_IN_ATTENTION[attention[2]]}.{attention[3]}"
        if ".attentions." in name and value.ndim == 4:
            # A 1 x 1 convolution in the original, a linear layer in diffusers.
            value = value[:, :, 0, 0]
        renamed[name] = value
    return renamed


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of diffusers' ``AutoencoderKL`` for a state of :func:`vae_names`.

    Raises:
        KeyError: naming a tensor that is missing.
    """
    levels = _count(state, r"encoder\.down_blocks\.(\d+)\.")
    widths = tuple(state[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels))
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": _count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": state["post_quant_conv.weight"].shape[0],
        "norm_num_groups": NORM_GROUPS,
        "scaling_factor": latent_scale(widths),
    }


def latent_scale(widths: tuple[int, ...] | list[int]) -> float:
    """Scale of the latents of a VAE with this many levels, where its config does not say."""
    return LATENT_SCALES.get(2 ** (len(widths) - 1), LATENT_SCALES[8])


def clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder's tensors by transformers' names, without ``text_model.`` and what is not the encoder's."""
    renamed = {name.removeprefix("text_model."): value for name, value in state.items()}
    return {
        name: value
        for name, value in renamed.items()
        if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) and not name.endswith("position_ids")
    }


def openclip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An OpenCLIP text encoder's tensors (prefix removed) by transformers' names, as :func:`clip_names`.

    The last block is left out: Stable Diffusion 2 and the x4 upscaler take what comes before it, through the last norm.

    Raises:
        KeyError: naming a tensor that is missing.
    """
    blocks = _count(state, r"transformer\.resblocks\.(\d+)\.")
    renamed = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    for name, value in state.items():
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if found is None or int(found[1]) == blocks - 1:
            continue
        layer, part, kind = f"encoder.layers.{found[1]}.", found[2], found[3]
        if part == "attn.in_proj":
            for projection, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}self_attn.{projection}_proj.{kind}"] = rows
        else:
            renamed[f"{layer}{_RENAMED_IN_OPENCLIP.get(part, part)}.{kind}"] = value
    return renamed


def clip_config(state: Mapping[str, Tensor], activation: str) -> dict[str, Any]:
    """Arguments of transformers' ``CLIPTextConfig`` for a state of :func:`clip_names` or :func:`openclip_names`.

    Raises:
        KeyError: naming a tensor that is missing.
    """
    vocabulary, width = state["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(state, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // HEAD_CHANNELS),
        "max_position_embeddings": state["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": activation,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many there are of what a pattern numbers from 0."""
    return 1 + max((int(found[1]) for name in state if (found := re.match(pattern, name))), default=-1)
