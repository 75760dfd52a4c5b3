"""Tiny models with long films: what of their conditions has one entry for each frame, and its part of a window."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from dense_reference import CALLS, Calls
from native_models import TinyModel, tiny
from torch import Tensor

# Conditions with frames: their size, and the axis of the frames; -1 is where it goes.
CONDITIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "cogvideox_image": {"concat_latent_image": (1, 16, -1, 8, 12)},
    "cogvideox15_odd": {"concat_latent_image": (1, 32, -1, 8, 12)},
    "hunyuan15_vision": {"concat_latent_image": (1, 32, -1, 4, 6), "concat_mask": (1, 1, -1, 4, 6)},
    "hunyuan15_image": {"concat_latent_image": (1, 32, -1, 4, 6), "concat_mask": (1, 1, -1, 4, 6)},
    "hunyuan15_sr": {"concat_latent_image": (1, 66, -1, 4, 6)},
    "kandinsky5_image": {"concat_mask": (1, 1, -1, 8, 12)},
    "wan_image": {"concat_latent_image": (1, 16, -1, 8, 12), "concat_mask": (1, 4, -1, 8, 12)},
    "wan_camera": {"concat_latent_image": (1, 16, -1, 8, 12), "camera_conditions": (1, 24, -1, 64, 96)},
    "wan_vace": {"vace_frames": (1, 32, -1, 8, 12)},
    "wan_vace_reference": {"vace_frames": (1, 32, -1, 8, 12)},
    "wan_animate": {"concat_latent_image": (1, 16, -1, 8, 12), "concat_mask": (1, 4, -1, 8, 12)},
    "wan_humo": {"audio_embed": (1, -1, 8, 5, 1280)},
    "wan_animate2": {"concat_latent_image": (1, 16, -1, 8, 12), "pose_video_latent": (1, 16, -1, 8, 12)},
    "wan_animate2_still": {"concat_latent_image": (1, 16, -1, 8, 12)},
    "wan_scail": {"pose_video_latent": (1, 16, -1, 4, 6)},
    "wan_scail2": {
        "pose_video_latent": (1, 16, -1, 4, 6),
        "driving_mask_28ch": (1, -1, 28, 4, 6),
        "ref_mask_28ch": (1, -1, 28, 8, 12),
    },
}
# How many frames more these have than the latents; their part of a window is the beginning.
MORE_FRAMES = {("wan_animate2", "pose_video_latent"): -1, ("wan_scail2", "ref_mask_28ch"): 2}
# The network lays the first frame's picture over the first frame of every window.
LAID_OVER = {"kandinsky5_image"}
# Tokens of a pose film behind the film, for each frame.
POSE_TOKENS = {"wan_scail": 6, "wan_scail2": 6}


def with_film(name: str, frames: int, window: Sequence[int] | None = None) -> TinyModel:
    """The tiny model with conditions for a film of so many latent frames, or for some frames of it alone."""
    extras: dict[str, Any] = dict(tiny(name).extras)
    here = list(range(frames) if window is None else window)
    for number, (key, size) in enumerate(CONDITIONS.get(name, {}).items()):
        more = MORE_FRAMES.get((name, key), 0)
        picked = list(range(len(here) + more)) if more else here
        whole = _frames(name, [frames + more if length == -1 else length for length in size], number)
        extras[key] = whole.index_select(size.index(-1), torch.tensor(picked))
        if key == "vace_frames":
            extras[key] = [extras[key]]
    return replace(tiny(name), extras=extras)


def film_part(name: str, window: Sequence[int]) -> tuple[list[int], Calls]:
    """Which frames of the film stand in a window of latent frames, and the attention calls of a film of just these."""
    leading = CALLS[name].leading
    here = [frame - leading for frame in window if frame >= leading]
    if name in LAID_OVER:
        here[0] = 0
    calls = replace(CALLS[name], frames=-(-len(here) // CALLS[name].span))
    if calls.clip:
        calls = replace(calls, clip=len(here))
    if name in POSE_TOKENS:
        calls = replace(calls, after=POSE_TOKENS[name] * len(here))
    if leading and len(here) == len(window):
        # The reference picture is not in this window, and none of its tokens.
        calls = replace(calls, before=0, leading=0)
    return here, calls


def _frames(name: str, size: list[int], number: int) -> Tensor:
    """Random, but for VACE's reference picture: the second half of its control is nothing."""
    found = torch.randn(size, generator=torch.Generator().manual_seed(11 + number))
    if name == "wan_vace_reference":
        latent_format = importlib.import_module("comfy.latent_formats").Wan21()
        found[:, 16:, :1] = latent_format.process_out(torch.zeros(1, 16, 1, 8, 12))
    return found
