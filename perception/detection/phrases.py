"""The phrases that a detector looks for: cleaned, and divided over captions."""

from __future__ import annotations

from collections.abc import Sequence

from ..phrases import checked_phrase, split_phrases


def check_phrases(phrases: Sequence[str] | str) -> list[str]:
    """Phrases in lower case, without weights and full stops, once each, in the given order.

    Args:
        phrases: one text field, which is split, or phrases.

    Raises:
        ValueError: when there are none, or one is empty, is not text, or is several.
    """
    if isinstance(phrases, str):
        phrases = split_phrases(phrases)
    wanted = [checked_phrase(phrase).lower() for phrase in phrases]
    if not wanted:
        raise ValueError("there are no phrases; name at least one object, for example 'red ball'.")
    numbered = next((phrase for phrase in wanted if "." in phrase), None)
    if numbered is not None:
        raise ValueError(f"phrase {numbered!r} holds a full stop, where a detector's caption ends; write it without.")
    return list(dict.fromkeys(wanted))


def share_out(phrases: Sequence[str], tokens: Sequence[int], limit: int, joint: bool) -> list[list[str]]:
    """Phrases per caption.

    Args:
        phrases: to look for.
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
