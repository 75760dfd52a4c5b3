"""Mochi: joint attention of video and text in asymmetric blocks.

The video's tokens come first, then as many text tokens as the longest prompt of the batch has.

Source: Comfy-Org/ComfyUI, comfy/ldm/genmo/joint_model/asymm_models_joint.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...attention_patches.latent_time import causal
from ...attention_patches.site import Span
from ..block_sites import ExpectedCall, MarkedFamily, SiteSequence
from ..family import BlockPlace, ModelCall, TokenGrid, children, has_parts, patched_grid


class Mochi(MarkedFamily):
    """Mochi 1."""

    name = "Mochi"
    latent_time = causal(6)
    trained_frames = 28
    encoders = ("t5xxl",)
    joint_text = True
    parts = frozenset("x_embedder t_embedder t5_y_embedder t5_yproj blocks final_layer".split())

    def resembles(self, network: Any) -> bool:
        blocks = children(network, "blocks")
        return bool(blocks) and has_parts(network, "t5_yproj", "pos_frequencies") and hasattr(blocks[0], "mod_y")

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, (network.patch_size, network.patch_size), pads=False)]

    def sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        grid = self.grids(network, call.latents, call.extras)[0]
        length = args["img"].shape[1] + min(int(args["num_tokens"]), args["txt"].shape[1])
        text = Span(grid.tokens, length)
        site = self.site(call, grid, "joint", place, video=Span(0, grid.tokens), text=text)
        return SiteSequence([ExpectedCall(length, length, site)], call)
