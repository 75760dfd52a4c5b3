"""Words of prompts and their tokens, with tokenizers of a few lines."""

from __future__ import annotations

import re

import pytest

from mask_guided_video.attention_patches.guidance.text_spans import TextSpans, spans_of_named
from mask_guided_video.prompt_text.token_places import NOT_OF_PROMPT, locate_phrases
from mask_guided_video.prompt_text.words import find_phrases, split_words

PROMPT = "a red ball and a blue ball"


def by_word(text):
    """One number per word and mark, always the same."""
    return [sum(word.encode()) for word in re.findall(r"\w+|[^\w\s]", text.lower())]


def by_pair(text):
    """One number per pair of letters, spaces left out: tokens reach over the borders of words."""
    letters = text.replace(" ", "")
    return [
        sum(ord(letter) << 8 * place for place, letter in enumerate(letters[at : at + 2]))
        for at in range(0, len(letters), 2)
    ]


def locate(prompt, phrases, tokenize=by_word, parts=None, before=1, after=2, cut=None):
    ids = [token for part in parts or [prompt] for token in tokenize(part)][:cut]
    return locate_phrases(
        [NOT_OF_PROMPT] * before + ids + [NOT_OF_PROMPT] * after, parts or [prompt], [tokenize], phrases
    )


def words(text):
    return [word.text for word in split_words(text)]


def test_one_word_at_every_occurrence_and_a_phrase_at_its_own() -> None:
    spans = locate(PROMPT, ["ball", "red ball", "Blue  Ball"])
    assert spans.positions == ((3, 7), (2, 3), (6, 7))
    assert (spans.phrases, spans.length) == (("ball", "red ball", "Blue  Ball"), 10)


def test_overlapping_occurrences_share_tokens() -> None:
    assert locate("no no no yes", ["no no"]).positions == ((1, 2, 3),)


def test_words_are_whole() -> None:
    with pytest.raises(ValueError, match="'ball' does not occur in the prompt 'a football and ballerinas'"):
        find_phrases("a football and ballerinas", ["ball"])
    assert locate("a ballerina and a ball", ["ball"]).positions == ((5,),)


def test_marks_stand_alone_and_belong_to_a_phrase_only_where_written() -> None:
    assert words("(ball-shaped), Dog's red_ball 2x!") == [
        *("(", "ball", "-", "shaped", ")", ",", "Dog", "'", "s", "red", "_", "ball", "2x", "!")
    ]
    assert locate("a red, round ball.", ["round ball", "red, round", "ball."]).positions == ((4, 5), (2, 3, 4), (5, 6))
    with pytest.raises(ValueError, match="'red round' does not occur"):
        find_phrases("a red, round ball.", ["red round"])


def test_scripts_without_spaces_are_read_letter_by_letter() -> None:
    assert words("\u7ea2\u7403 ball\uacf5\uc774") == ["\u7ea2", "\u7403", "ball", "\uacf5", "\uc774"]
    # Signs above and below letters stay with them, in any script.
    assert words("cafe\u0301 \u0932\u093e\u0932 \u0e17\u0e35\u0e48") == [
        *("cafe\u0301", "\u0932\u093e\u0932", "\u0e17\u0e35\u0e48")
    ]


def test_letters_are_compared_whatever_their_case_and_form() -> None:
    found = find_phrases("Eine STRASSE, ein Cafe\u0301 \uff32\uff45\uff44", ["stra\u00dfe", "CAF\u00c9", "red"])
    assert [[word.text for word in places[0]] for places in found] == [
        ["STRASSE"],
        ["Cafe\u0301"],
        ["\uff32\uff45\uff44"],
    ]


def test_the_name_of_an_embedding_is_one_word() -> None:
    assert words("an embedding:dir/red-ball.pt, big") == ["an", "embedding:dir/red-ball.pt", ",", "big"]


def test_no_tokenizer_is_given_a_part_of_an_embedding() -> None:
    seen = []

    def tokenize(text):
        seen.append(text)
        return by_pair(text)

    # A pair reaches from the name into the phrase, so the border is looked for before the name.
    assert locate("ab embedding:toy fgh", ["fgh"], tokenize).positions == ((2, 3, 4, 5, 6, 7, 8, 9),)
    assert {text for text in seen if "e" in text} == {"ab embedding:toy fgh", "ab embedding:toy ", "ab embedding:toy"}


def test_absent_phrase_is_named_with_the_words_of_the_prompt() -> None:
    message = (
        r"'green ball' does not occur in the prompt 'a red ball and a blue ball', whose words are "
        r"'a', 'red', 'ball', 'and', 'blue'; use"
    )
    with pytest.raises(ValueError, match=message):
        find_phrases(PROMPT, ["ball", "green ball"])


def test_marks_are_listed_among_the_words() -> None:
    with pytest.raises(ValueError, match="whose words are 'a', 'red', '-', 'ball', ','; use"):
        find_phrases("a red-ball, a red-ball", ["red ball"])


def test_messages_cut_long_prompts() -> None:
    with pytest.raises(ValueError) as error:
        find_phrases(" ".join(f"word{number}" for number in range(500)), ["ball"])
    assert len(str(error.value)) < 800
    assert "prompt 'word0 word1 word2 " in str(error.value)
    assert " ...', whose words are 'word0', 'word1'," in str(error.value)
    assert "'word39' and 460 more; use words" in str(error.value)


def test_empty_texts_are_errors() -> None:
    with pytest.raises(ValueError, match="the phrase ' ' has no words"):
        find_phrases(PROMPT, [" "])
    with pytest.raises(ValueError, match="the prompt is empty, so 'red', 'ball' cannot be found"):
        find_phrases(" \n", ["red", "ball"])
    assert find_phrases("", []) == []


