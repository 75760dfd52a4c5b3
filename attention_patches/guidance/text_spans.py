"""Where the words of objects stand in the text that a model sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import GuideError


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
        at_end: whether these are the last ``length`` tokens of a text, so that others may stand before them; such a
            text is never repeated.

    Raises:
        GuideError: numbers of phrases and position lists differ, or a position is negative or past the length.
    """

    phrases: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    length: int = 0
    prompts: frozenset[str] | None = None
    ordinary: tuple[int, ...] = ()
    background: tuple[int, ...] = ()
    at_end: bool = False

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

    def fits(self, length: int, before: int | None = None) -> bool:
        """Say whether a text may be the one that the positions were counted in.

        Args:
            length: of the text in tokens.
            before: with ``at_end`` how many of them stand before the prompt's, where that is known.
        """
        if not self.at_end:
            return length % self.length == 0
        return self.length <= length if before is None else self.length == length - before

    def repeated(self, key_length: int) -> TextSpans:
        """Return the same for a text sequence of ``key_length`` tokens.

        Args:
            key_length: number of text keys in the attention call; a multiple of ``length`` means the sequence
                was repeated, and with ``at_end`` more than ``length`` that other text stands before.

        Raises:
            GuideError: a position does not exist among that many keys.
        """
        times, first = 1, 0
        if self.at_end:
            first = key_length - self.length
            if first < 0:
                raise GuideError(
                    f"the objects' words were found in a prompt of {self.length} tokens but the model sees "
                    f"{key_length} text tokens; give Patch Attention the very prompt and text encoder of the video."
                )
        elif self.length and key_length % self.length == 0:
            times = key_length // self.length
        lists = [
            tuple(first + position + turn * self.length for turn in range(times) for position in positions)
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
