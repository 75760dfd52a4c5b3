"""Tiny models with latents of a film of several windows, with FreeLong, and FreeLong written out for them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from dense_reference import CALLS, Calls
from direct_free_long import DirectFreeLong
from native_ltx_models import given_last_frame
from native_models import TinyModel, tiny
from torch import Tensor

from mask_guided_video.attention_patches.free_long import OCTAVES, FreeLong
from mask_guided_video.host.sampling.long_clips import install_free_long

# Of the output's range, in single precision; and what FreeLong changes at least.
EXACT, CLEAR = 1e-4, 2e-3
FRAMES, WINDOW = 9, 4
SETTINGS = {
    "FreeLong": FreeLong(WINDOW, end_percent=1.0),
    "FreeLong++": FreeLong(WINDOW, end_percent=1.0, bands=OCTAVES),
    "half, every other key": FreeLong(WINDOW, end_percent=1.0, strength=0.5, key_stride=2),
    "windows alone": FreeLong(WINDOW, end_percent=0.0),
}
# Frames of the latents that are not of the film.
OTHER_FRAMES = {"ltx_guided": 1, "ltx_weak_guide": 1, "wan_vace_reference": 1}


def long_control() -> Tensor:
    """VACE's control film of ten frames, the first of which is a reference picture."""
    from comfy.latent_formats import Wan21

    control = torch.randn(1, 32, FRAMES + 1, 8, 12, generator=torch.Generator().manual_seed(8))
    control[:, 16:, :1] = Wan21().process_out(torch.zeros(1, 16, 1, 8, 12))
    return control


@cache
def long_model(name: str) -> TinyModel:
    """The tiny model with latents of a longer film."""
    model = tiny(name)
    latents = list(model.latents)
    latents[2] = FRAMES + OTHER_FRAMES.get(name, 0)
    extras = dict(model.extras)
    if name == "wan_vace_reference":
        extras["vace_frames"] = [long_control()]
    if "concat_mask" in extras:
        extras["concat_mask"] = given_last_frame(latents[2])
    return replace(model, latents=tuple(latents), extras=extras)


def calls_of(name: str) -> Calls:
    return replace(CALLS[name], frames=FRAMES)


def direct(name: str, settings: FreeLong, **changes: Any) -> DirectFreeLong:
    return DirectFreeLong(settings, calls_of(name), **changes)


def free_long(model: TinyModel, settings: FreeLong, patcher: Any = None) -> Any:
    return install_free_long(patcher or model.patcher, settings)
