"""Which models attention guidance can reach, and how a patch stack is hung into one.

A backbone is known when its attention calls carry an ``AttentionSite``. So far that is the LaVie family, whose U-Net
makes its sites itself; a family that needs hooks gets its own module here and an entry in :func:`supports`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..attention_patches.attention import OVERRIDE_KEY
from ..attention_patches.stack import Patch, PatchStack
from ..video_models.lavie_unet import LaVieUNet

CLEANUP_KEY = "mask_guided_video"
CLIP_FRAMES_KEY = "clip_frames"


def diffusion_model(model: Any) -> Any:
    """The network inside a ComfyUI ``ModelPatcher``."""
    return model.get_model_object("diffusion_model")


def require_supported(model: Any) -> LaVieUNet:
    """The network, when its attention sites are known.

    Raises:
        ValueError: ``model not supported: <class>`` with what is supported.
    """
    network = diffusion_model(model)
    if not isinstance(network, LaVieUNet):
        raise ValueError(
            f"model not supported: {type(network).__name__}; attention guidance reaches LaVie-shaped models "
            "(Load Video Model), connect one of those."
        )
    return network


def level_grids(network: LaVieUNet, height: int, width: int) -> list[tuple[int, int, int]]:
    """(level, rows, columns) of the token grids that attention works on, finest first.

    Args:
        network: from :func:`require_supported`.
        height, width: of the latents.
    """
    grids = []
    for level, attends in enumerate(network.config.attention_levels):
        # The middle block attends at the coarsest level whether or not that level does.
        if attends or level == len(network.config.attention_levels) - 1:
            grids.append((level, height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    return grids


def block_names(network: LaVieUNet) -> list[str]:
    """Names of the blocks that hold attention, in the order of the forward pass."""
    return [place.name for place in LaVieUNet._places(network.config)]


def install_patches(model: Any, patches: Sequence[Patch]) -> Any:
    """Return a clone of the model whose attention calls run through the patches; the model itself is untouched.

    An override that is already there (another pack's, or our own from an earlier node) is called where the attention
    function would be called, so that several can be chained.

    Args:
        model: ComfyUI ``ModelPatcher``.
        patches: outermost first. None at all gives a plain clone, which samples bit by bit as before.

    Raises:
        ValueError: if the model's attention sites are not known.
    """
    require_supported(model)
    patched = model.clone()
    if not patches:
        return patched

    from comfy.patcher_extension import CallbacksMP, WrappersMP

    options = patched.model_options["transformer_options"]
    stack = PatchStack(patches).chain(options.get(OVERRIDE_KEY))
    options[OVERRIDE_KEY] = stack.override

    def release(*_: Any, **__: Any) -> None:
        stack.release()

    patched.add_callback_with_key(CallbacksMP.ON_CLEANUP, CLEANUP_KEY, release)
    patched.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, CLIP_FRAMES_KEY)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, CLIP_FRAMES_KEY, _tell_clip_frames)
    return patched


def _tell_clip_frames(
    executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Leave the length of the whole clip in the options: inside a context window the network sees a part of it."""
    model_options = model_options or {}
    options = {**model_options.get("transformer_options", {}), CLIP_FRAMES_KEY: x.shape[2]}
    return executor(x, timestep, {**model_options, "transformer_options": options}, *args, **kwargs)
