"""A long video in one picture: frames spread over it, its middle row over time, and which prompt held when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...perception.pictures.drawing import colour_of, fitted_text, font_of
from .files import enlarge
from .record import FilmRecord
from .sheets import BACKGROUND, FAINT, GAP, INK, MARGIN, MAX_COLUMNS

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

NAMES = 124
LINE = 20
LANE = 22
# Height in pixels of a video's middle row over time, and width that a row of pictures has at least.
SLICE = 96
LEAST_WIDTH = 640


@dataclass(frozen=True, eq=False)
class Lane:
    """A prompt and how much of it each frame of the first video has: [T] in 0..1."""

    prompt: str
    weights: Tensor


@dataclass(frozen=True, eq=False)
class _Section:
    """One video of the sheet, with its layout."""

    name: str
    record: FilmRecord
    columns: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        return -(-len(self.record.pictures) // self.columns)

    @property
    def across(self) -> int:
        return self.columns * (self.width + GAP) - GAP

    def total(self) -> int:
        return self.rows * (self.height + LINE) + SLICE + LINE + GAP


def film_sheet(
    films: Sequence[tuple[str, FilmRecord]], title: str, lanes: Sequence[Lane] = (), lines: Sequence[str] = ()
) -> Image.Image:
    """Draw the sheet.

    Args:
        films: name and record of each stage's video, in order.
        title: one line, the prompt.
        lanes: prompts over time, below the first video.
        lines: at the bottom, what was measured.
    """
    from PIL import Image, ImageDraw

    sections = [_section(name, record) for name, record in films]
    across = max(LEAST_WIDTH, *(section.across for section in sections))
    large, small = font_of(20), font_of(14)
    below = MARGIN + 42 + sum(section.total() for section in sections) + len(lanes) * LANE
    size = (MARGIN + NAMES + across + MARGIN, below + LINE * len(lines) + MARGIN)
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), fitted_text(draw, title, large, picture.width - 2 * MARGIN), INK, font=large)
    top = MARGIN + 42
    for number, section in enumerate(sections):
        _draw_section(picture, draw, section, top, across)
        top += section.total()
        if number == 0:
            for place, lane in enumerate(lanes):
                _draw_lane(picture, draw, lane, place, top - LINE - GAP + 4 + place * LANE, across)
            top += len(lanes) * LANE
    for line in lines:
        draw.text((MARGIN, top), fitted_text(draw, line, small, picture.width - 2 * MARGIN), FAINT, font=small)
        top += LINE
    return picture


def _section(name: str, record: FilmRecord) -> _Section:
    first = next(iter(record.pictures.values()))
    factor = max(1, 160 // max(first.shape[:2]))
    count = len(record.pictures)
    # Rows of one length: 12 pictures are two rows of 6.
    rows = -(-count // MAX_COLUMNS)
    return _Section(name, record, -(-count // rows), first.shape[0] * factor, first.shape[1] * factor)


def _draw_section(picture: Image.Image, draw: ImageDraw.ImageDraw, section: _Section, top: int, across: int) -> None:
    from PIL import Image

    record, small, left = section.record, font_of(14), MARGIN + NAMES
    draw.text((MARGIN, top + 4), fitted_text(draw, section.name, small, NAMES - 8), INK, font=small)
    words = f"{record.width} x {record.height}, {record.frames} frames"
    draw.text((MARGIN, top + 24), fitted_text(draw, words, font_of(12), NAMES - 8), FAINT, font=font_of(12))
    for place, (number, pixels) in enumerate(record.pictures.items()):
        x = left + place % section.columns * (section.width + GAP)
        y = top + place // section.columns * (section.height + LINE)
        large = enlarge(pixels[None], section.height // pixels.shape[0])[0]
        picture.paste(Image.fromarray(large.numpy()), (x, y))
        draw.text((x + section.width // 2, y + section.height + 2), str(number), FAINT, font=font_of(12), anchor="ma")
    y = top + section.rows * (section.height + LINE)
    draw.text((MARGIN, y + SLICE // 2 - 16), "middle row", INK, font=small)
    draw.text((MARGIN, y + SLICE // 2), "over time", INK, font=small)
    draw.text((MARGIN, y + SLICE // 2 + 18), "its left end is up", FAINT, font=font_of(12))
    over_time = torch.stack(record.middle_rows, dim=1).contiguous()
    picture.paste(Image.fromarray(over_time.numpy()).resize((across, SLICE), Image.Resampling.NEAREST), (left, y))


def _draw_lane(picture: Image.Image, draw: ImageDraw.ImageDraw, lane: Lane, number: int, top: int, across: int) -> None:
    """A bar as dark as the prompt is strong in each frame, with its words where it begins."""
    from PIL import Image

    left, font = MARGIN + NAMES, font_of(12)
    frame = torch.arange(across) * len(lane.weights) // across
    share = lane.weights[frame].float()[None, :, None]
    colour = torch.tensor(colour_of(number + 1)).float() * 0.5 + torch.tensor(BACKGROUND).float() * 0.5
    bar = torch.tensor(BACKGROUND).float() * (1 - share) + colour * share
    pixels = bar.expand(LANE - 4, -1, -1).to(torch.uint8).contiguous()
    picture.paste(Image.fromarray(pixels.numpy()), (left, top))
    begin = int((lane.weights > 0).float().argmax()) * across // len(lane.weights)
    words = fitted_text(draw, lane.prompt, font, max(across - begin - 8, 40))
    draw.text((left + begin + 4, top + 2), words, INK, font=font)
