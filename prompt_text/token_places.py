"""Where phrases stand among the tokens of a prompt, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..attention_patches.errors import GuideError
from ..attention_patches.guidance.text_spans import TextSpans
from .words import INVERSION_NAME, find_phrases, shorten

# In token ids, marks what is not part of the prompt: beginning, end, padding, a template's words.
NOT_OF_PROMPT = -1
Tokenize = Callable[[str], Sequence[int]]


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
        ids: token ids of the whole text sequence as the model sees it, ``NOT_OF_PROMPT`` for what is not part of the
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
        """Character offsets where the text may be cut: not inside the name of a textual inversion."""
        inside = {cut for name in INVERSION_NAME.finditer(self.text) for cut in range(name.start() + 1, name.end())}
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
        # They may outnumber the tokens where the tokenizer has cut the prompt.
        if before[: len(self.tokens)] == self.tokens[: len(before)]:
            return min(len(before), len(self.tokens))
        # The last token before may be written as the end of a word only because the text ends there.
        after = list(self.tokenize(self.text[cut:]))
        rest = len(self.tokens) - len(after)
        return rest if rest >= 0 and self.tokens[rest:] == after else None

    def tokens_between(self, start: int, stop: int) -> range:
        """Numbers of the prompt's tokens between two characters of this text; one that reaches over them is inside.

        Raises:
            GuideError: the borders of the tokens cannot be found nearby.
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
        part = rest[: len(made)]
        aligned.append(_Part(text, start, part, first, tokenize))
        first += len(part)
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
        "separated; put spaces around the phrase, close every parenthesis, or write \\( and \\) for plain ones."
    )
