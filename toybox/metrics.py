"""Exact measurements on videos of the Toybox world: what is in them, without a learned judge.

Everything is read from pixels with the world's palette and pictures. On rendered clips the four words of a
prompt are recovered almost always; how often, after a VAE or from a model, is what the model cards report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import world

# A pixel belongs to an object when it is this much nearer (in RGB distance) to an object colour than to the
# background it stands on.
FOREGROUND_MARGIN = 0.04
# Movement, in pixels over the whole clip, from which a path counts as moving.
MOVING = 8.0
# A bounce turns around by at least this many pixels.
TURN = 4.0
# Smaller blobs are not objects: radius 9 is 254 pixels.
SMALLEST_AREA = 60
# For objects that the prompt calls small: radius 5.5 is 59 pixels as a triangle.
SMALLEST_SMALL_AREA = 25


@dataclass(frozen=True)
class ObjectMeasurement:
    """What a video shows of one object.

    Attributes:
        colour, shape, motion: the words of the world that fit best; empty where no object was found.
        mask: bool [T, 64, 64], its pixels.
    """

    colour: str
    shape: str
    motion: str
    mask: np.ndarray


@dataclass(frozen=True)
class PromptScore:
    """Whether a video shows what its scene's prompt says; with two objects, both must be right."""

    colour: bool
    background: bool
    shape: bool
    motion: bool


