"""Text encoder and VAE for LaVie out of Stable Diffusion files: a checkpoint, or a folder in diffusers' layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...weight_files.reading import load_checked, read_state
from ..frame_coding import FrameCoder
from ..text_encoding import PromptEncoder
from . import names

# Where transformers keeps the tokenizer of Stable Diffusion 1 when it was used before; never fetched from here.
CACHED_TOKENIZER = "openai/clip-vit-large-patch14"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
# Weight files of folders in diffusers' layout, in the order of preference.
TEXT_FILES = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")
VAE_FILES = tuple(
    name.replace("pytorch_model", "model").replace("model", "diffusion_pytorch_model") for name in TEXT_FILES
)
# OpenCLIP pads with the token of id 0, CLIP with its end token.
OPENCLIP_PADDING = "!"


@dataclass(frozen=True, eq=False)
class StableDiffusionParts:
    """What a LaVie model needs besides its U-Net.

    Attributes:
        text: CLIP's text half with its tokenizer.
        coder: the VAE.
    """

    text: PromptEncoder
    coder: FrameCoder


def load_parts(path: str | Path, tokenizer: str | Path | None = None) -> StableDiffusionParts:
    """Read text encoder and VAE in float32.

    Args:
        path: a checkpoint file of Stable Diffusion 1 (for LaVie's base and interpolation models) or of the x4 upscaler
            (for its upscaler), or a folder with ``text_encoder``, ``vae`` and ``tokenizer``.
        tokenizer: folder with ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``. When left out: the one in the
            folder or beside the file, else the one in transformers' local cache.

    Raises:
        FileNotFoundError: when something is missing; names it.
        RuntimeError: when a file is broken, cut short, or does not fit.
        ValueError: when the files hold other things, or no tokenizer is found.
    """
    path = Path(path)
    if path.is_dir():
        encoder, padding = _folder_encoder(path / "text_encoder"), None
        vae = _folder_vae(path / "vae")
    else:
        state = read_state(path)
        encoder, padding = _file_encoder(state, path)
        vae = _file_vae(state, path)
    words = _load_tokenizer(_tokenizer_folder(path, tokenizer), padding)
    known = encoder.get_input_embeddings().num_embeddings
    if len(words) > known:
        raise ValueError(
            f"the tokenizer knows {len(words)} tokens but the text encoder of {path} {known}; give the tokenizer that "
            "belongs to it."
        )
    return StableDiffusionParts(PromptEncoder(encoder, words, padding_is_read=True), FrameCoder(vae))


def _file_encoder(state: Mapping[str, Tensor], path: Path) -> tuple[nn.Module, str | None]:
    """The text encoder of a checkpoint, and its padding token where that is not the tokenizer's."""

    def under(prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        return next((part for part in (names.without_prefix(state, prefix) for prefix in prefixes) if part), {})

    openclip, found = under(names.OPENCLIP_PREFIXES), under(names.CLIP_PREFIXES)
    if not openclip and not found:
        raise ValueError(
            f"{path.name} holds no text encoder of Stable Diffusion 1 or 2 (nothing under {names.CLIP_PREFIXES[1]} or "
            f"{names.OPENCLIP_PREFIXES[0]}); choose a full checkpoint, "
            "or a folder with text_encoder, vae and tokenizer."
        )
    try:
        if openclip:
            text = names.openclip_names(openclip)
            return _build_encoder(text, names.clip_config(text, "gelu"), path), OPENCLIP_PADDING
        text = names.clip_names(found)
        return _build_encoder(text, names.clip_config(text, "quick_gelu"), path), None
    except KeyError as error:
        raise RuntimeError(f"the text encoder in {path} lacks tensor {error.args[0]}; copy the file again.") from error


def _file_vae(state: Mapping[str, Tensor], path: Path) -> nn.Module:
    vae = names.vae_names(names.without_prefix(state, names.VAE_PREFIX))
    if not vae:
        raise ValueError(
            f"{path.name} holds no VAE (nothing under {names.VAE_PREFIX}); choose a full checkpoint, or a folder with "
            "text_encoder, vae and tokenizer."
        )
    try:
        return _build_vae(vae, names.vae_config(vae), path)
    except KeyError as error:
        raise RuntimeError(f"the VAE in {path} lacks tensor {error.args[0]}; copy the file again.") from error


def _folder_encoder(folder: Path) -> nn.Module:
    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in ("clip_text_model", "clip"):
        raise ValueError(f"{folder} holds a model of type {kind!r}; LaVie's text encoder is CLIP's (clip_text_model).")
    return _build_encoder(names.clip_names(read_state(find_weights(folder, TEXT_FILES))), config, folder)


def _folder_vae(folder: Path) -> nn.Module:
    config = read_config(folder)
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"{folder} holds a {kind}; LaVie's VAE is an AutoencoderKL.")
    if "scaling_factor" not in config:
        # Older folders do not say it, and diffusers would take that of Stable Diffusion 1 for the upscaler's.
        config["scaling_factor"] = names.latent_scale(config.get("block_out_channels", ()))
    return _build_vae(names.vae_names(read_state(find_weights(folder, VAE_FILES))), config, folder)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """What the config in a folder of diffusers' or transformers' layout says.

    Raises:
        FileNotFoundError: when it is missing.
        RuntimeError: when it cannot be read.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; give a folder with text_encoder, vae and tokenizer in diffusers' layout, or a "
            "checkpoint file."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RuntimeError(f"{path} is not a valid configuration ({error}); copy the folder again.") from error
    if not isinstance(config, dict):
        raise RuntimeError(f"{path} holds a {type(config).__name__} instead of named values; copy the folder again.")
    return config


def find_weights(folder: Path, candidates: tuple[str, ...]) -> Path:
    """The first of these files that a folder has.

    Raises:
        FileNotFoundError: when it has none.
    """
    found = next((folder / name for name in candidates if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} has no weights ({candidates[0]}); copy the whole folder.")
    return found


def _build_encoder(state: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    kept = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype", "architectures")}
    try:
        with torch.device("meta"):
            encoder = CLIPTextModel(CLIPTextConfig.from_dict(kept))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RuntimeError(
            f"the config of the text encoder in {path} is not CLIP's ({error}); copy it again."
        ) from error
    # The package has renamed them once.
    prefix = "text_model." if any(name.startswith("text_model.") for name in encoder.state_dict()) else ""
    load_checked(encoder, {prefix + name: value for name, value in state.items()}, path)
    for module in encoder.modules():
        # Positions are counted, not stored.
        positions = getattr(module, "position_ids", None)
        if positions is not None and positions.is_meta:
            module.position_ids = torch.arange(positions.shape[-1])[None]
    return encoder


def _build_vae(state: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> nn.Module:
    from diffusers import AutoencoderKL

    try:
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(dict(config))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RuntimeError(
            f"the config of the VAE in {path} is not AutoencoderKL's ({error}); copy it again."
        ) from error
    return load_checked(vae, state, path)


def _tokenizer_folder(path: Path, given: str | Path | None) -> Path | None:
    """Where the tokenizer lies; None for transformers' cache."""
    if given is not None:
        folder = Path(given)
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise FileNotFoundError(f"{folder} holds no tokenizer; give a folder with vocab.json and merges.txt.")
        return folder
    beside = (path if path.is_dir() else path.parent) / "tokenizer"
    return beside if any((beside / name).is_file() for name in TOKENIZER_FILES) else None


def _load_tokenizer(folder: Path | None, padding: str | None) -> Any:
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder or CACHED_TOKENIZER), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        if folder is not None:
            raise RuntimeError(f"the tokenizer in {folder} cannot be read ({error}); copy the folder again.") from error
        raise ValueError(
            "there is no tokenizer beside the text encoder, nor one of Stable Diffusion 1 in transformers' local cache "
            f"({CACHED_TOKENIZER}); name a folder with vocab.json and merges.txt, such as "
            "the tokenizer folder of any Stable Diffusion in diffusers' layout, or comfy/sd1_tokenizer of a ComfyUI."
        ) from error
    if padding is not None:
        tokenizer.pad_token = padding
    return tokenizer
