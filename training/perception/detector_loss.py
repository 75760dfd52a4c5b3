"""Loss for training a small GroundingDINO from scratch.

The loss inside transformers shifts labels for captions of unequal length in one batch and sends no gradient to the
encoder's proposal heads; this one does neither. The proposal heads learn by a dense one-to-many assignment, every
decoder layer by one-to-one matching.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GroundingDinoForObjectDetection

PROPOSAL_RADIUS = 0.22


@dataclass(frozen=True)
class Targets:
    """What should be found, at most N objects a picture.

    Attributes:
        boxes: float [B, N, 4], centre x, centre y, width, height as shares of the picture.
        tokens: float [B, N, L], 1 at every text token of every phrase that fits the object.
        present: bool [B, N], False for empty places.
    """

    boxes: Tensor
    tokens: Tensor
    present: Tensor


@dataclass(frozen=True)
class Predictions:
    """Raw scores and boxes of the proposal heads and of each decoder layer.

    Attributes:
        encoder_logits: [B, S, L]; encoder_boxes: [B, S, 4].
        layer_logits: per layer [B, Q, L]; layer_boxes: per layer [B, Q, 4].
    """

    encoder_logits: Tensor
    encoder_boxes: Tensor
    layer_logits: list[Tensor]
    layer_boxes: list[Tensor]


def predict(model: GroundingDinoForObjectDetection, pixels: Tensor, tokens: dict[str, Tensor]) -> Predictions:
    """Run the model and apply its heads to every decoder layer (the model itself returns the last one only)."""
    length = tokens["input_ids"].shape[1]
    output = model.model(pixel_values=pixels, return_dict=True, **tokens)
    mask = tokens["attention_mask"].bool()
    logits, boxes = [], []
    reference = output.init_reference_points
    for level in range(output.intermediate_hidden_states.shape[1]):
        hidden = output.intermediate_hidden_states[:, level]
        scores = model.class_embed[level](hidden, output.encoder_last_hidden_state_text, mask)
        logits.append(scores[..., :length])
        delta = model.bbox_embed[level](hidden)
        boxes.append((delta + torch.special.logit(reference, eps=1e-5)).sigmoid())
        reference = output.intermediate_reference_points[:, level]
    return Predictions(output.enc_outputs_class[..., :length], output.enc_outputs_coord_logits.sigmoid(), logits, boxes)


def corners(boxes: Tensor) -> Tensor:
    """Centre form to x0, y0, x1, y1."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalized IoU of boxes in centre form that broadcast: [..., 4] and [..., 4] to [...]."""
    a, b = corners(first), corners(second)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - overlap
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return overlap / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def focal(logits: Tensor, targets: Tensor, valid: Tensor, alpha: float, gamma: float = 2.0) -> Tensor:
    """Sum of the sigmoid focal loss over valid tokens (padding scores are minus infinity and must not enter)."""
    logits = torch.where(valid, logits, torch.zeros_like(logits))
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    miss = torch.where(targets > 0.5, 1 - probability, probability)
    weight = torch.where(targets > 0.5, alpha, 1 - alpha)
    return (weight * miss.pow(gamma) * cross_entropy * valid).sum()