def measure_background(frames: np.ndarray) -> str:
    """The background that explains most of the video.

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
    """
    errors = {}
    for name in world.BACKGROUNDS:
        distance = np.abs(frames - world.background_image(name)).mean(axis=-1)
        # Objects cover less than half of the picture: the lower part of the sorted distances is background.
        errors[name] = float(np.sort(distance.reshape(len(frames), -1), axis=1)[:, : world.SIZE**2 // 2].mean())
    return min(errors, key=errors.__getitem__)


def colour_segmentation(frames: np.ndarray, colour: str, background: str | None = None) -> np.ndarray:
    """The pixels of one colour, largest connected piece of each frame: bool [T, 64, 64].

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        colour: a word of ``world.COLOURS``.
        background: a word of ``world.BACKGROUNDS``; measured where it is not given.
    """
    ground, to_colours = _distances(frames, background or measure_background(frames))
    nearest = np.min(np.stack(list(to_colours.values())), axis=0)
    wanted = (to_colours[colour] <= nearest) & (to_colours[colour] + FOREGROUND_MARGIN < ground)
    return np.stack([largest_piece(frame) for frame in wanted])


def textured_segmentation(frames: np.ndarray, colour: str, background: str | None = None) -> np.ndarray:
    """The pixels of a textured object of one colour, its marks among them: bool [T, 64, 64].

    Like :func:`colour_segmentation`, but all that lies between the colour and the tone of its marks is the object, and
    holes in it are filled.

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        colour: a word of ``world.COLOURS``.
        background: a word of ``world.BACKGROUNDS``; measured where it is not given.
    """
    ground, to_colours = _distances(frames, background or measure_background(frames))
    plain = np.array(world.COLOURS[colour], dtype=np.float32)
    step = np.array(world.MARKS[colour], dtype=np.float32) - plain
    along = np.clip((frames - plain) @ step / float(step @ step), 0.0, 1.0)
    distance = np.linalg.norm(frames - plain - along[..., None] * step, axis=-1)
    others = np.min(np.stack([value for name, value in to_colours.items() if name != colour]), axis=0)
    wanted = (distance <= others) & (distance + FOREGROUND_MARGIN < ground)
    return np.stack([_filled(largest_piece(frame)) for frame in wanted])


def object_segmentation(frames: np.ndarray, item: world.SceneObject, background: str | None = None) -> np.ndarray:
    """The pixels of the object of ``item``'s colour, textured or plain as it is: bool [T, 64, 64]."""
    segment = textured_segmentation if item.texture else colour_segmentation
    return segment(frames, item.colour, background)


def small_area(item: world.SceneObject) -> int:
    """Pixels from which a blob may be this object: fewer for one that the prompt calls small."""
    return SMALLEST_SMALL_AREA if item.size else SMALLEST_AREA


def object_pixels(frames: np.ndarray, background: str) -> np.ndarray:
    """The pixels that are nearer to some object colour than to the background: bool [T, 64, 64].

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        background: a word of ``world.BACKGROUNDS``.
    """
    ground, to_colours = _distances(frames, background)
    return np.min(np.stack(list(to_colours.values())), axis=0) + FOREGROUND_MARGIN < ground


def colour_map(frames: np.ndarray, background: str) -> np.ndarray:
    """The object colour that each pixel shows: index into ``world.COLOURS``, -1 for background; int [T, 64, 64].

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        background: a word of ``world.BACKGROUNDS``.
    """
    ground, to_colours = _distances(frames, background)
    distances = np.stack(list(to_colours.values()))
    return np.where(distances.min(axis=0) + FOREGROUND_MARGIN < ground, distances.argmin(axis=0), -1)


def _distances(frames: np.ndarray, background: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Distance [T, 64, 64] of every pixel to the background, and to each colour."""
    ground = np.linalg.norm(frames - world.background_image(background), axis=-1)
    return ground, {
        name: np.linalg.norm(frames - np.array(value, dtype=np.float32), axis=-1)
        for name, value in world.COLOURS.items()
    }


def measure_object(frames: np.ndarray, colour: str, background: str | None = None) -> ObjectMeasurement:
    """Shape and motion of the object of a known colour (empty words where it is in too few frames)."""
    mask = colour_segmentation(frames, colour, background)
    return ObjectMeasurement(colour, measure_shape(mask), measure_motion(mask), mask)


def measure_scene_object(
    frames: np.ndarray, item: world.SceneObject, background: str | None = None
) -> ObjectMeasurement:
    """Like :func:`measure_object`, for an object that may be small or have a texture."""
    mask = object_segmentation(frames, item, background)
    least = small_area(item)
    return ObjectMeasurement(item.colour, measure_shape(mask, least), measure_motion(mask, least), mask)


def find_colours(
    frames: np.ndarray, count: int, background: str | None = None, items: Sequence[world.SceneObject] = ()
) -> list[str]:
    """The ``count`` colours with the largest connected areas, largest first; fewer where fewer are seen.

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        count: how many to look for.
        background: a word of ``world.BACKGROUNDS``; measured where it is not given.
        items: objects that may be there; those with a texture or a size are segmented as such.
    """
    background = background or measure_background(frames)
    known = {item.colour: item for item in items}
    areas, least = {}, {}
    for colour in world.COLOURS:
        item = known.get(colour)
        if item is None:
            # Beside a small object a smaller blob counts, of a wrong colour too.
            mask, least[colour] = (
                colour_segmentation(frames, colour, background),
                min(map(small_area, items), default=SMALLEST_AREA),
            )
        else:
            mask, least[colour] = object_segmentation(frames, item, background), small_area(item)
        areas[colour] = float(np.median(mask.sum(axis=(1, 2))))
    ranked = sorted(areas, key=areas.__getitem__, reverse=True)
    return [colour for colour in ranked[:count] if areas[colour] >= least[colour]]


def measure_shape(mask: np.ndarray, smallest: int = SMALLEST_AREA) -> str:
    """The shape whose drawing, moved and scaled to the mask, overlaps it best over the clip; empty for no object.

    Args:
        mask: bool [T, 64, 64].
        smallest: pixels from which a frame shows an object.
    """
    totals = dict.fromkeys(world.SHAPES, 0.0)
    seen = 0
    for frame in mask:
        area = frame.sum()
        if area < smallest:
            continue
        seen += 1
        for shape in world.SHAPES:
            totals[shape] += _overlap_with_drawing(frame, shape)
    return max(totals, key=totals.__getitem__) if seen >= (len(mask) + 1) // 2 else ""


def measure_motion(mask: np.ndarray, smallest: int = SMALLEST_AREA) -> str:
    """The motion of the mask's centre over the clip; empty when the object is missing in more than a quarter.

    Args:
        mask: bool [T, 64, 64].
        smallest: pixels from which a frame shows an object.
    """
    present = mask.sum(axis=(1, 2)) >= smallest
    if present.mean() < 0.75 or present.sum() < 2:
        return ""
    centres = []
    for frame in mask[present]:
        rows, columns = np.nonzero(frame)
        centres.append((columns.mean(), rows.mean()))
    x, y = np.array(centres).T
    if max(np.ptp(x), np.ptp(y)) < MOVING:
        return "still"
    if np.ptp(x) >= np.ptp(y):
        return "right" if x[-1] > x[0] else "left"
    return "bounce" if _turns(y) else ("down" if y[-1] > y[0] else "up")


def score_prompt(frames: np.ndarray, scene: world.Scene) -> PromptScore:
    """Compare a video with the words of a scene.

    Colour: the seen colours are the named ones. Background: the nearest picture. Shape and motion: of the object of
    the named colour.
    """
    background = measure_background(frames)
    named = [item.colour for item in scene.objects]
    seen = find_colours(frames, len(named), background, scene.objects)
    measured = [measure_scene_object(frames, item, background) for item in scene.objects]
    return PromptScore(
        colour=sorted(seen) == sorted(named),
        background=background == scene.background,
        shape=all(found.shape == item.shape for found, item in zip(measured, scene.objects, strict=True)),
        motion=all(found.motion == item.motion for found, item in zip(measured, scene.objects, strict=True)),
    )


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over frames of |A and B| / |A or B| of two bool masks [T, H, W]; a frame empty in both counts as 1."""
    first, second = first.astype(bool), second.astype(bool)
    union = (first | second).sum(axis=(1, 2))
    both = (first & second).sum(axis=(1, 2))
    return float(np.where(union > 0, both / np.maximum(union, 1), 1.0).mean())


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask [H, W]; nothing where it is empty."""
    import cv2

    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count <= 1:
        return np.zeros_like(mask, dtype=bool)
    return labels == 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())


def measured_place(mask: np.ndarray, shape: str) -> tuple[np.ndarray, float]:
    """Centre (x, y) and radius, in pixels, of an object of a known shape from its mask [H, W], which is not empty."""
    rows, columns = np.nonzero(mask)
    unit_area = {"ball": np.pi, "square": 3.24, "triangle": 1.95**2 / 1.732}[shape]
    radius = float(np.sqrt(len(rows) / unit_area))
    # The drawn triangle's centre of gravity lies 0.1 r below its anchor: (2 * 0.75 - 1.2) / 3.
    lower = 0.1 * radius if shape == "triangle" else 0.0
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5 - lower]), radius


def _overlap_with_drawing(frame: np.ndarray, shape: str) -> float:
    """Overlap of a mask with a drawn shape of the same area and centre of gravity."""
    centre, radius = measured_place(frame, shape)
    drawn = world.shape_coverage(shape, centre[None], radius)[0] > 0.5
    return float((drawn & frame).sum() / max((drawn | frame).sum(), 1))


def _filled(mask: np.ndarray) -> np.ndarray:
    """A mask [H, W] with its holes filled: all that the picture's rim cannot be reached from."""
    import cv2

    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, labels = cv2.connectedComponents(outside, connectivity=4)
    return (labels != labels[0, 0])[1:-1, 1:-1]


def _turns(path: np.ndarray) -> bool:
    """Whether a path goes both ways by at least ``TURN``."""
    rise = (path - np.minimum.accumulate(path)).max()
    fall = (np.maximum.accumulate(path) - path).max()
    return bool(min(rise, fall) >= TURN)
