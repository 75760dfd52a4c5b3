"""The Toybox's joint text-to-video transformer as a native ComfyUI model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor

from ...video_models.joint.config import JointConfig
from ...video_models.joint.transformer import JointVideoTransformer
from .lavie_models import LatentScaling, model_patcher, native_classes


@cache
def joint_classes() -> dict[str, type]:
    """ComfyUI's base classes, specialised; made on first use, since ComfyUI may be absent."""
    import comfy.model_base

    class JointVideo(comfy.model_base.BaseModel):
        """ComfyUI's model around the transformer."""

        def __init__(self, model_config: Any, model_type: Any, device: Any = None) -> None:
            super().__init__(model_config, model_type, device=device, unet_model=JointVideoTransformer)

        def resize_cond_for_context_window(
            self, name: str, value: Any, window: Any, x: Tensor, *_: Any, **__: Any
        ) -> Any:
            # ComfyUI takes an axis that is as long as the clip for its frames; here only videos have any.
            tensor = getattr(value, "cond", None)
            return value if isinstance(tensor, Tensor) and tensor.ndim < x.ndim else None

        def extra_conds(self, **given: Any) -> dict[str, Any]:
            text, wanted = given.get("cross_attn"), self.diffusion_model.config.text_channels
            if text is not None and text.shape[-1] != wanted:
                raise ValueError(
                    f"the prompt was encoded with {text.shape[-1]} channels but this model reads {wanted}; connect the "
                    "CLIP that was loaded with it."
                )
            return super().extra_conds(**given)

    class JointModelConfig(native_classes()["config"]):  # type: ignore[misc]
        """As LaVie's, around the other network."""

        def token_channels(self, config: JointConfig) -> int:
            return config.width

        def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: Any = None) -> Any:
            return JointVideo(self, self.model_type(state_dict, prefix), device=device)

    return {"model": JointVideo, "config": JointModelConfig}


def native_joint_model(state: Mapping[str, Tensor], config: JointConfig, scaling: LatentScaling) -> Any:
    """Build a ComfyUI ``ModelPatcher`` around the transformer.

    Args:
        state: its tensors, checked against the config (``joint_state``).
        config: sizes and schedule.
        scaling: of its latents.
    """
    return model_patcher(joint_classes()["config"](config, scaling), state)
