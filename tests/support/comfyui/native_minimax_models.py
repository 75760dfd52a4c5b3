"""Tiny models of MiniMax H3 with random weights, one for each way in which its tokens lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tiny_model import TEXT, TinyModel, build
from torch import Tensor

MINIMAX = {
    "hidden_size": 64,
    "num_layers": 2,
    "token_refiner_num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 96,
    "ffn_hidden_size": 64,
    "text_dim": 32,
    "timestep_input_dim": 16,
    "time_embed_hidden_size": 32,
    "time_embed_dim": 32,
    "rope_inv_freq_len": 16,
}
# 22 frames of video, 9 of sound in two channels.
FILM, SOUND = (1, 24, 7, 8, 12), (1, 32, 2, 9)


def build_minimax(**settings: Any) -> Any:
    """MiniMax H3 with the wave lengths of its positions, and the table of times of some, which are of its weights."""
    patcher = build("MiniMaxH3", {**MINIMAX, **settings})
    network = patcher.model.diffusion_model
    waves = network.rope.inv_freq
    waves.copy_(10000.0 ** (-torch.arange(len(waves)) / len(waves)))
    if network.use_adaln_curves:
        network.adaln_t_table.copy_(random(*network.adaln_t_table.shape, seed=4))
    return patcher


def random(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def minimax_h3() -> TinyModel:
    return TinyModel("minimax_h3", build_minimax, FILM, 32, cfg=1.0, sound=SOUND)


def minimax_h3_odd() -> TinyModel:
    """Latents that are no multiple of the patch."""
    return replace(minimax_h3(), name="minimax_h3_odd", latents=(1, 24, 7, 7, 11))


def minimax_h3_keyframes() -> TinyModel:
    """A picture and two frames of sound at the beginning, a clip of two latent frames later."""
    keyframes = [
        {
            "resolved_frame_index": 0,
            "latent": random(1, 24, 1, 8, 12, seed=5),
            "audio_latent": random(1, 32, 2, 2, seed=6),
        },
        {"resolved_frame_index": 13, "latent": random(1, 24, 2, 8, 12, seed=7)},
    ]
    return replace(minimax_h3(), name="minimax_h3_keyframes", extras={"minimax_keyframes": keyframes})


def minimax_h3_references() -> TinyModel:
    """A picture, a video with its sound, and a sound; the first five rows of the text are of the picture."""
    references = [
        {"kind": "image", "latent_h": 4, "latent_w": 6, "latent": random(1, 24, 1, 4, 6, seed=5)},
        {
            "kind": "video_audio",
            "latent_t": 2,
            "latent_h": 4,
            "latent_w": 4,
            "ref_audio_t": 3,
            "latent": random(1, 24, 2, 4, 4, seed=6),
            "audio_latent": random(1, 32, 2, 3, seed=7),
        },
        {"kind": "audio", "ref_audio_t": 4, "audio_latent": random(1, 32, 2, 4, seed=8)},
    ]
    tags = torch.tensor([0] * 5 + [1] * (TEXT - 5))
    extras = {"minimax_refs": references, "minimax_token_tags": tags}
    return replace(minimax_h3(), name="minimax_h3_references", extras=extras)
