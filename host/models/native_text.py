"""Small T5 encoders with a word-level tokenizer as a native ComfyUI CLIP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ...video_models.text_encoding import encode_tokens

logger = logging.getLogger(__name__)

# ComfyUI sorts a prompt's tokens by encoder name; this encoder's.
ENCODER_NAME = "t5"


class WordTokenizer:
    """ComfyUI's tokenizer interface around a fast tokenizer: weights in parentheses, a fixed length, truncation.

    Args:
        tokenizer: ``PreTrainedTokenizerFast``; adds the end token itself.
        max_length: tokens of every text sequence, padding included.
    """

    def __init__(self, tokenizer: Any, max_length: int, **_: Any) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **_: Any
    ) -> dict[str, list[list[tuple[int, float] | tuple[int, float, int]]]]:
        """Token ids with their weights, as ComfyUI's CLIP hands them to the encoder."""
        from comfy.sd1_clip import escape_important, token_weights, unescape_important

        entries: list[tuple[int, float, int]] = []
        for piece, weight in token_weights(escape_important(text), 1.0):
            words = self.tokenizer(unescape_important(piece), add_special_tokens=False)["input_ids"]
            entries += [(token, weight, len(entries) + 1 + place) for place, token in enumerate(words)]
        ends = self.tokenizer("")["input_ids"]
        room = self.max_length - len(ends)
        # Word numbers are wanted to find phrases, with many beginnings of a prompt that is encoded without them.
        if len(entries) > room and not return_word_ids:
            logger.warning("the prompt has %d words; the text encoder reads the first %d.", len(entries), room)
        entries = entries[:room] + [(token, 1.0, 0) for token in ends]
        entries += [(self.tokenizer.pad_token_id, 1.0, 0)] * (self.max_length - len(entries))
        row = entries if return_word_ids else [entry[:2] for entry in entries]
        return {ENCODER_NAME: [row]}

    def untokenize(self, token_weight_pair: Sequence[Any]) -> list[tuple[Any, str]]:
        return [(pair, self.tokenizer.convert_ids_to_tokens(pair[0])) for pair in token_weight_pair]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


@cache
def _encoder_class() -> type:
    """The text encoder in ComfyUI's interface; made on first use."""
    from comfy.sd1_clip import ClipTokenWeightEncoder

    class NativeTextEncoder(nn.Module, ClipTokenWeightEncoder):
        """Encodes padded token ids exactly as the stand-alone model does."""

        def __init__(self, encoder: nn.Module, empty: list[int], pad: int, **_: Any) -> None:
            super().__init__()
            self.transformer = encoder
            self.dtypes = {torch.float32}
            self.special_tokens = {"pad": pad}
            self._empty = empty

        def gen_empty_tokens(self, special_tokens: dict[str, int], length: int) -> list[int]:
            return self._empty + [special_tokens["pad"]] * (length - len(self._empty))

        def encode(self, tokens: list[list[int]]) -> tuple[Tensor, None]:
            ids = torch.tensor(tokens, device=next(self.transformer.parameters()).device)
            return encode_tokens(self.transformer, ids, self.special_tokens["pad"]).float(), None

        def encode_token_weights(self, token_weight_pairs: dict[str, Any]) -> Any:
            return ClipTokenWeightEncoder.encode_token_weights(self, token_weight_pairs[ENCODER_NAME])

        def set_clip_options(self, options: dict[str, Any]) -> None:
            """This encoder has one output; CLIP Set Last Layer does nothing."""

        def reset_clip_options(self) -> None:
            """Nothing was set."""

        def load_sd(self, state: dict[str, Tensor]) -> Any:
            return self.transformer.load_state_dict(state, strict=False)

    return NativeTextEncoder


def native_clip(encoder: nn.Module, tokenizer: Any, max_length: int) -> Any:
    """Wrap a text encoder as ComfyUI's CLIP.

    Args:
        encoder: transformers ``T5EncoderModel``.
        tokenizer: its ``PreTrainedTokenizerFast``.
        max_length: tokens of every text sequence.

    Returns:
        ``comfy.sd.CLIP``: CLIP Text Encode works on it, weights in parentheses included.
    """
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    encoder = encoder.float().eval().requires_grad_(False)
    model = partial(_encoder_class(), encoder=encoder, empty=tokenizer("")["input_ids"], pad=tokenizer.pad_token_id)

    def make_tokenizer(**_: Any) -> WordTokenizer:
        return WordTokenizer(tokenizer, max_length)

    return comfy.sd.CLIP(ClipTarget(make_tokenizer, model), model_options={"dtype": torch.float32})
