"""Video model files as native MODEL, CLIP and VAE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from ..video_models.lavie_config import LaVieConfig
from ..video_models.lavie_files import infer_config, unet_state
from ..video_models.toybox import TOYBOX_FOLDER, check_toybox
from .lavie import native_model
from .native_text import native_clip
from .native_vae import diffusers_vae, framewise_vae


def load_native_toybox(folder: Path = TOYBOX_FOLDER) -> tuple[Any, Any, Any]:
    """The Toybox text-to-video model.

    Args:
        folder: holds ``unet.safetensors``, ``config.json``, ``vae/``, ``text_encoder/`` and ``tokenizer/``.

    Returns:
        ComfyUI MODEL (``ModelPatcher``), CLIP and VAE.

    Raises:
        FileNotFoundError: naming the first file that is missing.
        ValueError: if the U-Net file is broken.
    """
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    check_toybox(folder)
    vae, scaling = diffusers_vae(folder / "vae")
    state = unet_state(_read(folder / "unet.safetensors")[0])
    model = native_model(state, LaVieConfig.load(folder / "config.json"), scaling)
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    return model, native_clip(encoder, tokenizer, tokenizer.model_max_length), vae


def load_lavie_file(path: Path, checkpoint: Path | None = None) -> tuple[Any, Any | None, Any | None]:
    """A LaVie-shaped U-Net from a file of its own.

    Sizes come from ``<name>.json`` beside the file, else from the safetensors header (key ``config``), else from the
    shapes of the tensors.

    Args:
        path: ``lavie_base.pt`` or safetensors.
        checkpoint: Stable Diffusion 1.x checkpoint that gives text encoder and VAE.

    Returns:
        ComfyUI MODEL, and CLIP and VAE or None without a checkpoint.

    Raises:
        ValueError: if the file is no LaVie-shaped U-Net, or broken.
    """
    import comfy.sd

    contents, metadata = _read(path)
    state = unet_state(contents)
    written = path.with_suffix(".json")
    if written.is_file():
        config = LaVieConfig.load(written)
    elif metadata and "config" in metadata:
        config = LaVieConfig.from_dict(json.loads(metadata["config"]))
    else:
        config = infer_config(state)
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"{path.name} takes {config.in_channels} input channels (LaVie's interpolation or upscaling model); "
            "choose the base model, which takes 4."
        )
    model = native_model(state, config)
    if checkpoint is None:
        return model, None, None
    _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_model=False)
    return model, clip, framewise_vae(vae)


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str] | None]:
    """Contents and header of a weight file; a broken one is named in a ValueError."""
    import comfy.utils
    from safetensors import SafetensorError

    try:
        return comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except (SafetensorError, UnpicklingError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); the file is incomplete or damaged, get it again."
        ) from error
