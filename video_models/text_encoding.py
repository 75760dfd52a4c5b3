"""How a bidirectional text encoder is asked: padding unseen, and zero in the result."""

from __future__ import annotations

from torch import Tensor, nn


def encode_tokens(encoder: nn.Module, tokens: Tensor, pad_token: int) -> Tensor:
    """Encode padded token ids.

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
