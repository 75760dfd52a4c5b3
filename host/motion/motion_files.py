"""Motion files on a ComfyUI MODEL, as patches of its weights; and a network of its own to tune, out of a MODEL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backbones.registry import diffusion_model
from ...video_models.lavie.unet import LaVieUNet
from ...video_models.motion.lora import lora_updates
from ...video_models.motion.motion_files import MotionFile, check_base
from .lamp import apply_lamp

PREFIX = "diffusion_model."


def own_weights(model: Any) -> dict[str, Tensor]:
    """The weights of a MODEL's network by its own names, without the patches that may be in them at the moment.

    Args:
        model: ComfyUI ``ModelPatcher``.
    """
    held = model.model_state_dict(PREFIX)
    # Where patches are in the weights, the host keeps the weights as they were.
    return {
        name.removeprefix(PREFIX): model.backup[name].weight if name in model.backup else value
        for name, value in held.items()
    }


def apply_motion(model: Any, motion: MotionFile, strength: float = 1.0, any_base: bool = False) -> Any:
    """A clone of a MODEL with a motion file in it; the given one stays as it is.

    Args:
        model: ComfyUI ``ModelPatcher`` of the model that the file was tuned on.
        motion: the file.
        strength: 0 gives a clone without patches, 1 is as tuned.
        any_base: see ``video_models.motion_files.check_base``.

    Raises:
        ValueError: it belongs to another model, or its tensors do not fit.
    """
    check_base(motion, own_weights(model), any_base)
    if motion.info.kind == "lamp":
        return apply_lamp(model, motion.tensors, strength, motion.name)
    patched = model.clone()
    if strength == 0.0:
        return patched
    weights = {name: f"{PREFIX}{name}.weight" for name in lora_updates(motion.tensors)}
    held = model.model_state_dict(PREFIX)
    missing = [name for name, weight in weights.items() if weight not in held]
    if missing:
        raise ValueError(
            f"{motion.name} changes the layer {missing[0]}, which this model lacks; it is another model's."
        )
    patched.add_patches(_host_patches(motion.tensors, weights), strength)
    return patched


def _host_patches(tensors: Any, weights: dict[str, str]) -> dict[str, Any]:
    """The host's own form of LoRA patches, by the full names of the weights."""
    import comfy.lora

    return comfy.lora.load_lora(dict(tensors), {PREFIX + name: weight for name, weight in weights.items()})


def trainable_unet(model: Any) -> LaVieUNet:
    """A network of its own with a MODEL's weights in float32 on the CPU, in layers that can be learned through.

    The host's layers may live in inference mode and move between devices while they compute; these do neither.

    Raises:
        ValueError: a model of another family, or one with patches on its weights, which would be left out.
    """
    network = diffusion_model(model)
    if not isinstance(network, LaVieUNet) or network.config.stage != "base":
        raise ValueError(
            f"motion cannot be tuned on {type(network).__name__} here; connect the Toybox or LaVie's base model of "
            "Load Video Model."
        )
    if model.patches:
        raise ValueError(
            "the model has LoRA or motion patches on its weights, which tuning would leave out; connect the model as "
            "it is loaded."
        )
    copied = LaVieUNet(network.config, dtype=torch.float32, device="cpu")
    state = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in own_weights(model).items()}
    copied.load_state_dict(
        {name: value for name, value in state.items() if not name.endswith("rotary_emb.freqs")}, strict=False
    )
    return copied.eval().requires_grad_(False)