def test_a_phrase_may_lie_in_several_parts() -> None:
    parts = ["a ", "red", " ball and a blue", " ", "ball"]
    assert locate("", ["red ball", "blue ball", "a red"], parts=parts).positions == ((2, 3), (6, 7), (1, 2))


def test_tokens_over_the_border_of_a_phrase_belong_to_it() -> None:
    # The pairs are "ab", "cd", "ef" and "gh".
    assert locate("ab cde fgh", ["ab", "cde", "fgh"], by_pair).positions == ((1,), (2, 3), (3, 4))


def test_a_word_that_only_ends_where_the_text_is_cut() -> None:
    def with_ends(text):
        """Letters of a word, of which the last one is marked, as CLIP has them."""
        return [ord(word[at]) + 1000 * (at + 1 == len(word)) for word in text.split() for at in range(len(word))]

    letters = "\u4e00\u4e2a\u7ea2\u7403\u5728"
    assert locate(letters, [letters[2:4], letters[:1]], with_ends).positions == ((3, 4), (1,))


def test_a_prompt_that_is_cut() -> None:
    assert locate(PROMPT, ["ball", "red ball"], cut=5).positions == ((3,), (2, 3))
    for phrase in ("blue", "a blue", "blue ball"):
        with pytest.raises(ValueError, match=f"'{phrase}' is in the prompt but has no tokens of its own among the 5"):
            locate(PROMPT, [phrase], cut=5)
    # A tokenizer that cuts whatever it is given.
    with pytest.raises(ValueError, match="'blue ball' is in the prompt but has no tokens"):
        locate(PROMPT, ["blue ball"], lambda text: by_word(text)[:6])
    with pytest.raises(ValueError, match="'ball' is in the prompt but has no tokens"):
        locate("", ["ball"], parts=["a red", " ball"], cut=1)


def test_letters_without_tokens() -> None:
    with pytest.raises(ValueError, match="'ball' is in the prompt but has no tokens of its own among the 2"):
        locate("a red ball", ["ball"], lambda text: by_word(text.replace("ball", "")))


def test_the_first_way_to_tokenize_that_fits_is_used() -> None:
    def otherwise(text):
        return [token + 1 for token in by_word(text)]

    ids = [*by_word("a red"), *otherwise("ball")]
    assert locate_phrases(ids, ["a red ", "ball"], [by_word, otherwise], ["ball", "red ball"]).positions == (
        *((2,), (1, 2)),
    )
    with pytest.raises(ValueError, match="reads 'ball' otherwise inside of the prompt than alone"):
        locate_phrases(ids, ["a red ", "ball"], [by_word], ["red"])
    with pytest.raises(ValueError, match="reads 'a red ball' otherwise"):
        locate_phrases([*by_word("a red ball"), 5], ["a red ball"], [by_word], ["red"])


def test_borders_that_cannot_be_found_nearby_are_an_error() -> None:
    def backwards(text):
        return by_word(text)[::-1]

    with pytest.raises(ValueError, match="reads 'a red ball on sand' otherwise.*put spaces around the phrase"):
        locate("a red ball on sand", ["ball"], backwards)


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="1 phrases but 2 lists of token positions"):
        TextSpans(("ball",), ((1,), (2,)))


def test_positions_must_lie_in_the_sequence() -> None:
    with pytest.raises(ValueError, match="token position 11 of the phrase 'ball' lies outside the text sequence of 11"):
        TextSpans(("ball",), ((3, 11),), 11)
    assert TextSpans(("ball",), ((3, 11),)).length == 0


def test_repeated_text_sequences() -> None:
    spans = TextSpans(("ball",), ((3, 7),), 10)
    assert spans.repeated(10).positions == ((3, 7),)
    assert spans.repeated(20).positions == ((3, 7, 13, 17),)
    # Text that is cut or padded to another length keeps its positions ...
    assert spans.repeated(12).positions == ((3, 7),)
    # ... as long as they are there.
    with pytest.raises(ValueError, match="the phrase 'ball' stands at token 7 but the model sees 6 text tokens"):
        spans.repeated(6)


def test_positions_at_the_end_of_a_text() -> None:
    spans = TextSpans(("ball",), ((1, 3),), 5, ordinary=(0, 1, 2, 3, 4), background=(4,), at_end=True)
    assert spans.repeated(5).positions == ((1, 3),)
    # Not a repetition: other text stands before.
    longer = spans.repeated(10)
    assert longer.positions == ((6, 8),) and longer.ordinary == (5, 6, 7, 8, 9) and longer.background == (9,)
    # A part of the whole text keeps what stands in it.
    assert spans.in_part(4, (5, 10)).positions == ((1, 3),)
    assert spans.in_part(2, (5, 10)).positions == ((1,),)
    with pytest.raises(ValueError, match="in a prompt of 5 tokens but the model sees 4 text tokens"):
        spans.repeated(4)
    assert spans.fits(10) and spans.fits(10, before=5)
    assert not spans.fits(10, before=4) and not spans.fits(4)


def test_an_empty_phrase_is_an_object_without_words():
    asked = []

    def find(phrases):
        asked.append(tuple(phrases))
        return TextSpans(tuple(phrases), ((1, 2), (5,)), 8)

    spans = spans_of_named(find, ("red ball", "", "cat"))
    assert asked == [("red ball", "cat")]
    assert spans.phrases == ("red ball", "", "cat") and spans.positions == ((1, 2), (), (5,)) and spans.length == 8
