"""Prompts for stand-alone use: transformers text encoders with their tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attention_patches.guidance.text_spans import TextSpans
from ..prompt_text.token_places import NOT_OF_PROMPT, locate_phrases

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """An encoded prompt: ``embedding`` [1, L, C]."""

    prompt: str
    embedding: Tensor


def encode_tokens(encoder: nn.Module, tokens: Tensor, pad_token: int) -> Tensor:
    """Encode padded token ids with a bidirectional encoder: padding unseen, and zero in the result.

    Args:
        encoder: a transformers encoder, such as ``T5EncoderModel``.
        tokens: int64 [B, L].
        pad_token: id of the padding.

    Returns:
        [B, L, C]. Padding positions are zero: as keys they attract nothing, as values they add nothing.
    """
    mask = tokens != pad_token
    hidden = encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    return hidden * mask[..., None]


class PromptEncoder:
    """A text encoder with its tokenizer.

    Args:
        encoder: transformers encoder: T5, or the text half of CLIP.
        tokenizer: its tokenizer.
        padding_is_read: whether padding goes through the encoder and on to the U-Net like words do, as Stable
            Diffusion's models were trained; else it is unseen and zero.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Any, padding_is_read: bool = False) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.padding_is_read = padding_is_read
        positions = getattr(encoder.config, "max_position_embeddings", None)
        self.length = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)

    def encode(self, prompt: str, device: torch.device) -> TextEmbedding:
        """Encode a prompt, which may be empty; what is beyond the encoder's length is cut, with a warning."""
        if len(self.tokenizer(prompt, truncation=True, max_length=self.length + 1)["input_ids"]) > self.length:
            logger.warning("the prompt has more than %d tokens; the text encoder does not read its end.", self.length)
        tokens = torch.tensor([self.tokens(prompt)], device=device)
        encoder = self.encoder.to(device)
        with torch.inference_mode():
            if self.padding_is_read:
                hidden = encoder(input_ids=tokens).last_hidden_state
            else:
                hidden = encode_tokens(encoder, tokens, self.tokenizer.pad_token_id)
        return TextEmbedding(prompt, hidden)

    def spans(self, prompt: str, phrases: Sequence[str], background_phrase: str = "") -> TextSpans:
        """Where each phrase stands in the prompt's tokens, and the words that name the background (or none).

        Raises:
            ValueError: the prompt or a phrase is empty, a phrase does not occur in the prompt, or it stands after the
                words that the text encoder reads.
        """
        ids = self.tokens(prompt)
        # Padding comes after the end token, and may be a token that stands for a word elsewhere.
        end = ids.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in ids else len(ids)
        kept = [
            token if place < end and token != self.tokenizer.bos_token_id else NOT_OF_PROMPT
            for place, token in enumerate(ids)
        ]

        def tokenize(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False, truncation=True, max_length=self.length)["input_ids"]

        return locate_phrases(kept, [prompt], [tokenize], phrases, background_phrase)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, padded or cut to the encoder's length."""
        return self.tokenizer(text, padding="max_length", truncation=True, max_length=self.length)["input_ids"]
