"""Where the words of a prompt stand among its tokens, for every kind of tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..errors import GuideError

# Stands in a sequence of token ids for what is no part of the prompt: beginning, end, padding, a template's words.
NOT_OF_PROMPT = -1
# How much of a prompt a message shows.
SHOWN_CHARACTERS = 160
SHOWN_WORDS = 40

# Scripts without spaces between words (or, Korean, with particles written to the word): each letter is a word.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]"
)
# The name of a textual inversion is one word, and no tokenizer is given a part of it.
_NAME_OR_CHARACTER = re.compile(r"embedding:[^\s,]+|\S")
_NAME = re.compile(r"embedding:\s*[^\s,]*")

Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class TextSpans:
    """Token positions of each phrase in the conditional text sequence.

    Attributes:
        phrases: the phrases as the user wrote them.
        positions: for each phrase its token positions, ascending, all occurrences together. Positions count from the
            first token of the text sequence (beginning-of-text tokens included), as the text keys do.
        length: length of the text sequence in tokens with specials and padding, or 0 when unknown. ComfyUI repeats
            text sequences of different lengths up to a common one; with the length known the positions follow.
        prompts: names of the prompts that the positions hold for, as in ``BatchRows.prompts``; None is every
            conditional one.
        ordinary: positions of all of the prompt's own words, ascending: not of begin, end, padding or a template.
        background: positions of the words that name the background, ascending; none of an object's.

    Raises:
        GuideError: numbers of phrases and position lists differ, or a position is negative or past the length.
    """

    phrases: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    length: int = 0
    prompts: frozenset[str] | None = None
    ordinary: tuple[int, ...] = ()
    background: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.phrases) != len(self.positions):
            raise GuideError(
                f"{len(self.phrases)} phrases but {len(self.positions)} lists of token positions; give one per phrase."
            )
        named = zip((*self.phrases, "background", "whole prompt"), self._lists(), strict=True)
        for phrase, positions in named:
            wrong = [position for position in positions if position < 0 or 0 < self.length <= position]
            if wrong:
                raise GuideError(
                    f"token position {wrong[0]} of the phrase {phrase!r} lies outside the text sequence of "
                    f"{self.length} tokens; count positions in the sequence that the model sees."
                )

    def _lists(self) -> tuple[tuple[int, ...], ...]:
        return (*self.positions, self.background, self.ordinary)

    def _moved(self, lists: Sequence[tuple[int, ...]], length: int) -> TextSpans:
        *positions, background, ordinary = lists
        return replace(self, positions=tuple(positions), background=background, ordinary=ordinary, length=length)

    @property
    def begin(self) -> tuple[int, ...]:
        """Positions of begin-of-text tokens: what stands directly before the prompt's own words."""
        words = set(self.ordinary)
        return tuple(position - 1 for position in self.ordinary if position and position - 1 not in words)

    def holds_for(self, prompts: tuple[str, ...], chunk: int) -> bool:
        """Say whether the positions are those of the prompt of a chunk; ``prompts`` as in ``BatchRows``."""
        return self.prompts is None or not prompts or prompts[chunk] in self.prompts

    def repeated(self, key_length: int) -> TextSpans:
        """Return the same for a text sequence of ``key_length`` tokens.

        Args:
            key_length: number of text keys in the attention call; a multiple of ``length`` means the sequence
                was repeated.

        Raises:
            GuideError: a position does not exist among that many keys.
        """
        times = key_length // self.length if self.length and key_length % self.length == 0 else 1
        lists = [
            tuple(position + turn * self.length for turn in range(times) for position in positions)
            for positions in self._lists()
        ]
        for phrase, positions in zip(self.phrases, lists, strict=False):
            if positions and positions[-1] >= key_length:
                raise GuideError(
                    f"the phrase {phrase!r} stands at token {positions[-1]} but the model sees {key_length} text "
                    "tokens; shorten the prompt or take the spans from the prompt that is sampled."
                )
        kept = [tuple(position for position in positions if position < key_length) for positions in lists]
        return self._moved(kept, key_length)

    def in_part(self, key_length: int, part: tuple[int, int] | None) -> TextSpans:
        """Return the same for a call that sees a part of the text.

        Args:
            key_length: number of text keys in the attention call.
            part: as ``AttentionSite.text_part``; None as ``repeated``.

        Raises:
            GuideError: a position does not exist in the whole text.
        """
        if part is None:
            return self.repeated(key_length)
        first, whole = part
        lists = [
            tuple(position - first for position in positions if first <= position < first + key_length)
            for positions in self.repeated(whole)._lists()
        ]
        return self._moved(lists, key_length)


