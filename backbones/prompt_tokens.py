"""Where the words of a prompt stand in the text sequence that a model sees, for every ComfyUI CLIP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..attention_patches.text_spans import TextSpans, find_token_spans
from .family import Family


def token_spans(
    clip: Any, prompt: str, phrases: Sequence[str], family: Family, conditioning: Any = None
) -> TextSpans:
    """Where phrases stand in the text sequence that a CLIP makes of a prompt.

    Args:
        clip: ComfyUI CLIP.
        prompt: exactly the text of the positive prompt.
        phrases: words of it.
        family: of the model that will see the sequence.
        conditioning: CONDITIONING of this prompt, so that other prompts of a run are left alone; None steers these
            places in every positive prompt.

    Raises:
        ValueError: if a phrase does not occur in the prompt.
    """

    def ids(text: str) -> list[int]:
        return family.text_ids(clip.tokenize(text))

    # Unknown words share one token, so tokens alone could take one for another.
    words = _plain_words(prompt)
    absent = [phrase for phrase in phrases if f" {_plain_words(phrase)} " not in f" {words} "]
    if absent:
        raise ValueError(
            f"the phrase {absent[0]!r} does not occur in the prompt {prompt!r}; use words exactly as in the prompt."
        )
    # What the empty prompt is made of is exactly the special tokens.
    return find_token_spans(ids(prompt), [ids(phrase) for phrase in phrases], phrases, prompt, frozenset(ids("")))


def _plain_words(text: str) -> str:
    """Lower case words with single spaces, without weights and punctuation."""
    return " ".join(re.sub(r":\s*[\d.]+\s*\)|[^\w'-]+", " ", text.lower()).split())
