"""Boxes and masks drawn on frames."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..boxes import Detections, Progress
from ..frames import Film
from ..mask_shapes import box_of_mask
from ..masks.mask_morphology import grow
from ..tracks import Tracks

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

# Distinct from each other and, with their dark rim, from any picture.
PALETTE: tuple[Colour, ...] = (
    (0, 229, 255),
    (255, 64, 200),
    (255, 160, 0),
    (140, 255, 60),
    (170, 130, 255),
    (255, 240, 70),
    (255, 100, 90),
    (60, 140, 255),
    (0, 220, 150),
    (245, 245, 245),
)
# Frames with a shorter side below this are enlarged by a whole number so that labels can be read.
READABLE_SIDE = 256


def colour_of(identity: int) -> Colour:
    """The colour of an object: always the same for a number from 1 on, and different for neighbouring numbers."""
    if 1 <= identity <= len(PALETTE):
        return PALETTE[identity - 1]
    # Turns by the golden ratio never meet again.
    hue = (identity * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.35 * (identity % 2), 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


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


def drawn_size(
    height: int, width: int, enlarge: int | None = None, pictures: int = 1, max_bytes: int | None = None
) -> tuple[int, int]:
    """Height and width of frames that are drawn on.

    Args:
        height: of the frames in pixels.
        width: of the frames in pixels.
        enlarge: whole-number factor; None makes small frames readable.
        pictures: how many are drawn.
        max_bytes: of all of them together as float32; pictures are made smaller to keep to it, in all directions alike.

    Raises:
        ValueError: when a factor or limit is below 1.
    """
    factor = enlargement(height, width, enlarge)
    if max_bytes is None:
        return factor * height, factor * width
    if max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}; choose 1 or more, or None for no limit.")
    room = max_bytes / (max(1, pictures) * height * width * 3 * 4)
    # Whole factors keep pixels square and sharp.
    scale = min(factor, math.isqrt(int(room)) or math.sqrt(room))
    return max(1, math.floor(scale * height)), max(1, math.floor(scale * width))


def draw_boxes(
    frames: Tensor | Film,
    detections: Detections,
    enlarge: int | None = None,
    *,
    chosen: Sequence[int] | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw each frame's boxes with label and score.

    Args:
        frames: as :class:`Film` takes them.
        detections: one list of boxes per frame, in pixels of ``frames``.
        enlarge: whole-number factor of the result; None makes small frames readable.
        chosen: the frames to draw; None draws all.
        max_bytes: of the result; pictures are made smaller to keep to it.
        progress: called with (done, total) after every frame; may raise to cancel.

    Returns:
        float [T or as many as chosen, h, w, 3], 0..1.

    Raises:
        ValueError: for bad frames, a frame that is not there, or a different number of lists and frames.
    """
    film = Film(frames)
    if len(detections) != len(film):
        raise ValueError(f"there are detections for {len(detections)} frames and {len(film)} frames; give one each.")
    labels = list(dict.fromkeys(box.label for boxes in detections for box in boxes))

    def draw(frame: int, size: tuple[int, int]) -> np.ndarray:
        boxes = [box.scaled(size[1] / film.width, size[0] / film.height) for box in detections[frame]]
        # The best box is drawn last, over the others.
        colours = [colour_of(labels.index(box.label) + 1) for box in boxes]
        image, pen = open_picture(picture_at(film, frame, size))
        for box, colour in reversed(list(zip(boxes, colours, strict=True))):
            _rectangle(pen, box.corners, colour, image.size)
        plates = _Plates(image)
        for box, colour in zip(boxes, colours, strict=True):
            words = (f"{box.label} {box.score:.2f}".strip(), box.label, f"{box.score:.2f}")
            plates.add(words, box.corners, colour)
        return np.array(image)

    return _draw_film(film, draw, enlarge, chosen, max_bytes, progress)


