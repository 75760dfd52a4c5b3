"""Tiny models of the Wan family, one for each way in which its tokens lie."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tiny_model import TinyModel, build
from torch import Tensor

WAN = {
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": 32,
    "freq_dim": 16,
    "in_dim": 16,
    "out_dim": 16,
    "patch_size": (1, 2, 2),
}
WAN_LATENTS = (1, 16, 3, 8, 12)


def wan() -> TinyModel:
    return TinyModel("wan", partial(build, "WAN21_T2V", WAN), WAN_LATENTS, 32)


def wan_odd() -> TinyModel:
    """Latents that are no multiple of the patch."""
    return TinyModel("wan_odd", partial(build, "WAN21_T2V", WAN), (1, 16, 3, 7, 11), 32)


def picture() -> Any:
    """What a picture encoder makes of a picture."""
    output = importlib.import_module("comfy.clip_vision").Output()
    output["penultimate_hidden_states"] = torch.randn(1, 9, 1280, generator=torch.Generator().manual_seed(5))
    return output


def wan_image() -> TinyModel:
    """Image to video: a cross-attention with a picture's tokens beside the one with the text."""

    make = partial(build, "WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36})
    return TinyModel("wan_image", make, WAN_LATENTS, 32, extras={"clip_vision_output": picture})


def wan_reference() -> TinyModel:
    """Fun control's reference picture, whose tokens stand before the film's."""
    make = partial(build, "WAN21_T2V", {**WAN, "in_dim_ref_conv": 16})
    reference = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(6))
    return TinyModel("wan_reference", make, WAN_LATENTS, 32, extras={"reference_latents": [reference]})


