"""Prompts over time as a text of lines, and joined for a model that runs by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...attention_patches.prompt_schedule import PromptSchedule, PromptSchedulePatch, check_starts
from ...prompt_text.words import shorten
from ...video_models.text_encoding import TextEmbedding

if TYPE_CHECKING:
    from ...attention_patches.patch import Patch
    from ..protocols import PromptEmbedding, VideoModel

MAX_PROMPTS = 100
# A frame number, a colon (also the wide one of Chinese and Japanese keyboards) and the prompt.
_LINE = re.compile("\\s*([0-9]{1,9})\\s*[:\uff1a]\\s*(.*?)\\s*")


@dataclass(frozen=True)
class ScheduledPrompt:
    """A prompt and the frame of the video, from 0, with which it begins."""

    start: int
    text: str


def parse_schedule(text: str) -> tuple[ScheduledPrompt, ...]:
    """Read prompts over time.

    Args:
        text: a line for each prompt: the frame with which it begins, a colon, the prompt. A line without a frame that
            begins with a space goes on with the prompt before it; empty lines are skipped.

    Returns:
        At least one prompt; starts ascend from 0.

    Raises:
        ValueError: a malformed line, a line without a prompt, no prompt at all, too many, a first one that does
            not begin at 0, or starts that do not ascend.
    """
    entries: list[ScheduledPrompt] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None and entries and line[0].isspace():
            entries[-1] = ScheduledPrompt(entries[-1].start, f"{entries[-1].text} {line.strip()}")
            continue
        if found is None:
            raise ValueError(
                f"line {number} of the prompt schedule is {shorten(line.strip())!r}; "
                "begin it with a frame and a colon, as in '32: a blue ball on sand', "
                "or with a space to go on with the prompt before it."
            )
        if not found[2]:
            raise ValueError(f"line {number} of the prompt schedule has no prompt after {found[1]!r}; write one.")
        entries.append(ScheduledPrompt(int(found[1]), found[2]))
    if not 1 <= len(entries) <= MAX_PROMPTS:
        raise ValueError(
            f"the prompt schedule has {len(entries)} prompts; write 1 to {MAX_PROMPTS} lines such as "
            "'0: a red ball on sand'."
        )
    check_starts([entry.start for entry in entries])
    return tuple(entries)


def join_prompts(model: VideoModel, prompts: Sequence[str]) -> tuple[PromptEmbedding, tuple[int, ...]]:
    """Encode prompts and join their text sequences one after another.

    Args:
        model: that runs by itself, whose embeddings are tensors.
        prompts: in words, at least one.

    Returns:
        The joined embedding, to be sampled with a ``PromptSchedule``, and how many tokens each prompt has in it.

    Raises:
        ValueError: the model's prompts are not of that kind.
    """
    parts = [model.encode_prompt(prompt) for prompt in prompts]
    for part in parts:
        if not isinstance(part, TextEmbedding):
            raise ValueError(
                f"prompts of the kind {type(part).__name__} cannot be joined here; use a model that runs by itself, or "
                "the node Prompt Schedule in ComfyUI."
            )
    joined = torch.cat([part.embedding for part in parts], dim=1)
    return TextEmbedding("\n".join(prompts), joined), tuple(part.embedding.shape[1] for part in parts)


def schedule_prompts(
    model: VideoModel, schedule: Sequence[ScheduledPrompt], overlap: int = 0
) -> tuple[PromptEmbedding, tuple[Patch, ...]]:
    """Encode prompts over time for ``VideoModel.sample``.

    Args:
        model: as in ``join_prompts``.
        schedule: of ``parse_schedule``.
        overlap: frames over which a prompt fades into the next one, 0 or more.

    Returns:
        The positive prompt, and the patches that it must be sampled with: none for a single prompt.

    Raises:
        ValueError: as ``join_prompts`` and ``PromptSchedule``.
    """
    embedding, lengths = join_prompts(model, [entry.text for entry in schedule])
    timed = PromptSchedule(tuple(entry.start for entry in schedule), lengths, overlap)
    return embedding, (PromptSchedulePatch(timed),) if len(schedule) > 1 else ()
