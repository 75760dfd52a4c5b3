"""The ``lamp`` architecture of motion tuning: gated causal convolutions over time, attention over time, queries.

Source: Wu et al., "LAMP: Learn A Motion Pattern for Few-Shot-Based Video Generation" (arXiv 2310.10769), sections 3.3
and 3.4. For tensors that the U-Net has already, the optimizer moves the difference: files hold it, and a resumed run
goes on bit for bit the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...video_models.lavie.blocks import OVER_TIME
from ...video_models.lavie.unet import LaVieUNet
from ...video_models.motion.lamp import (
    EARLIER_FRAMES,
    KEY_SOURCE,
    PREFIX,
    changed_parameters,
    convolution_places,
    new_layers,
    start_layers,
    with_layers,
)


@dataclass(eq=False)
class LampArchitecture:
    """See ``Architecture``: LAMP's layers and queries on a U-Net of the LaVie family.

    Attributes:
        seed: of the first values of attention over time, where the U-Net has none.
    """

    seed: int = 1
    _tuned: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _base_names: list[str] = field(default_factory=list, init=False, repr=False)

    kind = "lamp"

    def prepare(self, unet: nn.Module) -> nn.Module:
        """See ``Architecture``; new tensors are float32 on the U-Net's device.

        Raises:
            ValueError: the U-Net is not of the LaVie family, or has LAMP's layers already.
        """
        if not isinstance(unet, LaVieUNet):
            raise ValueError(
                f"LAMP tunes U-Nets of the LaVie family and Stable Diffusion 1.x, not a {type(unet).__name__}; choose "
                "another model or the architecture lora."
            )
        layers = new_layers(unet, dtype=torch.float32)
        start_layers(layers, torch.Generator().manual_seed(self.seed))
        tuned = with_layers(unet, layers).requires_grad_(False)
        self._tuned = {}
        for place, layer in layers.items():
            layer.to(unet.conv_in.weight.device)
            if not isinstance(layer, nn.LayerNorm):
                layer.requires_grad_(True)
                self._tuned |= {f"{PREFIX}{place}.{name}": value for name, value in layer.named_parameters()}
        for name, written in changed_parameters(unet).items():
            self._tuned[written] = _with_difference(tuned, name)
        convolutions = [place.removesuffix(OVER_TIME) + ".weight" for place, _ in convolution_places(unet)]
        self._base_names = [*changed_parameters(unet), *convolutions]
        return tuned

    def parameters(self) -> list[nn.Parameter]:
        """See ``Architecture``."""
        return list(self._tuned.values())

    def state(self) -> dict[str, Tensor]:
        """See ``Architecture``; names as in ``video_models/motion/lamp.py``."""
        return {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in self._tuned.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See ``Architecture``."""
        wanted = {name: value.shape for name, value in self._tuned.items()}
        if {name: value.shape for name, value in state.items()} != wanted:
            raise ValueError(
                f"the tuned tensors are those of another run ({len(state)} tensors where this model's LAMP layers have "
                f"{len(wanted)}); give the model that they were made with."
            )
        with torch.no_grad():
            for name, value in self._tuned.items():
                value.copy_(state[name])

    def base_names(self) -> list[str]:
        """See ``Architecture``."""
        return list(self._base_names)

    def metadata(self) -> dict[str, Any]:
        """See ``Architecture``."""
        return {"earlier_frames": EARLIER_FRAMES, "keys": KEY_SOURCE}


class _Difference(nn.Module):
    """A frozen tensor plus a trained one, which starts at zero."""

    def __init__(self, before: Tensor) -> None:
        super().__init__()
        self.register_buffer("before", before, persistent=False)

    def forward(self, difference: Tensor) -> Tensor:
        return self.before + difference

    def right_inverse(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


def _with_difference(unet: nn.Module, name: str) -> nn.Parameter:
    """Make a parameter of a U-Net the sum of what it is and of a difference, which is returned."""
    owner, _, parameter = name.rpartition(".")
    module = unet.get_submodule(owner)
    before = getattr(module, parameter).detach().float()
    # A separate one: the present parameter may be shared with another network, and is written to.
    setattr(module, parameter, nn.Parameter(before.clone()))
    parametrize.register_parametrization(module, parameter, _Difference(before))
    return getattr(module.parametrizations, parameter).original
