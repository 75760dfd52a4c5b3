"""The second pass: make the video again, guided by what was found in the first."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention_patches.checks import check_shape
from ..attention_patches.guidance.regions import pool_time
from ..attention_patches.latent_time import LatentTime
from ..backbones.nested_latents import with_video, zeros_like
from ..backbones.registry import latent_time_of
from ..host.sampling.comfy_sampling import SamplerSettings, checked_latents, sample_film
from ..video_models.sampling.background_lock import lock_mask
from .support.inputs import decimal_input, masks_of
from .support.object_inputs import given_mask, mask_or_objects_input
from .support.types import CATEGORY, SEED_RANGE
from .video import SeededVideoNoise, sampling_inputs

MODES = ("same_noise", "fresh", "refine")


class Regenerate(io.ComfyNode):
    """MGV_Regenerate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_Regenerate",
            display_name="Regenerate",
            category=f"{CATEGORY}/video",
            description=(
                "Makes the video again with a guided model. same_noise keeps the layout of the first video, so that "
                "its masks fit the second; refine starts from the first video itself; fresh draws new noise (the masks "
                "then belong to another video). The background can be locked to the first video."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The guided model, from Patch Attention."),
                io.Conditioning.Input(
                    "positive", tooltip="What the video should show; usually that of the first video."
                ),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Noise.Input("noise", tooltip="The noise of the first video. Used by same_noise."),
                io.Latent.Input(
                    "latent", tooltip="The first video's latents: size for all modes, content for refine and the lock."
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="same_noise",
                    tooltip="same_noise: the first video's noise. refine: the first video, noised again by strength. "
                    "fresh: new noise alone.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    control_after_generate=True,
                    tooltip="fresh and refine: seed of the new noise.",
                    **SEED_RANGE,
                ),
                *sampling_inputs(),
                decimal_input(
                    "strength",
                    0.6,
                    "refine: how much may change. 0: nothing, the first video comes back; 1: all, as fresh.",
                ),
                *_lock_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The second video's latents, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        noise: Any,
        latent: dict[str, Any],
        mode: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        strength: float,
        background_lock: bool,
        lock_grow: int,
        lock_blur: int,
        mask: Any = None,
    ) -> io.NodeOutput:
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}.")
        samples = checked_latents(latent)
        kept = mode == "refine" or background_lock
        start = {**latent, "samples": latent["samples"] if kept else zeros_like(latent["samples"])}
        start.pop("noise_mask", None)
        if background_lock:
            # Sound is of what stays.
            region = free_region(given_mask(mask), samples, lock_grow, lock_blur, latent_time_of(model))
            start["noise_mask"] = with_video(zeros_like(latent["samples"]), region)
        if mode != "same_noise":
            noise = SeededVideoNoise(seed, "plain", 16, 4, 0.0)
        settings = SamplerSettings(steps, cfg, sampler_name, scheduler, strength if mode == "refine" else 1.0)
        result = sample_film(model, positive, negative, noise, start, settings)
        result.pop("noise_mask", None)
        return io.NodeOutput(result)


def _lock_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "background_lock",
            default=False,
            tooltip="On: outside of the mask the video keeps the first video's latents. Needs mask.",
        ),
        mask_or_objects_input(
            "mask", "What may change when the background is locked: one mask per frame, or one for all."
        ),
        io.Int.Input(
            "lock_grow",
            default=1,
            min=0,
            max=32,
            tooltip="Latent cells by which the free region grows beyond the mask. 0: exactly the mask.",
        ),
        io.Int.Input(
            "lock_blur",
            default=1,
            min=0,
            max=32,
            tooltip="Latent cells over which the lock fades in. 0: a hard border.",
        ),
    ]


def free_region(
    mask: Tensor | None, samples: Tensor, grow: int, blur: int, latent_time: LatentTime | None = None
) -> Tensor:
    """Where a locked video may change: [1, 1, T, h, w].

    Raises:
        ValueError: no mask, an empty one, another number of masks than frames, or masks of quite another shape.
    """
    if mask is None:
        raise ValueError("background_lock is on but no mask is connected; connect the mask of what may change.")
    masks = masks_of(mask)
    if not bool((masks > 0.5).any()):
        raise ValueError("background_lock is on but the mask is empty: nothing could change; turn the lock off.")
    frames, height, width = samples.shape[2:]
    check_shape("the masks are", masks.shape[1:], (height, width), "video's latents")
    return lock_mask(pool_time(masks[None], frames, latent_time=latent_time)[0], height, width, grow, blur)
