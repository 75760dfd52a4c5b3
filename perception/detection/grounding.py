"""What every GroundingDINO has in common: captions of phrases, pictures in, boxes and a score per phrase out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..answers import check_answer

STOP = "."
# What else is in a caption beside words; no word is read off these.
OTHER_TOKENS = ("[CLS]", "[SEP]", "?")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Frames of one size, made ready for a model.

    Attributes:
        pixels: float [B, 3, h, w], normalised, on the CPU.
        height: of the frames that they come from, in pixels.
        width: likewise.
        mask: long [B, h, w], 1 where there is picture and 0 where there is padding; None without padding.
    """

    pixels: Tensor
    height: int
    width: int
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Grounding:
    """What a model sees in some pictures; nothing is left out yet.

    Attributes:
        boxes: float32 [B, queries, 4] on the CPU, x0, y0, x1, y1 in pixels of the frames, perhaps beyond their edges.
        scores: float32 [B, queries, phrases] on the CPU, 0..1: of the best word of each phrase.
    """

    boxes: Tensor
    scores: Tensor


class GroundingModel(Protocol):
    """A detector that takes phrases.

    Attributes:
        model: the torch module; it runs wherever its parameters are at the time of a call.
        picture_encoder: the part of it that sees pictures and no words, so that it need not run for each caption.
        token_limit: how long a caption may be, in tokens, its two ends included.
    """

    model: nn.Module
    picture_encoder: nn.Module
    token_limit: int

    def count_tokens(self, phrase: str) -> int:
        """Tokens that a phrase and its full stop take in a caption."""

    def prepare(self, frames: Tensor) -> Pictures:
        """Make frames, float [B, H, W, 3] in 0..1, ready: resized and normalised."""

    def ground(self, pictures: Pictures, phrases: Sequence[str]) -> Grounding:
        """Look for all phrases at once, in one caption.

        Raises:
            BrokenAnswerError: when the model answers with NaN.
        """


class CaptionReader:
    """Turns phrases into one caption and knows which of its tokens belong to which phrase.

    Args:
        tokenizer: a BERT tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.stop: int = tokenizer.convert_tokens_to_ids(STOP)
        self.others = {tokenizer.convert_tokens_to_ids(token) for token in OTHER_TOKENS}

    @staticmethod
    def caption(phrases: Sequence[str]) -> str:
        """``"red ball. blue square."``"""
        return " ".join(f"{phrase}{STOP}" for phrase in phrases)

    def count_tokens(self, phrase: str) -> int:
        """Tokens that a phrase and its full stop take in a caption."""
        return len(self.tokenizer(self.caption([phrase]), add_special_tokens=False)["input_ids"])

    def read(self, phrases: Sequence[str]) -> tuple[Tensor, list[list[int]]]:
        """Tokens of the caption, long [1, tokens], and for each phrase the places of its words among them.

        Raises:
            ValueError: when the tokenizer cannot read any word of a phrase.
        """
        tokens = self.tokenizer(self.caption(phrases))["input_ids"]
        places: list[list[int]] = [[]]
        for place, token in enumerate(tokens):
            if token == self.stop:
                places.append([])
            elif token not in self.others:
                places[-1].append(place)
        for phrase, words in zip(phrases, places, strict=False):
            if not words:
                raise ValueError(f"phrase {phrase!r} has no words that this detector reads; name an object in words.")
        return torch.tensor([tokens]), places[: len(phrases)]


def grounding_of(logits: Tensor, boxes: Tensor, places: Sequence[Sequence[int]], pictures: Pictures) -> Grounding:
    """Read a model's answer.

    Args:
        logits: [B, queries, tokens or more], before the sigmoid.
        boxes: [B, queries, 4], centre and size, as shares of the picture.
        places: for each phrase the places of its words among the tokens.
        pictures: that were looked at.

    Raises:
        BrokenAnswerError: when the answer holds NaN or is infinite.
    """
    # Half precision boxes would be off by a pixel in wide frames.
    logits, boxes = logits.float().cpu(), boxes.float().cpu()
    # Places without a word hold minus infinity.
    best = torch.stack([logits[..., list(words)].amax(-1) for words in places], -1)
    check_answer("detector", best, boxes)
    scores = best.sigmoid()
    centre, size = boxes.split(2, -1)
    scale = torch.tensor([pictures.width, pictures.height] * 2, dtype=torch.float32)
    return Grounding(torch.cat([centre - size / 2, centre + size / 2], -1) * scale, scores)


@contextmanager
def computed_once(module: nn.Module) -> Iterator[None]:
    """While the context lasts, a module runs at its first call and repeats its answer at all others.

    For a picture encoder that sees the same pictures with one caption after another.
    """
    original = vars(module).get("forward")
    forward = module.forward
    answers: list[Any] = []

    def first_or_same(*values: Any, **named: Any) -> Any:
        if not answers:
            answers.append(forward(*values, **named))
        return _same_in_new_lists(answers[0])

    module.forward = first_or_same
    try:
        yield
    finally:
        if original is None:
            del module.forward
        else:
            module.forward = original


def _same_in_new_lists(value: Any) -> Any:
    """Models append further feature levels to the lists that they get."""
    if type(value) in (list, tuple):
        return type(value)(_same_in_new_lists(item) for item in value)
    return value
