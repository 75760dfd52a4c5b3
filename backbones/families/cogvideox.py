"""CogVideoX: joint attention of text and video, the text's tokens first.

The network has no hook around its blocks, but makes one joint call in each of them, in order: so one sequence serves
the whole pass. In CogVideoX 1.5, and VOID which is made from it, a token covers two latent frames; the last one of an
odd number is filled up with the first frame, which nobody sees.

Source: Comfy-Org/ComfyUI, comfy/ldm/cogvideo/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...attention_patches.latent_time import causal
from ...attention_patches.site import SITE_KEY, Span
from ..block_sites import BlockMarkers, ExpectedCall, SiteSequence
from ..family import Family, ModelCall, TokenGrid, children, has_parts, patched_grid, places


class CogVideoX(Family):
    """CogVideoX 1.0, text- and image-to-video."""

    name = "CogVideoX 1.0"
    latent_time = causal(4)
    trained_frames = 13
    encoders = ("t5xxl",)
    joint_text = True
    parts = frozenset(
        "patch_embed time_embedding_linear_1 time_embedding_act time_embedding_linear_2 ofs_embedding_linear_1 "
        "ofs_embedding_act ofs_embedding_linear_2 blocks norm_final norm_out proj_out".split()
    )

    def resembles(self, network: Any) -> bool:
        blocks = children(network, "blocks")
        if not blocks or not has_parts(network, "patch_embed", "norm_final", "norm_out", "patch_size"):
            return False
        if not has_parts(network.patch_embed, "text_proj", "proj") or not has_parts(blocks[0], "q", "k", "v", "norm2"):
            return False
        return (getattr(network, "patch_size_t", None) or 1) == self.latent_time.span

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        frames = self.latent_time.token_frames(latents[2])
        return [patched_grid(latents, (network.patch_size, network.patch_size), frames)]

    def prepare(self, network: Any, call: ModelCall, options: dict[str, Any], markers: BlockMarkers) -> None:
        grid = self.grids(network, call.latents, call.extras)[0]
        length = call.text_length + grid.tokens
        video, text = Span(call.text_length, length), Span(0, call.text_length)
        sites = [
            self.site(call, grid, "joint", place, video=video, text=text) for place in places(self.block_names(network))
        ]
        options[SITE_KEY] = SiteSequence([ExpectedCall(length, length, site) for site in sites], call)


class CogVideoX15(CogVideoX):
    """CogVideoX 1.5 and VOID, which removes objects."""

    name = "CogVideoX 1.5 / VOID"
    latent_time = causal(4, span=2)
    trained_frames = 11
