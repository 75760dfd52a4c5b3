"""Prompts drawn into the frame that they are about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...perception.frames import Film
from ...perception.mask_shapes import box_of_mask
from ...perception.pictures.drawing import colour_of, draw_masks, enlarge_frames, enlargement, font_of
from ...perception.prompts import ObjectPrompt
from ...perception.tracks import Tracks

# Without a picture prompts are drawn on an empty one that holds them, no smaller and no larger than this.
SMALLEST_SIDE, LARGEST_SIDE = 256, 4096
EMPTY_GREY = 0.2
OFF_COLOUR = (255, 70, 70)


def picture_of_frame(image: Tensor, frame: int) -> Tensor:
    """One frame of an IMAGE batch, float [H, W, 3]; a single picture is taken for that frame.

    Raises:
        ValueError: when the video has no such frame, or it is not a video.
    """
    film = Film(image)
    if 1 < len(film) <= frame:
        raise ValueError(f"frame is {frame} but the video has {len(film)} frames; use 0 to {len(film) - 1}.")
    return film.read([frame if len(film) > 1 else 0])[0]


def draw_prompts(picture: Tensor | None, prompts: Sequence[ObjectPrompt]) -> Tensor:
    """Boxes, points and masks of one frame.

    Args:
        picture: float [H, W, 3], 0..1, or None for an empty one.
        prompts: all of one frame, with their numbers.

    Returns:
        float [1, factor H, factor W, 3], 0..1; small pictures are enlarged so that labels can be read.
    """
    if picture is None:
        picture = torch.full((*_extent(prompts), 3), EMPTY_GREY)
    factor = enlargement(*picture.shape[:2], None)
    drawn = enlarge_frames(picture[None], factor)
    for prompt in prompts:
        if prompt.mask is not None:
            mask = ((prompt.mask > 0.5) * 255).to(torch.uint8)[None, None]
            tracks = Tracks(mask, (prompt.identity,), ("",), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.bool))
            drawn = draw_masks(drawn, tracks, labels=False, enlarge=1)
    image = Image.fromarray((drawn[0] * 255).round().to(torch.uint8).numpy())
    pen = ImageDraw.Draw(image)
    for prompt in prompts:
        _draw_prompt(pen, image, prompt, factor)
    return torch.from_numpy(np.array(image))[None].float() / 255


def _extent(prompts: Sequence[ObjectPrompt]) -> tuple[int, int]:
    """Height and width of a picture that holds prompts."""
    heights, widths = [SMALLEST_SIDE], [SMALLEST_SIDE]
    for prompt in prompts:
        if prompt.mask is not None:
            # Masks have the size of the picture.
            return tuple(prompt.mask.shape)
        places = [(point.x, point.y) for point in prompt.points]
        if prompt.box is not None:
            places.append(prompt.box.corners[2:])
        widths += [min(LARGEST_SIDE, round(x) + 16) for x, _ in places]
        heights += [min(LARGEST_SIDE, round(y) + 16) for _, y in places]
    return max(heights), max(widths)


def _draw_prompt(pen: ImageDraw.ImageDraw, image: Image.Image, prompt: ObjectPrompt, factor: int) -> None:
    colour = colour_of(prompt.identity)
    radius = max(4, min(image.size) // 80)
    places = []
    if prompt.box is not None:
        x0, y0, x1, y1 = (value * factor for value in prompt.box.corners)
        pen.rectangle([x0 - 1, y0 - 1, x1 + 1, y1 + 1], outline=(0, 0, 0), width=4)
        pen.rectangle([x0, y0, x1, y1], outline=colour, width=2)
        places.append((x0, y0))
    for point in prompt.points:
        x, y = point.x * factor, point.y * factor
        pen.ellipse([x - radius - 2, y - radius - 2, x + radius + 2, y + radius + 2], fill=(0, 0, 0))
        if point.inside:
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
            places.append((x + radius, y - radius))
        else:
            # A cross: not here.
            for slope in (1, -1):
                ends = [x - radius, y - slope * radius, x + radius, y + slope * radius]
                pen.line(ends, fill=OFF_COLOUR, width=max(2, radius // 3))
    if prompt.mask is not None and not places:
        around = box_of_mask((prompt.mask > 0.5).float())
        if around is not None:
            places.append(
                (around.x * image.width / prompt.mask.shape[1], around.y * image.height / prompt.mask.shape[0])
            )
    if places:
        height = max(12, min(image.size) // 20)
        x, y = min(max(0, places[0][0]), image.width - radius), max(0, places[0][1] - 1.3 * height)
        text = f"{prompt.identity} {prompt.label}".strip()
        pen.text((x, y), text, fill=colour, font=font_of(height), stroke_width=2, stroke_fill=(0, 0, 0))
