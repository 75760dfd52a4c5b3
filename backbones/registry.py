"""Which families of models attention guidance can reach, and how a patch stack is installed in one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..attention_patches.errors import ModelNotSupported
from ..attention_patches.patch import Patch
from .families.cogvideox import CogVideoX
from .families.cosmos import Cosmos, CosmosPredict2
from .families.hunyuan_video import HunyuanVideo
from .families.joint_toybox import JointToybox
from .families.lavie import LaVie
from .families.ltx import LTXVideo
from .families.mochi import Mochi
from .families.unet import StableDiffusion, StableVideoDiffusion
from .families.wan import Wan
from .family import Family
from .host_hooks import hang_patches

FAMILIES: tuple[Family, ...] = (
    LaVie(),
    JointToybox(),
    Wan(),
    LTXVideo(),
    HunyuanVideo(),
    Mochi(),
    CogVideoX(),
    Cosmos(),
    CosmosPredict2(),
    StableVideoDiffusion(),
    StableDiffusion(),
)


def diffusion_model(model: Any) -> Any:
    """The network inside a ComfyUI ``ModelPatcher``."""
    return model.get_model_object("diffusion_model")


def family_of(network: Any) -> Family | None:
    """The family of a diffusion model, or None when its attention calls are not known."""
    return next((family for family in FAMILIES if family.fits(network)), None)


def supported_models(families: Iterable[Family] = FAMILIES) -> str:
    """Names of the families of models that attention guidance can reach, or of some of them, as words of a sentence."""
    return ", ".join(family.name for family in families)


def require_supported(model: Any) -> tuple[Family, Any]:
    """The family of a ComfyUI model and its network.

    Raises:
        ModelNotSupported: ``model not supported: <class>`` with what is supported.
    """
    network = diffusion_model(model)
    family = family_of(network)
    if family is None:
        raise ModelNotSupported(
            f"model not supported: {type(network).__name__}{_near_miss(network)}; attention guidance reaches "
            f"{supported_models()}: connect one of those."
        )
    return family, network


def _near_miss(network: Any) -> str:
    """What tells a network from the family that it is built like, for a message; empty when it is like none."""
    for family in FAMILIES:
        if family.resembles(network):
            parts = family.strange_parts(network)
            others = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
            return (
                f" (built like {family.name}, but with parts that no model of it has: {', '.join(parts[:3])}{others})"
            )
    return ""


def install_patches(model: Any, patches: Sequence[Patch]) -> Any:
    """Return a clone of the model whose attention calls run through the patches; the model itself is untouched.

    An override that is already there (another pack's, or our own from an earlier node) is called where the attention
    function would be called, so that several can be chained.

    Args:
        model: ComfyUI ``ModelPatcher``.
        patches: outermost first. None at all gives a plain clone, which samples bit for bit as before.

    Raises:
        ModelNotSupported: the model's attention sites are not known.
    """
    family, network = require_supported(model)
    return hang_patches(model, patches, family, network) if patches else model.clone()
