"""LaVie's three U-Nets as native ComfyUI models.

The U-Nets bring structure and attention sites; ComfyUI is told here what it needs to know: layers from ``comfy.ops``,
the host's attention function, latent format, noise schedule, and how conditions become inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...video_models.lavie.config import LaVieConfig, UpscalerConfig
from ...video_models.lavie.files import check_unet_state, make_unet
from ...video_models.upscaling import noised_pictures
from .lavie_conditions import FRAMES_KEY, LATENTS_KEY, NOISE_LEVEL_KEY, check_conditions

# ComfyUI calls "linear" what others call scaled_linear: square roots of betas that are linear.
HOST_SCHEDULES = {"linear": "sqrt_linear", "scaled_linear": "linear"}


@dataclass(frozen=True)
class LatentScaling:
    """How raw VAE latents become what the U-Net sees: ``(raw - shift) * scale``, and how to draw them as colours.

    Attributes:
        scale, shift: scalars of the VAE's config.
        rgb_factors: one (red, green, blue) row per latent channel, acting on scaled latents, for previews in -1..1.
        rgb_bias: added to them.
    """

    scale: float
    shift: float = 0.0
    rgb_factors: Sequence[Sequence[float]] | None = None
    rgb_bias: Sequence[float] | None = None


def published_scaling(config: LaVieConfig | UpscalerConfig) -> LatentScaling:
    """The scaling of the VAE that a stage was trained with, and ComfyUI's preview colours for it."""
    from comfy import latent_formats

    known = latent_formats.SD_X4() if config.stage == "upscaling" else latent_formats.SD15()
    return LatentScaling(known.scale_factor, rgb_factors=known.latent_rgb_factors)


@cache
def native_classes() -> dict[str, type]:
    """ComfyUI's base classes, specialised; made on first use, since ComfyUI may be absent."""
    import comfy.conds
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models_base

    class LaVieLatents(comfy.latent_formats.LatentFormat):
        """[B, 4, T, h, w] latents."""

        latent_channels = 4
        latent_dimensions = 3

        def __init__(self, scaling: LatentScaling) -> None:
            self.scale_factor = scaling.scale
            self.shift_factor = scaling.shift
            self.latent_rgb_factors = scaling.rgb_factors
            self.latent_rgb_factors_bias = scaling.rgb_bias

        def process_in(self, latent: Tensor) -> Tensor:
            return (latent - self.shift_factor) * self.scale_factor

        def process_out(self, latent: Tensor) -> Tensor:
            return latent / self.scale_factor + self.shift_factor

    class LaVieVideo(comfy.model_base.BaseModel):
        """ComfyUI's model around one of the U-Nets."""

        def __init__(self, model_config: Any, model_type: Any, device: Any = None) -> None:
            super().__init__(model_config, model_type, device=device, unet_model=make_unet)

        def resize_cond_for_context_window(
            self, name: str, value: Any, window: Any, x: Tensor, *_: Any, **__: Any
        ) -> Any:
            # ComfyUI takes an axis that is as long as the clip for its frames; here only videos have any.
            tensor = getattr(value, "cond", None)
            return value if isinstance(tensor, Tensor) and tensor.ndim < x.ndim else None

        def extra_conds(self, **given: Any) -> dict[str, Any]:
            config = self.diffusion_model.config
            check_conditions(config, given)
            found = super().extra_conds(**given)
            if config.stage == "interpolation":
                latents = self.process_latent_in(given[LATENTS_KEY].to(given["device"]))
                found["c_concat"] = comfy.conds.CONDNoiseShape(latents)
            elif config.stage == "upscaling":
                level = given[NOISE_LEVEL_KEY]
                pictures = noised_pictures(given[FRAMES_KEY], level, given.get("seed") or 0, config)
                found["c_concat"] = comfy.conds.CONDNoiseShape(pictures.to(given["device"]))
                found["class_labels"] = comfy.conds.CONDRegular(torch.tensor([level], device=given["device"]))
            return found

    class LaVieModelConfig(comfy.supported_models_base.BASE):
        """What ComfyUI needs of a supported model; ``unet_config`` holds the U-Net's constructor arguments."""

        unet_extra_config: dict[str, Any] = {}
        latent_format = comfy.latent_formats.LatentFormat
        supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]

        def __init__(self, config: LaVieConfig | UpscalerConfig, scaling: LatentScaling) -> None:
            from comfy.ldm.modules.attention import optimized_attention

            super().__init__({"config": config, "attention_function": optimized_attention})
            self.latent_format = LaVieLatents(scaling)
            self.prediction_type = config.prediction_type
            self.sampling_settings = {
                "beta_schedule": HOST_SCHEDULES[config.beta_schedule],
                "linear_start": config.beta_start,
                "linear_end": config.beta_end,
                "timesteps": config.num_train_timesteps,
            }
            self.memory_usage_factor = 2.0 * self.token_channels(config) / 320

        def token_channels(self, config: Any) -> int:
            """Channels at the finest level."""
            return config.block_out_channels[0]

        def inpaint_model(self) -> bool:
            return False

        def model_type(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> Any:
            kinds = comfy.model_base.ModelType
            return kinds.V_PREDICTION if self.prediction_type == "v_prediction" else kinds.EPS

        def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: Any = None) -> Any:
            return LaVieVideo(self, self.model_type(state_dict, prefix), device=device)

    return {"latents": LaVieLatents, "model": LaVieVideo, "config": LaVieModelConfig}


def native_model(
    state: Mapping[str, Tensor], config: LaVieConfig | UpscalerConfig, scaling: LatentScaling | None = None
) -> Any:
    """Build a ComfyUI ``ModelPatcher`` around one of LaVie's U-Nets.

    Args:
        state: the U-Net's tensors by its own names (``unet_state``).
        config: its stage, sizes and schedule.
        scaling: of its latents; that of the VAE the stage was trained with when left out.

    Returns:
        ``comfy.model_patcher.ModelPatcher``, weights in the type the host chooses for the device.

    Raises:
        ValueError: if tensors are missing, unknown or of another shape.
    """
    check_unet_state(state, config)
    return model_patcher(native_classes()["config"](config, scaling or published_scaling(config)), state)


def model_patcher(model_config: Any, state: Mapping[str, Tensor]) -> Any:
    """Build the model of a config with these tensors, in the type that the host chooses for the device.

    Args:
        model_config: one of ComfyUI's ``supported_models_base.BASE``.
        state: all tensors of the network, by its own names.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.utils

    load_device = management.get_torch_device()
    parameters = comfy.utils.calculate_parameters(state)
    dtype = management.unet_dtype(
        model_params=parameters, supported_dtypes=model_config.supported_inference_dtypes, weight_dtype=_dtype_of(state)
    )
    cast = management.unet_manual_cast(dtype, load_device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(dtype, cast)
    model = model_config.get_model(state)
    model.diffusion_model.load_state_dict(dict(state), strict=False)
    model.diffusion_model.eval()
    offload_device = management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model.to(offload_device), load_device, offload_device)


def _dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    return next(iter(state.values())).dtype
