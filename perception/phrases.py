"""Phrases for objects: how they are read from text, when two are the same, and which objects they name.

Everything that takes phrases or gives names (detection, tracks, guides, mask files, metrics) uses this module.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..prompt_text.words import split_words

# Marks between phrases, the wide ones of some scripts too; a full stop between digits is part of a number.
_BETWEEN = re.compile("[,;\n\r\u3001\u3002\uff0c\uff1b]|(?<!\\d)[.]|[.](?!\\d)")
# A text with a weight as prompts have it, (red ball:1.2); parentheses after a backslash are plain ones.
_WEIGHTED = re.compile(r"(?<!\\)\(((?:[^()\\]|\\.)*?):\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)")
# These say nothing about which object is meant.
_ARTICLES = frozenset({"a", "an", "the"})


def split_phrases(text: str) -> list[str]:
    """Phrases of one text: apart by commas, full stops, semicolons or new lines, as written, once each.

    Weights as in prompts are left out, and so are parts of punctuation alone, which name nothing.

    Example:
        >>> split_phrases("Red ball, (blue  square:1.2). , red ball")
        ['Red ball', 'blue square']
    """
    found: dict[str, str] = {}
    for phrase in listed_parts(_without_weights(text)):
        if not all(unicodedata.category(character)[0] in "PZC" for character in phrase):
            found.setdefault(phrase_key(phrase), phrase)
    return list(found.values())


def listed_parts(text: str) -> list[str]:
    """The parts between the marks that separate phrases, such as patterns of labels; empty parts are left out."""
    return list(filter(None, (" ".join(part.split()) for part in _BETWEEN.split(text))))


def read_phrases(texts: Sequence[str]) -> tuple[str, ...]:
    """Phrases of several texts, each of which may hold more than one.

    Raises:
        ValueError: a text names nothing.
    """
    found: list[str] = []
    for text in texts:
        phrases = split_phrases(text)
        if not phrases:
            raise ValueError(f"phrase {text!r} names nothing; name at least one object, for example 'red ball'.")
        found += phrases
    return tuple(found)


def plain_phrase(phrase: str) -> str:
    """One phrase without prompt weights, surplus spaces and full stops at its end."""
    return " ".join(_without_weights(phrase).split()).rstrip(".").strip()


def checked_phrase(phrase: object) -> str:
    """One phrase, plain.

    Raises:
        ValueError: it is not text, names nothing, or is several.
    """
    if not isinstance(phrase, str):
        raise ValueError(f"phrase {phrase!r} is a {type(phrase).__name__}; give text, for example 'red ball'.")
    parts = split_phrases(phrase)
    if not parts:
        lack = "has no words" if phrase.strip() else "is empty"
        raise ValueError(f"phrase {phrase!r} {lack}; name an object, for example 'red ball'.")
    if len(parts) > 1:
        raise ValueError(
            f"phrase {phrase!r} holds {len(parts)}, separated by a full stop, comma, semicolon or new line; give "
            "the parts as separate phrases."
        )
    return parts[0]


def phrase_key(phrase: str) -> str:
    """Equal for phrases of the same words, whatever their spaces, weights and case."""
    return " ".join(word.key for word in split_words(plain_phrase(phrase)))


def bind_phrases(
    phrases: Sequence[str], labels: Sequence[str], what: str = "objects", together: bool = False
) -> list[list[int]]:
    """Which objects phrases name.

    A phrase names all objects that have it as their label. Phrases that are not a label go, in their order, to as many
    objects without a label, else to as many whose label is not a phrase, unless their words say otherwise.

    Args:
        phrases: wanted, each once.
        labels: of the objects; empty for one without.
        what: the objects are, for messages.
        together: a single phrase that is not a label may name all of several objects.

    Returns:
        For each phrase the places of its objects, at least one.

    Raises:
        ValueError: a phrase names no object, or its order gives it one whose label it has less in common with than with
            another.
    """
    keys = [phrase_key(label) for label in labels]
    groups = [[place for place, key in enumerate(keys) if key and key == phrase_key(phrase)] for phrase in phrases]
    open_phrases = [number for number, group in enumerate(groups) if not group]
    taken = {place for group in groups for place in group}
    free = [place for place in range(len(labels)) if place not in taken]
    unlabelled = [place for place in free if not keys[place]]
    if not open_phrases:
        return groups
    for places in (unlabelled, free):
        if len(places) == len(open_phrases):
            for number, place in zip(open_phrases, places, strict=True):
                _check_order(phrases[number], labels, [place])
                groups[number] = [place]
            return groups
    if together and len(phrases) == 1 and free:
        _check_order(phrases[0], labels, free)
        return [free]
    if not any(keys) or len(phrases) > len(labels):
        raise ValueError(f"there are {what} for {len(labels)} objects and {len(phrases)} phrases; give one per object.")
    raise ValueError(_names_none(phrases[open_phrases[0]], labels))


def named_objects(phrases: Sequence[str], labels: Sequence[str], what: str = "objects") -> list[tuple[int, str]]:
    """Objects that phrases name, in the order of the phrases, each as its place and its phrase.

    Args:
        phrases: wanted; none at all keeps every object with its label.
        labels, what: as in ``bind_phrases``.

    Raises:
        ValueError: as ``bind_phrases``.
    """
    if not phrases:
        return list(enumerate(labels))
    groups = bind_phrases(phrases, labels, what)
    return [(place, phrase) for phrase, group in zip(phrases, groups, strict=True) for place in group]


def _check_order(phrase: str, labels: Sequence[str], places: Sequence[int]) -> None:
    """Refuse to give a phrase to objects in their order where its words are those of others."""
    wanted = _words(phrase)
    shared = [len(wanted & _words(label)) for label in labels]
    if max(shared) > min(shared[place] for place in places):
        raise ValueError(_names_none(phrase, labels))


def _names_none(phrase: str, labels: Sequence[str]) -> str:
    named = ", ".join(dict.fromkeys(label for label in labels if label))
    return (
        f"phrase {phrase!r} names no tracked object (labels: {named}); use the labels, or give one phrase per object "
        f"({len(labels)}) in words that fit their labels in this order."
    )


def _words(phrase: str) -> set[str]:
    return set(phrase_key(phrase).split()) - _ARTICLES


def _without_weights(text: str) -> str:
    before = None
    while text != before:
        before, text = text, _WEIGHTED.sub(r" \1 ", text)
    return text
