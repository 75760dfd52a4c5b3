"""Mochi: joint attention of film and text in asymmetric blocks.

The film's tokens come first, then as many text tokens as the longest prompt of the batch has.

Source: Comfy-Org/ComfyUI, comfy/ldm/genmo/joint_model/asymm_models_joint.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .block_sites import BlockMarkers, ExpectedCall, SiteSequence
from .family import BlockPlace, Family, ModelCall, TokenGrid, children, has_parts, patched_grid, places


class Mochi(Family):
    """Mochi 1."""

    name = "Mochi"
    time_factor = 6
    encoders = ("t5xxl",)

    def fits(self, network: Any) -> bool:
        blocks = children(network, "blocks")
        return bool(blocks) and has_parts(network, "t5_yproj", "pos_frequencies") and hasattr(blocks[0], "mod_y")

    def block_names(self, network: Any) -> list[str]:
        return [f"block.{index}" for index, _ in enumerate(network.blocks)]

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, (network.patch_size, network.patch_size), pads=False)]

    def prepare(self, network: Any, call: ModelCall, options: dict[str, Any], markers: BlockMarkers) -> None:
        markers.hang(
            options,
            {
                ("double_block", place.index): partial(self._sequence, network, call, place)
                for place in places(self.block_names(network))
            },
        )

    def _sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        grid = self.grids(network, call.latents, call.extras)[0]
        length = args["img"].shape[1] + min(int(args["num_tokens"]), args["txt"].shape[1])
        text = slice(grid.tokens, length)
        site = self.site(call, grid, "joint", place, video=slice(0, grid.tokens), text=text)
        return SiteSequence([ExpectedCall(length, length, site)], call.found)
