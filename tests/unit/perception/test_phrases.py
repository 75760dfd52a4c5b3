"""Phrases: how texts are read, when two are the same, and which objects they name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask_guided_video.perception.phrases import (
    bind_phrases,
    checked_phrase,
    listed_parts,
    named_objects,
    phrase_key,
    plain_phrase,
    read_phrases,
    split_phrases,
)
from mask_guided_video.prompt_text.words import find_phrases

LABELS = ("red ball", "blue square")


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Red ball, blue  square.\nred ball;", ["Red ball", "blue square"]),
        ("red ball\nblue square", ["red ball", "blue square"]),
        ("red ball\uff0cblue square\u3002", ["red ball", "blue square"]),
        ("(red ball:1.2), blue (square:.5)", ["red ball", "blue square"]),
        ("((red ball:1.2) on sand:0.9)", ["red ball on sand"]),
        ("a 1.5 m pole, cat", ["a 1.5 m pole", "cat"]),
        ("cat (black)", ["cat (black)"]),
        (" , . ; ?", []),
        ("", []),
    ],
)
def test_phrases_of_a_text(text, phrases):
    assert split_phrases(text) == phrases


def test_several_texts_and_one_that_names_nothing():
    assert read_phrases(["red ball, cat", "dog"]) == ("red ball", "cat", "dog")
    assert read_phrases([]) == ()
    with pytest.raises(ValueError, match="phrase ',' names nothing"):
        read_phrases(["cat", ","])


def test_one_phrase():
    assert plain_phrase(" A  (red:1.1) ball. ") == "A red ball"
    assert checked_phrase("A  dog.") == "A dog"
    for phrase, message in ((" ", "is empty"), ("?", "has no word"), ("cat, dog", "holds 2"), (3, "is a int")):
        with pytest.raises(ValueError, match=message):
            checked_phrase(phrase)


def test_patterns_are_listed_as_they_are():
    assert listed_parts("blue *, ?at;*") == ["blue *", "?at", "*"]


@given(st.lists(st.sampled_from(["red", "Ball", "SQUARE", "ball-shaped"]), min_size=1, max_size=4))
def test_phrases_with_one_key_are_those_that_stand_in_a_prompt_alike(words):
    """Case, spaces and weights make no difference, neither for the labels of objects nor for the words of a prompt."""
    phrase = "  ".join(words)
    assert phrase_key(phrase) == phrase_key(" ".join(words).lower()) == phrase_key(f"({phrase.upper()}:1.3)")
    assert find_phrases(phrase, [plain_phrase(f"({phrase}:1.3)")])


@pytest.mark.parametrize(
    ("phrases", "labels", "groups"),
    [
        (["Blue  square", "(red ball:1.2)"], LABELS, [[1], [0]]),
        (["blue square"], LABELS, [[1]]),
        (["blue square", "ball"], LABELS, [[1], [0]]),
        (["blue thing", "red ball"], LABELS, [[1], [0]]),
        (["ball"], ("ball", "cat", "ball"), [[0, 2]]),
        (["left ball", "right ball"], ("ball", "ball"), [[0], [1]]),
        (["a cat", "a dog"], ("", ""), [[0], [1]]),
        (["red ball", "cat"], ("", "red ball", "blue square"), [[1], [0]]),
        (["woman", "dog"], ("dog", "person"), [[1], [0]]),
        (["anything"], ("red ball",), [[0]]),
    ],
)
def test_which_objects_phrases_name(phrases, labels, groups):
    assert bind_phrases(phrases, labels) == groups


@pytest.mark.parametrize(
    ("phrases", "labels", "message"),
    [
        (["square", "ball"], LABELS, "'square' names no tracked object .labels: red ball, blue square"),
        (["red ball", "ball"], LABELS, "'ball' names no tracked object"),
        (["a", "cat"], ("a", "b", "c"), "'cat' names no tracked object .labels: a, b, c"),
        (["cat", "dog"], ("", "", ""), "there are masks for 3 objects and 2 phrases"),
        (["cat", "dog"], ("cat",), "there are masks for 1 objects and 2 phrases"),
        (["cat"], LABELS, "'cat' names no tracked object"),
    ],
)
def test_phrases_that_name_nothing_are_refused(phrases, labels, message):
    with pytest.raises(ValueError, match=message):
        bind_phrases(phrases, labels, "masks")


def test_one_phrase_for_all_objects():
    assert bind_phrases(["toys"], LABELS, together=True) == [[0, 1]]
    with pytest.raises(ValueError, match="'ball' names no tracked object"):
        bind_phrases(["ball"], LABELS, together=True)


@given(st.permutations(["red ball", "blue square", "cat", ""]), st.data())
def test_a_label_is_never_given_to_another_object(labels, data):
    """Whatever other phrases are there, a phrase that is a label names the objects with this label and no others."""
    phrases = data.draw(
        st.lists(st.sampled_from(["Red Ball", "blue square", "ball", "dog", "cat"]), min_size=1, unique=True)
    )
    try:
        groups = bind_phrases(phrases, labels)
    except ValueError:
        return
    for phrase, group in zip(phrases, groups, strict=True):
        if phrase.lower() in labels:
            assert [labels[place] for place in group] == [phrase.lower()]
    assert len({place for group in groups for place in group}) == sum(map(len, groups))


def test_objects_with_their_phrases():
    assert named_objects((), ("ball", "")) == [(0, "ball"), (1, "")]
    assert named_objects(("cat", "Ball"), ("ball", "cat", "ball")) == [(1, "cat"), (0, "Ball"), (2, "Ball")]
