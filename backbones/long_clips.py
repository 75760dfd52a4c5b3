"""Long clips in a ComfyUI model: FreeLong, and the host's context windows in native lengths of the model.

Both only touch the options of a clone. ComfyUI cuts a clip into context windows before the model is called, so FreeLong
sees each of them as a clip of its own.

Source: Comfy-Org/ComfyUI, comfy/context_windows.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..attention_patches.free_long import FreeLong, FreeLongPatch, free_long_patch
from ..attention_patches.mask_guidance import matches_block
from .family import Family
from .override_chain import STACKS_KEY
from .registry import install_patches, require_supported

# Where ComfyUI's sampling looks for what cuts the clip.
CONTEXT_KEY = "context_handler"


@dataclass(frozen=True)
class ContextWindows:
    """How a clip is cut into context windows.

    Attributes:
        length: latent frames of a window.
        overlap: latent frames that neighbouring windows share, less than ``length``.
        schedule: ComfyUI's name of where the windows lie, such as ``standard_static``.
        fuse_method: ComfyUI's name of how results are joined, such as ``pyramid``.

    Raises:
        ValueError: lengths that do not fit each other.
    """

    length: int
    overlap: int
    schedule: str
    fuse_method: str

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.length:
            raise ValueError(
                f"context windows of {self.length} latent frames cannot overlap by {self.overlap}; make "
                "context_overlap less than context_length."
            )
        if self.overlap == 0 and self.fuse_method == "overlap-linear":
            raise ValueError("overlap-linear fades over the overlap, but context_overlap is 0; choose flat instead.")

    @classmethod
    def in_native_lengths(
        cls, native_frames: int, length: float, overlap: float, schedule: str, fuse_method: str
    ) -> ContextWindows:
        """Build from lengths that are given in native lengths of the model, rounded to latent frames."""
        return cls(round(native_frames * length), round(native_frames * overlap), schedule, fuse_method)


def install_free_long(model: Any, settings: FreeLong) -> Any:
    """Return a clone of a model with FreeLong; at strength 0 a clone with nothing hung into it.

    Args:
        model: ComfyUI ``ModelPatcher``; it is not changed.
        settings: of FreeLong.

    Raises:
        ValueError: the model's attention sites are not known, or some of these blocks have FreeLong already.
    """
    if settings.strength == 0.0:
        return install_patches(model, [])
    family, network = require_supported(model)
    names = family.block_names(network)
    taken = {name for patch in _free_long_patches(model) for name in _meant(patch.settings, names)}
    both = [name for name in _meant(settings, names) if name in taken]
    if both:
        raise ValueError(
            f"this model has FreeLong already in {_shortened(both)}; take one of the nodes out, or give them different "
            "blocks."
        )
    return install_patches(model, [free_long_patch(settings)])


def install_context_windows(model: Any, family: Family, windows: ContextWindows) -> Any:
    """Return a clone of a model whose clips ComfyUI cuts into windows, in place of windows that were set before.

    Args:
        model: ComfyUI ``ModelPatcher``; it is not changed.
        family: of the model.
        windows: how to cut.
    """
    import comfy.context_windows as host
    from comfy.patcher_extension import WrappersMP

    windowed = model.clone()
    windowed.model_options[CONTEXT_KEY] = host.IndexListContextHandler(
        context_schedule=host.get_matching_context_schedule(windows.schedule),
        fuse_method=host.get_matching_fuse_method(windows.fuse_method),
        context_length=windows.length,
        context_overlap=windows.overlap,
        dim=family.frame_axis,
    )
    # The host estimates memory from the window alone; one such wrapper is enough.
    windowed.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, "ContextWindows_prepare_sampling")
    host.create_prepare_sampling_wrapper(windowed)
    return windowed


def _free_long_patches(model: Any) -> list[FreeLongPatch]:
    stacks = model.model_options["transformer_options"].get(STACKS_KEY, ())
    return [patch for stack in stacks for patch in stack.patches if isinstance(patch, FreeLongPatch)]


def _meant(settings: FreeLong, names: list[str]) -> list[str]:
    """Names of blocks that the settings mean."""
    patterns = [pattern.strip() for pattern in settings.blocks.split(",") if pattern.strip()]
    return [name for name in names if any(matches_block(name, pattern) for pattern in patterns)]


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more blocks" if len(names) > 3 else "")
