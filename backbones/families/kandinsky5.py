"""Kandinsky 5 video, lite and pro: self-attention over the video, cross-attention with the text.

Blocks of the text run first and are left alone. The host's hook around the other blocks is broken, but all calls come
in the same order each time and the host says which block is running: so one sequence serves the whole pass. In
image-to-video the network lays the given picture over the first frames of whatever latents it is called with, so in
every context window.

Source: Comfy-Org/ComfyUI, comfy/ldm/kandinsky5/model.py and comfy/text_encoders/kandinsky5.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...attention_patches.latent_time import causal
from ...attention_patches.site import SITE_KEY, AttentionKind
from ...video_models.sampling.window_frames import anchor_frame
from ..block_sites import BlockMarkers, ExpectedCall, SiteSequence, calls_of_blocks
from ..family import Family, ModelCall, TokenGrid, children, has_parts, patched_grid
from ..qwen_text import QWEN, kept_ids, unseen_beginning


class Kandinsky5(Family):
    """Kandinsky 5's text- and image-to-video transformers."""

    name = "Kandinsky 5"
    latent_time = causal(4)
    trained_frames = 31
    encoders = (QWEN,)
    reads_weights = False
    drops_padding = False
    mixes_prompts = True
    block_list = "visual_transformer_blocks"
    parts = frozenset(
        "time_embeddings text_embeddings pooled_text_embeddings visual_embeddings text_transformer_blocks "
        "visual_transformer_blocks out_layer rope_embedder_3d rope_embedder_1d".split()
    )

    def resembles(self, network: Any) -> bool:
        blocks = children(network, self.block_list)
        if not blocks or not has_parts(network, "text_transformer_blocks", "patch_size", "visual_embed_dim"):
            return False
        if not has_parts(blocks[0], "self_attention", "cross_attention"):
            return False
        # Beside the video's channels there are those of a picture and a mask; the picture model has its own alone.
        channels = 2 * network.in_visual_dim + 1
        return network.visual_embed_dim == channels * math.prod(network.patch_size)

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, network.patch_size)]

    def prepare(self, network: Any, call: ModelCall, options: dict[str, Any], markers: BlockMarkers) -> None:
        call = self._with_given_frames(call, options)
        grid = self.grids(network, call.latents, call.extras)[0]
        blocks_of_text = len(children(network, "text_transformer_blocks"))
        of_text = [ExpectedCall(call.text_length, call.text_length, None)] * blocks_of_text
        kinds: tuple[AttentionKind, ...] = ("self", "cross")
        blocks = [(name, kinds) for name in self.block_names(network)]
        options[SITE_KEY] = SiteSequence([*of_text, *calls_of_blocks(self, call, grid, blocks)], call)

    @staticmethod
    def _with_given_frames(call: ModelCall, options: Mapping[str, Any]) -> ModelCall:
        """The call with the first frames named that the given picture is of, wherever its window begins."""
        picture = call.extras.get("time_dim_replace")
        given = range(0 if picture is None else min(picture.shape[2], len(call.frames)))
        # What is made of an anchor is dropped.
        shown = given[len(anchor_frame(options.get("context_window"))) :]
        if any(call.frames[place] != place for place in shown):
            call.note(
                "the context windows of Kandinsky 5 begin with the given picture, each of them, so masks of the first "
                "frame hold there; turn causal_window_fix on if that is not meant."
            )
        return replace(call, frames=(*given, *call.frames[len(given) :]))

    def text_ids(self, tokens: Mapping[str, Any], length: int = 0) -> list[int]:
        """As ``Family.text_ids``, of what the encoder keeps of its chat."""
        return kept_ids(self.all_text_ids(tokens))

    def unseen_beginning(self, prompt: str) -> str:
        return unseen_beginning(prompt)
