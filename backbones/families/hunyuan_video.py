"""HunyuanVideo: joint attention of video and text, in double and in single blocks.

The text's tokens come first, then a reference latent's, then the video's. The refiner of the text tokens runs before
the blocks and is left alone.

Source: Comfy-Org/ComfyUI, comfy/ldm/hunyuan_video/model.py and comfy/text_encoders/hunyuan_video.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...attention_patches.latent_time import causal
from ...attention_patches.site import Span
from ...prompt_text.token_places import NOT_OF_PROMPT
from ..block_sites import BlockKey, ExpectedCall, MarkedFamily, SiteSequence
from ..family import BlockPlace, ModelCall, TokenGrid, children, has_parts, patched_grid

# Llama 3's tokens around what the user wrote: <|start_header_id|> user <|end_header_id|> and an empty line ...
USER_TURN = (128006, 882, 128007)
EMPTY_LINE = 271
# ... and <|eot_id|> after it.
END_OF_TURN = 128009
# Llama 3's tokens of control start here; what a user writes is below.
TEMPLATE_TOKENS = range(128000, 128256)
# A picture makes 576 tokens (24 x 24), of which the encoder keeps every n-th one, with n from 1 to 512.
PICTURE_LENGTHS = frozenset(math.ceil(576 / interleave) for interleave in range(1, 513))


class HunyuanVideo(MarkedFamily):
    """HunyuanVideo's text- and image-to-video transformers."""

    name = "HunyuanVideo"
    latent_time = causal(4)
    trained_frames = 33
    encoders = ("llama",)
    joint_text = True
    # 1.5 has more: pictures and glyphs before the text, which another encoder reads.
    parts = frozenset(
        "img_in time_in time_r_in vector_in guidance_in txt_in double_blocks single_blocks final_layer pe_embedder "
        "byt5_in".split()
    )

    def resembles(self, network: Any) -> bool:
        # The picture models of the same making, and 1.5, read no pooled text.
        return is_video_network(network) and has_parts(network, "vector_in")

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, network.patch_size)]

    def blocks(self, network: Any) -> list[tuple[str, BlockKey]]:
        double = [(f"double.{index}", ("double_block", index)) for index, _ in enumerate(network.double_blocks)]
        single = [(f"single.{index}", ("single_block", index)) for index, _ in enumerate(network.single_blocks)]
        return double + single

    def sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        grid = self.grids(network, call.latents, call.extras)[0]
        # Single blocks get text and video as one.
        length = args["img"].shape[1] + (args["txt"].shape[1] if "txt" in args else 0)
        video = Span(length - grid.tokens, length)
        site = self.site(call, grid, "joint", place, video=video, text=self.text_place(call, args))
        return SiteSequence([ExpectedCall(length, length, site)], call)

    def text_place(self, call: ModelCall, args: Mapping[str, Any]) -> Span:
        """Where the prompt's text is in the sequence of a block; arguments as ``sequence``."""
        # Further text (glyphs) may follow the prompt's.
        return Span(0, call.text_length)

    def text_ids(self, tokens: Mapping[str, Any], length: int = 0) -> list[int]:
        """As ``Family.text_ids``; the encoder drops its instructions before the user's words and what follows.

        In image-to-video the encoder puts the tokens of a picture before the user's words; how many there are follows
        from ``length``.
        """
        ids = self.all_text_ids(tokens)
        start, stop = user_turn(ids)
        kept = [NOT_OF_PROMPT if token in TEMPLATE_TOKENS else token for token in ids[start:stop]]
        picture = length - len(kept)
        return [NOT_OF_PROMPT] * picture + kept if picture in PICTURE_LENGTHS else kept


def is_video_network(network: Any) -> bool:
    """Say whether a network is one of HunyuanVideo's; picture models of the same making have patches without time."""
    if not children(network, "double_blocks") or not has_parts(network, "txt_in", "img_in"):
        return False
    return hasattr(network.txt_in, "individual_token_refiner") and len(network.patch_size) == 3


def user_turn(ids: Sequence[int]) -> tuple[int, int | None]:
    """Where the encoder's text starts and stops among the token ids of template and prompt."""
    start, stop = 0, None
    for at, token in enumerate(ids):
        if tuple(ids[at : at + 3]) == USER_TURN:
            # The last such turn counts; without an end of it the encoder drops the last token.
            start, stop = at + 2, -1
        if token == END_OF_TURN and stop == -1:
            stop = at + 1
    if len(ids) > start + 2 and ids[start + 1] == EMPTY_LINE:
        start += 2
    return start, stop