def spans_of_named(find: Callable[[Sequence[str]], TextSpans], phrases: Sequence[str]) -> TextSpans:
    """Token positions of phrases of which some are empty: objects without words, which have no positions.

    Args:
        find: the positions of phrases that are not empty.
        phrases: one per object.

    Raises:
        GuideError: as ``find`` does.
    """
    spans = find([phrase for phrase in phrases if phrase])
    positions = iter(spans.positions)
    return replace(
        spans,
        phrases=tuple(phrases),
        positions=tuple(next(positions) if phrase else () for phrase in phrases),
    )


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
        """Equal for words that differ in nothing but upper and lower case or the form of their characters."""
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
    """Say whether a character continues the word that the one before it belongs to."""
    if len(right) > 1:
        return False
    kinds = unicodedata.category(left)[0], unicodedata.category(right)[0]
    if kinds[1] == "M":
        return True
    spaced = not _UNSPACED.match(left) and not _UNSPACED.match(right)
    return kinds[0] in "LNM" and kinds[1] in "LN" and spaced


def find_phrases(prompt: str, phrases: Sequence[str]) -> list[list[list[Word]]]:
    """Find every occurrence of phrases in a prompt, as whole words, in upper or lower case.

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
    """A text for a message, without its end when it is long."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rstrip() + " ..."


def _listed(words: Sequence[Word]) -> str:
    """Each word and mark once, quoted; the first ones of a long text."""
    named = list(dict.fromkeys(word.text for word in words))
    shown = ", ".join(repr(word) for word in named[:SHOWN_WORDS])
    return shown if len(named) <= SHOWN_WORDS else f"{shown} and {len(named) - SHOWN_WORDS} more"


def locate_phrases(
    ids: Sequence[int],
    parts: Sequence[str],
    tokenizers: Sequence[Tokenize],
    phrases: Sequence[str],
    background_phrase: str = "",
) -> TextSpans:
    """Find the tokens of phrases in the token sequence of a prompt.

    Tokens are counted in the beginnings of the prompt, up to where a phrase starts and up to where it stops; a
    beginning counts when its tokens begin the prompt's, or when the tokens of what follows end them. A token that
    reaches over the border of a phrase belongs to it.

    Args:
        ids: token ids of the whole text sequence as the model sees it, ``NOT_OF_PROMPT`` for what is no part of the
            prompt.
        parts: texts that make the prompt when joined, as the tokenizer takes them apart (at weights).
        tokenizers: ways to make ids of a part or its beginning alone, specials excluded; each part is read in the
            first way that gives its ids in the prompt.
        phrases: words of the prompt.
        background_phrase: words of the prompt that name the background, or empty. Tokens that it shares with a phrase
            belong to the phrase.

    Returns:
        Positions per phrase, of all its occurrences that the sequence holds, and of all words of the prompt.

    Raises:
        GuideError: as ``find_phrases``; or the tokenizer has cut the prompt before a phrase, or does not know its
            letters; or the parts do not make the ids.
    """
    prompt = "".join(parts)
    wanted = [*phrases, background_phrase] if background_phrase else list(phrases)
    occurrences = find_phrases(prompt, wanted)
    places = [place for place, token in enumerate(ids) if token != NOT_OF_PROMPT]
    aligned = _align([ids[place] for place in places], parts, tokenizers)
    found = []
    for phrase, candidates in zip(wanted, occurrences, strict=True):
        # The tokenizer may have cut the prompt inside of a phrase: its last word must be there.
        held = [words for words in candidates if _tokens_between(aligned, words[-1].start, words[-1].stop)]
        if not held:
            raise GuideError(
                f"the phrase {phrase!r} is in the prompt but has no tokens of its own among the {len(places)} that the "
                "text encoder reads of it: the prompt is cut off before it, or its letters are unknown; shorten the "
                "prompt, move the phrase to its beginning, or write it in letters that the text encoder knows."
            )
        tokens = {token for words in held for token in _tokens_between(aligned, words[0].start, words[-1].stop)}
        found.append(tuple(places[token] for token in sorted(tokens)))
    objects = found[: len(phrases)]
    named = {position for positions in objects for position in positions}
    background = [position for position in (found[-1] if background_phrase else ()) if position not in named]
    return TextSpans(tuple(phrases), tuple(objects), len(ids), ordinary=tuple(places), background=tuple(background))


