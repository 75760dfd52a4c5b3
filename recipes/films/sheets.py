"""Pictures of a run: the side-by-side video and the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...perception.pictures.drawing import draw_masks, fitted_text, font_of
from ...perception.tracks import Tracks
from ...weight_files.writing import replacing
from .files import check_frames, enlarge, shown_enlargement, to_bytes

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND = (250, 249, 246)
INK = (34, 34, 38)
FAINT = (120, 118, 112)
MARGIN = 16
GAP = 6
MAX_COLUMNS = 8
# Differences of the videos are shown this much brighter.
CHANGE_GAIN = 3


def with_masks(frames: Tensor, tracks: Tracks, enlargement: int = 1, chosen: Sequence[int] | None = None) -> Tensor:
    """The video (or the frames chosen of it) enlarged, with the outline, number and name of every object.

    Returns:
        float [T, H * e, W * e, 3].
    """
    return draw_masks(frames, tracks, opacity=0.15, enlarge=enlargement, chosen=chosen)


def with_outlines(frames: Tensor, tracks: Tracks, enlargement: int = 1, chosen: Sequence[int] | None = None) -> Tensor:
    """The video (or the frames chosen of it) enlarged, with bare outlines: what guided it, over what was made."""
    return draw_masks(frames, tracks, opacity=0.0, labels=False, enlarge=enlargement, chosen=chosen)


def side_by_side(first: Tensor, second: Tensor, tracks: Tracks) -> Tensor:
    """Both videos beside each other, the guiding masks drawn on both, under a line of text each.

    Args:
        first: video of the first pass, float [T, H, W, 3].
        second: the regenerated video, same shape.
        tracks: the guiding masks; may hold no object.

    Returns:
        float [T, H', W', 3]; small videos are enlarged.
    """
    check_frames(first, "frames of the first video")
    check_frames(second, "frames of the second video")
    factor = shown_enlargement(*first.shape[1:3])
    names = ("first video", "second video, guided by these masks" if tracks.ids else "second video, no guidance")
    panels = [with_masks(first, tracks, factor), with_outlines(second, tracks, factor)]
    panels = [torch.cat([_caption(name, panel), panel], dim=1) for name, panel in zip(names, panels, strict=True)]
    bar = torch.tensor(BACKGROUND).float().div(255).expand(len(first), panels[0].shape[1], GAP, 3)
    return torch.cat([panels[0], bar, panels[1]], dim=2)


def contact_sheet(first: Tensor, second: Tensor, tracks: Tracks, title: str, lines: Sequence[str] = ()) -> Image.Image:
    """One picture of the run: first video, its masks, second video, their difference; columns over time.

    Args:
        first: video of the first pass, float [T, H, W, 3].
        second: the regenerated video, same shape.
        tracks: the guiding masks; may hold no object.
        title: one line, the prompt.
        lines: below the pictures, what was measured.
    """
    from PIL import Image, ImageDraw

    check_frames(first, "frames of the first video")
    check_frames(second, "frames of the second video")
    count = len(first)
    columns = min(count, MAX_COLUMNS)
    chosen = [round(column * (count - 1) / max(columns - 1, 1)) for column in range(columns)]
    factor = shown_enlargement(*first.shape[1:3], target=192)
    rows = [
        ("first video", enlarge(first[chosen], factor)),
        ("masks", with_masks(first, tracks, factor, chosen)),
        ("second video", enlarge(second[chosen], factor)),
        ("with the guide", with_outlines(second, tracks, factor, chosen)),
        (f"change x {CHANGE_GAIN}", enlarge((second[chosen] - first[chosen]).abs() * CHANGE_GAIN, factor)),
    ]
    height, width = rows[0][1].shape[1:3]
    large, small = font_of(20), font_of(14)
    left, top = MARGIN + 104, MARGIN + 42
    bottom = top + len(rows) * (height + GAP) + 20 + 20 * len(lines)
    picture = Image.new("RGB", (left + columns * (width + GAP) - GAP + MARGIN, bottom + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), fitted_text(draw, title, large, picture.width - 2 * MARGIN), INK, font=large)
    for row, (name, frames) in enumerate(rows):
        y = top + row * (height + GAP)
        draw.text((MARGIN, y + height // 2 - 8), name, INK, font=small)
        for column, pixels in enumerate(to_bytes(frames).numpy()):
            picture.paste(Image.fromarray(pixels), (left + column * (width + GAP), y))
    y = top + len(rows) * (height + GAP)
    for column, frame in enumerate(chosen):
        draw.text((left + column * (width + GAP) + width // 2 - 4, y), str(frame), FAINT, font=small)
    for number, line in enumerate(lines):
        text = fitted_text(draw, line, small, picture.width - 2 * MARGIN)
        draw.text((MARGIN, y + 20 + 20 * number), text, FAINT, font=small)
    return picture


def write_picture(path: Path, picture: Image.Image) -> None:
    """Save a picture; the file appears when it is complete.

    Raises:
        ValueError: a missing folder.
    """
    with replacing(path) as temporary:
        picture.save(temporary)


def _caption(text: str, panel: Tensor) -> Tensor:
    """A strip of text over a panel [T, H, W, 3]: float [T, 24, W, 3]."""
    import numpy as np
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (panel.shape[2], 24), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    font = font_of(13)
    draw.text((6, 4), fitted_text(draw, text, font, strip.width - 12), INK, font=font)
    return torch.from_numpy(np.asarray(strip).copy()).float().div(255).expand(len(panel), -1, -1, -1)
