"""Open the Toybox: the tiny text-to-video model that comes with the pack, for trying it without a download."""

from __future__ import annotations

from pathlib import Path

import torch

from ..toybox import world
from .lavie.config import LaVieConfig
from .lavie.files import check_unet_state, unet_state
from .lavie.unet import LaVieUNet
from .video_model import StandaloneVideoModel, VideoGeometry

TOYBOX_FOLDER = Path(__file__).resolve().parent.parent / "toybox" / "text_to_video"


def load_toybox(device: torch.device | str | None = None, folder: Path = TOYBOX_FOLDER) -> StandaloneVideoModel:
    """Load the Toybox text-to-video model in float32.

    Args:
        device: where to compute; the CPU when left out.
        folder: holds ``unet.safetensors``, ``config.json``, ``vae``, ``text_encoder`` and ``tokenizer``.

    Raises:
        FileNotFoundError: if something is missing; names it.
        ValueError: if the U-Net file is broken or does not fit its config.
    """
    from diffusers import AutoencoderKL
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    check_toybox(folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True, low_cpu_mem_usage=False).float()
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True).float()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    geometry = VideoGeometry(
        spatial_factor=2 ** (len(vae.config.block_out_channels) - 1),
        channels=vae.config.latent_channels,
        native_frames=world.NATIVE_FRAMES,
        width=world.SIZE,
        height=world.SIZE,
    )
    return StandaloneVideoModel(load_unet(folder), vae, encoder, tokenizer, geometry, device)


def check_toybox(folder: Path) -> None:
    """Check that every part of a Toybox text-to-video folder is there.

    Raises:
        FileNotFoundError: naming the first part that is missing.
    """
    for name in ("unet.safetensors", "config.json", "vae", "text_encoder", "tokenizer"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"the Toybox is incomplete: {folder / name} is missing; restore the folder toybox from the repository."
            )


def load_unet(folder: Path) -> LaVieUNet:
    """Read ``unet.safetensors`` and ``config.json`` of a folder into a float32 U-Net.

    Raises:
        ValueError: if the file is broken or does not fit the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = LaVieConfig.load(folder / "config.json")
    path = folder / "unet.safetensors"
    try:
        state = unet_state(load_file(path))
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read ({error}); the file is incomplete or damaged, get it again."
        ) from error
    check_unet_state(state, config)
    unet = LaVieUNet(config)
    unet.load_state_dict(state, strict=False)
    return unet
