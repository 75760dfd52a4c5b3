"""LaVie-shaped U-Nets as native ComfyUI models.

The U-Net makes its own attention sites (see ``video_models/lavie_layers.py``), so this module only tells ComfyUI what
it needs to know: layers from ``comfy.ops``, the host's attention function, latent format and noise schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..video_models.lavie_config import LaVieConfig
from ..video_models.lavie_files import check_unet_state
from ..video_models.lavie_sites import transformer_places
from ..video_models.lavie_unet import LaVieUNet
from .family import Family, ModelCall, TokenGrid

# Stable Diffusion 1's latents, which LaVie shares; from ComfyUI's SD15 latent format.
STABLE_DIFFUSION_SCALE = 0.18215


class LaVie(Family):
    """LaVie-shaped models: per-frame and temporal self-attention, cross-attention; the U-Net makes its own sites."""

    name = "LaVie"
    time_factor = 1
    trained_frames = 16
    encoders = ("t5", "l")
    finds_sites = False

    def fits(self, network: Any) -> bool:
        return isinstance(network, LaVieUNet)

    def block_names(self, network: LaVieUNet) -> list[str]:
        return [place.name for place in transformer_places(network.config)]

    def native_frames(self, network: LaVieUNet) -> int:
        return network.config.native_frames

    def grids(self, network: LaVieUNet, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        frames, height, width = latents[2:]
        found = []
        for level, attends in enumerate(network.config.attention_levels):
            # The middle block attends at the coarsest level whether or not that level does.
            if attends or level == len(network.config.attention_levels) - 1:
                found.append(TokenGrid(level, frames, height, width, (height, width)))
            height, width = (height + 1) // 2, (width + 1) // 2
        return found

    def prepare(self, network: LaVieUNet, call: ModelCall, options: dict[str, Any], markers: Any) -> None:
        """Nothing to do: the network makes its sites of the options that every call has."""


@dataclass(frozen=True)
class LatentScaling:
    """How raw VAE latents become what the U-Net sees: ``(raw - shift) * scale``, and how to draw them as colours.

    Attributes:
        scale, shift: scalars of the VAE's config.
        rgb_factors: one (red, green, blue) row per latent channel, acting on scaled latents, for previews in -1..1.
        rgb_bias: added to them.
    """

    scale: float = STABLE_DIFFUSION_SCALE
    shift: float = 0.0
    rgb_factors: Sequence[Sequence[float]] | None = None
    rgb_bias: Sequence[float] | None = None


@cache
def native_classes() -> dict[str, type]:
    """ComfyUI's base classes, specialised; made on first use, since ComfyUI may be absent."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models_base

    class LaVieLatents(comfy.latent_formats.LatentFormat):
        """[B, 4, T, h, w] latents."""

        latent_channels = 4
        latent_dimensions = 3

        def __init__(self, scaling: LatentScaling | None = None) -> None:
            scaling = scaling or LatentScaling()
            self.scale_factor = scaling.scale
            self.shift_factor = scaling.shift
            self.latent_rgb_factors = scaling.rgb_factors
            self.latent_rgb_factors_bias = scaling.rgb_bias

        def process_in(self, latent: Tensor) -> Tensor:
            return (latent - self.shift_factor) * self.scale_factor

        def process_out(self, latent: Tensor) -> Tensor:
            return latent / self.scale_factor + self.shift_factor

    class LaVieVideo(comfy.model_base.BaseModel):
        """ComfyUI's model around the U-Net."""

        def __init__(self, model_config: Any, model_type: Any, device: Any = None) -> None:
            super().__init__(model_config, model_type, device=device, unet_model=LaVieUNet)

    class LaVieModelConfig(comfy.supported_models_base.BASE):
        """What ComfyUI asks of a supported model; ``unet_config`` holds the U-Net's constructor arguments."""

        unet_extra_config: dict[str, Any] = {}
        latent_format = LaVieLatents
        supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]

        def __init__(self, config: LaVieConfig, scaling: LatentScaling) -> None:
            from comfy.ldm.modules.attention import optimized_attention

            super().__init__({"config": config, "attention_function": optimized_attention})
            self.latent_format = LaVieLatents(scaling)
            self.prediction_type = config.prediction_type
            # "sqrt_linear" is ComfyUI's name for betas that are linear themselves.
            self.sampling_settings = {
                "beta_schedule": "sqrt_linear",
                "linear_start": config.beta_start,
                "linear_end": config.beta_end,
                "timesteps": config.num_train_timesteps,
            }
            self.memory_usage_factor = 2.0 * config.block_out_channels[0] / 320

        def inpaint_model(self) -> bool:
            return False

        def model_type(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> Any:
            kinds = comfy.model_base.ModelType
            return kinds.V_PREDICTION if self.prediction_type == "v_prediction" else kinds.EPS

        def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: Any = None) -> Any:
            return LaVieVideo(self, self.model_type(state_dict, prefix), device=device)

    return {"latents": LaVieLatents, "model": LaVieVideo, "config": LaVieModelConfig}


def native_model(state: Mapping[str, Tensor], config: LaVieConfig, scaling: LatentScaling | None = None) -> Any:
    """Build a ComfyUI ``ModelPatcher`` around a LaVie-shaped U-Net.

    Args:
        state: the U-Net's tensors by its own names (``unet_state``).
        config: its sizes and schedule.
        scaling: of its latents; Stable Diffusion 1's when left out.

    Returns:
        ``comfy.model_patcher.ModelPatcher``, weights in the type the host chooses for the device.

    Raises:
        ValueError: if tensors are missing, unknown or of another shape.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.utils

    check_unet_state(state, config)
    model_config = native_classes()["config"](config, scaling or LatentScaling())
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
