"""Mask augmentation for motion tuning: rough masks, boxes, no masks, so that the tuned model forgives a user's masks.

The rule is a reconstruction: the papers tune with exact masks (LAMP, arXiv 2310.10769, with none).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...perception.masks.mask_morphology import as_box, grow
from .settings import MaskAugmentation


def augmented_masks(
    masks: Tensor, settings: MaskAugmentation, cell: int, generator: np.random.Generator
) -> Tensor | None:
    """Masks of one clip, roughened by chance alike in all frames; None where the clip is to be seen without.

    Args:
        masks: uint8 [N, T, H, W], 255 the object.
        settings: how much and how often.
        cell: pixels per latent cell.
        generator: the only source of randomness; draws three numbers, whatever the settings.

    Returns:
        float32 [N, T, H, W] in 0..1, or None. An object that shrinking would take out of a frame stays as it was there.
    """
    is_dropped, is_box = generator.random() < settings.drop, generator.random() < settings.box
    cells = int(generator.integers(-settings.grow, settings.grow + 1))
    if is_dropped:
        return None
    changed = masks.numpy()
    if is_box:
        changed = _each_frame(changed, as_box)
    if cells:
        changed = _each_frame(changed, lambda mask: _resized(mask, cells * cell))
    return torch.from_numpy(np.ascontiguousarray(changed)).float() / 255.0


def _each_frame(masks: np.ndarray, change) -> np.ndarray:
    return np.stack([np.stack([change(mask) for mask in track]) for track in masks])


def _resized(mask: np.ndarray, pixels: int) -> np.ndarray:
    changed = grow(mask, pixels)
    return changed if (changed > 127).any() else mask
