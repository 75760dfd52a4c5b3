"""How much of an object's texture a video of the Toybox world shows: read from pixels, without a learned judge.

A pixel of a textured object lies between two tones: 0 is the object's colour, 1 the mark's. Inside the object's mask,
these values are compared with the texture as the world would draw it on an object of that place and size. The drawn
texture may be moved by some pixels, since a model is free to place it a little differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import world
from .metrics import SMALLEST_SMALL_AREA, measured_place, small_area, textured_segmentation

# Values inside the rim only: the rim itself is a mixture with the background.
RIM = 1.5
# Standard deviation below which a mask's pixels count as flat, in tones: an even object has no texture to correlate.
FLAT = 0.08
# A texture is recognised from this correlation and contrast on. An even object has neither.
RECOGNISED_CORRELATION = 0.5
RECOGNISED_CONTRAST = 0.2
# Radius in pixels between that of small objects and of ordinary ones.
SMALL_LIMIT = (world.SMALL_RADIUS_RANGE[1] + world.RADIUS_RANGE[0]) / 2


@dataclass(frozen=True)
class TextureMeasurement:
    """What a video shows of one object's texture, both as means over the frames.

    Attributes:
        contrast: amplitude of the drawn texture in relation to the drawn one, 0..1. Blur and pale marks lower it.
        correlation: normalised correlation with the drawn texture, 0..1: whether the marks are where and as they
            should be, however pale.
    """

    contrast: float
    correlation: float


def tones(frames: np.ndarray, colour: str) -> np.ndarray:
    """Where each pixel lies between an object colour (0) and its mark's tone (1): float [T, H, W], not limited.

    Args:
        frames: float [T, H, W, 3] in 0..1.
        colour: a word of ``world.COLOURS``.
    """
    plain = np.array(world.COLOURS[colour], dtype=np.float32)
    step = np.array(world.MARKS[colour], dtype=np.float32) - plain
    return (frames - plain) @ step / float(step @ step)


def texture_of_masks(frames: np.ndarray, masks: np.ndarray, item: world.SceneObject) -> TextureMeasurement:
    """The texture of ``item`` inside given masks.

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        masks: bool [T, 64, 64], the whole object; an empty frame counts as no texture.
        item: whose colour, shape and texture to look for. Its place and size are those of the masks.

    Raises:
        ValueError: the object has no texture.
    """
    if not item.texture:
        raise ValueError(f"the {world.phrase(item)} has no texture to measure; choose one of {world.TEXTURES}.")
    values = tones(frames, item.colour)
    found = [_texture_of_frame(value, mask, item) for value, mask in zip(values, masks, strict=True)]
    contrast, correlation = np.mean(found, axis=0)
    return TextureMeasurement(float(contrast), float(correlation))


def measure_texture(frames: np.ndarray, item: world.SceneObject, background: str | None = None) -> TextureMeasurement:
    """The texture of the object of ``item``'s colour, wherever the video shows it.

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        item: whose colour, shape and texture to look for.
        background: a word of ``world.BACKGROUNDS``; measured where it is not given.

    Raises:
        ValueError: the object has no texture.
    """
    return texture_of_masks(frames, textured_segmentation(frames, item.colour, background), item)


def recognised_texture(frames: np.ndarray, item: world.SceneObject, background: str | None = None) -> str:
    """The texture that the object of ``item``'s colour shows, whichever ``item`` has; empty where it shows none.

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        item: whose colour and shape to look for.
        background: a word of ``world.BACKGROUNDS``; measured where it is not given.
    """
    masks = textured_segmentation(frames, item.colour, background)
    found = {name: texture_of_masks(frames, masks, replace(item, texture=name)) for name in world.TEXTURES}
    best = max(found, key=lambda name: found[name].correlation)
    clear = found[best].correlation >= RECOGNISED_CORRELATION and found[best].contrast >= RECOGNISED_CONTRAST
    return best if clear else ""


def is_small(mask: np.ndarray, shape: str) -> bool:
    """Whether an object of a known shape is seen in most frames of a mask [T, H, W], and smaller than ordinary ones."""
    radii = [measured_place(frame, shape)[1] for frame in mask if frame.sum() >= SMALLEST_SMALL_AREA]
    return len(radii) > len(mask) / 2 and float(np.median(radii)) < SMALL_LIMIT


def _texture_of_frame(values: np.ndarray, mask: np.ndarray, item: world.SceneObject) -> tuple[float, float]:
    """Contrast and correlation of one frame: the best over all places that the texture may have on the object."""
    if mask.sum() < small_area(item):
        return 0.0, 0.0
    centre, radius = measured_place(mask, item.shape)
    inside = mask & (world.shape_coverage(item.shape, centre[None], radius - RIM)[0] > 0.5)
    if inside.sum() < 2:
        return 0.0, 0.0
    seen = values[inside]
    seen = seen - seen.mean()
    contrast = correlation = 0.0
    for shift in _shifts(item.texture):
        drawn = world.texture_coverage(item.texture, item.shape, centre[None], radius, shift=shift)[0][inside]
        drawn = drawn - drawn.mean()
        power = float(drawn @ drawn)
        if power == 0.0:
            continue
        common = float(drawn @ seen)
        contrast = max(contrast, common / power)
        spread = max(float(np.sqrt(seen @ seen)), FLAT * len(seen) ** 0.5)
        correlation = max(correlation, common / (power**0.5 * spread))
    return min(contrast, 1.0), min(correlation, 1.0)


def _shifts(texture: str) -> Sequence[tuple[float, float]]:
    """Places to try: every phase of stripes, every place of a lattice, a few pixels around for a face."""
    if texture == "striped":
        return [(0.0, float(y)) for y in np.arange(0.0, world.STRIPE_PERIOD, 0.5)]
    if texture == "dotted":
        steps = np.arange(0.0, world.DOT_SPACING, 1.0)
    else:
        steps = np.arange(-3.0, 3.5, 1.0)
    return [(float(x), float(y)) for x in steps for y in steps]