def match(logits: Tensor, boxes: Tensor, targets: Targets, valid: Tensor) -> Tensor:
    """One query for each object: the cheapest pairing of up to two objects with different queries.

    Returns:
        long [B, 2] query indices (meaningless where an object is not present).
    """
    probability = torch.where(valid, logits, torch.full_like(logits, -20.0)).sigmoid()
    wanted = targets.tokens / targets.tokens.sum(-1, keepdim=True).clamp(min=1)
    score = torch.einsum("bql,bnl->bqn", probability, wanted)
    pairs = boxes[:, :, None], targets.boxes[:, None]
    distance = (pairs[0] - pairs[1]).abs().sum(-1)
    cost = -2 * score + 5 * distance - 2 * generalized_iou(*pairs)
    cost = torch.where(targets.present[:, None], cost, torch.zeros_like(cost))
    queries = cost.shape[1]
    both = cost[:, :, None, 0] + cost[:, None, :, 1]
    both = both + torch.eye(queries, device=cost.device) * 1e6
    best = both.flatten(1).argmin(1)
    return torch.stack([best // queries, best % queries], dim=1)


def detector_loss(predictions: Predictions, targets: Targets, valid: Tensor, alpha: float = 0.6) -> Tensor:
    """Focal on tokens (weight 2), L1 (5) and generalized IoU (2) on boxes, summed over heads, per object.

    Args:
        predictions: from :func:`predict`.
        targets: at most two objects a picture.
        valid: bool [B, L], real tokens.
        alpha: weight of positive tokens in the focal loss, 0..1.
    """
    count = targets.present.sum().clamp(min=1)
    loss = _proposal_loss(predictions, targets, valid[:, None], alpha)
    for logits, boxes in zip(predictions.layer_logits, predictions.layer_boxes, strict=True):
        with torch.no_grad():
            chosen = match(logits, boxes, targets, valid[:, None])
        matched = torch.gather(boxes, 1, chosen[..., None].expand(-1, -1, 4))
        wanted = torch.zeros_like(logits)
        for place in range(chosen.shape[1]):
            labels = targets.tokens[:, place] * targets.present[:, place, None]
            wanted[torch.arange(len(chosen)), chosen[:, place]] += labels
        loss = loss + 2 * focal(logits, wanted, valid[:, None].expand_as(logits), alpha) / count
        loss = loss + _box_loss(matched, targets.boxes, targets.present) / count
    return loss


def _box_loss(boxes: Tensor, wanted: Tensor, chosen: Tensor) -> Tensor:
    distance = (boxes - wanted).abs().sum(-1)
    return ((5 * distance + 2 * (1 - generalized_iou(boxes, wanted))) * chosen).sum()


def _proposal_loss(predictions: Predictions, targets: Targets, valid: Tensor, alpha: float) -> Tensor:
    """Tokens near the middle of an object, and the nearest token of each level, answer for it."""
    boxes = predictions.encoder_boxes
    grid = _token_centres(boxes.shape[1]).to(boxes.device)
    offset = (grid[None, :, None, :] - targets.boxes[:, None, :, :2]).abs()
    inside = (offset / targets.boxes[:, None, :, 2:].clamp(min=1e-3)).amax(-1) < PROPOSAL_RADIUS
    distance = offset.square().sum(-1)
    start = 0
    for size in _level_sizes(boxes.shape[1]):
        nearest = start + distance[:, start : start + size].argmin(1)
        inside = inside.scatter(1, nearest[:, None], True)
        start += size
    inside = inside & targets.present[:, None]
    # A token claimed by two objects belongs to the nearer one.
    owner = torch.where(inside, distance, torch.inf).argmin(-1)
    claimed = inside.any(-1)
    wanted_boxes = torch.gather(targets.boxes, 1, owner[..., None].expand(-1, -1, 4))
    wanted = torch.gather(targets.tokens, 1, owner[..., None].expand(-1, -1, targets.tokens.shape[-1]))
    wanted = wanted * claimed[..., None]
    logits = predictions.encoder_logits
    usable = valid & torch.isfinite(logits)
    count = claimed.sum().clamp(min=1)
    classes = 2 * focal(logits, wanted, usable, alpha) / count
    return classes + _box_loss(boxes, wanted_boxes, claimed) / count


def _level_sizes(tokens: int) -> tuple[int, int]:
    """Tokens of the fine level (stride 8) and the coarse one (stride 16) of a square picture."""
    return tokens * 4 // 5, tokens // 5


def _token_centres(tokens: int) -> Tensor:
    """Centres of all tokens as shares of the picture: float [S, 2]."""
    centres = []
    for size in _level_sizes(tokens):
        side = round(size**0.5)
        ticks = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(ticks, ticks, indexing="ij")
        centres.append(torch.stack([x, y], dim=-1).view(-1, 2))
    return torch.cat(centres)
