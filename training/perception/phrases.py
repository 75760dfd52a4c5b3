"""Phrases for the Toybox detector about a picture, and the objects that are the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...toybox import world
from .models import ANYTHING

Words = tuple[str, str]


@dataclass(frozen=True)
class Phrase:
    """A phrase of a caption. It fits an object when every colour and shape that it names is the object's.

    Attributes:
        text: as a user would write it, ``a red ball``.
        colour: named colour, or None.
        shape: named shape (singular), or None.
        nothing: names something that is never an object: a background, an unknown word.
    """

    text: str
    colour: str | None = None
    shape: str | None = None
    nothing: bool = False

    def fits(self, words: Words) -> bool:
        """Whether an object of this (colour, shape) is what the phrase names."""
        if self.nothing:
            return False
        return self.colour in (None, words[0]) and self.shape in (None, words[1])


def fitting_phrase(generator: np.random.Generator, words: Words) -> Phrase:
    """A phrase that fits the object."""
    colour, shape = words
    chance = float(generator.random())
    if chance < 0.6:
        return _written(generator, colour, shape)
    if chance < 0.8:
        return _written(generator, None, shape)
    return _written(generator, colour if chance < 0.92 else None, None)


def absent_phrase(generator: np.random.Generator, words: Sequence[Words]) -> Phrase:
    """A phrase that fits no object of the picture, most often a near miss: right colour or right shape only."""
    colours, shapes = list(world.COLOURS), list(world.SHAPES)
    while True:
        chance = float(generator.random())
        colour, shape = str(generator.choice(colours)), str(generator.choice(shapes))
        if words and chance < 0.75:
            some, other = (words[int(generator.integers(len(words)))] for _ in range(2))
            # Shapes are harder to tell apart than colours: the right colour with a wrong shape comes most.
            colour = some[0] if generator.random() < 0.75 else colour
            shape = other[1] if generator.random() < 0.35 else shape
        if chance > 0.9:
            return _nothing(generator, colour)
        kind = float(generator.random())
        named = (colour if kind < 0.9 else None, shape if kind < 0.8 or kind >= 0.9 else None)
        phrase = _written(generator, *named)
        if not any(phrase.fits(item) for item in words):
            return phrase


def caption_phrases(generator: np.random.Generator, words: Sequence[Words]) -> list[Phrase]:
    """The phrases of one caption: most often one, sometimes two to four together."""
    count = 1 if generator.random() < 0.75 else int(generator.integers(2, 5))
    phrases: list[Phrase] = []
    for _ in range(count):
        if words and generator.random() < 0.6:
            phrases.append(fitting_phrase(generator, words[int(generator.integers(len(words)))]))
        else:
            phrases.append(absent_phrase(generator, words))
    return phrases


def caption(phrases: Sequence[Phrase]) -> str:
    """Phrases in the form GroundingDINO reads: each closed by a full stop."""
    return " ".join(f"{phrase.text}." for phrase in phrases)


def _written(generator: np.random.Generator, colour: str | None, shape: str | None) -> Phrase:
    noun = shape if shape is not None else str(generator.choice(ANYTHING))
    plural = shape is not None and generator.random() < 0.08
    parts = [colour, f"{noun}s" if plural else noun]
    if colour is not None and shape is None and generator.random() < 0.3:
        parts = [colour]
    if not plural and generator.random() < 0.35:
        parts.insert(0, str(generator.choice(["a", "the"])))
    return Phrase(" ".join(part for part in parts if part), colour, shape)


def _nothing(generator: np.random.Generator, colour: str) -> Phrase:
    if generator.random() < 0.5:
        text = str(generator.choice(list(world.BACKGROUNDS)))
    else:
        # A word that is not in the vocabulary, so that "red car" does not find a red ball.
        text = str(generator.choice(["car", f"{colour} car", f"a {colour} car", "teddy bear"]))
    return Phrase(text, nothing=True)