def draw_masks(
    frames: Tensor | Film,
    masks: Tracks | Tensor,
    outline: bool = True,
    opacity: float = 0.3,
    labels: bool = True,
    enlarge: int | None = None,
    *,
    chosen: Sequence[int] | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw masks as tint and outline, numbered and named; the outline is dashed where an object was not seen.

    Args:
        frames: as :class:`Film` takes them.
        masks: tracks, or float [T, H, W] or [N, T, H, W], 0..1; other heights and widths are resized.
        outline: draw the edge at one half of the mask.
        opacity: 0..1 of the tint.
        labels: write number, phrase and score beside each object; "filled" where it was not seen.
        enlarge: whole-number factor of the result; None makes small frames readable.
        chosen: the frames to draw; None draws all.
        max_bytes: of the result; pictures are made smaller to keep to it.
        progress: called with (done, total) after every frame; may raise to cancel.

    Returns:
        float [T or as many as chosen, h, w, 3], 0..1, in steps of 1/255.

    Raises:
        ValueError: for bad frames, a frame that is not there, or a different number of mask frames and frames.
    """
    film = Film(frames)
    tracks = masks if isinstance(masks, Tracks) else Tracks.from_masks(masks)
    if tracks.frames != len(film):
        raise ValueError(f"there are masks for {tracks.frames} frames and {len(film)} frames; give one each.")

    def draw(frame: int, size: tuple[int, int]) -> np.ndarray:
        words = [_track_words(tracks, number, frame) for number in range(len(tracks.ids))] if labels else None
        return draw_objects(picture_at(film, frame, size), tracks, frame, outline, opacity, words)

    return _draw_film(film, draw, enlarge, chosen, max_bytes, progress)


def _draw_film(
    film: Film,
    draw: Callable[[int, tuple[int, int]], np.ndarray],
    enlarge: int | None,
    chosen: Sequence[int] | None,
    max_bytes: int | None,
    progress: Progress | None,
) -> Tensor:
    numbers = list(range(len(film)) if chosen is None else chosen)
    for frame in numbers:
        if not 0 <= frame < len(film):
            raise ValueError(f"frame {frame} is to be drawn; the video has the frames 0 to {len(film) - 1}.")
    size = drawn_size(film.height, film.width, enlarge, len(numbers), max_bytes)
    drawn = torch.empty(len(numbers), *size, 3)
    for place, frame in enumerate(numbers):
        drawn[place] = torch.from_numpy(draw(frame, size)).div(255)
        if progress is not None:
            progress(place + 1, len(numbers))
    return drawn


def draw_objects(
    picture: np.ndarray,
    tracks: Tracks,
    frame: int,
    outline: bool = True,
    opacity: float = 0.3,
    words: Sequence[Sequence[str]] | None = None,
) -> np.ndarray:
    """Draw the objects of one frame.

    Args:
        picture: uint8 [h, w, 3], of any size.
        tracks: whose masks are resized to that size.
        frame: of the tracks.
        outline: see :func:`draw_masks`.
        opacity: see :func:`draw_masks`.
        words: per object what to write beside it, longest first: the first at most half as wide as the picture
            is written, or the last. None writes nothing.

    Returns:
        uint8 [h, w, 3].
    """
    picture = picture.copy()
    boxes = []
    for number, identity in enumerate(tracks.ids):
        mask = _resized(tracks.masks[number, frame].numpy(), picture.shape[:2])
        _tint(picture, mask, colour_of(identity), opacity, outline, bool(tracks.misses[number, frame]))
        boxes.append(box_of_mask(torch.from_numpy(mask)))
    if words is None:
        return picture
    image, _ = open_picture(picture)
    plates = _Plates(image)
    for identity, box, texts in zip(tracks.ids, boxes, words, strict=True):
        if box is not None:
            plates.add(texts, box.corners, colour_of(identity))
    return np.array(image)


def picture_at(film: Film, frame: int, size: tuple[int, int]) -> np.ndarray:
    """A frame as uint8 [h, w, 3] of that height and width; whole-number enlargement repeats pixels."""
    import cv2

    picture = film.picture(frame)
    if picture.shape[:2] == tuple(size):
        return picture
    whole = size[0] % film.height == 0 and size[1] % film.width == 0
    shrunk = size[0] < film.height
    method = cv2.INTER_NEAREST if whole else cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR
    return cv2.resize(picture, (size[1], size[0]), interpolation=method)


def open_picture(picture: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture (uint8 [h, w, 3]) to draw on, and the pen."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    return image, ImageDraw.Draw(image)


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with the drawing library, ``size`` pixels high."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def fitted_text(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """The text, cut with three dots where it is wider than ``width`` pixels."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def _track_words(tracks: Tracks, number: int, frame: int) -> tuple[str, ...]:
    name = f"{tracks.ids[number]} {tracks.labels[number]}".strip()
    missed = bool(tracks.misses[number, frame])
    status = "filled" if missed else f"{tracks.scores[number, frame].item():.2f}"
    return f"{name} {status}", name, str(tracks.ids[number])


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    if mask.shape == tuple(size):
        return mask
    method = cv2.INTER_AREA if size[0] < mask.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(mask, (size[1], size[0]), interpolation=method)


def _tint(picture: np.ndarray, mask: np.ndarray, colour: Colour, opacity: float, outline: bool, dashed: bool) -> None:
    """Colour a mask in a picture, in place; only the part of the picture that holds the mask is touched."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return
    thickness = max(1, round(min(mask.shape) / 300))
    top, left = max(0, int(rows[0]) - thickness), max(0, int(columns[0]) - thickness)
    window = slice(top, int(rows[-1]) + 1 + thickness), slice(left, int(columns[-1]) + 1 + thickness)
    part, mask = picture[window].astype(np.float32), mask[window]
    ink = np.array(colour, dtype=np.float32)
    part += (ink - part) * (mask.astype(np.float32) * (opacity / 255))[..., None]
    if outline:
        inner = (mask > 127).astype(np.uint8)
        line = inner > grow(inner, -thickness)
        part[grow(inner, thickness) > inner] *= 0.25
        if dashed:
            y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
            part[line] *= 0.25
            line &= (x + y + top + left) // (4 * thickness) % 2 == 0
        part[line] = ink
    picture[window] = part.round()


def _rectangle(pen: ImageDraw.ImageDraw, corners: Sequence[float], colour: Colour, size: tuple[int, int]) -> None:
    thickness = max(2, min(size) // 200)
    x0, y0 = (round(value) for value in corners[:2])
    x1, y1 = max(x0, round(corners[2]) - 1), max(y0, round(corners[3]) - 1)
    pen.rectangle([x0 - 1, y0 - 1, x1 + 1, y1 + 1], outline=(0, 0, 0), width=thickness + 2)
    pen.rectangle([x0, y0, x1, y1], outline=colour, width=thickness)


class _Plates:
    """Texts on dark plates in one picture, none over another as long as there is room."""

    def __init__(self, image: Image.Image) -> None:
        from PIL import ImageDraw

        self.width, self.height = image.size
        self.pen = ImageDraw.Draw(image)
        self.font = font_of(max(9 if min(image.size) < 128 else 12, min(image.size) // 30))
        self.taken: list[Rectangle] = []

    def add(self, texts: Sequence[str], corners: Sequence[float], colour: Colour) -> None:
        """Write beside the object with these corners the first text at most half as wide as the picture."""
        texts = [text for text in texts if text]
        if not texts:
            return
        sizes = [self.pen.textbbox((0, 0), text, font=self.font) for text in texts]
        most = self.width / 2
        choice = next((place for place, box in enumerate(sizes) if box[2] - box[0] + 6 <= most), len(texts) - 1)
        left, top, right, bottom = sizes[choice]
        x, y, x1, y1 = self._place(right - left + 6, bottom - top + 6, corners)
        self.taken.append((x, y, x1, y1))
        self.pen.rectangle([x, y, x1, y1], fill=(0, 0, 0))
        self.pen.text((x + 3 - left, y + 3 - top), texts[choice], fill=colour, font=self.font)

    def _place(self, width: float, height: float, corners: Sequence[float]) -> Rectangle:
        width, height = math.ceil(width), math.ceil(height)
        x = min(max(0, round(corners[0])), max(0, self.width - width))
        above, below = round(corners[1]) - height - 1, round(corners[3]) + 1
        steps = [turn * (height + 1) for turn in range(1, 4)]
        places = [above, below, round(corners[1]) + 2, *(above - step for step in steps), *(below + s for s in steps)]
        rooms = [(x, y, x + width, y + height) for y in places if 0 <= y <= self.height - height]
        for room in rooms:
            if not any(_overlap(room, other) for other in self.taken):
                return room
        y = min(max(0, above), max(0, self.height - height))
        return x, y, x + width, y + height


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return first[0] <= second[2] and second[0] <= first[2] and first[1] <= second[3] and second[1] <= first[3]
