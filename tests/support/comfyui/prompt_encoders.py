"""What tests of phrases need of text encoders: their tokenizers in a CLIP, and encoders that say what they keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def clip_of(tokenizer: Any) -> Any:
    """A real CLIP of which only the tokenizer is there."""
    import comfy.sd

    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer = tokenizer
    clip.tokenizer_options = {}
    return clip


class IndexEncoder(torch.nn.Module):
    """Stands for a language model: a token becomes its number in the list, a token of a picture a negative one."""

    def encode_token_weights(self, chunks: Any) -> Any:
        assert len(chunks) == 1
        numbers = []
        for at, entry in enumerate(chunks[0]):
            picture = isinstance(entry[0], dict)
            numbers += [-1 - row for row in range(len(entry[0]["data"]))] if picture else [at]
        output = torch.tensor(numbers, dtype=torch.float32)[None, :, None]
        return output, None, {"attention_mask": torch.ones(1, len(numbers))}


class NoEncoder(torch.nn.Module):
    """Stands for CLIP, whose output blocks do not read as text."""

    def encode_token_weights(self, chunks: Any) -> Any:
        return torch.zeros(1, 77, 1), torch.zeros(1, 1)


def ids_of(clip: Any, prompt: str, key: str) -> list[int | None]:
    """Every id of every chunk in a row, None for vectors; not by the code under test."""
    entries = [entry for chunk in clip.tokenize(prompt)[key] for entry in chunk]
    return [None if torch.is_tensor(entry[0]) else entry[0] for entry in entries]


def said(ids: Sequence[int | None], decode: Callable[..., str], positions: Sequence[int]) -> list[str]:
    """The words of the tokens at some places, each run of places apart."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return [decode([ids[position] for position in run]).strip() for run in runs]
