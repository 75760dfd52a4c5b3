"""Guides for the tiny models, as patches and as explicit biases."""

from __future__ import annotations

from typing import Any

import torch
from dense_reference import CALLS, DenseGuide, DenseReference
from guides import plain_guide
from native_models import TinyModel, sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.backbones.registry import install_patches

# Pixels per latent cell.
SCALE = 8
GUIDES: dict[str, dict[str, Any]] = {
    "separate": {"mode": "separate", "strength": 4.0},
    "separate among film": {"mode": "separate", "strength": 4.0},
    "separate hard": {"mode": "separate", "hard": True},
    "focus": {"mode": "focus", "strength": 0.7},
    "focus_fg": {"mode": "focus_fg", "strength": 1.0},
    "cross_text": {"mode": "cross_text", "strength": 3.0},
    "cross_text hard": {"mode": "cross_text", "strength": 3.0, "hard": True},
}
# Two objects, the first of two words of which one stands twice; among the first 9 tokens, which all models see.
POSITIONS = ((1, 2, 6), (4,))


def masks_of(model: TinyModel, frames: int | None = None) -> Tensor:
    """Two soft objects [2, F, H, W] that move and overlap, in the pixel frames of a film of so many latent frames.

    The second one is not there in the first frame, and no object in the last latent frame.

    Args:
        model: the tiny model.
        frames: latent frames of the film; what ``Calls`` says by default.
    """
    calls = CALLS[model.name]
    height, width = (SCALE * size for size in model.latents[-2:])
    covered = calls.covered(frames or calls.latents)
    count = sum(covered)
    masks = torch.zeros(2, count, height, width)
    for frame in range(count - covered[-1]):
        left = width * (2 + frame % 5) // 12
        masks[0, frame, height // 5 : height * 3 // 4, left : left + width // 3] = 1.0
        if frame:
            masks[1, frame, height // 2 :, width // 2 - frame % 3 : width - 5] = 0.8
    return torch.nn.functional.avg_pool2d(masks, 5, stride=1, padding=2)


def guide_of(name: str, mode: str, **changes: Any) -> Guide:
    """A guide over the whole schedule for a tiny model."""
    settings = {"masks": masks_of(tiny(name)), "start_percent": 0.0, "end_percent": 1.0, **GUIDES[mode], **changes}
    return plain_guide(**settings)


def spans_of(name: str, prompts: frozenset[str] | None = None) -> TextSpans | None:
    """Where the objects' words stand, or None for models without words."""
    if not CALLS[name].has_words:
        return None
    # Some models put rows of their own after the text.
    length = max(tiny(name).text, CALLS[name].text)
    return TextSpans(("red ball", "cube"), POSITIONS, length, prompts)


def patched(model: TinyModel, guide: Guide, spans: TextSpans | None, patcher: Any = None) -> Any:
    """A clone of the model (or of the given ``ModelPatcher``) with the guide's patch."""
    return install_patches(patcher or model.patcher, [GuidePatch(guide, spans)])


def dense(model: TinyModel, *guides: Any, prompt: Tensor | None = None, active: Any = None) -> DenseReference:
    """The reference for guides and spans in turn: ``dense(model, guide, spans, guide, spans)``."""
    calls, latents = CALLS[model.name], model.latents[-2:]
    pairs = zip(guides[::2], guides[1::2], strict=True)
    prompt = None if prompt is None else as_seen(model, prompt)
    return DenseReference(model, [DenseGuide(guide, calls, latents, spans, prompt) for guide, spans in pairs], active)


def as_seen(model: TinyModel, prompt: Tensor) -> Tensor:
    """A text as the blocks of a model are given it."""
    if "unprocessed_ltxav_embeds" not in model.extras:
        return prompt
    with torch.inference_mode():
        return model.patcher.model.diffusion_model.preprocess_text_embeds(prompt, unprocessed=True)


def relative(film: Tensor, expected: Tensor) -> float:
    """Greatest difference in parts of the range of what is expected."""
    return float((film - expected).abs().max() / (expected.max() - expected.min()))


def first_predictions(model: TinyModel, patcher: Any, **settings: Any) -> dict[str, Tensor]:
    """What the model makes of the positive and of the negative prompt in the first step."""
    found: dict[str, Tensor] = {}

    def keep(args: dict[str, Any]) -> Tensor:
        if not found:
            found.update(positive=args["cond_denoised"].clone(), negative=args["uncond_denoised"].clone())
        return args["denoised"]

    watched = patcher.clone()
    watched.set_model_sampler_post_cfg_function(keep)
    sample(model, watched, steps=1, **settings)
    return found


# Here queries are fewer than keys, and ComfyUI's own functions sum such short ones in another order when the batch is
# smaller, whoever calls them: rows that are left alone are alone in their call where others are guided.
ROUNDED_BY_THE_BATCH = {
    *("ltx_weak_guide", "ltx_masked_guide", "wan_animate2"),
    *("ltxav", "ltxav_silent", "ltxav_23", "ltxav_25", "ltxav_weak_guide", "ltxav_masked_guide"),
}
ROUNDING = 1e-6


def left_alone(name: str, film: Tensor, plain: Tensor) -> bool:
    """Whether unguided rows are those of the unpatched model: bit for bit, but for the host's own rounding."""
    if name in ROUNDED_BY_THE_BATCH:
        return relative(film, plain) < ROUNDING
    return torch.equal(film, plain)
