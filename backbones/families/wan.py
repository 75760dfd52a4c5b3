"""Wan 2.1 and 2.2, 1.3B to 14B: text, image, VACE, Fun control, camera, speech, HuMo, Animate, SCAIL and dance.

Each block makes a self-attention over all tokens of the video, for image-to-video models a cross-attention with the
tokens of pictures (left alone), and one with the text. Tokens are in the order frame, row, column. What stands before
the video's tokens: a reference picture that goes through ``ref_conv``, SCAIL's reference pictures, and the first frames
of the latents where those are references (VACE, Animate). Further latents and references stand after them. VACE's own
blocks and the pose branch of Animate 2 run outside of the markers and stay as they are.

Animate 2 has queries frame by frame: each frame meets all frames and the one of the pose video that belongs to it.

Source: Comfy-Org/ComfyUI, comfy/ldm/wan/model.py, model_animate.py, model_animate2.py and model_wandancer.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...attention_patches.latent_time import causal
from ...attention_patches.site import Span
from ..block_sites import ExpectedCall, MarkedFamily, SiteSequence
from ..family import BlockPlace, ModelCall, TokenGrid, children, has_parts, patched_grid

# Latents of Wan 2.2's autoencoder, which its 5B model has.
SMALL_CHANNELS = 48


class Wan(MarkedFamily):
    """The Wan transformers whose blocks ComfyUI lets packs wrap."""

    name = "Wan 2.1 / 2.2"
    latent_time = causal(4)
    trained_frames = 21
    encoders = ("umt5xxl",)
    parts = frozenset(
        # All of them.
        "patch_embedding text_embedding time_embedding time_projection blocks head rope_embedder img_emb ref_conv "
        # VACE, camera, HuMo, speech.
        "vace_patch_embedding vace_blocks control_adapter audio_proj "
        "trainable_cond_mask casual_audio_encoder cond_encoder audio_injector frame_packer "
        # Animate, SCAIL and SCAIL-2, dance.
        "pose_patch_embedding motion_encoder face_adapter face_encoder patch_embedding_pose patch_embedding_mask "
        "patch_embedding_global head_global img_emb_refimage "
        "music_projection music_encoder music_injector music_rope_embedder".split()
    )

    def resembles(self, network: Any) -> bool:
        blocks = children(network, "blocks")
        if not blocks or not has_parts(network, "patch_embedding", "text_embedding", "patch_size"):
            return False
        return has_parts(blocks[0], "self_attn", "cross_attn")

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        return [patched_grid(latents, network.patch_size)]

    def sequence(self, network: Any, call: ModelCall, place: BlockPlace, args: Mapping[str, Any]) -> SiteSequence:
        grid = patched_grid(call.latents, network.patch_size, len(call.frames))
        start = self._reference_tokens(network, call, args) + call.leading_frames * grid.rows * grid.columns
        video = Span(start, start + grid.tokens)
        queries, text = args["img"].shape[1], args["txt"].shape[1]
        whole = self.site(call, grid, "self", place, video=video)
        if is_animate2(network) and call.extras.get("pose_latents") is not None:
            expected = self._frame_by_frame(call, grid, whole, queries)
        else:
            expected = [ExpectedCall(queries, queries, whole)]
        if hasattr(network.blocks[place.index].cross_attn, "k_img"):
            pictures = self._picture_tokens(network, call)
            expected.append(ExpectedCall(queries, text if pictures is None else pictures, None))
            text -= pictures or 0
        cross = self.site(call, grid, "cross", place, video=video, text=Span(0, text))
        return SiteSequence([*expected, ExpectedCall(queries, text, cross)], call)

    @staticmethod
    def _frame_by_frame(call: ModelCall, grid: TokenGrid, whole: Any, length: int) -> list[ExpectedCall]:
        """Animate 2's calls: each frame's among all frames and its own of the pose.

        The first frame of a call has no pose; it is the reference picture, but in a later context window one of the
        video's.
        """
        size = grid.rows * grid.columns
        expected = [ExpectedCall(size, length, None)] * call.leading_frames
        for frame in call.frames:
            site = replace(whole, video=Span(0, size), key_video=whole.video, query_frames=(frame,))
            expected.append(ExpectedCall(size, length + (size if expected else 0), site))
        return expected

    def native_frames(self, network: Any) -> int:
        """As ``Family.native_frames``: of 81 pixel frames, 121 for the 5B model, 97 for HuMo, 77 for speech."""
        if network.out_dim == SMALL_CHANNELS:
            return 31
        if hasattr(network, "audio_injector"):
            return 20
        return 25 if hasattr(network, "audio_proj") else self.trained_frames

    def asks_by_frame(self, network: Any, extras: Mapping[str, Any]) -> bool:
        """As ``Family.asks_by_frame``: Animate 2, while a pose video drives it."""
        return is_animate2(network) and extras.get("pose_video_latent") is not None

    def sampler_problem(self, network: Any, sampler: Any) -> str:
        """As ``Family.sampler_problem``: the causal model's own sampler runs blocks that are given no options."""
        name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
        if not hasattr(network, "forward_block") or name != "sample_ar_video":
            return ""
        return (
            "the sampler ar_video hides the attention of this causal Wan model, so nothing can be guided in it; take "
            "an ordinary sampler such as euler, or take the guide out."
        )

    def leading_frames(self, network: Any, extras: Mapping[str, Any]) -> int:
        """As ``Family.leading_frames``: Animate's and VACE's reference pictures are frames of the latents."""
        if is_animate2(network):
            return 1
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
    def _reference_tokens(network: Any, call: ModelCall, args: Mapping[str, Any]) -> int:
        """Tokens of reference pictures that stand before the video's, beside those of the latents' own frames."""
        if hasattr(network, "patch_embedding_pose"):
            # SCAIL lays them before the video as further frames, and says how many frames that makes.
            frames, rows, columns = args["transformer_options"]["grid_sizes"]
            return (frames - call.latents[2]) * rows * columns
        reference = call.extras.get("reference_latent")
        if reference is None or getattr(network, "ref_conv", None) is None:
            return 0
        rows, columns = network.patch_size[-2:]
        return (reference.shape[-2] // rows) * (reference.shape[-1] // columns)

    @staticmethod
    def _picture_tokens(network: Any, call: ModelCall) -> int | None:
        """Tokens of pictures before the text, or None where without a picture the whole text is read in its place."""
        pictures = [call.extras.get("clip_fea")]
        if hasattr(network, "img_emb_refimage"):
            pictures.append(call.extras.get("clip_fea_ref"))
        given = [picture.shape[-2] for picture in pictures if picture is not None]
        return sum(given) if given or hasattr(network, "img_emb_refimage") else None


def is_animate2(network: Any) -> bool:
    """Say whether a Wan model is Animate 2, whose blocks run a branch for the video and one for a pose."""
    return hasattr(network.blocks[0], "forward_gen")
