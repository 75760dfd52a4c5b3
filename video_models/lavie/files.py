"""Reading files of LaVie's U-Nets and Stable Diffusion 1's: which stage, which tensors, and which sizes they imply.

Works on what any reader of weight files returns; ``open_unet`` reads a file by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...weight_files.reading import WRAPPERS, read_metadata, read_state
from ..stable_diffusion import unet as pictures
from .config import LaVieConfig, Stage, UpscalerConfig, config_from_dict
from .unet import LaVieUNet
from .upscaler import UpscalerUNet

_FIRST_BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0."
# Base models have this table of relative positions and no other model does.
DETECTION_KEY = f"{_FIRST_BLOCK}attn_temp.time_rel_pos_bias.relative_attention_bias.weight"
# The interpolation model's attention over time has no positions.
INTERPOLATION_KEY = f"{_FIRST_BLOCK}attn_temp.to_q.weight"
UPSCALER_KEY = "down_temporal_blocks.0.resblocks_3d_t.conv1.weight"
_TELLING_KEYS = (DETECTION_KEY, INTERPOLATION_KEY, UPSCALER_KEY, pictures.DIFFUSERS_KEY, pictures.ORIGINAL_KEY)
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "unet.", "module.")

STAGE_NAMES: dict[str, str] = {
    "base": "base model",
    "interpolation": "interpolation model",
    "upscaling": "upscaler",
}
PUBLISHED_FILES: dict[str, str] = {
    "base": "lavie_base.pt",
    "interpolation": "lavie_interpolation.pt",
    "upscaling": "lavie_vsr.pt",
}
# Clips that the models were trained on, which the tensors do not show.
NATIVE_FRAMES: dict[str, int] = {"base": 16, "interpolation": 61, "upscaling": 8}


def own_tensors(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a U-Net in the contents of a checkpoint file, without wrapping and prefix.

    Published LaVie files keep the averaged weights under ``ema``; other tools add a prefix.

    Args:
        contents: what the file's loader returned.

    Returns:
        Tensors by the U-Net's names.

    Raises:
        ValueError: if this is not one of LaVie's U-Nets.
    """
    for key in WRAPPERS:
        if isinstance(contents.get(key), Mapping):
            contents = contents[key]
            break
    for prefix in PREFIXES:
        if any(prefix + key in contents for key in _TELLING_KEYS):
            state = {
                name[len(prefix) :]: value
                for name, value in contents.items()
                if name.startswith(prefix) and isinstance(value, Tensor)
            }
            return pictures.picture_unet_names(state) if is_picture_model(state) else state
    raise ValueError(
        f"the file holds {len(contents)} entries but neither {DETECTION_KEY} nor {UPSCALER_KEY}, so it is not one of "
        f"LaVie's U-Nets; choose {', '.join(PUBLISHED_FILES.values())}, a Stable Diffusion 1.x checkpoint or a file "
        "trained with this pack."
    )


def is_picture_model(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors of a U-Net, in any naming, are those of Stable Diffusion 1, which has nothing over time."""
    return not any(key in state for key in (DETECTION_KEY, INTERPOLATION_KEY, UPSCALER_KEY))


def unet_state(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a U-Net that are loaded, from the contents of a checkpoint file.

    Rotary frequencies are left out: they are computed, and files of other versions hold rounded values.

    Args:
        contents: what the file's loader returned.

    Returns:
        Tensors by the U-Net's names.

    Raises:
        ValueError: if this is not one of LaVie's U-Nets.
    """
    return {name: value for name, value in own_tensors(contents).items() if not is_computed(name)}


def is_computed(name: str) -> bool:
    """Whether a tensor is in the published files though the models compute it: frequencies of rotary positions."""
    return name.endswith("rotary_emb.freqs")


def stage_of(state: Mapping[str, Tensor]) -> Stage:
    """Which of LaVie's three models a state dict belongs to.

    Args:
        state: from :func:`unet_state`.

    Raises:
        ValueError: if it is not one of them, though it has names in common with them.
    """
    if UPSCALER_KEY in state:
        return "upscaling"
    stage: Stage = "interpolation" if INTERPOLATION_KEY in state and DETECTION_KEY not in state else "base"
    if "conv_in.weight" not in state or "conv_out.weight" not in state:
        raise ValueError(
            "the U-Net file lacks its first or last convolution (conv_in.weight, conv_out.weight); get the complete "
            "file again."
        )
    taken, made = state["conv_in.weight"].shape[1], state["conv_out.weight"].shape[0]
    wanted = made * (2 if stage == "interpolation" else 1)
    if taken != wanted:
        raise ValueError(
            f"the U-Net has the names of LaVie's {STAGE_NAMES[stage]} but takes {taken} input channels instead of "
            f"{wanted}; it is a model derived from it that this pack does not know, so choose {PUBLISHED_FILES[stage]}."
        )
    return stage


def require_stage(found: Stage, wanted: Stage, name: str) -> None:
    """Make sure that a file is the wanted model.

    Args:
        found: from :func:`stage_of` or a config.
        wanted: what the place needs.
        name: of the file, for the error.

    Raises:
        ValueError: if they differ; names both.
    """
    if found != wanted:
        raise ValueError(
            f"{name} is LaVie's {STAGE_NAMES[found]}, but here the {STAGE_NAMES[wanted]} is wanted; choose "
            f"{PUBLISHED_FILES[wanted]} or a file made from it."
        )


def infer_config(state: Mapping[str, Tensor], **overrides: Any) -> LaVieConfig | UpscalerConfig:
    """Stage and sizes of the U-Net that a state dict belongs to.

    What shapes cannot show (how the prediction is meant, schedule, native length, groups of norms, heads of the
    interpolation model) takes LaVie's values unless given.

    Args:
        state: from :func:`unet_state`.
        overrides: fields that win over what was found.

    Raises:
        ValueError: if it is not one of LaVie's models, or tensors that give the sizes are missing.
    """
    stage = stage_of(state)
    try:
        values = _sizes(state, stage)
    except KeyError as error:
        raise ValueError(f"the U-Net file lacks tensor {error.args[0]}; get the complete file again.") from error
    kind = UpscalerConfig if stage == "upscaling" else LaVieConfig
    return kind(**{**values, "stage": stage, "native_frames": NATIVE_FRAMES[stage], **overrides})


def _sizes(state: Mapping[str, Tensor], stage: Stage) -> dict[str, Any]:
    levels = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("down_blocks."))
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("down_blocks.0.resnets."))
    attends = tuple(f"down_blocks.{level}.attentions.0.proj_in.weight" in state for level in range(levels))
    # The middle block always attends.
    block = "mid_block.attentions.0.transformer_blocks.0."
    values: dict[str, Any] = {
        "in_channels": state["conv_in.weight"].shape[1],
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": tuple(
            state[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)
        ),
        "attention_levels": attends,
        "layers_per_block": layers,
        "cross_attention_dim": state[f"{block}attn2.to_k.weight"].shape[1],
    }
    if is_picture_model(state):
        return {**values, "picture_model": True, **pictures.SCHEDULE}
    if stage == "upscaling":
        values["noise_levels"] = state["class_embedding.weight"].shape[0]
        values["only_cross_attention"] = tuple(_looks_at_text_only(state, level, attends) for level in range(levels))
    if stage != "interpolation":
        name = "attn_temporal" if stage == "upscaling" else "attn_temp"
        table = state[f"{block}{name}.time_rel_pos_bias.relative_attention_bias.weight"]
        values["relative_buckets"], values["num_heads"] = table.shape
    return values


