"""Tiny models of LTX-Video and LTX-2 with random weights, built from ComfyUI's own configs and classes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tiny_model import TEXT, TinyModel, build
from torch import Tensor

LTX = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "cross_attention_dim": 48}
LTX["caption_channels"] = 32


def ltx() -> TinyModel:
    return TinyModel("ltx", partial(build, "LTXV", LTX), (1, 128, 3, 4, 5), 32, extras={"attention_mask": text_mask})


def ltx_guided() -> TinyModel:
    """The last of the latents' frames is a guide picture."""
    extras = {"attention_mask": text_mask, **guide()}
    return TinyModel("ltx_guided", partial(build, "LTXV", LTX), (1, 128, 4, 4, 5), 32, extras=extras)


def ltx_weak_guide() -> TinyModel:
    """A guide picture with a strength of its own: film and guide ask for themselves."""
    return replace(ltx_guided(), name="ltx_weak_guide", extras={**ltx_guided().extras, **guide_entry(0.5)})


def ltx_masked_guide() -> TinyModel:
    """A guide picture that counts in its left half only."""
    extras = {**ltx_guided().extras, **guide_entry(1.0, left_half())}
    return replace(ltx_guided(), name="ltx_masked_guide", extras=extras)


# LTX-2: video and sound have heads of their own, and a connector of one layer reads the text.
LTXAV = {
    **LTX,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 12,
    "audio_cross_attention_dim": 24,
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 16,
    "connector_num_layers": 1,
}
# Gates on each head, modulation of the text, projections of its own for video and sound before the connector.
LTXAV_23 = {
    **LTXAV,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "cross_attention_adaln": True,
    "apply_gated_attention": True,
    "connector_apply_gated_attention": True,
    "connector_attention_head_dim": 24,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 12,
    "caption_channels": 48,
}
# A learned mark of single pictures, feed-forward layers without a bias.
LTXAV_25 = {**LTXAV_23, "use_keyframes_abs_pos_embedding": True, "ff_bias": False, "audio_ff_bias": False}
FILM, FILM_AND_GUIDE = (1, 128, 3, 4, 5), (1, 128, 4, 4, 5)
UNPROCESSED = {"unprocessed_ltxav_embeds": True}


def ltxav() -> TinyModel:
    """LTX-2 with less sound than film."""
    make = partial(build, "LTXAV", LTXAV)
    return TinyModel("ltxav", make, FILM, 32, extras=UNPROCESSED, sound=(1, 8, 21, 16))


def ltxav_silent() -> TinyModel:
    """The same for plain latents."""
    return replace(ltxav(), name="ltxav_silent", sound=())


def ltxav_23() -> TinyModel:
    """LTX-2.3 with as many tokens of sound as of film."""
    make = partial(build, "LTXAV", LTXAV_23)
    return TinyModel("ltxav_23", make, FILM, 72, extras=UNPROCESSED, sound=(1, 8, 60, 16))


def ltxav_25() -> TinyModel:
    """LTX-2.5 with a guide picture, and as much sound as film and guide."""
    extras = {**UNPROCESSED, **guide_entry(1.0), "keyframe_idxs": keyframes, "concat_mask": given_last_frame_of_all}
    make = partial(build, "LTXAV", LTXAV_25)
    return TinyModel("ltxav_25", make, FILM_AND_GUIDE, 72, extras=extras, sound=(1, 8, 80, 16))


def ltxav_weak_guide() -> TinyModel:
    """With a guide picture that has a strength of its own."""
    return replace(ltxav_25(), name="ltxav_weak_guide", extras={**ltxav_25().extras, **guide_entry(0.5)})


def ltxav_masked_guide() -> TinyModel:
    """LTX-2 with a guide picture that counts in its left half only, and half as much sound."""
    extras = {**ltxav_25().extras, **guide_entry(1.0, left_half()), "concat_mask": partial(given_last_frame_of_all, 40)}
    make = partial(build, "LTXAV", LTXAV)
    return TinyModel("ltxav_masked_guide", make, FILM_AND_GUIDE, 32, extras=extras, sound=(1, 8, 40, 16))


def given_last_frame_of_all(sound: int = 80) -> Tensor:
    """The noise mask of a nested latent with a guide, as the host packs it: all of the sound is to be denoised."""
    import comfy.utils

    film = given_last_frame().expand(FILM_AND_GUIDE)
    return comfy.utils.pack_latents([film, torch.ones(1, 8, sound, 16)])[0]


def guide() -> dict[str, Any]:
    """Conditions of a film whose last latent frame is a guide picture."""
    return {"keyframe_idxs": keyframes, "concat_mask": given_last_frame}


def guide_entry(strength: float, mask: Tensor | None = None) -> dict[str, Any]:
    """What the host's guide nodes say of the guide."""
    entry = {"strength": strength, "pixel_mask": mask, "latent_shape": [1, 4, 5], "pre_filter_count": 20}
    return {"guide_attention_entries": [entry]}


def left_half() -> Tensor:
    mask = torch.zeros(1, 1, 1, 128, 160)
    mask[..., :80] = 1.0
    return mask


def keyframes() -> Tensor:
    """Where the guide's tokens stand in the film: [1, 3 axes, tokens, first and last + 1], in pixels."""
    places = torch.zeros(1, 3, 20, 2)
    places[:, 0, :, 1] = 1
    places[:, 1, :, 0], places[:, 2, :, 0] = torch.arange(20) // 5 * 32, torch.arange(20) % 5 * 32
    places[:, 1:, :, 1] = places[:, 1:, :, 0] + 32
    return places


def given_last_frame(frames: int = 4) -> Tensor:
    """The noise mask that the host's nodes leave beside a guide: its frame is not to be denoised."""
    mask = torch.ones(1, 1, frames, 4, 5)
    mask[:, :, -1] = 0.0
    return mask


def text_mask() -> Tensor:
    """The last three tokens of the text are padding."""
    return torch.tensor([[1] * (TEXT - 3) + [0] * 3])
