"""LTX-2, 2.3 and 2.5: LTX-Video with a second sequence for the sound in every block.

A block makes up to six calls: the video among itself and with the text, the sound among itself and with the text, then
video with sound and sound with video. The last four have the sound's heads and are left alone. Switches in
``transformer_options`` and the guidance of space and time leave calls out. Latents are nested, [video, sound]; a plain
video is one without sound. Frames that guide the video are appended, then keyframes that the model makes itself.

A connector reads the text before the first block: row i is token i of the prompt, and learned registers follow up to
``REGISTERS`` rows at least. Its layers let all rows see each other, so that other words and the registers have heard
of each word.

Source: Comfy-Org/ComfyUI, comfy/ldm/lightricks/av_model.py, embeddings_connector.py; comfy/text_encoders/lt.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any

from ..block_sites import ExpectedCall, SiteSequence
from ..family import BlockPlace, ModelCall, children, flat_ids, has_parts
from .ltx import LTXVideo

# Rows of text that the blocks see at least, and of which they see a multiple.
REGISTERS, REGISTER_STEP = 1024, 128
# What the text encoders fill up prompts with, on their left; their encoder drops it.
PADDING = 0
# Of ``transformer_options``: whether the video is computed at all, and whether a block leaves self-attention out.
RUN_VIDEO_KEY, SKIP_SELF_KEY = "run_vx", "stg_skip_self_attn"


class LTXVideoSound(LTXVideo):
    """LTX-2 transformers, with or without sound in the latents."""

    name = "LTX-2 / 2.3 / 2.5"
    encoders = ("gemma3_12b", "gemma4")
    reads_weights = False
    mixes_prompts = True
    parts = LTXVideo.parts | frozenset(
        (
            "prompt_adaln_single audio_patchify_proj audio_adaln_single audio_prompt_adaln_single "
            "av_ca_video_scale_shift_adaln_single av_ca_audio_scale_shift_adaln_single av_ca_a2v_gate_adaln_single "
            "av_ca_v2a_gate_adaln_single audio_caption_projection audio_embeddings_connector "
            "video_embeddings_connector audio_norm_out audio_proj_out"
        ).split()
    )

    def resembles(self, network: Any) -> bool:
        if not super().resembles(network) or not has_parts(network, "audio_patchify_proj", "a_patchifier"):
            return False
        return has_parts(children(network, "transformer_blocks")[0], "audio_attn1", "audio_to_video_attn")

    def film_frames(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> int:
        frames = super().film_frames(network, latents, extras)
        made = extras.get("generated_keyframes")
        return frames if made is None else min(frames, made["first_latent_frame"])

    def sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        options = args["transformer_options"]
        expected: list[ExpectedCall] = []
        if options.get(RUN_VIDEO_KEY, True):
            expected = self.video_calls(network, call, place, args, args["img"][0], args["v_context"])
        if options.get(SKIP_SELF_KEY, False):
            expected = expected[1:]
        # The sound's calls come after these; a block past its last expected call finds nothing any more.
        return SiteSequence(expected, call)

    def text_rows(self, length: int) -> int:
        return max(REGISTERS, -(-length // REGISTER_STEP) * REGISTER_STEP)

    def text_ids(self, tokens: Mapping[str, Any], length: int = 0) -> list[int]:
        name = next((name for name in self.encoders if name in tokens), None)
        if name is None:
            return super().text_ids(tokens, length)
        ids = flat_ids([list(dropwhile(_is_padding, chunk)) for chunk in tokens[name]])
        # Old checkpoints hold the connector in the text encoder, so that the registers are in the embedding.
        registers = self.text_rows(len(ids)) - len(ids) if length == self.text_rows(len(ids)) else 0
        return [*ids, *flat_ids([[(PADDING, 1.0, 0)] * registers])]


def _is_padding(entry: Sequence[Any]) -> bool:
    """Whether an entry of a tokenizer, (token, weight ...), is padding; vectors of textual inversions are not."""
    return isinstance(entry[0], numbers.Integral) and entry[0] == PADDING
