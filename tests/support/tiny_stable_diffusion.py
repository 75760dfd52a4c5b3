"""Tiny random Stable Diffusion parts in every form they come in: folders, and checkpoints in the original's names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("r e", "re d</w>", "b a", "l l</w>", "ba ll</w>", "o n</w>")


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]


def write_tokenizer(folder: Path, pad: str = END) -> Path:
    """CLIP's tokenizer with single letters and a few words."""
    folder.mkdir(parents=True)
    letters = byte_letters()
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad,
                    "bos_token": START, "eos_token": END, "unk_token": END})
    )  # fmt: skip
    return folder


VOCABULARY = 2 * 256 + len(MERGES) + 2


def tiny_clip(width: int = 64, layers: int = 2, activation: str = "quick_gelu"):
    """The text half of CLIP, 77 tokens long."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), hidden_act=activation, projection_dim=width,
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def tiny_vae(levels: int = 4, **config):
    """A VAE with the channels that 32 groups allow."""
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    widths = (32, *[64] * (levels - 1))
    return AutoencoderKL(
        block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, layers_per_block=1, **config,
    ).eval()  # fmt: skip


def original_vae_names(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """A diffusers VAE by the names of CompVis's autoencoder, written down from its modules one by one."""
    renamed = {}
    for name, value in state.items():
        side, rest = name.split(".", 1)
        if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|downsamplers|upsamplers)\.(\d)\.(.*)", rest):
            level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
            inner = found[5].replace("conv_shortcut", "nin_shortcut")
            sampler = {"downsamplers": "downsample", "upsamplers": "upsample"}.get(found[3])
            rest = f"{found[1]}.{level}." + (f"{sampler}.{inner}" if sampler else f"block.{found[4]}.{inner}")
        elif found := re.match(r"mid_block\.resnets\.(\d)\.(.*)", rest):
            rest = f"mid.block_{int(found[1]) + 1}.{found[2]}"
        elif found := re.match(r"mid_block\.attentions\.0\.(.*)\.(weight|bias)", rest):
            old = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}[found[1]]
            rest = f"mid.attn_1.{old}.{found[2]}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        renamed[f"{side}.{rest.replace('conv_norm_out', 'norm_out')}"] = value.clone()
    return renamed


def plain_clip_names(encoder) -> dict[str, Tensor]:
    """A transformers CLIP by its names, without ``text_model.``, which not every version has."""
    return {name.removeprefix("text_model."): value.clone() for name, value in encoder.state_dict().items()}


def openclip_state(encoder) -> dict[str, Tensor]:
    """A transformers CLIP by OpenCLIP's names, with one more block at the end, which is not used."""
    state = plain_clip_names(encoder)
    layers = encoder.config.num_hidden_layers
    renamed = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.zeros(encoder.config.hidden_size, encoder.config.hidden_size),
        "logit_scale": torch.zeros(()),
    }
    for layer in range(layers + 1):
        source = f"encoder.layers.{min(layer, layers - 1)}."
        target = f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{source}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
            for old, new in (
                ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ):  # fmt: skip
                renamed[f"{target}{new}.{kind}"] = state[f"{source}{old}.{kind}"].clone()
    return renamed


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with a prefix before their names."""
    return {prefix + name: value.contiguous() for name, value in state.items()}


def write_checkpoint(path: Path, encoder, vae, openclip: bool = False) -> Path:
    """A checkpoint in the original form: Stable Diffusion 1's, or that of 2 and the x4 upscaler."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if openclip:
        text = under("cond_stage_model.model.", openclip_state(encoder))
    else:
        text = under("cond_stage_model.transformer.text_model.", plain_clip_names(encoder))
        text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    levels = len(vae.config.block_out_channels)
    pictures = under("first_stage_model.", original_vae_names(vae.state_dict(), levels))
    state = {**text, **pictures, "model.diffusion_model.out.2.bias": torch.zeros(4)}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "global_step": 1}, path)
    return path


def write_folder(folder: Path, encoder, vae, binary: bool = False) -> Path:
    """The same in diffusers' layout."""
    encoder.save_pretrained(folder / "text_encoder")
    vae.save_pretrained(folder / "vae", safe_serialization=not binary)
    write_tokenizer(folder / "tokenizer")
    return folder
