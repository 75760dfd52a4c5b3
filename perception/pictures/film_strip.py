"""A video and what was followed through it in one picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..frames import Film
from ..tracks import Tracks
from .drawing import Colour, colour_of, draw_objects, fitted_text, font_of, open_picture, picture_at

PAPER: Colour = (250, 249, 246)
LANE: Colour = (232, 230, 224)
INK: Colour = (34, 34, 38)
FAINT: Colour = (110, 108, 102)
MARGIN, GAP = 14, 4
# Pictures in a row at most, and about how wide a row may be in pixels.
COLUMNS, ROW_WIDTH = 8, 1600
LANE_HEIGHT, LANE_GAP, LINE = 26, 6, 18
NAME_WIDTH = 150
LEGEND = "bar: seen, as high as its score    hatched: not seen, filled in    empty: not seen"


def strip_over_time(
    frames: Tensor | Film, tracks: Tracks, count: int = 8, picture_height: int = 160, max_lanes: int = 24
) -> Tensor:
    """Frames spread over the video with their masks, and below them a lane per object over all frames.

    A lane shows a bar where the object was seen, as high as its score; hatching where it was not seen and its mask was
    filled in; nothing where there is no mask. Where a video has more frames than the lane has pixels, gaps win over
    sightings, so that none is lost.

    Args:
        frames: as :class:`Film` takes them.
        tracks: of the same number of frames, of any size; may hold no object.
        count: pictures, evenly spread from the first frame to the last, in rows of up to 8, of wide ones fewer.
        picture_height: of each picture in pixels.
        max_lanes: lanes that are drawn; how many more objects there are is written below.

    Returns:
        float [1, h, w, 3], 0..1.

    Raises:
        ValueError: for bad frames, a different number of mask frames and frames, or a number below 1.
    """
    film = Film(frames)
    if tracks.frames != len(film):
        raise ValueError(f"there are masks for {tracks.frames} frames and {len(film)} frames; give one each.")
    for name, value in (("count", count), ("picture_height", picture_height), ("max_lanes", max_lanes)):
        if value < 1:
            raise ValueError(f"{name} is {value}; choose 1 or more.")
    chosen = spread(len(film), count)
    size = _picture_size(film, picture_height)
    most = min(max(2, ROW_WIDTH // (size[1] + GAP)), COLUMNS)
    # Rows of one length: 8 pictures of which 5 would fit are two rows of 4.
    rows = -(-len(chosen) // most)
    columns = -(-len(chosen) // rows)
    width = max(NAME_WIDTH + columns * (size[1] + GAP) - GAP, NAME_WIDTH + 320)
    lanes = min(len(tracks.ids), max_lanes)
    lanes_top = MARGIN + rows * (size[0] + LINE + GAP) + GAP
    bottom = lanes_top + lanes * (LANE_HEIGHT + LANE_GAP) + LINE
    paper = np.full((bottom + LINE + MARGIN, width + 2 * MARGIN, 3), PAPER, dtype=np.uint8)
    words = [(str(identity),) for identity in tracks.ids]
    left = MARGIN + NAME_WIDTH
    corners = [
        (MARGIN + place // columns * (size[0] + LINE + GAP), left + place % columns * (size[1] + GAP))
        for place in range(len(chosen))
    ]
    for frame, (y, x) in zip(chosen, corners, strict=True):
        picture = draw_objects(picture_at(film, frame, size), tracks, frame, words=words)
        paper[y : y + size[0], x : x + size[1]] = picture
    lane_width = width - NAME_WIDTH
    lane_tops = [lanes_top + number * (LANE_HEIGHT + LANE_GAP) for number in range(lanes)]
    for number, y in enumerate(lane_tops):
        paper[y : y + LANE_HEIGHT, left : left + lane_width] = _lane(tracks, number, lane_width)
    paper = _written(paper, tracks, list(zip(chosen, corners, strict=True)), size, lane_tops, bottom, lane_width)
    return torch.from_numpy(paper).float().div_(255)[None]


def spread(frames: int, count: int) -> list[int]:
    """``count`` frames, or all when there are fewer, evenly from the first to the last."""
    count = min(count, frames)
    return [round(place * (frames - 1) / max(1, count - 1)) for place in range(count)]


def _picture_size(film: Film, height: int) -> tuple[int, int]:
    """Height and width of a picture; very wide ones are shown lower, very tall ones are at least a few pixels wide."""
    width = round(film.width * height / film.height)
    widest = 3 * height
    if width > widest:
        return max(1, round(height * widest / width)), widest
    return height, max(16, width)


def _lane(tracks: Tracks, number: int, width: int) -> np.ndarray:
    """The lane of an object over all frames: uint8 [LANE_HEIGHT, width, 3]."""
    frames = tracks.frames
    colour = np.array(colour_of(tracks.ids[number]), dtype=np.float32) * 0.82
    lane = np.full((LANE_HEIGHT, width, 3), LANE, dtype=np.uint8)
    pale = (0.65 * np.array(LANE) + 0.35 * colour).astype(np.uint8)
    # 0 where it is missing, 1 where filled, 2 where seen.
    missed = tracks.misses[number].tolist()
    states = [2 if not miss else int(tracks.masks.any(number, frame)) for frame, miss in enumerate(missed)]
    scores = tracks.scores[number].tolist()
    y = np.arange(LANE_HEIGHT)[:, None]
    for x in range(width):
        first = x * frames // width
        part = range(first, max(first + 1, (x + 1) * frames // width))
        state = min(states[frame] for frame in part)
        if state == 2:
            score = min(max(sum(scores[frame] for frame in part) / len(part), 0.0), 1.0)
            lane[:, x] = pale
            lane[LANE_HEIGHT - max(2, round(score * LANE_HEIGHT)) :, x] = colour
        elif state == 1:
            lane[:, x] = np.where((x + y) % 6 < 2, colour, np.array(PAPER))
    return lane


def _written(
    paper: np.ndarray,
    tracks: Tracks,
    pictures: list[tuple[int, tuple[int, int]]],
    size: tuple[int, int],
    lane_tops: list[int],
    bottom: int,
    lane_width: int,
) -> np.ndarray:
    """Frame numbers, names of objects, ticks and the legend."""
    image, pen = open_picture(paper)
    small, font = font_of(12), font_of(14)
    left = MARGIN + NAME_WIDTH
    end = MARGIN
    for frame, (y, x) in pictures:
        pen.text((x + size[1] // 2, y + size[0] + 2), str(frame), FAINT, font=small, anchor="ma")
        if not lane_tops:
            continue
        tick = left + round((frame + 0.5) * lane_width / tracks.frames)
        pen.line([tick, lane_tops[0] - 3, tick, lane_tops[-1] + LANE_HEIGHT + 2], fill=FAINT)
        text = str(frame)
        if tick - pen.textlength(text, font=small) / 2 > end:
            pen.text((tick, bottom - LINE), text, FAINT, font=small, anchor="ma")
            end = tick + pen.textlength(text, font=small) / 2 + 4
    for number, y in enumerate(lane_tops):
        swatch = [MARGIN, y + 7, MARGIN + 10, y + 17]
        pen.rectangle(swatch, fill=colour_of(tracks.ids[number]), outline=INK)
        name = f"{tracks.ids[number]} {tracks.labels[number]}".strip()
        pen.text((MARGIN + 18, y + 4), fitted_text(pen, name, font, NAME_WIDTH - 26), INK, font=font)
    left_out = len(tracks.ids) - len(lane_tops)
    words = LEGEND + (f"    and {left_out} more objects" if left_out else "") if lane_tops else "no object"
    pen.text((left, bottom + 2), fitted_text(pen, words, small, lane_width), FAINT, font=small)
    return np.array(image)
