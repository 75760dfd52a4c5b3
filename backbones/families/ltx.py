"""LTX-Video: self-attention over the video and its guide frames, cross-attention with the text, often masked.

The latents of guide pictures (``keyframe_idxs``) are appended as further frames; their tokens stand at the end and are
not part of the video. Guides with a strength or a mask of their own split self-attention: the video's queries come
first, then those of the guides, each among all keys. A patch is one latent cell.

Source: Comfy-Org/ComfyUI, comfy/ldm/lightricks/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...attention_patches.latent_time import causal
from ...attention_patches.site import Span
from ..block_sites import ExpectedCall, MarkedFamily, SiteSequence
from ..family import BlockPlace, ModelCall, TokenGrid, children, has_parts, patched_grid


class LTXVideo(MarkedFamily):
    """LTX-Video 0.9 transformers."""

    name = "LTX-Video"
    latent_time = causal(8)
    trained_frames = 16
    encoders: tuple[str, ...] = ("t5xxl",)
    block_list = "transformer_blocks"
    # The later models with sound have more, and give their blocks two sequences at once.
    parts = frozenset("patchify_proj adaln_single caption_projection transformer_blocks norm_out proj_out".split())

    def resembles(self, network: Any) -> bool:
        blocks = children(network, "transformer_blocks")
        if not blocks or not has_parts(network, "patchify_proj", "caption_projection", "patchifier"):
            return False
        return has_parts(blocks[0], "attn1", "attn2", "scale_shift_table")

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, (1, 1), self.film_frames(network, latents, extras))]

    def film_frames(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> int:
        guides = extras.get("keyframe_idxs")
        if guides is None:
            return latents[2]
        return latents[2] - guides.shape[2] // (latents[3] * latents[4])

    def sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        return SiteSequence(self.video_calls(network, call, place, args, args["img"], args["txt"]), call)

    def video_calls(
        self,
        network: Any,
        call: ModelCall,
        place: BlockPlace,
        args: Mapping[str, Any],
        video: Tensor,
        text: Tensor,
    ) -> list[ExpectedCall]:
        """The calls in which the video asks: for itself, and for the text.

        Args:
            network, call, place, args: as ``sequence`` gets them.
            video: what the block does with the video, its guides included, [B, L, C].
            text: what it reads, [B, L, C].
        """
        grid = self.grids(network, call.latents, call.extras)[0]
        queries, words, width = video.shape[1], text.shape[1], video.shape[2]
        tokens = Span(0, grid.tokens)
        self_site = self.site(call, grid, "self", place, video=tokens)
        cross = self.site(call, grid, "cross", place, video=tokens, text=Span(0, words))
        # Where the guides begin, when their queries are apart.
        guides = getattr(args.get("self_attention_mask"), "guide_start", queries)
        return [
            ExpectedCall(guides, queries, self_site, width=width),
            ExpectedCall(queries, words, cross, width=width),
        ]
