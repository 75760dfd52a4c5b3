"""How consistent a long Toybox video is: drift of its object, flicker of its background, motion.

Everything is read from pixels against the background that the prompt names. Objects are found whatever their colour, so
that a change of colour is seen as such and not as a loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import world
from .metrics import SMALLEST_AREA, largest_piece, object_pixels

# Pixels of a second piece from which it counts: less than an object, more than ragged edges.
SMALLEST_PIECE = 20
# Pixels this near to an object are not counted as background: its soft edge moves.
MARGIN = 2


@dataclass(frozen=True)
class FilmConsistency:
    """Measures of one video; None where too few frames show an object.

    Attributes:
        presence: share of the frames that show an object.
        colour_drift: mean distance (RGB, 0..1.73) of the object's mean colour in a frame from that of the video.
        colour_right: share of the frames with an object whose colour is nearest to the named one.
        size_drift: standard deviation of the object's diameter over frames, as a part of its mean.
        split: share of the frames that show a second object, or a piece that came off the first.
        flicker: mean change of a background pixel from frame to frame, 0..1.
        jerk: mean change of the velocity of the object's centre from frame to frame, pixels.
        travel: longest side of the box around the centre's path, pixels; a video that froze has none.
    """

    presence: float
    colour_drift: float | None
    colour_right: float | None
    size_drift: float | None
    split: float
    flicker: float
    jerk: float | None
    travel: float | None


def film_consistency(frames: np.ndarray, background: str, colour: str) -> FilmConsistency:
    """Measure a video with one object.

    Args:
        frames: float [T, 64, 64, 3] in 0..1, T of 2 or more.
        background: a word of ``world.BACKGROUNDS``, as the prompt names it.
        colour: a word of ``world.COLOURS``, as the prompt names it.

    Raises:
        ValueError: fewer than 2 frames.
    """
    if len(frames) < 2:
        raise ValueError(f"the video has {len(frames)} frame; consistency over time needs at least 2.")
    pixels = object_pixels(frames, background)
    masks = np.stack([largest_piece(frame) for frame in pixels])
    areas = masks.sum(axis=(1, 2)).astype(float)
    seen = areas >= SMALLEST_AREA
    flicker = background_flicker(frames, pixels)
    split = float(np.mean([largest_piece(rest).sum() >= SMALLEST_PIECE for rest in pixels & ~masks]))
    if seen.sum() < 3:
        return FilmConsistency(float(seen.mean()), None, None, None, split, flicker, None, None)
    colours = np.stack([frame[mask].mean(axis=0) for frame, mask in zip(frames[seen], masks[seen], strict=True)])
    palette = np.array(list(world.COLOURS.values()), dtype=np.float32)
    nearest = np.linalg.norm(colours[:, None] - palette, axis=-1).argmin(axis=1)
    diameters = np.sqrt(areas[seen])
    centres = mask_centres(masks, seen)
    return FilmConsistency(
        presence=float(seen.mean()),
        colour_drift=float(np.linalg.norm(colours - colours.mean(axis=0), axis=-1).mean()),
        colour_right=float((nearest == list(world.COLOURS).index(colour)).mean()),
        size_drift=float(diameters.std() / diameters.mean()),
        split=split,
        flicker=flicker,
        jerk=mean_jerk(centres),
        travel=float(np.ptp(centres[seen], axis=0).max()),
    )


def background_flicker(frames: np.ndarray, pixels: np.ndarray) -> float:
    """Mean change from frame to frame where neither frame shows an object [T, H, W] or its edge."""
    near = np.stack([_grown(frame) for frame in pixels])
    open_ground = ~(near[1:] | near[:-1])
    change = np.abs(np.diff(frames, axis=0)).mean(axis=-1)
    return float(change[open_ground].mean()) if open_ground.any() else 0.0


def mask_centres(masks: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Centre (x, y) in pixels of each mask [T, H, W] that is seen [T]; NaN for the others."""
    centres = np.full((len(masks), 2), np.nan)
    for frame in np.flatnonzero(seen):
        rows, columns = np.nonzero(masks[frame])
        centres[frame] = columns.mean(), rows.mean()
    return centres


def mean_jerk(centres: np.ndarray) -> float | None:
    """Mean length of the second difference of a path [T, 2], over triples of frames without NaN; None without any."""
    second = np.linalg.norm(centres[2:] - 2.0 * centres[1:-1] + centres[:-2], axis=1)
    second = second[np.isfinite(second)]
    return float(second.mean()) if len(second) else None


def _grown(mask: np.ndarray) -> np.ndarray:
    import cv2

    size = 2 * MARGIN + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8)).astype(bool)
