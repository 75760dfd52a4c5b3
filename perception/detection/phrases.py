"""The words that a detector is asked for: cleaned, and shared out over captions."""

from __future__ import annotations

import re
from collections.abc import Sequence


def split_phrases(text: str) -> list[str]:
    """Phrases of one text field: separated by full stops, commas, semicolons or new lines, in lower case, once each.

    Example:
        >>> split_phrases("Red ball, blue square.")
        ['red ball', 'blue square']
    """
    parts = (" ".join(part.lower().split()) for part in re.split(r"[.,;\n]", text))
    return list(dict.fromkeys(part for part in parts if part))


def check_phrases(phrases: Sequence[str] | str) -> list[str]:
    """Phrases in lower case, without their full stops, once each, in the given order.

    Args:
        phrases: one text field, which is split, or phrases.

    Raises:
        ValueError: when there are none, or one is empty, no text, or holds a full stop.
    """
    if isinstance(phrases, str):
        phrases = split_phrases(phrases)
    wanted = []
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise ValueError(f"phrase {phrase!r} is a {type(phrase).__name__}; give text, for example 'red ball'.")
        text = " ".join(phrase.lower().split()).rstrip(".").strip()
        if not text:
            raise ValueError(f"phrase {phrase!r} is empty; name an object, for example 'red ball'.")
        if "." in text:
            raise ValueError(f"phrase {phrase!r} holds a full stop; give the parts as separate phrases.")
        wanted.append(text)
    if not wanted:
        raise ValueError("there are no phrases; name at least one object, for example 'red ball'.")
    return list(dict.fromkeys(wanted))


def share_out(phrases: Sequence[str], tokens: Sequence[int], limit: int, joint: bool) -> list[list[str]]:
    """Phrases per caption.

    Args:
        phrases: to ask for.
        tokens: that each phrase takes in a caption, its full stop included.
        limit: tokens that a caption may have; two go to its ends.
        joint: as many phrases in a caption as fit, in their order; otherwise one.

    Raises:
        ValueError: when a phrase does not fit in a caption of its own.
    """
    captions: list[list[str]] = []
    room = 0
    for phrase, length in zip(phrases, tokens, strict=True):
        if length > limit - 2:
            raise ValueError(
                f"phrase {phrase[:40]!r} makes {length} tokens and this detector reads {limit - 2}; shorten it."
            )
        if not joint or length > room:
            captions.append([])
            room = limit - 2
        captions[-1].append(phrase)
        room -= length
    return captions
