"""Opening LaVie's three models for stand-alone use, each with the text encoder and VAE of Stable Diffusion files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..interpolation import Interpolator
from ..stable_diffusion.parts import StableDiffusionParts, load_parts
from ..upscaling import Upscaler
from ..video_model import StandaloneVideoModel, VideoGeometry
from .config import LaVieConfig, Stage
from .files import make_unet, open_unet, require_stage
from .layers import RotaryEmbedding

# Pixels per latent cell of the VAE that a stage was trained with, and where to find such a VAE.
VAE_FACTORS: dict[Stage, int] = {"base": 8, "interpolation": 8, "upscaling": 4}
PARTS_WANTED: dict[Stage, str] = {
    "base": "a Stable Diffusion 1 checkpoint or folder",
    "interpolation": "a Stable Diffusion 1 checkpoint or folder",
    "upscaling": "Stable Diffusion's x4 upscaler, as checkpoint or folder",
}


def open_lavie(
    path: str | Path,
    parts: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
) -> StandaloneVideoModel:
    """Open LaVie's base model, or Stable Diffusion 1.x as a model of clips: text to video.

    Args:
        path: ``lavie_base.pt``, or a file made from it; or a Stable Diffusion 1 checkpoint or folder, which by itself
            makes frames that are hardly coherent, and is there for motion files of LAMP's kind.
        parts: Stable Diffusion 1 checkpoint or folder, for text encoder and VAE; ``path`` itself when left out.
        device: where to compute; the CPU when left out.
        dtype: of the U-Net; half precision on CUDA and float32 elsewhere when left out. The rest is float32.
        tokenizer: see ``load_parts``.

    Raises:
        FileNotFoundError: when something is missing.
        RuntimeError: when a file is broken, cut short, or does not fit.
        ValueError: when a file belongs to another stage or is not LaVie's, or the parts do not go with it.
    """
    unet, found = _open(path, parts, "base", device, dtype, tokenizer)
    geometry = VideoGeometry(found.coder.factor, channels=found.coder.channels, native_frames=unet.config.native_frames)
    text = found.text
    return StandaloneVideoModel(
        unet, found.coder.vae, text.encoder, text.tokenizer, geometry, device, text.padding_is_read
    )


def open_interpolator(
    path: str | Path,
    parts: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
) -> Interpolator:
    """Open LaVie's interpolation model (``lavie_interpolation.pt``); all else as ``open_lavie``."""
    unet, found = _open(path, parts, "interpolation", device, dtype, tokenizer)
    return Interpolator(unet, found.text, found.coder, device)


def open_upscaler(
    path: str | Path,
    parts: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
) -> Upscaler:
    """Open LaVie's upscaler (``lavie_vsr.pt``) with the x4 upscaler's parts; all else as ``open_lavie``."""
    unet, found = _open(path, parts, "upscaling", device, dtype, tokenizer)
    return Upscaler(unet, found.text, found.coder, device)


def _open(
    path: str | Path,
    parts: str | Path | None,
    stage: Stage,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    tokenizer: str | Path | None,
) -> tuple[nn.Module, StableDiffusionParts]:
    """The U-Net of a stage, and the parts once they are known to go with it."""
    state, config = open_unet(path)
    require_stage(config.stage, stage, Path(path).name)
    if parts is None:
        if not (isinstance(config, LaVieConfig) and config.picture_model):
            raise ValueError(
                f"{Path(path).name} holds LaVie's U-Net only; give the Stable Diffusion 1 checkpoint or folder "
                "that its text encoder and VAE come from (--parts PATH)."
            )
        parts = path
    found = load_parts(parts, tokenizer)
    width, factor = found.text.encoder.config.hidden_size, found.coder.factor
    if (width, factor) != (config.cross_attention_dim, VAE_FACTORS[stage]):
        raise ValueError(
            f"{parts} has a text encoder of {width} channels and a VAE of {factor} x {factor} pixels per cell, but "
            f"{Path(path).name} wants {config.cross_attention_dim} and {VAE_FACTORS[stage]}; "
            f"give {PARTS_WANTED[stage]}."
        )
    if dtype is None:
        dtype = torch.float16 if torch.device(device or "cpu").type == "cuda" else torch.float32
    return _filled(state, make_unet(config, dtype=dtype, device="meta"), dtype), found


def _filled(state: dict[str, Tensor], unet: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Move checked tensors into a U-Net on the meta device; empties ``state``, so that nothing is in memory twice."""
    copies = {}
    for name in list(state):
        copies[name] = state.pop(name).to(dtype, copy=True)
    unet.load_state_dict(copies, strict=False, assign=True)
    for module in unet.modules():
        # Not read from files; see the class.
        if isinstance(module, RotaryEmbedding):
            module.freqs = module.frequencies("cpu")
    return unet
