"""Where the words of a prompt stand in the text sequence that a model sees, for every ComfyUI CLIP.

Source of the rules of weights in parentheses and of tokenizers: Comfy-Org/ComfyUI, comfy/sd1_clip.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...attention_patches.guidance.text_spans import TextSpans
from ...backbones.family import Family
from ...backbones.host_hooks import prompt_name
from ...prompt_text.token_places import NOT_OF_PROMPT, locate_phrases
from ...prompt_text.words import shorten
from .joined_prompts import JoinedPrompts, joined_prompts, named_prompts


def token_spans(
    clip: Any,
    prompt: str,
    phrases: Sequence[str],
    family: Family,
    conditioning: Any = None,
    background_phrase: str = "",
) -> TextSpans:
    """Where phrases stand in the text sequence that a CLIP makes of a prompt.

    Args:
        clip: ComfyUI CLIP.
        prompt: exactly the text of the positive prompt, weights in parentheses and embeddings included. Where
            ``conditioning`` is of a prompt schedule: one of its prompts, or the text of the whole schedule.
        phrases: words of it, in upper or lower case; weights in them do not matter.
        family: of the model that will see the sequence.
        conditioning: CONDITIONING of this prompt, so that other prompts of a run are left alone; None steers these
            places in every positive prompt. Entries of a length that this prompt cannot have are other prompts.
        background_phrase: words of the prompt that name the background, or empty.

    Returns:
        Positions in the text that the model gets, of phrases and of all of the prompt's own words; with
        ``conditioning`` also the names of its prompts.

    Raises:
        ValueError: the prompt or a phrase is empty, a phrase is not in the prompt or was cut off by the tokenizer, the
            CLIP is of another family, or ``conditioning`` does not come from this prompt.
    """
    joined = joined_prompts(conditioning)
    if joined is not None:
        return _spans_over_time(clip, prompt, phrases, family, conditioning, joined, background_phrase)
    tokens = clip.tokenize(prompt, return_word_ids=True)
    names = None
    if conditioning is None:
        ids = family.text_ids(tokens)
    else:
        ids, names = _sampled_ids(clip, tokens, family, conditioning, prompt)
    spans = _located(clip, family, ids, prompt, phrases, background_phrase)
    # Without the conditioning nobody knows what stands before the prompt.
    return replace(spans, prompts=names, at_end=family.prompt_ends_text and names is None)


def _located(
    clip: Any, family: Family, ids: Sequence[int], prompt: str, phrases: Sequence[str], background_phrase: str = ""
) -> TextSpans:
    """Where phrases stand among the token ids of a prompt."""
    take_apart = plain_parts if family.reads_weights else _whole
    unseen = family.unseen_beginning(prompt)
    parts = take_apart(prompt[len(unseen) :])
    *words, background = ("".join(take_apart(phrase)) for phrase in (*phrases, background_phrase))
    # The model sees rows of its own after those of the text.
    ids = [*ids, *[NOT_OF_PROMPT] * (family.text_rows(len(ids)) - len(ids))]

    def read(text: str) -> list[int]:
        found = family.text_ids(clip.tokenize(unseen + text, return_word_ids=True))
        return [token for token in found if token != NOT_OF_PROMPT]

    def as_beginning(text: str) -> list[int]:
        return read(_escape(text))

    def as_weighted(text: str) -> list[int]:
        # Weighted texts are tokenized apart from what stands before them, a template's words too.
        return read(f"({_escape(text)}:1.0)")

    tokenizers = (as_beginning, as_weighted) if family.reads_weights else (as_beginning,)
    spans = locate_phrases(ids, parts, tokenizers, words, background)
    return replace(spans, phrases=tuple(phrases))


def _spans_over_time(
    clip: Any,
    prompt: str,
    phrases: Sequence[str],
    family: Family,
    conditioning: Any,
    joined: JoinedPrompts,
    background_phrase: str,
) -> TextSpans:
    """Where phrases stand in the joined text of several prompts: each of them in at least one that is meant."""
    chosen = named_prompts(joined, prompt)
    wanted = [*phrases, background_phrase] if background_phrase else list(phrases)
    found: list[set[int]] = [set() for _ in wanted]
    missing: list[ValueError | None] = [None] * len(wanted)
    ordinary: set[int] = set()
    for number in chosen:
        text, length, first = joined.texts[number], joined.lengths[number], sum(joined.lengths[:number])
        own = conditioning[0][0][:, first : first + length]
        ids = _fitting_ids(family, clip.tokenize(text, return_word_ids=True), own)
        if ids is None:
            raise ValueError(
                f"the conditioning has {length} text tokens for the prompt {shorten(text)!r}, which this text encoder "
                "cannot have made; give Patch Attention the CLIP of Prompt Schedule."
            )
        ordinary.update(first + place for place, token in enumerate(ids) if token != NOT_OF_PROMPT)
        for place, phrase in enumerate(wanted):
            try:
                spans = _located(clip, family, ids, text, [phrase])
            except ValueError as error:
                missing[place] = error
            else:
                found[place].update(first + position for position in spans.positions[0])
    for positions, error in zip(found, missing, strict=True):
        if not positions and error is not None:
            raise error
    names = frozenset(prompt_name(embedding) for embedding, _ in conditioning)
    objects = found[: len(phrases)]
    background = found[-1].difference(*objects) if background_phrase else set()
    return TextSpans(
        tuple(phrases),
        tuple(tuple(sorted(positions)) for positions in objects),
        sum(joined.lengths),
        names,
        tuple(sorted(ordinary)),
        tuple(sorted(background)),
    )


def plain_parts(prompt: str) -> list[str]:
    """The texts that ComfyUI tokenizes one by one: what is between changes of weight, parentheses resolved."""
    from comfy.sd1_clip import escape_important, token_weights, unescape_important

    return [unescape_important(text) for text, _ in token_weights(escape_important(prompt), 1.0)]


def _whole(text: str) -> list[str]:
    """A text as one part, for encoders that know no weights; backslashes before parentheses are taken off even so."""
    from comfy.sd1_clip import escape_important, unescape_important

    return [unescape_important(escape_important(text))]


def _escape(text: str) -> str:
    """Write parentheses as plain characters of a prompt."""
    return text.replace("(", "\\(").replace(")", "\\)")


def _sampled_ids(
    clip: Any, tokens: Any, family: Family, conditioning: Any, prompt: str
) -> tuple[list[int], frozenset[str]]:
    """Token ids as a conditioning has them, and the names of its entries that they hold for."""
    embeddings = [entry[0] for entry in conditioning]
    before = [_rows_before(clip, family, entry[1]) for entry in conditioning]
    found = [_fitting_ids(family, tokens, embedding, rows) for embedding, rows in zip(embeddings, before, strict=True)]
    ids = next((ids for ids in found if ids is not None), None)
    if ids is None:
        lengths = ", ".join(str(embedding.shape[1]) for embedding in embeddings) or "no"
        raise ValueError(
            f"the conditioning has {lengths} text tokens, which the prompt {shorten(prompt)!r} with its "
            f"{len(family.text_ids(tokens))} cannot have made; give the conditioning and the text of the same prompt, "
            "from this text encoder and not concatenated with another."
        )
    names = [prompt_name(embedding) for embedding, own in zip(embeddings, found, strict=True) if own == ids]
    return ids, frozenset(names)


def _rows_before(clip: Any, family: Family, extras: Mapping[str, Any]) -> int:
    """Rows of a text embedding before those of its prompt; ``extras`` of its entry in the conditioning."""
    rows, texts = family.text_before(extras)
    return rows + sum(len(family.text_ids(clip.tokenize(text, return_word_ids=True))) for text in texts)


def _fitting_ids(family: Family, tokens: Any, embedding: Tensor, before: int = 0) -> list[int] | None:
    """Token ids for a text embedding [B, L, C], or None when it was made of another prompt."""
    length = embedding.shape[1]
    ids = [NOT_OF_PROMPT] * before + family.text_ids(tokens, length)
    if length <= len(ids):
        # Padding may have been left away, but not the end of a template.
        cut = ids[length:]
        fits = not cut or (family.drops_padding and all(token == NOT_OF_PROMPT for token in cut))
        return ids[:length] if fits else None
    if length % len(ids):
        return None
    # Repeated, not concatenated with another prompt of the same length.
    parts = embedding.split(len(ids), dim=1)
    return ids if all(part.equal(parts[0]) for part in parts[1:]) else None
