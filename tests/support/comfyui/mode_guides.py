"""Guides in every mode for the tiny models, and what they do at each attention call."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from dense_reference import CALLS
from native_models import TinyModel
from torch import Tensor

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import MODES, make_mode
from mask_guided_video.attention_patches.guidance.patch import guide_patches
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.plain import plain_attention
from mask_guided_video.attention_patches.patch import Attend
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.override_chain import STACKS_KEY
from mask_guided_video.backbones.registry import install_patches

# Pixels per latent cell.
SCALE = 8
# Parts of a mode that end before it does shall not.
_ENDS = ("self_end_percent", "cross_end_percent", "temporal_end_percent", "amplify_end_percent")


def has_words(model: TinyModel) -> bool:
    """Whether the model attends to text; the tiny LaVie does."""
    return model.name not in CALLS or CALLS[model.name].has_words


def suits(mode: str, model: TinyModel) -> bool:
    """Whether the mode does anything in a model: some guide words only."""
    return has_words(model) or not make_mode(mode).only_words


def moving_masks(model: TinyModel, frames: int | None = None) -> Tensor:
    """Two objects [2, F, H, W] in pixel frames that move apart; none is in the last latent frame."""
    frames = frames or (CALLS[model.name].latents if model.name in CALLS else model.latents[2])
    covered = CALLS[model.name].covered(frames) if model.name in CALLS else [1] * frames
    height, width = (SCALE * size for size in model.latents[-2:])
    count = sum(covered)
    masks = torch.zeros(2, count, height, width)
    for frame in range(count - covered[-1]):
        left = width * (2 + frame % 3) // 12
        masks[0, frame, height // 5 : height * 3 // 5, left : left + width // 3] = 1.0
        if frame:
            masks[1, frame, height * 3 // 5 :, width // 2 : width - 5] = 1.0
    return masks


def word_places(model: TinyModel) -> TextSpans | None:
    """Where the words of two objects and of the background stand, or None for models without words."""
    if not has_words(model):
        return None
    # Some models put rows of their own after the text.
    length = max(model.text, CALLS[model.name].text) if model.name in CALLS else model.text
    if model.text < 9:
        return TextSpans(("ball", "cube"), ((1, 2), (3,)), length, ordinary=(1, 2, 3, 4), background=(4,))
    return TextSpans(
        ("red ball", "cube"), ((1, 2, 6), (4,)), length, ordinary=(1, 2, 3, 4, 5, 6, 7, 8), background=(8,)
    )


def mode_guide(model: TinyModel, mode: str, **changes: Any) -> Guide:
    """A guide over the whole schedule and all blocks.

    Args:
        model: the tiny model.
        mode: by name.
        **changes: of the guide's fields or of the mode's constants.
    """
    masks = changes.pop("masks", None)
    masks = moving_masks(model) if masks is None else masks
    known = {each.name for each in fields(MODES[mode])}
    constants = {name: changes.pop(name) for name in list(changes) if name in known}
    ends = {name: 1.0 for name in _ENDS if name in known}
    constants = {"start_percent": 0.0, "end_percent": 1.0, "blocks": "all", **ends, **constants}
    return Guide(masks, mode=make_mode(mode, **constants), **changes)


def guided(model: TinyModel, guide: Guide, spans: TextSpans | None = None, patcher: Any = None) -> Any:
    """A clone of the model (or of the given ``ModelPatcher``) with the guide's patches."""
    spans = word_places(model) if spans is None else spans
    return install_patches(patcher or model.patcher, guide_patches(guide, spans))


def hung_patches(patcher: Any) -> list[Any]:
    """All patches that hang in a model."""
    stacks = patcher.model_options["transformer_options"][STACKS_KEY]
    return [patch for stack in stacks for patch in stack.patches]


@dataclass(eq=False)
class Watch:
    """An outermost patch that notes what comes out of each call, and what plain attention would have given."""

    calls: list[tuple[AttentionSite, Tensor, Tensor]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return self

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        out = attend(q, k, v, site)
        self.calls.append((site, plain_attention(q, k, v, attend.bias), out))
        return out


def by_frame(out: Tensor, site: AttentionSite) -> Tensor:
    """Lay the video's queries [B, heads, L, d] of a call on [chunks and samples, heads, T, cells, d]."""
    frames, height, width = site.grid
    out = out[:, :, slice(*site.video)]
    if site.rows.folded == "none":
        return out.unflatten(2, (frames, height * width))
    out = out.unflatten(0, (-1, site.rows.folded_size))
    return out.transpose(1, 2) if site.rows.folded == "frames" else out.permute(0, 2, 3, 1, 4)
