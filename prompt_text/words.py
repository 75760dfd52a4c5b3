"""Words of a prompt, in any script, and phrases among them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..attention_patches.errors import GuideError

# How much of a prompt a message shows.
SHOWN_CHARACTERS = 160
SHOWN_WORDS = 40
# Scripts without spaces between words (or, Korean, with particles written to the word): each letter is a word.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]"
)
# The name of a textual inversion is one word; tokenizers never get a part of it.
_NAME_OR_CHARACTER = re.compile(r"embedding:[^\s,]+|\S")
# The name of a textual inversion in a prompt.
INVERSION_NAME = re.compile(r"embedding:\s*[^\s,]*")


@dataclass(frozen=True)
class Word:
    """A word or a punctuation mark of a text.

    Attributes:
        text: as written.
        start, stop: character offsets; ``stop`` is the first one after it.
    """

    text: str
    start: int
    stop: int

    @cached_property
    def key(self) -> str:
        """Equal for words that differ only in case or in the form of their characters."""
        return unicodedata.normalize("NFKC", self.text).casefold()


def split_words(text: str) -> list[Word]:
    """Words and punctuation marks of a text, in their order.

    Letters and digits side by side are a word; every other mark stands alone (so ``ball-shaped`` has three parts), and
    so does each letter of a script that sets no spaces between words.
    """
    words: list[Word] = []
    for found in _NAME_OR_CHARACTER.finditer(text):
        last = words[-1] if words else None
        if last is not None and last.stop == found.start() and _belong_together(last.text[-1], found.group()):
            words[-1] = Word(last.text + found.group(), last.start, found.end())
        else:
            words.append(Word(found.group(), found.start(), found.end()))
    return words


def _belong_together(left: str, right: str) -> bool:
    """Whether a character continues the word that the one before it belongs to."""
    if len(right) > 1:
        return False
    kinds = unicodedata.category(left)[0], unicodedata.category(right)[0]
    if kinds[1] == "M":
        return True
    spaced = not _UNSPACED.match(left) and not _UNSPACED.match(right)
    return kinds[0] in "LNM" and kinds[1] in "LN" and spaced


def find_phrases(prompt: str, phrases: Sequence[str]) -> list[list[list[Word]]]:
    """Find every occurrence of phrases in a prompt, as whole words, in any case.

    Args:
        prompt: in words, without weights.
        phrases: words that follow each other in the prompt; spaces between them do not matter.

    Returns:
        For each phrase its occurrences, each as the prompt's words; occurrences may overlap.

    Raises:
        GuideError: the prompt or a phrase is empty, or a phrase is not in the prompt.
    """
    words = split_words(prompt)
    keys = [word.key for word in words]
    if phrases and not words:
        quoted = ", ".join(repr(phrase) for phrase in phrases)
        raise GuideError(f"the prompt is empty, so {quoted} cannot be found in it; give the text of the prompt.")
    found = []
    for phrase in phrases:
        wanted = [word.key for word in split_words(phrase)]
        if not wanted:
            raise GuideError(f"the phrase {phrase!r} has no words; write the words of the prompt that name the object.")
        starts = [at for at in range(len(keys) - len(wanted) + 1) if keys[at : at + len(wanted)] == wanted]
        if not starts:
            raise GuideError(
                f"the phrase {phrase!r} does not occur in the prompt {shorten(prompt)!r}, whose words are "
                f"{_listed(words)}; use words exactly as in the prompt."
            )
        found.append([words[at : at + len(wanted)] for at in starts])
    return found


def shorten(text: str) -> str:
    """A text for a message, shortened when it is long."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rstrip() + " ..."


def _listed(words: Sequence[Word]) -> str:
    """Each word and mark once, quoted; the first ones of a long text."""
    named = list(dict.fromkeys(word.text for word in words))
    shown = ", ".join(repr(word) for word in named[:SHOWN_WORDS])
    return shown if len(named) <= SHOWN_WORDS else f"{shown} and {len(named) - SHOWN_WORDS} more"
