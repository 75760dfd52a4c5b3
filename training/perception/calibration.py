"""Move all scores of a trained detector so that the usual thresholds fit it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import GroundingDinoForObjectDetection


@torch.no_grad()
def lower_scores(model: GroundingDinoForObjectDetection, amount: float) -> None:
    """Subtract ``amount`` from every logit of the last heads, in place, by changing weights only.

    GroundingDINO has no bias on its scores: a logit is the dot product of a query and a text token. Queries come out of
    a layer norm, so that for weights w and biases b of that norm the sum of (query - b) / w over the channels is
    always 0. Adding c / w to every text token therefore adds the same number, c times the sum of b / w, to each logit.
    The decoder's attention, which also reads the text tokens, gets the opposite offset and stays as it was.

    Args:
        model: on any device, in float32.
        amount: in logits; below 0 raises scores.

    Raises:
        ValueError: when the norm's biases cancel out, so that a reasonable offset is not enough.
    """
    inner = model.model
    norm = inner.decoder.layer_norm
    sum_of_ratios = (norm.bias / norm.weight).sum()
    offset = -amount / sum_of_ratios / norm.weight
    if not bool(torch.isfinite(offset).all()) or float(offset.norm()) > abs(amount) * 10:
        raise ValueError("the biases of the last layer norm cancel out; calibrate by thresholds instead.")
    inner.encoder.layers[-1].text_enhancer_layer.layer_norm_after.bias += offset
    for layer in inner.decoder.layers:
        for projection in (layer.encoder_attn_text.key, layer.encoder_attn_text.value):
            projection.bias -= projection.weight @ offset
