"""Small geometry on masks: size, boxes, moved shapes, overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .boxes import Box


def box_of_mask(mask: Tensor, label: str = "") -> Box | None:
    """Tight box around a mask (uint8 0..255 or float 0..1, [H, W]), None when it is empty."""
    inside = mask > (127 if mask.dtype == torch.uint8 else 0.5)
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    if len(rows) == 0:
        return None
    return Box.from_corners(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1, label)


def moved_mask(mask: np.ndarray, box: Box, target: Box) -> np.ndarray:
    """A mask moved and stretched from a box to another one: float32 [H, W], 0..1; what leaves the picture is cut.

    Args:
        mask: uint8 0..255 or float 0..1, [H, W].
        box: around its shape.
        target: box of the wanted mask, which may reach beyond the picture.
    """
    import cv2

    height, width = mask.shape
    x_scale, y_scale = box.width / target.width, box.height / target.height
    # From a pixel's centre in the result to its place in the mask.
    matrix = np.array(
        [
            [x_scale, 0.0, (0.5 - target.x) * x_scale + box.x - 0.5],
            [0.0, y_scale, (0.5 - target.y) * y_scale + box.y - 0.5],
        ]
    )
    shape = mask.astype(np.float32) / (255 if mask.dtype == np.uint8 else 1)
    return cv2.warpAffine(shape, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def moved_shape(masks: Sequence[Tensor], boxes: Sequence[Box], distances: Sequence[int], target: Box) -> Tensor:
    """Neighbouring masks moved and stretched from their boxes to another box, blended by nearness.

    Args:
        masks: one or two, uint8 [H, W].
        boxes: of those masks.
        distances: in frames, at least 1 each.
        target: box of the wanted mask.

    Returns:
        uint8 [H, W], 0 or 255.
    """
    blended = np.zeros(masks[0].shape, dtype=np.float32)
    nearness = [1.0 / distance for distance in distances]
    for mask, box, weight in zip(masks, boxes, nearness, strict=True):
        blended += moved_mask(mask.cpu().numpy(), box, target) * np.float32(weight / sum(nearness))
    return torch.from_numpy((blended > 0.5).astype(np.uint8) * np.uint8(255))


def mask_iou(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two masks of one shape, uint8, cut at one half; 0 for two empty ones."""
    a, b = first > 127, second > 127
    return float((a & b).sum() / (a | b).sum().clamp(min=1))
