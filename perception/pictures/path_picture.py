"""Drawn paths in one picture: where each object goes, and how large it is on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..boxes import Box
from ..frames import Film
from ..masks.mask_paths import ObjectPath
from .drawing import Colour, colour_of, font_of, open_picture

PAPER: Colour = (24, 24, 30)
GRID: Colour = (52, 52, 62)
# The longer side of the picture, in pixels: small frames are enlarged to the first, large ones made smaller to the
# last.
SMALLEST, LARGEST = 512, 1024
# Lines are drawn this much larger and then made smaller, which smooths them.
FINE = 2
# Outlines between keyframes at most, so that they stay apart.
OUTLINES = 24


def path_picture(
    paths: Sequence[ObjectPath], frames: int, height: int, width: int, background: Tensor | Film | None = None
) -> Tensor:
    """Draw paths: a line through the middles with a dot for every frame, the object's outline at its keyframes (strong)
    and in between (faint), and the numbers of the keyframes' frames.

    Args:
        paths: may be none.
        frames: of the clip.
        height: of the clip in pixels.
        width: of the clip in pixels.
        background: a video or picture whose first frame is shown behind, darker; of any size.

    Returns:
        float [1, h, w, 3], 0..1, of the clip's proportions, 512 to 1024 pixels on its longer side.
    """
    import cv2

    scale = max(SMALLEST / max(height, width), min(1.0, LARGEST / max(height, width)))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    large = size[0] * FINE, size[1] * FINE
    if background is None:
        paper = np.full((*large, 3), PAPER, dtype=np.uint8)
        for third in (1, 2):
            paper[large[0] * third // 3] = GRID
            paper[:, large[1] * third // 3] = GRID
    else:
        paper = cv2.resize(Film(background).picture(0), large[::-1], interpolation=cv2.INTER_LINEAR) // 2
    for number, path in enumerate(paths, 1):
        paper = _with_path(paper, path, path.boxes(frames, *large), colour_of(number))
    drawn = cv2.resize(paper, size[::-1], interpolation=cv2.INTER_AREA)
    return torch.from_numpy(drawn)[None].float().div_(255)


def _with_path(paper: np.ndarray, path: ObjectPath, boxes: Sequence[Box | None], colour: Colour) -> np.ndarray:
    there = [frame for frame, box in enumerate(boxes) if box is not None]
    keyframes = [frame for frame, _ in path.keyframes if frame in there]
    between = there[:: max(1, -(-len(there) // OUTLINES))]
    image, pen = open_picture(paper)
    outline = pen.ellipse if path.shape == "ellipse" else pen.rectangle
    for frame in between:
        outline(boxes[frame].corners, outline=_mixed(colour, 0.35), width=FINE)
    for frame in keyframes:
        outline(boxes[frame].corners, outline=colour, width=2 * FINE)
    for before, after in zip(there, there[1:], strict=False):
        # A gap in the line is where the object is hidden.
        if after == before + 1:
            pen.line([*_middle(boxes[before]), *_middle(boxes[after])], fill=colour, width=2 * FINE)
    for frame in there:
        x, y = _middle(boxes[frame])
        radius = (4 if frame in keyframes else 3) * FINE
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline=(0, 0, 0), width=FINE)
    font = font_of(14 * FINE)
    for place, frame in enumerate(keyframes):
        x, y = _middle(boxes[frame])
        words = f"{frame} {path.label}".strip() if place == 0 else str(frame)
        left = min(max(x + 7 * FINE, 0), image.width - pen.textlength(words, font=font))
        top = min(max(y - 20 * FINE, 0), image.height - 18 * FINE)
        pen.text((left, top), words, fill=colour, font=font, stroke_width=2 * FINE, stroke_fill=(0, 0, 0))
    return np.array(image)


def _middle(box: Box) -> tuple[float, float]:
    return box.x + box.width / 2, box.y + box.height / 2


def _mixed(colour: Colour, share: float) -> Colour:
    red, green, blue = (round(value * share) for value in colour)
    return red, green, blue
