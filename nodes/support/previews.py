"""Pictures of guides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...attention_patches.guidance.guide import Guide
from ...attention_patches.guidance.share_book import BlockShare, region_name, shares_by_region
from ...attention_patches.latent_time import LatentTime
from ...backbones.family import TokenGrid

# Far apart, also for most colour-blind eyes (Okabe and Ito).
REGION_COLOURS = (
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.84, 0.37, 0.00),
    (0.80, 0.47, 0.65),
)
BACKGROUND_COLOUR = (0.10, 0.10, 0.13)
BORDER_COLOUR = (0.32, 0.32, 0.36)
TEXT_COLOUR = (0.92, 0.92, 0.92)
# Of charts, in pixels: around them, between the left edges of two bars, a row of bars, and the least for all bars.
CHART_MARGIN = 16
CHART_BAR = 12
CHART_ROW = 160
CHART_LEAST = 384


def guide_pictures(
    guide: Guide, grids: Sequence[TokenGrid], latent_time: LatentTime, clip_frames: int, size: int
) -> Tensor:
    """Token regions of every frame and level.

    Args:
        guide: its masks are pooled as attention will pool them.
        grids: the model's, finest first.
        latent_time: of the model.
        clip_frames: latent frames of the clip.
        size: height of the pictures in pixels.

    Returns:
        float [frames, size, W, 3] in 0..1, one picture per frame of tokens, levels side by side.

    Raises:
        ValueError: the masks' frames do not fit the clip.
    """
    pyramid = guide.pyramid()
    frames = grids[0].frames
    gap = torch.tensor(BORDER_COLOUR).expand(frames, size, max(2, size // 64), 3)
    parts: list[Tensor] = []
    for grid in grids:
        shares = torch.zeros(0, frames, grid.rows, grid.columns)
        if guide.masks.shape[0]:
            place = (grid.rows, grid.columns, clip_frames, grid.filled, latent_time, grid.level)
            shares = pyramid.regions(*place).take(range(0, clip_frames, latent_time.span)).objects
        parts += [_enlarge(_colour(shares, frames, grid.rows, grid.columns), size), gap]
    return torch.cat(parts[:-1], dim=2).contiguous()


def share_chart(shares: Sequence[BlockShare], names: Sequence[str]) -> Tensor:
    """Bars of the share of attention in each guided call of the positive prompt, a row per region and kind.

    Args:
        shares: of a run; may be none.
        names: of the objects.

    Returns:
        float [1, H, W, 3] in 0..1.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    rows = shares_by_region(shares)
    bars = max(map(len, rows.values()), default=1)
    width = CHART_MARGIN * 2 + max(bars * CHART_BAR, CHART_LEAST)
    picture = Image.new("RGB", (width, CHART_MARGIN + max(len(rows), 1) * CHART_ROW), _bytes(BACKGROUND_COLOUR))
    draw = ImageDraw.Draw(picture)
    if not rows:
        draw.text((CHART_MARGIN, CHART_MARGIN), "no share of attention was asked for", fill=_bytes(TEXT_COLOUR))
    for number, ((kind, region), found) in enumerate(rows.items()):
        top, bottom = number * CHART_ROW + 2 * CHART_MARGIN, (number + 1) * CHART_ROW
        colour = REGION_COLOURS[region % len(REGION_COLOURS)]
        title = f"{region_name(region, names)}: its own {kind}, {100 * found[0].wanted:g} % wanted"
        draw.text((CHART_MARGIN, top - CHART_MARGIN), title, fill=_bytes(TEXT_COLOUR))
        for place, share in enumerate(found):
            left = CHART_MARGIN + place * CHART_BAR
            for value, shade in ((share.reached, 1.0), (share.before, 0.45)):
                height = round(value * (bottom - top))
                if height:
                    box = (left, bottom - height, left + CHART_BAR - 2, bottom)
                    draw.rectangle(box, fill=_bytes([shade * part for part in colour]))
        wanted = bottom - round(found[0].wanted * (bottom - top))
        draw.line((CHART_MARGIN, wanted, width - CHART_MARGIN, wanted), fill=_bytes(TEXT_COLOUR))
        draw.line((CHART_MARGIN, bottom, width - CHART_MARGIN, bottom), fill=_bytes(BORDER_COLOUR))
    return torch.from_numpy(np.array(picture)).float()[None] / 255.0


def _bytes(colour: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(255.0 * part) for part in colour)


def _colour(shares: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """[R, T, h, w] shares to [T, h, w, 3] colours."""
    picture = torch.tensor(BACKGROUND_COLOUR).expand(frames, rows, columns, 3).clone()
    background = picture[0, 0, 0]
    for index, share in enumerate(shares):
        colour = torch.tensor(REGION_COLOURS[index % len(REGION_COLOURS)])
        picture = picture + share[..., None] * (colour - background)
    return picture.clamp(0.0, 1.0)


def _enlarge(picture: Tensor, height: int) -> Tensor:
    """[T, h, w, 3] to ``height`` pixels, cells as squares with thin borders where they are large enough."""
    rows, columns = picture.shape[1:3]
    width = max(1, round(height * columns / rows))
    row_of = torch.arange(height) * rows // height
    column_of = torch.arange(width) * columns // width
    large = picture[:, row_of][:, :, column_of]
    if height // rows >= 6:
        # Darken the first line of every cell, so that the grid can be counted.
        large[:, torch.cat([torch.ones(1, dtype=torch.bool), row_of.diff() > 0])] *= 0.7
        large[:, :, torch.cat([torch.ones(1, dtype=torch.bool), column_of.diff() > 0])] *= 0.7
    return large
