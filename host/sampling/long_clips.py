"""FreeLong in a ComfyUI model.

ComfyUI cuts a clip into context windows before the model is called, so FreeLong sees each of them as a clip of its own.
"""

from __future__ import annotations

from typing import Any

from ...attention_patches.checks import matches_block
from ...attention_patches.free_long import FreeLong, FreeLongPatch
from ...backbones.override_chain import STACKS_KEY
from ...backbones.registry import install_patches, require_supported


def install_free_long(model: Any, settings: FreeLong) -> Any:
    """Return a clone of a model with FreeLong; at strength 0 a clone with nothing installed.

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
    return install_patches(model, [FreeLongPatch(settings)])


def _free_long_patches(model: Any) -> list[FreeLongPatch]:
    stacks = model.model_options["transformer_options"].get(STACKS_KEY, ())
    return [patch for stack in stacks for patch in stack.patches if isinstance(patch, FreeLongPatch)]


def _meant(settings: FreeLong, names: list[str]) -> list[str]:
    """Names of blocks that the settings mean."""
    patterns = [pattern.strip() for pattern in settings.blocks.split(",") if pattern.strip()]
    return [name for name in names if any(matches_block(name, pattern) for pattern in patterns)]


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more blocks" if len(names) > 3 else "")
