"""LAMP's layers over time on a ComfyUI model: new layers as object patches, tuned weights as weight patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...backbones.registry import diffusion_model
from ...video_models.lavie.unet import LaVieUNet
from ...video_models.motion.lamp import (
    KEY_SOURCE,
    PREFIX,
    changed_parameters,
    check_tensors,
    fill_layers,
    key_source_places,
    new_layers,
)


def apply_lamp(model: Any, tensors: Mapping[str, Tensor], strength: float = 1.0, path: str = "the file") -> Any:
    """A clone of a model, tuned by a file of LAMP's kind; the given one stays as it is.

    Args:
        model: ComfyUI ``ModelPatcher`` around a U-Net of the LaVie family, such as Load Video Model gives.
        tensors: of the file, by the names that ``video_models/motion/lamp.py`` tells.
        strength: factor on all tensors that tuning changed; 0 gives a clone without patches.
        path: of the file, for errors.

    Raises:
        ValueError: it is another kind of model, has a file of this kind already, or the tensors do not belong to it.
    """
    import comfy.model_management as management
    import comfy.ops
    from comfy.ldm.modules.attention import optimized_attention

    network = diffusion_model(model)
    if not isinstance(network, LaVieUNet):
        raise ValueError(
            f"{path} holds LAMP's layers for LaVie, the Toybox or Stable Diffusion 1.x as a video model, not for "
            f"{type(network).__name__}; load the model that it was tuned on with Load Video Model."
        )
    check_tensors(network, tensors, path)
    patched = model.clone()
    if strength == 0.0:
        return patched
    kept = network.conv_in.weight.dtype
    operations = comfy.ops.pick_operations(kept, model.model.manual_cast_dtype)
    layers = new_layers(network, operations, optimized_attention, dtype=kept, device=model.offload_device)
    fill_layers(layers, tensors, strength)
    taken = next((place for place in layers if PREFIX + place in model.object_patches), None)
    if taken is not None:
        raise ValueError(f"the model has a LAMP file already, so {path} has no room; load one of them at a time.")
    for place, layer in layers.items():
        patched.add_object_patch(PREFIX + place, layer.eval().requires_grad_(False))
    for place in key_source_places(network):
        patched.add_object_patch(PREFIX + place, KEY_SOURCE)
    differences = {
        PREFIX + name: ("diff", (tensors[written],)) for name, written in changed_parameters(network).items()
    }
    patched.add_patches(differences, strength)
    # The host frees memory for what it knows of.
    patched.size = model.model_size() + sum(management.module_size(layer) for layer in layers.values())
    return patched
