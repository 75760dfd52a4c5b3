"""HunyuanVideo 1.5, its super-resolution model, and others of the same network, such as Capybara.

Each block makes one joint call. First come the tokens of a picture, then those of glyphs (words that the prompt has in
quotation marks, read by ByT5), then the text, a reference latent and the video. All blocks are double ones.

Source: Comfy-Org/ComfyUI, comfy/ldm/hunyuan_video/model.py and comfy/text_encoders/hunyuan_video.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...attention_patches.site import Span
from ..family import ModelCall, children, has_parts
from ..qwen_text import QWEN, kept_ids, unseen_beginning
from .hunyuan_video import HunyuanVideo, is_video_network


class HunyuanVideo15(HunyuanVideo):
    """HunyuanVideo 1.5's text- and image-to-video transformers, and its super-resolution."""

    name = "HunyuanVideo 1.5"
    trained_frames = 31
    encoders = (QWEN,)
    reads_weights = False
    drops_padding = False
    parts = HunyuanVideo.parts | {"vision_in", "cond_type_embedding"}

    def resembles(self, network: Any) -> bool:
        if not is_video_network(network) or not has_parts(network, "vision_in", "cond_type_embedding"):
            return False
        # No model has single blocks, in which nothing says where the text is.
        return not children(network, "single_blocks")

    def text_place(self, call: ModelCall, args: Mapping[str, Any]) -> Span:
        """As ``HunyuanVideo.text_place``: the last ones of what a block is given as text."""
        length = args["txt"].shape[1]
        return Span(length - call.text_length, length)

    def text_ids(self, tokens: Mapping[str, Any], length: int = 0) -> list[int]:
        """As ``Family.text_ids``, of what the encoder keeps of its chat."""
        return kept_ids(self.all_text_ids(tokens))

    def unseen_beginning(self, prompt: str) -> str:
        return unseen_beginning(prompt)
