"""Shapes of single masks: grow, soften, connected parts, holes, boxes.

A mask here is an array [H, W], uint8 0..255 or float32 0..1; results are new arrays of the same type. Pixels above one
half are inside. Only the part of the picture that holds the mask is worked on.
"""

from __future__ import annotations

import numpy as np

# Discs of this radius at most are laid one after another: as round as a large one, and much faster.
LARGEST_DISC = 16


def inside(mask: np.ndarray) -> np.ndarray:
    """Bool [H, W], the pixels above one half."""
    return mask > (127 if mask.dtype == np.uint8 else 0.5)


def full_value(mask: np.ndarray) -> int:
    """What a pixel wholly inside has: 255 or 1."""
    return 255 if mask.dtype == np.uint8 else 1


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Grow by pixels, or shrink below 0, with a round outline; the picture's border is not an edge.

    A pixel takes the greatest (least) value within that distance of it.
    """
    import cv2

    window = _extent(mask, max(1, pixels))
    if pixels == 0 or window is None:
        return mask.copy()
    part, change = mask[window], cv2.dilate if pixels > 0 else cv2.erode
    steps = -(-abs(pixels) // LARGEST_DISC)
    for step in range(steps):
        part = change(part, _disc(abs(pixels) // steps + (step < abs(pixels) % steps)))
    return _placed(part, window, mask)


def feather(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Soften edges over about ``pixels`` pixels (4 standard deviations of a Gaussian), centred on the old edge."""
    import cv2

    sigma = pixels / 4
    reach = min(max(1, round(3 * sigma)), min(mask.shape) - 1)
    window = _extent(mask, reach)
    if pixels == 0 or reach < 1 or window is None:
        return mask.copy()
    side = 2 * reach + 1
    return _placed(cv2.GaussianBlur(mask[window], (side, side), sigma, borderType=cv2.BORDER_REPLICATE), window, mask)


def keep_components(mask: np.ndarray, share: float) -> np.ndarray:
    """Drop small connected parts; pixels that touch at a corner are connected.

    Args:
        mask: to clean; a soft edge goes or stays with the part that it is nearest to.
        share: 0..1, a part stays when its area is at least this share of the largest one's. 0 keeps all, 1 exactly one.
    """
    import cv2

    hard = inside(mask)
    window = _extent(hard, 1)
    if share == 0 or window is None:
        return mask.copy()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(hard[window].view(np.uint8), connectivity=8)
    # Label 0 is what is outside.
    area = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    area[0] = 0
    kept = area >= share * area.max() if share < 1 else np.arange(count) == area.argmax()
    kept[0] = True
    if kept.all():
        return mask.copy()
    dropped = np.zeros(mask.shape, dtype=bool)
    dropped[window] = ~kept[labels]
    if ((mask > 0) & ~hard).any():
        outside = (~hard).view(np.uint8)
        _, nearest = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
        dropped = np.isin(nearest, np.unique(nearest[dropped]))
    cleaned = mask.copy()
    cleaned[dropped] = 0
    return cleaned


def fill_holes(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Fill what is enclosed by the mask and does not reach the picture's border.

    Args:
        mask: to fill.
        pixels: area of the largest hole that is filled; 0 fills none, -1 all.
    """
    import cv2

    hard = inside(mask)
    window = _extent(hard, 1)
    if pixels == 0 or window is None:
        return mask.copy()
    outside = (~hard[window]).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    left, top, width, height, area = stats.T
    open_ = (left == 0) | (top == 0) | (left + width == outside.shape[1]) | (top + height == outside.shape[0])
    hole = ~open_ & ((area <= pixels) | (pixels < 0))
    # Label 0 is the mask itself.
    hole[0] = False
    filled = mask.copy()
    filled[window][hole[labels]] = full_value(mask)
    return filled


def as_box(mask: np.ndarray, padding: int = 0) -> np.ndarray:
    """The mask's bounding box, wider by ``padding`` pixels on every side as far as the picture goes."""
    box = np.zeros_like(mask)
    window = _extent(inside(mask), padding)
    if window is not None:
        box[window] = full_value(mask)
    return box


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance of every pixel to the mask's edge: float32 [H, W], positive inside."""
    import cv2

    hard = inside(mask).view(np.uint8)
    inner = cv2.distanceTransform(hard, cv2.DIST_L2, cv2.DIST_MASK_5)
    return inner - cv2.distanceTransform(1 - hard, cv2.DIST_L2, cv2.DIST_MASK_5)


def _disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def _extent(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The rows and columns that hold anything, with a margin; None when nothing is there."""
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + 1 + margin),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + 1 + margin),
    )


def _placed(part: np.ndarray, window: tuple[slice, slice], like: np.ndarray) -> np.ndarray:
    whole = np.zeros_like(like)
    whole[window] = part
    return whole
