"""Several prompts of a ComfyUI CLIP joined to one CONDITIONING, for a schedule of prompts over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention_patches.guidance.patch import GuidePatch
from ...attention_patches.prompt_schedule import PromptSchedule, PromptSchedulePatch
from ...backbones.host_hooks import prompt_name
from ...backbones.override_chain import patches_on
from ...backbones.registry import install_patches, require_supported
from ...prompt_text.words import shorten

# Under this name an entry of a joined CONDITIONING says what was joined in it.
JOINED_KEY = "mask_guided_video_prompts"


@dataclass(frozen=True)
class JoinedPrompts:
    """What was joined in one entry of a CONDITIONING.

    Attributes:
        source: the text that the user wrote for all of them.
        texts: the prompts in words.
        lengths: tokens of each of them.
    """

    source: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]


def schedule_prompts(
    model: Any, clip: Any, starts: Sequence[int], texts: Sequence[str], overlap: int, source: str = ""
) -> tuple[Any, list[Any]]:
    """Install a schedule of prompts in a model and make the conditioning that it is sampled with.

    Args:
        model: ComfyUI ``ModelPatcher``; it is not changed.
        clip: its CLIP.
        starts, overlap: see ``PromptSchedule``.
        texts: prompts in words, one per start.
        source: the text of all of them as the user wrote it.

    Returns:
        The patched clone and the joined CONDITIONING. With a single prompt both are as without a schedule.

    Raises:
        ValueError: the model's text cannot be scheduled, there is no CLIP, or the schedule is wrong.
    """
    family, _ = require_supported(model)
    check_family(family)
    if clip is None:
        raise ValueError("clip is empty: the checkpoint holds no text encoder; load one with Load CLIP.")
    parts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]
    if len(texts) == 1:
        return install_patches(model, []), parts[0]
    conditioning = join_conditionings(parts, texts, source)
    names = frozenset(prompt_name(embedding) for embedding, _ in conditioning)
    schedule = PromptSchedule(tuple(starts), conditioning[0][1][JOINED_KEY].lengths, overlap, names)
    patched = install_patches(model, [PromptSchedulePatch(schedule)])
    check_words(patched)
    return patched, conditioning


def check_family(family: Any) -> None:
    """Make sure that a family reads its text by cross-attention.

    Raises:
        ValueError: it reads none, text and video attend to each other, or it mixes the prompts of a text.
    """
    if family.joint_text:
        raise ValueError(
            f"{family.name} lets text and video attend to each other in one sequence, so that no frame can have a "
            "prompt of its own; use a model with cross-attention (Wan, LTX, Cosmos, AnimateDiff, LaVie) for several "
            "prompts."
        )
    if family.mixes_prompts:
        raise ValueError(
            f"{family.name} mixes all words of a text before its blocks read them, so that prompts in one text do not "
            "stay apart; use a model whose blocks read the text as it is (Wan, LTX-Video, Cosmos, AnimateDiff, LaVie) "
            "for several prompts."
        )
    if not family.encoders:
        raise ValueError(f"{family.name} reads no text, so it has no prompts to schedule; take this node out.")


def join_conditionings(parts: Sequence[Sequence[Any]], texts: Sequence[str], source: str = "") -> list[Any]:
    """Put the text sequences of several prompts one after another.

    Args:
        parts: CONDITIONING of each prompt, of one text encoder.
        texts: prompts in words.
        source: the text of all of them as the user wrote it.

    Returns:
        CONDITIONING. Masks of padding are joined like the text; of pooled text, which is one vector for the whole
        video, it has the mean; everything else is the first prompt's.

    Raises:
        ValueError: the prompts have different numbers of entries, which belong to different parts of the schedule.
    """
    counts = [len(part) for part in parts]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the text encoder makes {' and '.join(map(str, counts))} conditionings of the prompts, so they cannot be "
            "joined; take the hooks off the CLIP."
        )
    joined = []
    for entries in zip(*parts, strict=True):
        lengths = tuple(embedding.shape[1] for embedding, _ in entries)
        extras = [extra for _, extra in entries]
        own = {
            **extras[0],
            **_joined_masks(extras, lengths),
            **_mean_vectors(extras),
            JOINED_KEY: JoinedPrompts(source, tuple(texts), lengths),
        }
        joined.append([torch.cat([embedding for embedding, _ in entries], dim=1), own])
    return joined


def _joined_masks(extras: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> dict[str, Tensor]:
    """Masks of padding [1, L], joined; a prompt without one has no padding."""
    masks = [extra.get("attention_mask") for extra in extras]
    known = next((mask for mask in masks if mask is not None), None)
    if known is None:
        return {}
    whole = [known.new_ones(known.shape[0], length) for length in lengths]
    return {
        "attention_mask": torch.cat(
            [none if mask is None else mask for mask, none in zip(masks, whole, strict=True)], dim=-1
        )
    }


def _mean_vectors(extras: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The mean of pooled text [1, C], where every prompt has it."""
    vectors = [extra.get("pooled_output") for extra in extras]
    if any(vector is None for vector in vectors):
        return {}
    return {"pooled_output": torch.stack(vectors).mean(dim=0)}


def joined_prompts(conditioning: Any) -> JoinedPrompts | None:
    """What was joined in a CONDITIONING, or None when it is of one prompt (or there is none)."""
    for _, extra in conditioning or ():
        if JOINED_KEY in extra:
            return extra[JOINED_KEY]
    return None


def named_prompts(joined: JoinedPrompts, prompt: str) -> list[int]:
    """Which of the joined prompts a text means: one of them, or all when it is the text of the whole schedule.

    Raises:
        ValueError: it is neither.
    """
    if _words(prompt) == _words(joined.source):
        return list(range(len(joined.texts)))
    found = [number for number, text in enumerate(joined.texts) if _words(text) == _words(prompt)]
    if not found:
        listed = "; ".join(repr(shorten(text)) for text in dict.fromkeys(joined.texts))
        raise ValueError(
            f"the prompt {shorten(prompt)!r} is not one of those of the schedule ({listed}); give one of them, or the "
            "text of the whole schedule."
        )
    return found


def _words(text: str) -> list[str]:
    return text.split()


def check_words(model: Any) -> None:
    """Make sure that guides of words know their prompt where there are several over time.

    Args:
        model: ComfyUI ``ModelPatcher`` with patches.

    Raises:
        ValueError: the model has a prompt schedule and a guide of words that are not bound to a conditioning.
    """
    patches = patches_on(model)
    if not any(isinstance(patch, PromptSchedulePatch) for patch in patches):
        return
    for patch in patches:
        spans = patch.text_spans if isinstance(patch, GuidePatch) else None
        if spans is not None and spans.prompts is None:
            raise ValueError(
                "the model has a prompt schedule, so it is not known in which of its prompts "
                f"{', '.join(spans.phrases)} should be guided; connect the conditioning of Prompt Schedule to positive "
                "of Patch Attention."
            )
