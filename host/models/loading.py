"""Video model files as native MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...video_models.joint.model import JOINT_FOLDER, check_parts, joint_state
from ...video_models.lavie.config import LaVieConfig
from ...video_models.lavie.files import open_unet, unet_state
from ...video_models.toybox import TOYBOX_FOLDER, check_toybox
from .joint_models import native_joint_model
from .lavie_models import native_model
from .native_parts import holds_parts, load_parts, read_weights
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
        RuntimeError, ValueError: if the U-Net file is broken.
    """
    check_toybox(folder)
    vae, scaling = diffusers_vae(folder / "vae")
    state = unet_state(read_weights(folder / "unet.safetensors")[0])
    model = native_model(state, LaVieConfig.load(folder / "config.json"), scaling)
    return model, _toybox_clip(folder), vae


def load_native_joint_toybox(folder: Path = JOINT_FOLDER, parts: Path = TOYBOX_FOLDER) -> tuple[Any, Any, Any]:
    """The Toybox's joint text-to-video model.

    Args:
        folder: holds ``model.safetensors`` and ``config.json``.
        parts: holds ``vae/``, ``text_encoder/`` and ``tokenizer/``.

    Returns:
        ComfyUI MODEL (``ModelPatcher``), CLIP and VAE.

    Raises:
        FileNotFoundError: naming the first file that is missing.
        ValueError: if the model file is broken or does not fit its config.
    """
    check_parts(parts)
    vae, scaling = diffusers_vae(parts / "vae")
    return native_joint_model(*joint_state(folder), scaling), _toybox_clip(parts), vae


def _toybox_clip(folder: Path) -> Any:
    """The Toybox's text encoder as ComfyUI's CLIP."""
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    return native_clip(encoder, tokenizer, tokenizer.model_max_length)


def load_lavie_file(
    path: Path, parts: Path | None = None, embeddings: list[str] | None = None
) -> tuple[Any, Any | None, Any | None]:
    """One of LaVie's U-Nets (the base model, the interpolation model or the upscaler), or Stable Diffusion 1's.

    Which one it is comes from the tensors; sizes come from ``<name>.json`` beside the file, else from the safetensors
    header (key ``config``), else from the shapes of the tensors.

    Args:
        path: ``lavie_base.pt``, ``lavie_interpolation.pt``, ``lavie_vsr.pt`` or safetensors; or a checkpoint or
            diffusers folder of Stable Diffusion 1.x, which becomes a model of clips in LAMP's layout (see
            ``LaVieConfig``).
        parts: gives text encoder and VAE: a checkpoint or diffusers folder of Stable Diffusion 1.x, for the upscaler of
            Stable Diffusion's x4 upscaler. Left out, those in ``path`` are taken if there are any.
        embeddings: folders of textual inversions.

    Returns:
        ComfyUI MODEL, and CLIP and VAE or None where nothing has them.

    Raises:
        FileNotFoundError: a file is missing.
        RuntimeError: a file is broken or cut short.
        ValueError: if the file is none of LaVie's U-Nets, or the parts are not those that belong to it.
    """
    state, config = open_unet(path)
    if parts is None and isinstance(config, LaVieConfig) and config.picture_model and holds_parts(path):
        parts = path
    # Before the large model is made: a wrong choice shows at once.
    clip, vae = (None, None) if parts is None else load_parts(parts, config, embeddings)
    return native_model(state, config), clip, None if vae is None else framewise_vae(vae)
