"""A tiny model with random weights, and how it is made of ComfyUI's own configs and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

TEXT = 12


@dataclass(frozen=True, eq=False)
class TinyModel:
    """A model with what is needed to sample it.

    Attributes:
        name: of the variant.
        make: builds the ComfyUI ``ModelPatcher``; asked only when a test runs, so that tests can be listed without
            ComfyUI.
        latents: size of the latents of one film.
        sound: size of the sound beside it, in nested latents; empty for films without.
        context_dim: channels of the text.
        text: tokens of the text.
        extras: further entries of every condition, or what makes them.
        vector: channels of the pooled text, 0 without.
        cfg: guidance scale to sample with; at 1 there is no unconditional row (HunyuanVideo with a text mask or a
            reference can do but one row at a time).
    """

    name: str
    make: Callable[[], Any]
    latents: tuple[int, ...]
    context_dim: int
    text: int = TEXT
    extras: dict[str, Any] = field(default_factory=dict)
    vector: int = 0
    cfg: float = 3.0
    sound: tuple[int, ...] = ()

    @cached_property
    def patcher(self) -> Any:
        """ComfyUI ``ModelPatcher``, built once."""
        return self.make()

    @property
    def window_axis(self) -> int:
        return 2 if len(self.latents) == 5 else 0

    def noise(self, seed: int = 0, frames: int | None = None, films: int = 1) -> Any:
        """Random latents, nested where there is sound, which is as long as the film."""
        size = list(self.latents)
        if frames is not None:
            size[self.window_axis] = frames
        if self.window_axis == 2:
            size[0] = films
        generator = torch.Generator().manual_seed(seed)
        film = torch.randn(size, generator=generator)
        if not self.sound:
            return film
        from comfy.nested_tensor import NestedTensor

        length = self.sound[2] * size[2] // self.latents[2]
        return NestedTensor([film, torch.randn(size[0], self.sound[1], length, *self.sound[3:], generator=generator)])

    def empty(self) -> Any:
        """Latents of zeros, nested where there is sound."""
        return zeros_like(self.noise())

    def conditioning(self, seed: int, text: int | None = None) -> list[Any]:
        generator = torch.Generator().manual_seed(1000 + seed)
        embedding = torch.randn(1, text or self.text, self.context_dim, generator=generator)
        extras = {name: value() if callable(value) else value for name, value in self.extras.items()}
        if self.vector:
            extras["pooled_output"] = torch.randn(1, self.vector, generator=generator)
        return [[embedding, extras]]


def flat(latents: Any) -> Tensor:
    """Latents as one tensor: those with sound as the host packs them."""
    from comfy.utils import pack_latents

    return latents if isinstance(latents, Tensor) else pack_latents(latents.unbind())[0]


def zeros_like(latents: Any) -> Any:
    """Latents of the same sizes, all zero."""
    if isinstance(latents, Tensor):
        return torch.zeros_like(latents)
    from comfy.nested_tensor import NestedTensor

    return NestedTensor([torch.zeros_like(part) for part in latents.unbind()])


def randomise(network: Any, seed: int = 0) -> None:
    """Fill all parameters so that every branch matters: gates and modulations of new networks are zero.

    Attention gets larger weights than the rest, so that what it does is clearly seen in the output.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(False)
        gain = 1.5 if "attn" in name or "linear" in name or "time_stack" in name else 0.5
        scale = gain / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
        noise = torch.randn(parameter.shape, generator=generator) * scale
        is_gain = parameter.ndim == 1 and ("norm" in name or name.endswith("scale")) and "bias" not in name
        parameter.copy_(noise + 1.0 if is_gain else noise)
    for buffer in network.buffers():
        if buffer.is_floating_point() and not torch.isfinite(buffer).all():
            buffer.zero_()


def build(config_name: str, unet_config: dict[str, Any]) -> Any:
    """A ``ModelPatcher`` of one of ``comfy.supported_models`` at a tiny size; skips where this ComfyUI has none."""
    import comfy.model_patcher
    import comfy.supported_models

    if not hasattr(comfy.supported_models, config_name):
        pytest.skip(f"this ComfyUI has no {config_name}")
    config_class = getattr(comfy.supported_models, config_name)
    config = config_class({**config_class.unet_config, **unet_config})
    config.set_inference_dtype(torch.float32, None)
    with torch.no_grad():
        model = config.get_model({})
        randomise(model.diffusion_model)
    model.eval()
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, device, device)
