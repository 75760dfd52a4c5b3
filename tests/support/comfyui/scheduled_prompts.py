"""Several prompts over time for tiny models."""

from __future__ import annotations

from typing import Any

from native_models import TinyModel

from mask_guided_video.attention_patches.prompt_schedule import PromptSchedule, PromptSchedulePatch
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.backbones.registry import install_patches
from mask_guided_video.host.prompts.joined_prompts import JOINED_KEY, join_conditionings


def prompts_of(model: TinyModel, count: int = 2) -> list[Any]:
    """Conditionings of several prompts, of different lengths where no mask says how long they are."""
    masked = "attention_mask" in model.extras
    return [model.conditioning(10 + number, model.text - (0 if masked else number % 3)) for number in range(count)]


def scheduled(
    model: TinyModel, parts: list[Any], starts: tuple[int, ...], overlap: int = 0, patcher: Any = None
) -> tuple[Any, list[Any], PromptSchedule]:
    """The patched model, the joined conditioning and the schedule."""
    joined = join_conditionings(parts, [str(start) for start in starts])
    lengths = joined[0][1][JOINED_KEY].lengths
    schedule = PromptSchedule(starts, lengths, overlap, frozenset({prompt_name(joined[0][0])}))
    return install_patches(patcher or model.patcher, [PromptSchedulePatch(schedule)]), joined, schedule
