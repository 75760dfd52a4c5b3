"""What LaVie's later stages are given beside the prompt, and the words for what is missing or does not fit.

The interpolation model sees the frames that are there, the upscaler the small video. Both travel in CONDITIONING, as
ComfyUI's own image conditions do, so that every core sampler works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...backbones.registry import diffusion_model
from ...video_models.lavie.config import LaVieConfig, Stage, UpscalerConfig
from ...video_models.lavie.files import PUBLISHED_FILES, STAGE_NAMES, require_stage

# Keys in CONDITIONING. The latents have the host's own name; the stage says which node wrote the conditions.
STAGE_KEY = "lavie_stage"
LATENTS_KEY = "concat_latent_image"
FRAMES_KEY = "lavie_frames"
NOISE_LEVEL_KEY = "lavie_noise_level"

NODE_NAMES = {"interpolation": "Interpolate Video", "upscaling": "Upscale Video"}
# What LaVie's VAEs and text encoders come from.
PARTS_NAMES = {
    "base": "a Stable Diffusion 1.x checkpoint",
    "interpolation": "a Stable Diffusion 1.x checkpoint",
    "upscaling": "Stable Diffusion's x4 upscaler",
}

Config = LaVieConfig | UpscalerConfig


def require_lavie(model: Any, stage: Stage) -> Config:
    """The config of a ComfyUI model that must be a certain one of LaVie's.

    Raises:
        ValueError: it is another of LaVie's models, or none of them.
    """
    network = diffusion_model(model)
    config = getattr(network, "config", None)
    if not isinstance(config, Config):
        raise ValueError(
            f"{NODE_NAMES[stage]} works with LaVie's {STAGE_NAMES[stage]}, not with {type(network).__name__}; load "
            f"{PUBLISHED_FILES[stage]} with Load Video Model."
        )
    require_stage(config.stage, stage, "the model")
    return config


def check_conditions(config: Config, given: Mapping[str, Any]) -> None:
    """Make sure that conditions are those of the model that is sampled.

    Args:
        config: of the model.
        given: what ComfyUI hands to ``extra_conds``.

    Raises:
        ValueError: another stage's conditions, none where the stage needs some, a text encoder of other width, or
            latents of another size than the conditions.
    """
    stage, found = config.stage, given.get(STAGE_KEY, "base")
    if found != stage:
        if found == "base":
            raise ValueError(
                f"LaVie's {STAGE_NAMES[stage]} was sampled without a video; put {NODE_NAMES[stage]} between both "
                "prompts and the sampler."
            )
        raise ValueError(
            f"the conditions come from {NODE_NAMES[found]} but the model is LaVie's {STAGE_NAMES[stage]}; load "
            f"{PUBLISHED_FILES[found]}, or take the node out."
        )
    text = given.get("cross_attn")
    if text is not None and text.shape[-1] != config.cross_attention_dim:
        raise ValueError(
            f"the prompt was encoded with {text.shape[-1]} channels but LaVie's {STAGE_NAMES[stage]} reads "
            f"{config.cross_attention_dim}; connect the text encoder of {PARTS_NAMES[stage]}."
        )
    sampled = tuple(given["noise"].shape[2:])
    wanted = {"interpolation": _latent_size, "upscaling": _frames_size}[stage](given) if stage != "base" else sampled
    if wanted != sampled:
        raise ValueError(
            f"the video is for latents of {_words(wanted)} but {_words(sampled)} are sampled; connect the latent of "
            f"{NODE_NAMES[stage]}."
        )


def _latent_size(given: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(given[LATENTS_KEY].shape[2:])


def _frames_size(given: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(given[FRAMES_KEY].shape[:3])


def _words(size: tuple[int, ...]) -> str:
    frames, height, width = size
    return f"{frames} frames of {width} x {height}"
