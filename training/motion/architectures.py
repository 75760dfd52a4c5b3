"""What motion tuning trains: small tensors in, on or beside a frozen U-Net."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...missing_packages import missing_package
from ...video_models.motion.sharing import sharing_copy
from .lamp import LampArchitecture

# Modules of a LaVie-shaped U-Net by what they do, as patterns that names end in. ``self_queries`` and ``temporal`` are
# the set of LAMP (arXiv 2310.10769) without its convolutions; ``cross_queries`` is what Tune-A-Video (arXiv 2212.11565)
# trains besides.
MODULE_SETS: dict[str, str] = {
    "self_queries": r"attn1\.to_q",
    "self_attention": r"attn1\.(to_q|to_k|to_v|to_out\.0)",
    "cross_queries": r"attn2\.to_q",
    "cross_attention": r"attn2\.(to_q|to_k|to_v|to_out\.0)",
    "temporal": r"attn_temp\.(to_q|to_k|to_v|to_out\.0)",
    "feed_forward": r"ff\.net\.(0\.proj|2)",
    "convolutions": r"resnets\.\d+\.(conv1|conv2)",
}
DEFAULT_MODULES = ("self_queries", "temporal")


class Architecture(Protocol):
    """One way to tune motion; the training loop knows only this interface."""

    @property
    def kind(self) -> str:
        """Name in motion files, such as ``lora``."""

    def prepare(self, unet: nn.Module) -> nn.Module:
        """A U-Net to train: frozen but for the tuned tensors. The given one stays as it is; weights may be shared.

        All randomness in the first values of the tuned tensors comes from the settings, so that runs can be repeated.

        Raises:
            ValueError: the U-Net has nothing that this kind could tune.
        """

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves; after ``prepare``."""

    def state(self) -> dict[str, Tensor]:
        """The tuned tensors by their names in a motion file, copies on the CPU in float32; after ``prepare``."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put tensors of ``state`` back; after ``prepare``.

        Raises:
            ValueError: they are not those of this architecture.
        """

    def base_names(self) -> list[str]:
        """Names of the U-Net's tensors that the tuned ones act on or beside; their hash identifies the base."""

    def metadata(self) -> dict[str, Any]:
        """Plain values for the motion file: how the tensors are meant."""


@dataclass(eq=False)
class LoraArchitecture:
    """Low-rank updates of chosen layers, by peft (arXiv 2106.09685).

    Attributes:
        rank: of the updates, 1 or more.
        alpha: the updates are scaled by alpha / rank; None takes the rank.
        modules: names of ``MODULE_SETS``, or patterns of module names.
        seed: of the first values.

    Raises:
        ValueError: a rank below 1, no modules, or an invalid pattern.
    """

    rank: int = 16
    alpha: float | None = None
    modules: Sequence[str] = DEFAULT_MODULES
    seed: int = 1
    _layers: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    kind = "lora"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank is {self.rank}; give 1 or more, 4 to 32 are usual.")
        if not self.modules:
            raise ValueError(f"there are no modules to tune; name some of {', '.join(MODULE_SETS)}.")
        self.alpha = float(self.rank) if self.alpha is None else float(self.alpha)
        try:
            self._pattern = re.compile(
                r"(?:.*\.)?(?:" + "|".join(MODULE_SETS.get(name, name) for name in self.modules) + ")"
            )
        except re.error as error:
            raise ValueError(
                f"modules are {', '.join(self.modules)}, which is not a pattern ({error}); name some of "
                f"{', '.join(MODULE_SETS)}."
            ) from error

    def prepare(self, unet: nn.Module) -> nn.Module:
        """See ``Architecture``."""
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.lora import LoraLayer
        except ImportError as error:
            raise missing_package("motion tuning by LoRA", "peft") from error

        names = [
            name
            for name, module in unet.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and self._pattern.fullmatch(name)
        ]
        if not names:
            raise ValueError(
                f"the U-Net has no layers that fit modules {', '.join(self.modules)}; name some of "
                f"{', '.join(MODULE_SETS)}."
            )
        tuned = sharing_copy(unet).requires_grad_(False)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=names, bias="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            inject_adapter_in_model(config, tuned)
        self._layers = {name: module for name, module in tuned.named_modules() if isinstance(module, LoraLayer)}
        for parameter in self.parameters():
            # In half precision most steps would be too small to change them.
            parameter.data = parameter.data.float()
        return tuned

    def parameters(self) -> list[nn.Parameter]:
        """See ``Architecture``."""
        return [parameter for _, parameter in self._tuned()]

    def state(self) -> dict[str, Tensor]:
        """See ``Architecture``; names as ComfyUI's LoRA loader reads them, with an ``alpha`` per layer."""
        state = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in self._tuned()}
        for name in self._layers:
            state[f"diffusion_model.{name}.alpha"] = torch.tensor(float(self.alpha))
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See ``Architecture``."""
        wanted = {name: tuple(value.shape) for name, value in self._tuned()}
        found = {name: tuple(value.shape) for name, value in state.items() if not name.endswith(".alpha")}
        if found != wanted:
            raise ValueError(
                f"the tuned tensors are those of another run ({len(found)} tensors where rank {self.rank} on "
                f"{', '.join(self.modules)} has {len(wanted)}); give the settings that they were made with."
            )
        with torch.no_grad():
            for name, value in self._tuned():
                value.copy_(state[name])

    def base_names(self) -> list[str]:
        """See ``Architecture``."""
        return [f"{name}.weight" for name in self._layers]

    def metadata(self) -> dict[str, Any]:
        """See ``Architecture``."""
        return {"rank": self.rank, "alpha": self.alpha, "modules": list(self.modules)}

    def _tuned(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, layer in self._layers.items():
            for part in ("lora_A", "lora_B"):
                yield f"diffusion_model.{name}.{part}.weight", getattr(layer, part)["default"].weight


# Further kinds are added here under their names: called with the command line settings that they take.
ARCHITECTURES: dict[str, Callable[..., Architecture]] = {"lora": LoraArchitecture, "lamp": LampArchitecture}


def make_architecture(kind: str, **settings: Any) -> Architecture:
    """The architecture of that name.

    Args:
        kind: of ``ARCHITECTURES``.
        settings: of its class.

    Raises:
        ValueError: an unknown name, or settings out of range.
    """
    if kind not in ARCHITECTURES:
        raise ValueError(f"the architecture is {kind!r}; choose one of {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[kind](**settings)
