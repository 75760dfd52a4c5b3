"""Phrases to token positions, as plain lists."""

from __future__ import annotations

import pytest

from mask_guided_video.attention_patches.text_spans import TextSpans, find_token_spans

PROMPT = "a red ball and a blue ball"
# begin, words, end, padding
IDS = [1, 10, 11, 12, 13, 10, 14, 12, 2, 0, 0]


def test_one_word_at_every_occurrence_and_a_phrase_at_its_own() -> None:
    spans = find_token_spans(IDS, [[12], [11, 12], [14, 12]], ["ball", "red ball", "blue ball"], PROMPT)
    assert spans == TextSpans(("ball", "red ball", "blue ball"), ((3, 7), (2, 3), (6, 7)), 11)


def test_specials_of_the_phrase_are_dropped() -> None:
    spans = find_token_spans(IDS, [[1, 11, 12, 2, 0]], ["red ball"], PROMPT, special_ids={0, 1, 2})
    assert spans.positions == ((2, 3),)


def test_overlapping_occurrences_share_tokens() -> None:
    assert find_token_spans([5, 5, 5, 7], [[5, 5]], ["no no"], "no no no yes").positions == ((0, 1, 2),)


def test_absent_phrase_is_named_with_the_prompt() -> None:
    with pytest.raises(ValueError, match="'green ball' does not occur in the prompt 'a red ball and a blue ball'"):
        find_token_spans(IDS, [[15, 12]], ["green ball"], PROMPT)


def test_empty_phrase_is_an_error() -> None:
    with pytest.raises(ValueError, match="the phrase '' has no words"):
        find_token_spans(IDS, [[1, 2]], [""], PROMPT, special_ids=(0, 1, 2))


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="2 phrases but token ids for 1"):
        find_token_spans(IDS, [[12]], ["ball", "red"], PROMPT)
    with pytest.raises(ValueError, match="1 phrases but 2 lists of token positions"):
        TextSpans(("ball",), ((1,), (2,)))


def test_positions_must_lie_in_the_sequence() -> None:
    with pytest.raises(ValueError, match="token position 11 of the phrase 'ball' lies outside the text sequence of 11"):
        TextSpans(("ball",), ((3, 11),), 11)
    assert TextSpans(("ball",), ((3, 11),)).length == 0


def test_repeated_text_sequences() -> None:
    spans = TextSpans(("ball",), ((3, 7),), 10)
    assert spans.repeated(10) == ((3, 7),)
    assert spans.repeated(20) == ((3, 7, 13, 17),)
    # Text that is cut or padded to another length keeps its positions ...
    assert spans.repeated(12) == ((3, 7),)
    # ... as long as they are there.
    with pytest.raises(ValueError, match="the phrase 'ball' stands at token 7 but the model sees 6 text tokens"):
        spans.repeated(6)
