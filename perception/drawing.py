"""Boxes and masks drawn on frames, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .boxes import Detections
from .frames import as_bytes, check_frames
from .mask_refinement import grow_mask
from .mask_shapes import box_of_mask
from .tracks import Tracks

if TYPE_CHECKING:
    from PIL import ImageDraw

# Told apart from each other and, with their dark rim, from any picture.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (0, 229, 255),
    (255, 64, 200),
    (255, 160, 0),
    (140, 255, 60),
    (170, 130, 255),
    (255, 240, 70),
)
# Frames with a shorter side below this are enlarged by a whole number so that labels can be read.
READABLE_SIDE = 256


def enlargement(height: int, width: int, factor: int | None) -> int:
    """Whole-number factor by which frames are enlarged: as given, or chosen for a readable size."""
    if factor is not None:
        if factor < 1:
            raise ValueError(f"enlarge is {factor}; choose 1 or more, or None for a readable size.")
        return factor
    return max(1, -(-READABLE_SIDE // min(height, width)))


def enlarge_frames(frames: Tensor, factor: int) -> Tensor:
    """Repeat pixels: float [T, H, W, 3] to [T, factor H, factor W, 3]."""
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def draw_boxes(frames: Tensor, detections: Detections, enlarge: int | None = None) -> Tensor:
    """Draw each frame's boxes with label and score.

    Args:
        frames: float [T, H, W, 3], 0..1.
        detections: one list of boxes per frame, in pixels of ``frames``.
        enlarge: whole-number factor of the result; None makes small frames readable.

    Returns:
        float [T, factor H, factor W, 3], 0..1.

    Raises:
        ValueError: for bad frames or another number of lists than frames.
    """
    frames = check_frames(frames)
    if len(detections) != len(frames):
        raise ValueError(f"there are detections for {len(detections)} frames and {len(frames)} frames; give one each.")
    factor = enlargement(*frames.shape[1:3], enlarge)
    labels = list(dict.fromkeys(box.label for boxes in detections for box in boxes))
    drawn = []
    for picture, boxes in zip(as_bytes(enlarge_frames(frames, factor)), detections, strict=True):
        image, pen = _open(picture)
        # The best box is drawn last, over the others.
        for box in reversed(boxes):
            colour = PALETTE[labels.index(box.label) % len(PALETTE)]
            corners = [value * factor for value in box.corners]
            _rectangle(pen, corners, colour, image.size)
        for box in reversed(boxes):
            colour = PALETTE[labels.index(box.label) % len(PALETTE)]
            text = f"{box.label} {box.score:.2f}".strip()
            _label(pen, text, box.x * factor, box.y * factor, colour, image.size)
        drawn.append(np.asarray(image))
    return torch.from_numpy(np.stack(drawn)).float() / 255


def draw_masks(
    frames: Tensor,
    masks: Tracks | Tensor,
    outline: bool = True,
    opacity: float = 0.3,
    labels: bool = True,
    enlarge: int | None = None,
) -> Tensor:
    """Draw masks as tint and outline, numbered and named.

    Args:
        frames: float [T, H, W, 3], 0..1.
        masks: tracks, or float [T, H, W] or [N, T, H, W], 0..1; other heights and widths are resized.
        outline: draw the edge at one half of the mask.
        opacity: 0..1 of the tint.
        labels: write number, phrase and score beside each object; "filled" where it was not seen.
        enlarge: whole-number factor of the result; None makes small frames readable.

    Returns:
        float [T, factor H, factor W, 3], 0..1.

    Raises:
        ValueError: for bad frames or another number of mask frames than frames.
    """
    frames = check_frames(frames)
    tracks = masks if isinstance(masks, Tracks) else Tracks.from_masks(masks)
    if tracks.frames != len(frames):
        raise ValueError(f"there are masks for {tracks.frames} frames and {len(frames)} frames; give one each.")
    factor = enlargement(*frames.shape[1:3], enlarge)
    large = enlarge_frames(frames, factor)
    size = large.shape[1:3]
    texts = []
    for number in range(len(tracks.ids)):
        mask = functional.interpolate(tracks.masks[number][:, None].float() / 255, size, mode="bilinear")[:, 0]
        colour = PALETTE[(tracks.ids[number] - 1) % len(PALETTE)]
        large = _tint(large, mask, colour, outline, opacity, max(1, factor // 3))
        texts.append((mask, colour))
    if not labels:
        return large
    drawn = []
    for frame, picture in enumerate(as_bytes(large)):
        image, pen = _open(picture)
        for number, (mask, colour) in enumerate(texts):
            box = box_of_mask(mask[frame])
            if box is not None:
                _label(pen, _track_text(tracks, number, frame), box.x, box.y, colour, image.size)
        drawn.append(np.asarray(image))
    return torch.from_numpy(np.stack(drawn)).float() / 255


def _track_text(tracks: Tracks, number: int, frame: int) -> str:
    name = f"{tracks.ids[number]} {tracks.labels[number]}".strip()
    if bool(tracks.misses[number, frame]):
        return f"{name} (filled)"
    return f"{name} {tracks.scores[number, frame].item():.2f}"


def _tint(frames: Tensor, mask: Tensor, colour: Sequence[int], outline: bool, opacity: float, thickness: int) -> Tensor:
    ink = torch.tensor(colour).float() / 255
    frames = frames + (ink - frames) * (mask * opacity)[..., None]
    if outline:
        inside = (mask > 0.5).float()
        line = inside - grow_mask(inside, -thickness)
        rim = grow_mask(inside, thickness) - inside
        frames = frames * (1 - 0.75 * rim[..., None])
        frames = torch.where(line[..., None] > 0, ink, frames)
    return frames


def _open(picture: np.ndarray) -> tuple:
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    return image, ImageDraw.Draw(image)


def _rectangle(
    pen: ImageDraw.ImageDraw, corners: Sequence[float], colour: tuple[int, int, int], size: tuple[int, int]
) -> None:
    thickness = max(2, min(size) // 128)
    x0, y0 = (round(value) for value in corners[:2])
    x1, y1 = max(x0, round(corners[2]) - 1), max(y0, round(corners[3]) - 1)
    pen.rectangle([x0 - 1, y0 - 1, x1 + 1, y1 + 1], outline=(0, 0, 0), width=thickness + 2)
    pen.rectangle([x0, y0, x1, y1], outline=colour, width=thickness)


def _label(
    pen: ImageDraw.ImageDraw, text: str, x: float, y: float, colour: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """Text on a dark plate above (x, y), pushed into the picture."""
    if not text:
        return
    from PIL import ImageFont

    font = ImageFont.load_default(size=max(10, min(size) // 20))
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0, round(x)), max(0, size[0] - width))
    y = round(y) - height - 1
    y = min(max(0, y), max(0, size[1] - height))
    pen.rectangle([x, y, x + width, y + height], fill=(0, 0, 0))
    pen.text((x + 3 - left, y + 3 - top), text, fill=colour, font=font)
