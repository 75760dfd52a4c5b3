"""Which families of models attention guidance can reach, and how a patch stack is installed in one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..attention_patches.errors import ModelNotSupported
from ..attention_patches.latent_time import LatentTime, causal
from ..attention_patches.patch import Patch
from .families.cogvideox import CogVideoX, CogVideoX15
from .families.cosmos import Cosmos, CosmosPredict2
from .families.hunyuan_video import HunyuanVideo
from .families.hunyuan_video_15 import HunyuanVideo15
from .families.joint_toybox import JointToybox
from .families.kandinsky5 import Kandinsky5
from .families.lavie import LaVie
from .families.ltx import LTXVideo
from .families.ltx_av import LTXVideoSound
from .families.minimax_h3 import MiniMaxH3
from .families.mochi import Mochi
from .families.unet import StableDiffusion, StableVideoDiffusion
from .families.wan import Wan
from .family import Family
from .host_hooks import hang_patches
from .picture_models import picture_model

FAMILIES: tuple[Family, ...] = (
    LaVie(),
    JointToybox(),
    Wan(),
    LTXVideoSound(),
    LTXVideo(),
    HunyuanVideo(),
    HunyuanVideo15(),
    Mochi(),
    MiniMaxH3(),
    CogVideoX(),
    CogVideoX15(),
    Cosmos(),
    CosmosPredict2(),
    Kandinsky5(),
    StableVideoDiffusion(),
    StableDiffusion(),
)


def diffusion_model(model: Any) -> Any:
    """The network inside a ComfyUI ``ModelPatcher``."""
    return model.get_model_object("diffusion_model")


def family_of(network: Any) -> Family | None:
    """The family of a diffusion model, or None when its attention calls are not known."""
    return next((family for family in FAMILIES if family.fits(network)), None)


def latent_time_of(model: Any) -> LatentTime | None:
    """How a ComfyUI model counts time: as its family says, else as the host does; None where neither is known."""
    family = family_of(diffusion_model(model))
    if family is not None:
        return family.latent_time
    # Older hosts say nothing, and 1 is also said of video models that nobody has looked at.
    factor = getattr(model.get_model_object("latent_format"), "temporal_downscale_ratio", 1)
    return causal(factor) if factor > 1 else None


def latent_channels_of(model: Any) -> int:
    """Channels of a ComfyUI model's video latents; the host may count those of the sound beside them."""
    network = diffusion_model(model)
    family = family_of(network)
    own = None if family is None else family.latent_channels(network)
    return own or model.get_model_object("latent_format").latent_channels


def supported_models(families: Iterable[Family] = FAMILIES) -> str:
    """Names of the families of models that attention guidance can reach, or of some of them, as words of a sentence."""
    return ", ".join(family.name for family in families)


def require_supported(model: Any) -> tuple[Family, Any]:
    """The family of a ComfyUI model and its network.

    Raises:
        ModelNotSupported: ``model not supported: <class>`` with what is supported; of picture models their name.
    """
    network = diffusion_model(model)
    family = family_of(network)
    if family is None:
        picture = picture_model(model.model)
        what = f"{picture} makes pictures, not videos" if picture else f"{type(network).__name__}{_near_miss(network)}"
        raise ModelNotSupported(
            f"model not supported: {what}; attention guidance reaches {supported_models()}: connect one of those."
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
