"""LAMP's layers over time for U-Nets of the LaVie family: what they are, where they go, and how a file's tensors get
there.

Every two-dimensional convolution is followed by a gated causal one over time; Stable Diffusion's U-Net, which has no
attention over time, gets one as the last part of every transformer block. In all models the self-attention of every
frame then looks at the first frame. Beside these layers the queries of self-attention are tuned, and attention over
time where a model has it. Source of the method: Wu et al., "LAMP: Learn A Motion Pattern for Few-Shot-Based Video
Generation" (arXiv 2310.10769), sections 3.3 and 3.4.

A file holds new layers' tensors by the names they get in the U-Net and, for tuned tensors of the model itself, what is
added to them, named by the layer and ``diff`` (weight) or ``diff_b`` (bias), as in ComfyUI's LoRA files; all names
begin with ``diffusion_model.``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...attention_patches.frame_keys import KeySource
from ...attention_patches.kernels.torch_attention import attention
from ..lavie.blocks import OVER_TIME, TimedConvolutions
from ..lavie.layers import AttentionFunction, TemporalAttention, TransformerBlock
from ..lavie.unet import LaVieUNet
from .sharing import sharing_copy

PREFIX = "diffusion_model."
DIFFERENCES = {"weight": "diff", "bias": "diff_b"}
# Frames before the present one that a convolution over time sees.
EARLIER_FRAMES = 2
# Frames that self-attention looks at.
KEY_SOURCE: KeySource = "first"


class GatedTimeConvolution(nn.Module):
    """Adds a causal convolution over time, weighed by a gate of one channel: y + sigmoid(gate(y)) * causal(y).

    Args:
        channels: of what it is given and returns.
        operations: where layers come from.
    """

    def __init__(self, channels: int, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.conv1d = operations.Conv1d(channels, channels, kernel_size=EARLIER_FRAMES + 1, **factory)
        self.conv_gate = operations.Conv2d(channels, 1, kernel_size=3, padding=1, **factory)

    def reset(self) -> None:
        """Start as identity: no convolution over time, the gate half open."""
        for layer in (self.conv1d, self.conv_gate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """[B * T, C, H, W] to the same; a frame depends on itself and the two before it, zeros before the first."""
        height, width = hidden.shape[-2:]
        cells = hidden.unflatten(0, (-1, frames)).permute(0, 3, 4, 2, 1)
        past = self.conv1d(pad(cells, (EARLIER_FRAMES, 0)).flatten(0, 2))
        past = past.unflatten(0, (-1, height, width)).permute(0, 4, 3, 1, 2).flatten(0, 1)
        return hidden + torch.sigmoid(self.conv_gate(hidden)) * past


def convolution_places(unet: LaVieUNet) -> Iterator[tuple[str, int]]:
    """Name of the place after every two-dimensional convolution, and the channels there."""
    for prefix, module in unet.named_modules():
        if isinstance(module, TimedConvolutions):
            for name in module.convolutions:
                convolution = getattr(module, name)
                if convolution is not None:
                    yield f"{prefix}.{name}{OVER_TIME}".lstrip("."), convolution.weight.shape[0]


def new_layers(
    unet: LaVieUNet, operations: Any = nn, attention_function: AttentionFunction = attention, **factory: Any
) -> dict[str, nn.Module]:
    """The layers that LAMP adds, by the names of the places that they belong in; weights as the layers' classes make
    them.

    Args:
        unet: that they are for; not changed.
        operations: where layers come from: ``torch.nn``, or one of ComfyUI's ``comfy.ops`` classes.
        attention_function: of attention over time.
        factory: ``dtype`` and ``device`` of the parameters.
    """
    layers: dict[str, nn.Module] = {
        name: GatedTimeConvolution(channels, operations, **factory) for name, channels in convolution_places(unet)
    }
    if unet.config.picture_model:
        for name, block in _transformer_blocks(unet):
            channels = block.norm1.weight.shape[0]
            layers[f"{name}.norm_temp"] = operations.LayerNorm(channels, **factory)
            layers[f"{name}.attn_temp"] = TemporalAttention(
                channels, unet.config, operations, attention_function, positions=False, **factory
            )
    return layers


def changed_parameters(unet: LaVieUNet) -> dict[str, str]:
    """The U-Net's parameters that LAMP tunes, queries of self-attention and attention over time: their names in it,
    each with that of the difference in a file.
    """
    names = []
    for name, block in _transformer_blocks(unet):
        names.append(f"{name}.attn1.to_q.weight")
        if not unet.config.picture_model:
            names += [f"{name}.attn_temp.{parameter}" for parameter, _ in block.attn_temp.named_parameters()]
    return {name: PREFIX + name.rpartition(".")[0] + "." + DIFFERENCES[name.rpartition(".")[2]] for name in names}


def start_layers(layers: Mapping[str, nn.Module], generator: torch.Generator) -> None:
    """Give new layers the values that training starts from.

    Convolutions and their gates are zero. Attention over time has zero output weights, while the output's bias and the
    projections are random within 1 / sqrt(channels), so a model with them is not quite the one without.

    Args:
        layers: from :func:`new_layers`, on the CPU.
        generator: of the random numbers.
    """
    for layer in layers.values():
        if isinstance(layer, GatedTimeConvolution):
            layer.reset()
        elif isinstance(layer, TemporalAttention):
            for projection in (layer.to_q, layer.to_k, layer.to_v):
                _uniform(projection.weight, projection.weight.shape[1], generator)
            nn.init.zeros_(layer.to_out[0].weight)
            _uniform(layer.to_out[0].bias, layer.to_out[0].weight.shape[1], generator)
        else:
            _reset_norm(layer)


def fill_layers(layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], strength: float = 1.0) -> None:
    """Put a file's tensors into new layers.

    Args:
        layers: from :func:`new_layers`.
        tensors: of a file, checked by :func:`check_tensors`.
        strength: factor on what the layers add to the model, 0 or more.
    """
    for place, layer in layers.items():
        if isinstance(layer, nn.LayerNorm):
            _reset_norm(layer)
            continue
        # What a layer adds is linear in its last projection.
        last = "conv1d." if isinstance(layer, GatedTimeConvolution) else "to_out.0."
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                value = tensors[f"{PREFIX}{place}.{name}"].to(parameter.device, torch.float32)
                parameter.copy_(value * strength if name.startswith(last) else value)


def check_tensors(unet: LaVieUNet, tensors: Mapping[str, Tensor], path: str) -> None:
    """Make sure that a file's tensors are those that LAMP has for a U-Net.

    Args:
        unet: that they are for.
        tensors: by the names that this module's docstring gives.
        path: of the file, for the error.

    Raises:
        ValueError: tensors are missing, unknown, of another shape or not finite.
    """
    expected = expected_shapes(unet)
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unknown:
        raise ValueError(
            f"{path} lacks {len(missing)} tensors that this model's LAMP layers have (first: "
            f"{missing[0] if missing else 'none'}) and has {len(unknown)} unknown ones (first: "
            f"{unknown[0] if unknown else 'none'}); load the model that it was tuned on."
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)} where this model wants {tuple(shape)}; "
                "load the model that it was tuned on."
            )
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{path}: {name} holds NaN or infinite values; copy the file again or tune anew.")


def expected_shapes(unet: LaVieUNet) -> dict[str, torch.Size]:
    """Name and shape of every tensor that a file for a U-Net holds."""
    parameters = dict(unet.named_parameters())
    shapes = {
        f"{PREFIX}{place}.{name}": parameter.shape
        for place, layer in new_layers(unet, device="meta").items()
        # Norms before attention over time are not tuned.
        if not isinstance(layer, nn.LayerNorm)
        for name, parameter in layer.named_parameters()
    }
    return {**shapes, **{written: parameters[name].shape for name, written in changed_parameters(unet).items()}}


def key_source_places(unet: LaVieUNet) -> list[str]:
    """Names of the attributes that say which frames self-attention looks at, all of which become ``KEY_SOURCE``."""
    return [f"{name}.key_source" for name, _ in _transformer_blocks(unet)]


def with_layers(unet: LaVieUNet, layers: Mapping[str, nn.Module]) -> LaVieUNet:
    """A copy of a U-Net with new layers in their places that looks at the first frame; all tensors are shared.

    Raises:
        ValueError: if a place is taken, that is, the U-Net has LAMP's layers already.
    """
    tuned = sharing_copy(unet)
    for place, layer in layers.items():
        owner, _, name = place.rpartition(".")
        module = tuned.get_submodule(owner)
        if getattr(module, name) is not None:
            raise ValueError(f"{place} is taken: the model has LAMP's layers already; give the untuned model.")
        setattr(module, name, layer)
    for _, block in _transformer_blocks(tuned):
        block.key_source = KEY_SOURCE
    return tuned


def with_lamp(
    unet: LaVieUNet, tensors: Mapping[str, Tensor], strength: float = 1.0, path: str = "the file"
) -> LaVieUNet:
    """A copy of a U-Net tuned by a file; what is not tuned is shared with the one given, which stays as it is.

    Args:
        unet: for stand-alone use (``torch.nn``).
        tensors: of a file.
        strength: factor on all tensors that tuning changed; 0 gives the untuned model.
        path: of the file, for errors.

    Raises:
        ValueError: if the tensors do not belong to this U-Net.
    """
    check_tensors(unet, tensors, path)
    if strength == 0.0:
        return sharing_copy(unet)
    layers = new_layers(unet, dtype=unet.conv_in.weight.dtype, device=unet.conv_in.weight.device)
    fill_layers(layers, tensors, strength)
    tuned = with_layers(unet, layers)
    for name, written in changed_parameters(unet).items():
        owner, _, parameter = name.rpartition(".")
        module = tuned.get_submodule(owner)
        before = getattr(module, parameter)
        added = strength * tensors[written].to(before.device, torch.float32)
        setattr(module, parameter, nn.Parameter((before.detach().float() + added).to(before.dtype)))
    return tuned.eval().requires_grad_(False)


def _transformer_blocks(unet: LaVieUNet) -> Iterator[tuple[str, TransformerBlock]]:
    return ((name, module) for name, module in unet.named_modules() if isinstance(module, TransformerBlock))


def _reset_norm(norm: nn.Module) -> None:
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


def _uniform(tensor: Tensor, fan_in: int, generator: torch.Generator) -> None:
    """The usual initialisation of a linear layer."""
    bound = fan_in**-0.5
    with torch.no_grad():
        tensor.uniform_(-bound, bound, generator=generator)