@dataclass
class _Part:
    """A part of a prompt whose tokens are known.

    Attributes:
        text: its words.
        start: character offset in the prompt.
        tokens: their ids.
        first: how many tokens of the prompt stand before them.
        tokenize: how they are made.
    """

    text: str
    start: int
    tokens: list[int]
    first: int
    tokenize: Tokenize
    counts: dict[int, int | None] = field(default_factory=dict)

    @cached_property
    def cuts(self) -> list[int]:
        """Character offsets where the text may be cut: not in the name of a textual inversion."""
        inside = {cut for name in _NAME.finditer(self.text) for cut in range(name.start() + 1, name.end())}
        return [cut for cut in range(len(self.text) + 1) if cut not in inside]

    def count(self, cut: int) -> int | None:
        """Tokens of the text up to a character, or None when a token reaches over it."""
        if cut in (0, len(self.text)):
            return len(self.tokens) if cut else 0
        if cut not in self.counts:
            self.counts[cut] = self._count(cut)
        return self.counts[cut]

    def _count(self, cut: int) -> int | None:
        before = list(self.tokenize(self.text[:cut]))
        # There may be more of them than tokens where the tokenizer has cut the prompt.
        if before[: len(self.tokens)] == self.tokens[: len(before)]:
            return min(len(before), len(self.tokens))
        # The last token before may be written as the end of a word only because the text ends there.
        after = list(self.tokenize(self.text[cut:]))
        rest = len(self.tokens) - len(after)
        return rest if rest >= 0 and self.tokens[rest:] == after else None

    def tokens_between(self, start: int, stop: int) -> range:
        """Numbers of the prompt's tokens between two characters of this text; one that reaches over them is inside.

        Raises:
            GuideError: the borders of the tokens are not to be found nearby.
        """
        before = self._nearest(start, [cut for cut in reversed(self.cuts) if cut <= start])
        after = self._nearest(stop, [cut for cut in self.cuts if cut >= stop])
        return range(self.first + before, self.first + after)

    def _nearest(self, wanted: int, cuts: Sequence[int]) -> int:
        for cut in cuts:
            # One run of letters may hide a border: no more.
            if len(self.text[min(cut, wanted) : max(cut, wanted)].split()) > 1:
                break
            tokens = self.count(cut)
            if tokens is not None:
                return tokens
        raise GuideError(_no_match(self.text))


def _align(tokens: list[int], parts: Sequence[str], tokenizers: Sequence[Tokenize]) -> list[_Part]:
    """Share the prompt's tokens out among its parts."""
    aligned: list[_Part] = []
    first = start = 0
    for text in parts:
        rest = tokens[first:]
        for tokenize in tokenizers:
            made = list(tokenize(text))
            # Fewer than were made: the tokenizer has cut the prompt here.
            if rest[: len(made)] == made[: len(rest)]:
                break
        else:
            raise GuideError(_no_match(text))
        own = rest[: len(made)]
        aligned.append(_Part(text, start, own, first, tokenize))
        first += len(own)
        start += len(text)
    if first < len(tokens):
        raise GuideError(_no_match("".join(parts)))
    return aligned


def _tokens_between(aligned: Sequence[_Part], start: int, stop: int) -> list[int]:
    """Numbers of the prompt's tokens between two characters of the prompt."""
    found: list[int] = []
    for part in aligned:
        low, high = max(start - part.start, 0), min(stop - part.start, len(part.text))
        if low < high:
            found += part.tokens_between(low, high)
    return found


def _no_match(text: str) -> str:
    return (
        f"the text encoder reads {shorten(text)!r} otherwise inside of the prompt than alone, so its words cannot be "
        "told apart; put spaces around the phrase, close every parenthesis, or write \\( and \\) for plain ones."
    )
