"""Text encoder and VAE for LaVie's models, out of what users have of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from ...video_models.lavie.config import LaVieConfig, UpscalerConfig
from ...video_models.lavie.files import STAGE_NAMES
from ...video_models.stable_diffusion.names import CLIP_PREFIXES, VAE_PREFIX
from ...video_models.stable_diffusion.parts import TEXT_FILES, VAE_FILES
from .lavie_conditions import PARTS_NAMES

# ComfyUI's names of text encoders, by the channels of what they write.
ENCODERS = {768: "l", 1024: "h"}
UPSCALER_FACTOR = 4


def load_parts(
    path: Path, config: LaVieConfig | UpscalerConfig, embeddings: list[str] | None = None
) -> tuple[Any, Any]:
    """Read text encoder and VAE for a U-Net.

    Args:
        path: a checkpoint, or a folder in the diffusers layout with ``text_encoder/`` and ``vae/``.
        config: of the U-Net; they must be what it was trained with.
        embeddings: folders of textual inversions.

    Returns:
        ComfyUI CLIP and VAE (of pictures).

    Raises:
        FileNotFoundError: the folder lacks a file.
        RuntimeError: a file is broken or cut short.
        ValueError: the file is not a checkpoint, holds no text encoder or no VAE, or those of another model.
    """
    clip, vae = _from_folder(path, embeddings) if path.is_dir() else _from_checkpoint(path, embeddings)
    stage, wanted = STAGE_NAMES[config.stage], PARTS_NAMES[config.stage]
    for part, missing in (("text encoder", clip is None), ("VAE", vae is None or vae.first_stage_model is None)):
        if missing:
            raise ValueError(f"{path.name} holds no {part}; choose {wanted}, which holds text encoder and VAE.")
    encoder = ENCODERS.get(config.cross_attention_dim)
    found = set(clip.tokenize(""))
    if encoder is not None and found != {encoder}:
        raise ValueError(
            f"{path.name} holds the text encoder {' and '.join(sorted(found))} but LaVie's {stage} reads {encoder}; "
            f"choose {wanted}."
        )
    factor = vae.spacial_compression_decode()
    if (factor == UPSCALER_FACTOR) != (config.stage == "upscaling") or vae.latent_channels != config.out_channels:
        raise ValueError(
            f"the VAE of {path.name} makes {factor} pixels of a latent cell and has {vae.latent_channels} channels, "
            f"which is not the one of LaVie's {stage}; choose {wanted}."
        )
    return clip, vae


def holds_parts(path: Path) -> bool:
    """Whether a checkpoint or folder of Stable Diffusion 1.x has text encoder and VAE beside its U-Net."""
    if path.is_dir():
        return all((path / part).is_dir() for part in ("text_encoder", "vae"))
    names = read_weights(path)[0]
    return all(any(name.startswith(prefix) for name in names) for prefix in (CLIP_PREFIXES[-1], VAE_PREFIX))


def _from_checkpoint(path: Path, embeddings: list[str] | None) -> tuple[Any | None, Any | None]:
    import comfy.sd

    state, metadata = read_weights(path)
    found = comfy.sd.load_state_dict_guess_config(
        state, output_model=False, embedding_directory=embeddings, metadata=metadata
    )
    if found is None:
        raise ValueError(f"{path.name} is not a checkpoint that ComfyUI knows; choose one of Stable Diffusion.")
    return found[1], found[2]


def _from_folder(folder: Path, embeddings: list[str] | None) -> tuple[Any, Any]:
    import comfy.sd

    encoder = read_weights(_first_file(folder / "text_encoder", TEXT_FILES))[0]
    clip = comfy.sd.load_text_encoder_state_dicts([dict(encoder)], embedding_directory=embeddings)
    state, metadata = read_weights(_first_file(folder / "vae", VAE_FILES))
    return clip, comfy.sd.VAE(sd=dict(state), metadata=metadata)


def _first_file(folder: Path, names: tuple[str, ...]) -> Path:
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(names)}; get the complete folder again.")
    return found


def read_weights(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str] | None]:
    """Contents and header of a weight file, read as ComfyUI reads checkpoints.

    Raises:
        RuntimeError: it is broken or cut short; names it.
    """
    import comfy.utils
    from safetensors import SafetensorError

    try:
        return comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"{path} cannot be read ({reason}); the file is broken or cut short: get it again."
        ) from error
