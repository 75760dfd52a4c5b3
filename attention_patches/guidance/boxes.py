"""Boxes around masks."""

from __future__ import annotations

import torch
from torch import Tensor

from .regions import FOREGROUND


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the box of each object in each frame, [R, F, 4] as (left, top, right, bottom) in fractions of the picture.

    Args:
        masks: [R, F, H, W]; a pixel is the object's from 0.5 on. Frames without one have a box of zeros.
    """
    height, width = masks.shape[2:]
    inside = masks >= FOREGROUND
    rows, columns = inside.any(dim=3), inside.any(dim=2)
    edges = []
    for lines, size in ((columns, width), (rows, height)):
        place = torch.arange(size)
        first = torch.where(lines, place, size).amin(dim=2)
        last = torch.where(lines, place + 1, 0).amax(dim=2)
        edges.append((torch.minimum(first, last) / size, last / size))
    (left, right), (top, bottom) = edges
    return torch.stack((left, top, right, bottom), dim=2)


def box_masks(masks: Tensor) -> Tensor:
    """Fill the boxes around masks [R, F, H, W]."""
    height, width = masks.shape[2:]
    left, top, right, bottom = mask_boxes(masks).unbind(dim=2)
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    of_rows = (rows >= top[..., None]) & (rows < bottom[..., None])
    of_columns = (columns >= left[..., None]) & (columns < right[..., None])
    return (of_rows[..., :, None] & of_columns[..., None, :]).float()
