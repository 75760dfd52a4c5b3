"""The Toybox's joint transformer, which makes its attention sites itself (see ``video_models/joint/sites.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...attention_patches.latent_time import PICTURES
from ...video_models.joint.transformer import JointVideoTransformer
from ..family import Family, ModelCall, TokenGrid, patched_grid


class JointToybox(Family):
    """One sequence of text and video, the text's tokens first."""

    name = "Joint Toybox"
    latent_time = PICTURES
    trained_frames = 8
    encoders = ("t5",)
    finds_sites = False
    joint_text = True

    def resembles(self, network: Any) -> bool:
        return isinstance(network, JointVideoTransformer)

    def block_names(self, network: JointVideoTransformer) -> list[str]:
        return network.config.block_names

    def native_frames(self, network: JointVideoTransformer) -> int:
        return network.config.native_frames

    def grids(
        self, network: JointVideoTransformer, latents: Sequence[int], extras: Mapping[str, Any]
    ) -> list[TokenGrid]:
        return [patched_grid(latents, network.config.patch, pads=False)]

    def prepare(self, network: JointVideoTransformer, call: ModelCall, options: dict[str, Any], markers: Any) -> None:
        """Nothing to do: the network makes its sites of the options that every call has."""
