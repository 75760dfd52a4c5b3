"""Cosmos and Cosmos Predict2: self-attention over the video, cross-attention with the text.

These networks have no hook around their blocks, but they make the same calls in the same order each time: so one
sequence serves the whole pass. Newer cores say which block of Predict2 is running.

Source: Comfy-Org/ComfyUI, comfy/ldm/cosmos/model.py and predict2.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...attention_patches.latent_time import causal
from ...attention_patches.site import SITE_KEY, AttentionKind
from ..block_sites import BlockMarkers, SiteSequence, calls_of_blocks
from ..family import Family, ModelCall, TokenGrid, children, has_parts, patched_grid


class Cosmos(Family):
    """Cosmos 1 (autoencoder with factor 8)."""

    name = "Cosmos"
    latent_time = causal(8)
    trained_frames = 16
    encoders = ("t5xxl",)
    parts = frozenset(
        "x_embedder t_embedder t_embedding_norm pos_embedder extra_pos_embedder affline_norm blocks final_layer".split()
    )

    def resembles(self, network: Any) -> bool:
        if not children(network, "blocks") or not has_parts(network, "patch_spatial", "patch_temporal"):
            return False
        return network.patch_temporal == 1 and self._fits_block(children(network, "blocks")[0])

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, (network.patch_spatial, network.patch_spatial))]

    def prepare(self, network: Any, call: ModelCall, options: dict[str, Any], markers: BlockMarkers) -> None:
        grid = self.grids(network, call.latents, call.extras)[0]
        kinds = [self._kinds(block) for block in children(network, "blocks")]
        blocks = list(zip(self.block_names(network), kinds, strict=True))
        options[SITE_KEY] = SiteSequence(calls_of_blocks(self, call, grid, blocks), call)

    @staticmethod
    def _fits_block(block: Any) -> bool:
        return all(hasattr(part, "block_type") for part in children(block, "blocks")) and bool(
            children(block, "blocks")
        )

    @staticmethod
    def _kinds(block: Any) -> list[AttentionKind]:
        """``self`` and ``cross`` in the order in which a block makes them."""
        kinds: dict[str, AttentionKind] = {"full_attn": "self", "fa": "self", "cross_attn": "cross", "ca": "cross"}
        return [kinds[part.block_type] for part in children(block, "blocks") if part.block_type in kinds]


class CosmosPredict2(Cosmos):
    """Cosmos Predict2 (Wan's autoencoder, with factor 4)."""

    name = "Cosmos Predict2"
    latent_time = causal(4)
    trained_frames = 24

    @staticmethod
    def _fits_block(block: Any) -> bool:
        return has_parts(block, "self_attn", "cross_attn", "layer_norm_self_attn")

    @staticmethod
    def _kinds(block: Any) -> list[AttentionKind]:
        return ["self", "cross"]
