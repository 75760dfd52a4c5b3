"""Low-rank updates of a U-Net's layers: what a file's pairs of matrices add to the weights (arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .sharing import Network, sharing_copy

PREFIX = "diffusion_model."
DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"


def lora_updates(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is added to each layer's weight: by the layer's name, float32 of the weight's shape up to flattening.

    Args:
        tensors: ``diffusion_model.<layer>.lora_A.weight`` [r, in, ...], ``.lora_B.weight`` [out, r, ...] and, where it
            is not r, ``.alpha``: the scale is alpha / r.

    Raises:
        ValueError: a matrix lacks its partner, or their ranks differ.
    """
    updates = {}
    names = {name.removesuffix(end) for name in tensors for end in (DOWN, UP) if name.endswith(end)}
    for name in sorted(names):
        if name + DOWN not in tensors or name + UP not in tensors:
            raise ValueError(f"the LoRA of layer {name} lacks one of its two matrices; get the complete file again.")
        down, up = tensors[name + DOWN].float(), tensors[name + UP].float()
        if down.shape[0] != up.shape[1]:
            raise ValueError(
                f"the LoRA of layer {name} has matrices of ranks {down.shape[0]} and {up.shape[1]}; get the file again."
            )
        scale = float(tensors[name + ALPHA]) / down.shape[0] if name + ALPHA in tensors else 1.0
        updates[name.removeprefix(PREFIX)] = scale * (up.flatten(1) @ down.flatten(1))
    return updates


def with_lora(network: Network, tensors: Mapping[str, Tensor], strength: float = 1.0, path: str = "LoRA") -> Network:
    """A new network with the updates in its weights; everything else is shared with the given one.

    Args:
        network: to update; stays as it is.
        tensors: see :func:`lora_updates`.
        strength: factor on the updates.
        path: of the file, for errors.

    Raises:
        ValueError: a layer that the network lacks, or one of another size.
    """
    changed = sharing_copy(network)
    for name, update in lora_updates(tensors).items():
        try:
            layer = changed.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"{path} changes the layer {name}, which this model lacks; it is another model's."
            ) from error
        weight = layer.weight
        if update.shape != (weight.shape[0], weight[0].numel()):
            raise ValueError(
                f"{path} changes the layer {name} by {tuple(update.shape)}, which has {tuple(weight.shape)} here; it "
                "is another model's."
            )
        with torch.no_grad():
            added = strength * update.reshape(weight.shape).to(weight.device)
            layer.weight = nn.Parameter((weight.float() + added).to(weight.dtype), requires_grad=False)
    return changed
