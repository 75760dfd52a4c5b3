"""Open the joint text-to-video model, and use it by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...toybox import world
from ..toybox import TOYBOX_FOLDER
from ..video_model import StandaloneVideoModel, VideoGeometry
from .config import JointConfig
from .transformer import JointVideoTransformer

JOINT_FOLDER = TOYBOX_FOLDER.parent / "joint_text_to_video"


class JointVideoModel(StandaloneVideoModel):
    """The recipes' ``VideoModel`` on a joint video transformer, without ComfyUI."""

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks whose attention can be patched, in the order of the forward pass."""
        return self.unet.config.block_names

    def noise(self, frames: int, height: int, width: int, seed: int, batch: int = 1) -> Tensor:
        """Unit starting noise [batch, C, T, h, w] of a clip of that many frames, height and width in pixels.

        Raises:
            ValueError: fewer than one frame, or a size that is not a whole number of patches.
        """
        for name, value, cells in (
            ("height", height, self.geometry.patch[1]),
            ("width", width, self.geometry.patch[2]),
        ):
            factor = self.geometry.spatial_factor * cells
            if value < factor or value % factor:
                nearest = max(factor, round(value / factor) * factor)
                raise ValueError(f"{name} is {value}; it must be a multiple of {factor}, for example {nearest}.")
        return super().noise(frames, height, width, seed, batch)


def load_joint_toybox(
    device: torch.device | str | None = None, folder: Path = JOINT_FOLDER, parts: Path = TOYBOX_FOLDER
) -> JointVideoModel:
    """Load the Toybox's joint text-to-video model in float32.

    Args:
        device: where to compute; the CPU when left out.
        folder: holds ``model.safetensors`` and ``config.json``.
        parts: holds ``vae``, ``text_encoder`` and ``tokenizer``, which are those of the Toybox text-to-video model.

    Raises:
        FileNotFoundError: if something is missing; names it.
        ValueError: if the model file is broken or does not fit its config.
    """
    from diffusers import AutoencoderKL
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    check_parts(parts)
    network = load_network(folder)
    vae = AutoencoderKL.from_pretrained(parts / "vae", local_files_only=True, low_cpu_mem_usage=False).float()
    encoder = T5EncoderModel.from_pretrained(parts / "text_encoder", local_files_only=True).float()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(parts / "tokenizer", local_files_only=True)
    geometry = VideoGeometry(
        spatial_factor=2 ** (len(vae.config.block_out_channels) - 1),
        patch=network.config.patch,
        channels=vae.config.latent_channels,
        native_frames=network.config.native_frames,
        width=world.SIZE,
        height=world.SIZE,
    )
    return JointVideoModel(network, vae, encoder, tokenizer, geometry, device)


def load_network(folder: Path) -> JointVideoTransformer:
    """Read ``model.safetensors`` and ``config.json`` of a folder into a float32 transformer.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: if the file is broken or does not fit the config.
    """
    state, config = joint_state(folder)
    network = JointVideoTransformer(config)
    network.load_state_dict(state)
    return network


def joint_state(folder: Path) -> tuple[dict[str, Tensor], JointConfig]:
    """The tensors and sizes of a model folder, compared with each other; errors as ``load_network``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    _check_there(path, folder / "config.json")
    config = JointConfig.load(folder / "config.json")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read ({error}); the file is incomplete or damaged, get it again."
        ) from error
    with torch.device("meta"):
        expected = JointVideoTransformer(config).state_dict()
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"{path} does not fit its config: {len(wrong)} tensors differ (first: {wrong[0]}, {found.get(wrong[0])} "
            f"in the file where the config wants {shapes.get(wrong[0])}); get both files again."
        )
    return state, config


def check_parts(parts: Path) -> None:
    """Check that the folder of a Toybox text-to-video model has what the joint model shares with it.

    Raises:
        FileNotFoundError: naming the first part that is missing.
    """
    _check_there(*(parts / name for name in ("vae", "text_encoder", "tokenizer")))


def _check_there(*paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"the Toybox is incomplete: {path} is missing; restore the folder toybox from the repository."
            )
