"""Attention sites of LaVie's three U-Nets, which make them themselves (see ``video_models/lavie/layers.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...attention_patches.latent_time import PICTURES
from ...video_models.lavie.sites import transformer_places
from ...video_models.lavie.unet import LaVieUNet
from ...video_models.lavie.upscaler import UpscalerUNet
from ..family import Family, ModelCall, TokenGrid


class LaVie(Family):
    """LaVie's base model, interpolation model and upscaler: self-attention per frame and over time, cross-attention."""

    name = "LaVie"
    latent_time = PICTURES
    trained_frames = 16
    encoders = ("t5", "l", "h")
    finds_sites = False

    def resembles(self, network: Any) -> bool:
        return isinstance(network, LaVieUNet | UpscalerUNet)

    def block_names(self, network: LaVieUNet | UpscalerUNet) -> list[str]:
        return [place.name for place in transformer_places(network.config)]

    def native_frames(self, network: LaVieUNet | UpscalerUNet) -> int:
        return network.config.native_frames

    def grids(
        self, network: LaVieUNet | UpscalerUNet, latents: Sequence[int], extras: Mapping[str, Any]
    ) -> list[TokenGrid]:
        frames, height, width = latents[2:]
        found = []
        for level, attends in enumerate(network.config.attention_levels):
            # The middle block attends at the coarsest level whether or not that level does.
            if attends or level == len(network.config.attention_levels) - 1:
                found.append(TokenGrid(level, frames, height, width, (height, width)))
            height, width = (height + 1) // 2, (width + 1) // 2
        return found

    def prepare(
        self, network: LaVieUNet | UpscalerUNet, call: ModelCall, options: dict[str, Any], markers: Any
    ) -> None:
        """Nothing to do: the network makes its sites of the options that every call has."""