def _looks_at_text_only(state: Mapping[str, Tensor], level: int, attends: tuple[bool, ...]) -> bool:
    """Whether the first attention of a level's transformers takes its keys from the text."""
    block = f"down_blocks.{level}.attentions.0.transformer_blocks.0."
    if attends[level]:
        text, tokens = state[f"{block}attn2.to_k.weight"].shape[1], state[f"{block}attn2.to_q.weight"].shape[1]
        if text != tokens:
            return state[f"{block}attn1.to_k.weight"].shape[1] == text
    # Shapes do not show it, so LaVie's rule decides: all levels but the coarsest.
    return level < len(attends) - 1


def find_config(
    state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> LaVieConfig | UpscalerConfig:
    """The config of a U-Net file: ``<name>.json`` beside it, else the header's key ``config``, else its shapes.

    Stable Diffusion's is read from the header, else from shapes and, in a diffusers folder, its ``config.json``.

    Args:
        state: from :func:`unet_state`.
        path: of the file.
        metadata: the header of a safetensors file.

    Raises:
        ValueError: if the config cannot be read, or is another stage's than the tensors.
    """
    path = Path(path)
    written = path.with_suffix(".json")
    if is_picture_model(state) and not (metadata and "config" in metadata):
        # Files beside checkpoints of Stable Diffusion under their names belong to other programs.
        return infer_config(state, **pictures.folder_sizes(path.parent))
    if written.is_file():
        source, text = written.name, written.read_text(encoding="utf-8")
    elif metadata and "config" in metadata:
        source, text = f"the header of {path.name}", metadata["config"]
    else:
        return infer_config(state)
    try:
        config = config_from_dict(json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} holds no config of a U-Net ({error}); correct or delete it.") from error
    found = stage_of(state)
    if config.stage != found:
        raise ValueError(
            f"{source} describes LaVie's {STAGE_NAMES[config.stage]} but the tensors are the {STAGE_NAMES[found]}'s; "
            "correct or delete it."
        )
    return config


def open_unet(path: str | Path) -> tuple[dict[str, Tensor], LaVieConfig | UpscalerConfig]:
    """Read the tensors and the config of a U-Net file and compare them.

    Args:
        path: ``lavie_base.pt`` or another file of LaVie's, in its original form or as safetensors; or Stable Diffusion
            1.x as a checkpoint or a folder in diffusers' layout.

    Returns:
        Tensors by the U-Net's names, mapped to the file where its format allows, and sizes.

    Raises:
        FileNotFoundError: when the file does not exist.
        RuntimeError: when it is empty, cut short, or not a weight file at all.
        ValueError: when it is not one of LaVie's U-Nets, incomplete, or does not fit the config beside it.
    """
    path = Path(path)
    file = pictures.unet_file(path) if path.is_dir() else path
    try:
        state = unet_state(read_state(file))
        config = find_config(state, file, read_metadata(file))
        check_unet_state(state, config)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return state, config


def make_unet(config: LaVieConfig | UpscalerConfig, **kwargs: Any) -> LaVieUNet | UpscalerUNet:
    """Build the U-Net of a config; ``kwargs`` are those of both classes (operations, dtype, device ...)."""
    return (UpscalerUNet if isinstance(config, UpscalerConfig) else LaVieUNet)(config, **kwargs)


def check_unet_state(state: Mapping[str, Tensor], config: LaVieConfig | UpscalerConfig) -> None:
    """Compare the tensors of a file with those of a U-Net.

    Args:
        state: from :func:`unet_state`.
        config: sizes of the U-Net.

    Raises:
        ValueError: tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        tensors = make_unet(config).state_dict()
    expected = {name: value.shape for name, value in tensors.items() if not is_computed(name)}
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
