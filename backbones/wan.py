"""Wan 2.1 and 2.2: text and image to video, VACE, Fun control, camera, HuMo and Animate, 1.3B to 14B and 5B.

Each block makes a self-attention over all tokens of the film, for image-to-video models a cross-attention with the
tokens of a picture (left alone), and one with the text. Tokens are in the order frame, row, column. A reference picture
that goes through ``ref_conv`` stands before the film's tokens, further latents and references after them; those of
VACE and Animate are the first frames of the latents. VACE's own blocks run outside of the markers and stay as they are.

Source: Comfy-Org/ComfyUI, comfy/ldm/wan/model.py and model_animate.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .block_sites import ExpectedCall, MarkedFamily, SiteSequence
from .family import BlockPlace, ModelCall, TokenGrid, children, has_parts, patched_grid

# Latents of Wan 2.2's autoencoder, which its 5B model has.
SMALL_CHANNELS = 48


class Wan(MarkedFamily):
    """The Wan transformers whose blocks ComfyUI lets packs wrap."""

    name = "Wan 2.1 / 2.2"
    time_factor = 4
    trained_frames = 21
    encoders = ("umt5xxl",)

    def fits(self, network: Any) -> bool:
        blocks = children(network, "blocks")
        if not blocks or not has_parts(network, "patch_embedding", "text_embedding", "patch_size"):
            return False
        # The speech-to-video model does not hand its options to its blocks, so nothing reaches them.
        return has_parts(blocks[0], "self_attn", "cross_attn") and not has_parts(network, "audio_injector")

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, network.patch_size)]

    def sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        grid = patched_grid(call.latents, network.patch_size, len(call.frames))
        start = self._reference_tokens(network, call) + call.leading_frames * grid.rows * grid.columns
        video = slice(start, start + grid.tokens)
        queries, text = args["img"].shape[1], args["txt"].shape[1]
        expected = [ExpectedCall(queries, queries, self.site(call, grid, "self", place, video=video))]
        if hasattr(network.blocks[place.index].cross_attn, "k_img"):
            picture = call.extras.get("clip_fea")
            # Without a picture the text is read twice, first in the picture's place.
            expected.append(ExpectedCall(queries, text if picture is None else picture.shape[-2], None))
            text -= 0 if picture is None else picture.shape[-2]
        cross = self.site(call, grid, "cross", place, video=video, text=slice(0, text))
        return SiteSequence([*expected, ExpectedCall(queries, text, cross)], call.found)

    def native_frames(self, network: Any) -> int:
        """As ``Family.native_frames``: of 81 pixel frames, of 121 for the 5B model, of 97 for HuMo."""
        if network.out_dim == SMALL_CHANNELS:
            return 31
        return 25 if hasattr(network, "audio_proj") else self.trained_frames

    def leading_frames(self, network: Any, extras: Mapping[str, Any]) -> int:
        """As ``Family.leading_frames``: Animate's and VACE's reference pictures are frames of the latents."""
        if hasattr(network, "face_adapter"):
            return int("concat_latent_image" in extras)
        frames = extras.get("vace_frames") if hasattr(network, "vace_blocks") else None
        if not frames:
            return 0
        from comfy.latent_formats import Wan21

        # VACE's control has two halves; the second one of a reference picture is nothing at all.
        reactive = frames[0][:1, 16:32]
        nothing = Wan21().process_out(torch.zeros_like(reactive))
        same = (reactive == nothing).flatten(3).all(dim=3).all(dim=1)[0].tolist()
        return next((place for place, is_reference in enumerate(same) if not is_reference), 0)

    @staticmethod
    def _reference_tokens(network: Any, call: ModelCall) -> int:
        """Tokens of a reference picture that stand before the film's."""
        reference = call.extras.get("reference_latent")
        if reference is None or getattr(network, "ref_conv", None) is None:
            return 0
        rows, columns = network.patch_size[-2:]
        return (reference.shape[-2] // rows) * (reference.shape[-1] // columns)