def wan_vace() -> TinyModel:
    make = partial(build, "WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96})
    return TinyModel("wan_vace", make, WAN_LATENTS, 32)


def wan_vace_reference() -> TinyModel:
    """VACE's reference picture is the first frame of the latents; the second half of its control is nothing."""

    def controls() -> list[Tensor]:
        latent_format = importlib.import_module("comfy.latent_formats").Wan21()
        control = torch.randn(1, 32, 4, 8, 12, generator=torch.Generator().manual_seed(8))
        control[:, 16:, :1] = latent_format.process_out(torch.zeros(1, 16, 1, 8, 12))
        return [control]

    make = partial(build, "WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96})
    return TinyModel("wan_vace_reference", make, (1, 16, 4, 8, 12), 32, extras={"vace_frames": controls})


def wan_camera() -> TinyModel:
    """Camera control, with a picture."""
    make = partial(build, "WAN21_Camera", {**WAN, "model_type": "camera", "in_dim": 32})
    return TinyModel("wan_camera", make, WAN_LATENTS, 32, extras={"clip_vision_output": picture})


def wan_humo() -> TinyModel:
    """A third attention in each block, with sound; the reference picture's tokens stand after the film's."""
    generator = torch.Generator().manual_seed(8)
    sound = torch.randn(1, 3, 8, 5, 1280, generator=generator)
    reference = torch.randn(1, 16, 1, 8, 12, generator=generator)
    make = partial(build, "WAN21_HuMo", {**WAN, "model_type": "humo"})
    extras = {"audio_embed": sound, "reference_latents": [reference]}
    return TinyModel("wan_humo", make, WAN_LATENTS, 32, extras=extras)


def wan_animate() -> TinyModel:
    """The first frame of the latents is a reference picture."""
    frames = torch.randn(1, 16, 4, 8, 12, generator=torch.Generator().manual_seed(9))
    extras = {
        "clip_vision_output": picture,
        "concat_latent_image": frames,
        "concat_mask": torch.ones(1, 4, 4, 8, 12),
    }
    make = partial(build, "WAN22_Animate", {**WAN, "model_type": "animate", "in_dim": 36, "num_layers": 5})
    return TinyModel("wan_animate", make, (1, 16, 4, 8, 12), 32, extras=extras)


def noise(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def wan_animate2() -> TinyModel:
    """A pose film beside the film: each frame meets all frames and its own of the pose."""
    make = partial(build, "WAN_Animate2", {**WAN, "model_type": "animate2", "in_dim": 36})
    extras = {
        "clip_vision_output": picture,
        "concat_latent_image": noise(9, 1, 16, 4, 8, 12),
        "pose_video_latent": noise(10, 1, 16, 3, 8, 12),
    }
    return TinyModel("wan_animate2", make, (1, 16, 4, 8, 12), 32, extras=extras)


def wan_animate2_still() -> TinyModel:
    """Outside of the steps that a pose acts in, the whole clip asks at once."""
    extras = {name: value for name, value in wan_animate2().extras.items() if name != "pose_video_latent"}
    return replace(wan_animate2(), name="wan_animate2_still", extras=extras)


def wan_scail() -> TinyModel:
    """A reference picture before the film, which is no frame of the latents, and a smaller pose film after it."""
    make = partial(build, "WAN21_SCAIL", {**WAN, "model_type": "scail", "in_dim": 20})
    extras = {
        "clip_vision_output": picture,
        "reference_latents": [noise(6, 1, 16, 1, 8, 12)],
        "pose_video_latent": noise(7, 1, 16, 3, 4, 6),
    }
    return TinyModel("wan_scail", make, WAN_LATENTS, 32, extras=extras)


def wan_scail2() -> TinyModel:
    """Two references, and masks of the persons in a stream of their own."""
    make = partial(build, "WAN21_SCAIL2", {**WAN, "model_type": "scail2", "in_dim": 20})
    extras = {
        **wan_scail().extras,
        "reference_latents": [noise(6, 1, 16, 1, 8, 12), noise(8, 1, 16, 1, 8, 12)],
        "driving_mask_28ch": noise(11, 1, 3, 28, 4, 6),
        "ref_mask_28ch": noise(12, 1, 5, 28, 8, 12),
    }
    return TinyModel("wan_scail2", make, WAN_LATENTS, 32, extras=extras)


def wan_speech() -> TinyModel:
    """Speech to video, with a reference picture and the frames before the clip, both after the film."""
    sizes = {"audio_inject_layers": [0], "audio_dim": 32, "cond_dim": 16}
    extras = {
        "audio_embed": noise(8, 1, 25, 32, 12),
        "reference_latents": [noise(6, 1, 16, 1, 8, 12)],
        "reference_motion": noise(7, 1, 16, 19, 8, 16),
    }
    make = partial(build, "WAN22_S2V", {**WAN, "model_type": "s2v", **sizes})
    return TinyModel("wan_speech", make, WAN_LATENTS, 32, extras=extras)


def wan_dancer() -> TinyModel:
    """Music, and two pictures before the text."""
    sizes = {"music_dim": 32, "music_heads": 2, "music_feature_dim": 35, "music_latent_dim": 32}
    sizes = {**WAN, "model_type": "wandancer", "in_dim": 36, "audio_inject_layers": [0], **sizes}
    extras = {"clip_vision_output": picture, "clip_vision_output_ref": picture, "audio_embed": noise(8, 1, 9, 35)}
    return TinyModel("wan_dancer", partial(build, "WAN22_WanDancer", sizes), WAN_LATENTS, 32, extras=extras)


def wan_bernini() -> TinyModel:
    """A source film and a smaller reference picture after the film's tokens."""

    def make() -> Any:
        if importlib.util.find_spec("comfy_extras.nodes_bernini") is None:
            pytest.skip("this ComfyUI gives Wan no context latents")
        return build("WAN21_T2V", WAN)

    extras = {"context_latents": [noise(6, 1, 16, 3, 8, 12), noise(7, 1, 16, 1, 4, 8)]}
    return TinyModel("wan_bernini", make, WAN_LATENTS, 32, extras=extras)


def wan_camera22() -> TinyModel:
    """Camera control of Wan 2.2, which reads no picture."""
    make = partial(build, "WAN22_Camera", {**WAN, "model_type": "camera_2.2", "in_dim": 36})
    return TinyModel("wan_camera22", make, WAN_LATENTS, 32)


def wan_small() -> TinyModel:
    """Wan 2.2's 5B kind: 48 channels."""
    make = partial(build, "WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48})
    return TinyModel("wan_5b", make, (1, 48, 3, 8, 12), 32)
