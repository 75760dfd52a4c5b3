"""MiniMax H3: joint attention of text, references, sound and video in one sequence.

Each block makes one call. The order of its tokens is text, keyframes (the pictures of each, then its sound),
references, sound (channel by channel), video (frame, row, column). The model knows no batch: hidden states are
[tokens, channels], and each chunk of a batch is a call of its own. The refiner of the text runs before the blocks and
is left alone; it lets all words of a text see each other.

Latent frames cover 1, 4, 4, 4, 4 frames of the video, over and over. The autoencoder makes clips of 17 n + 5 frames.

The text encoder reads what is said of references first (``<Picture 1>: `` and a picture, ``<Audio 1>: `` ...) and the
prompt last.

Source: Comfy-Org/ComfyUI, comfy/ldm/minimax/model.py, comfy/text_encoders/minimax.py, comfy_extras/nodes_minimax_h3.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from ...attention_patches.latent_time import CHUNKS_OF_17
from ...attention_patches.site import Span
from ..block_sites import ExpectedCall, MarkedFamily, SiteSequence
from ..family import BlockPlace, ModelCall, TokenGrid, children, has_parts, patched_grid

# What the text encoder is given for a prompt without words.
NO_WORDS = 151643
# Of the modality of each row of a text embedding: 0 is of a picture, 1 of words.
TAGS_KEY, REFERENCES_KEY = "minimax_token_tags", "minimax_refs"


class MiniMaxH3(MarkedFamily):
    """MiniMax H3, with sound."""

    name = "MiniMax H3"
    latent_time = CHUNKS_OF_17
    # 362 frames, the longest of the clips that it was trained on.
    trained_frames = 107
    encoders = ("qwen3vl_32b",)
    reads_weights = False
    joint_text = True
    prompt_ends_text = True
    parts = frozenset(
        "video_patch_proj audio_patch_proj condition_proj time_embedder rope token_refiner blocks final_layer".split()
    )

    def resembles(self, network: Any) -> bool:
        parts = ("video_patch_proj", "audio_patch_proj", "token_refiner", "latents_dim")
        return bool(children(network, "blocks")) and has_parts(network, *parts)

    def latent_channels(self, network: Any) -> int | None:
        return network.latents_dim

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, network.patch_size)]

    def sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        grid, length = self.grids(network, call.latents, call.extras)[0], args["img"].shape[0]
        video, text = Span(length - grid.tokens, length), Span(0, call.text_length)
        site = self.site(call, grid, "joint", place, video=video, text=text)
        return SiteSequence([ExpectedCall(length, length, site)], call)

    def text_before(self, extras: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """As ``Family.text_before``: pictures and videos with their names, then the names of sounds alone."""
        tags, references = extras.get(TAGS_KEY), extras.get(REFERENCES_KEY) or ()
        pictures = [] if tags is None else (tags.flatten() == 0).nonzero().flatten().tolist()
        kinds = [reference["kind"] for reference in references]
        # Sounds of videos are named first, each before its video.
        named = kinds.count("video_audio")
        sounds = tuple(f"<Audio {named + number}>: " for number in range(1, kinds.count("audio") + 1))
        return (pictures[-1] + 1 if pictures else 0), sounds

    def text_ids(self, tokens: Mapping[str, Any], length: int = 0) -> list[int]:
        """As ``Family.text_ids``; the tokenizer says of no token which word it belongs to."""
        own = {name: [[_of_a_word(entry) for entry in chunk] for chunk in chunks] for name, chunks in tokens.items()}
        return super().text_ids(own, length)


def _of_a_word(entry: Sequence[Any]) -> tuple[Any, ...]:
    """An entry (token, weight, 0) of the tokenizer with its number of a word left out, unless it is of no word."""
    token, weight = entry[:2]
    no_word = isinstance(token, numbers.Integral) and token == NO_WORDS
    return (token, weight, 0) if no_word else (token, weight)
