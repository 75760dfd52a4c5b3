"""Which tokens of a prompt name which object: pure list work on token ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


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

    Raises:
        ValueError: numbers of phrases and position lists differ, or a position is negative or past the length.
    """

    phrases: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    length: int = 0
    prompts: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if len(self.phrases) != len(self.positions):
            raise ValueError(
                f"{len(self.phrases)} phrases but {len(self.positions)} lists of token positions; give one per phrase."
            )
        for phrase, positions in zip(self.phrases, self.positions, strict=True):
            wrong = [position for position in positions if position < 0 or 0 < self.length <= position]
            if wrong:
                raise ValueError(
                    f"token position {wrong[0]} of the phrase {phrase!r} lies outside the text sequence of "
                    f"{self.length} tokens; count positions in the sequence that the model sees."
                )

    def holds_for(self, prompts: tuple[str, ...], chunk: int) -> bool:
        """Say whether the positions are those of the prompt of a chunk; ``prompts`` as in ``BatchRows``."""
        return self.prompts is None or not prompts or prompts[chunk] in self.prompts

    def repeated(self, key_length: int) -> tuple[tuple[int, ...], ...]:
        """Return the positions for a text sequence of ``key_length`` tokens.

        Args:
            key_length: number of text keys in the attention call; a multiple of ``length`` means the sequence
                was repeated.

        Raises:
            ValueError: a position does not exist among that many keys.
        """
        times = key_length // self.length if self.length and key_length % self.length == 0 else 1
        spans = tuple(
            tuple(position + turn * self.length for turn in range(times) for position in positions)
            for positions in self.positions
        )
        for phrase, positions in zip(self.phrases, spans, strict=True):
            if positions and positions[-1] >= key_length:
                raise ValueError(
                    f"the phrase {phrase!r} stands at token {positions[-1]} but the model sees {key_length} text "
                    "tokens; shorten the prompt or take the spans from the prompt that is sampled."
                )
        return spans


def find_token_spans(
    prompt_ids: Sequence[int],
    phrase_ids: Sequence[Sequence[int]],
    phrases: Sequence[str],
    prompt: str = "",
    special_ids: Collection[int] = (),
) -> TextSpans:
    """Find every occurrence of each phrase among the prompt's tokens.

    Args:
        prompt_ids: token ids of the whole text sequence as the model sees it, specials and padding included.
        phrase_ids: token ids of each phrase; specials and padding in them are dropped.
        phrases: the phrases in words, for the result and for messages.
        prompt: the prompt in words, for messages.
        special_ids: ids of beginning, end and padding tokens.

    Returns:
        Positions per phrase. Occurrences that overlap share their tokens.

    Raises:
        ValueError: a phrase is empty or does not occur; the message names it and the prompt.
    """
    if len(phrases) != len(phrase_ids):
        raise ValueError(f"{len(phrases)} phrases but token ids for {len(phrase_ids)}; give ids for every phrase.")
    ids = list(prompt_ids)
    found = []
    for phrase, tokens in zip(phrases, phrase_ids, strict=True):
        wanted = [token for token in tokens if token not in special_ids]
        if not wanted:
            raise ValueError(f"the phrase {phrase!r} has no words; write the words of the prompt that name the object.")
        starts = [start for start in range(len(ids) - len(wanted) + 1) if ids[start : start + len(wanted)] == wanted]
        if not starts:
            raise ValueError(
                f"the phrase {phrase!r} does not occur in the prompt {prompt!r}; use words exactly as in the prompt."
            )
        found.append(tuple(sorted({start + offset for start in starts for offset in range(len(wanted))})))
    return TextSpans(tuple(phrases), tuple(found), len(ids))
