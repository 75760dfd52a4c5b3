"""Small areas of a picture as masks: around a mask, inside a box, without crumbs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ..boxes import Box

# How far a mask may reach out of the box that it was drawn for, as a share of the box.
OVERHANG = 0.05
# Patches of a mask that are smaller than this share of its largest one are crumbs.
CRUMB = 0.15


def grown(inside: Tensor, margin: int) -> Tensor:
    """Bool [H, W] grown by that many pixels on each side."""
    import cv2

    # One axis after the other: a large square at once would take its area in time.
    rows, columns = (np.ones(shape, np.uint8) for shape in ((2 * margin + 1, 1), (1, 2 * margin + 1)))
    return torch.from_numpy(cv2.dilate(cv2.dilate(inside.numpy().astype(np.uint8), rows), columns)).bool()


def first_largest(values: Tensor) -> Tensor:
    """Which of N maps is the largest in each place, the first one of equals: int64 [H, W] for [N, H, W].

    As ``argmax(0)``, which takes many times as long on a CPU for a few large maps.
    """
    best, largest = torch.zeros(values.shape[1:], dtype=torch.int64), values[0]
    for place in range(1, len(values)):
        best[values[place] > largest] = place
        largest = torch.maximum(values[place], largest)
    return best


def smoothed(inside: Tensor) -> Tensor:
    """A mask without single pixels that differ from those around them."""
    return functional.avg_pool2d(inside[None].float(), 3, 1, 1, count_include_pad=False)[0] > 0.5


def window_around(inside: Tensor, margin: int) -> Tensor:
    """The rectangle around a mask, widened: bool [H, W]."""
    window = torch.zeros_like(inside)
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    if len(rows):
        top, left = max(int(rows[0]) - margin, 0), max(int(columns[0]) - margin, 0)
        window[top : int(rows[-1]) + margin + 1, left : int(columns[-1]) + margin + 1] = True
    return window


def inside_box(box: Box, shape: Sequence[int]) -> Tensor:
    """Pixels in a box and a little around it: uint8 [H, W], 0 or 1."""
    x0, y0, x1, y1 = box.corners
    across, down = OVERHANG * box.width, OVERHANG * box.height
    allowed = torch.zeros(tuple(shape), dtype=torch.uint8)
    allowed[max(0, int(y0 - down)) : int(np.ceil(y1 + down)), max(0, int(x0 - across)) : int(np.ceil(x1 + across))] = 1
    return allowed


def large_patches(inside: Tensor) -> Tensor:
    """A mask without the patches that are small beside the largest one: uint8 [H, W], 0 or 1."""
    import cv2

    count, labels, statistics, _ = cv2.connectedComponentsWithStats(inside.numpy().astype(np.uint8), connectivity=8)
    if count <= 2:
        return torch.ones(inside.shape, dtype=torch.uint8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    small = areas < CRUMB * areas[1:].max()
    small[0] = False
    return torch.from_numpy((~small[labels]).astype(np.uint8))
