"""Motions that no Toybox model was trained on: to see whether a model can be tuned to one with a handful of clips.

Clips are drawn by the world's renderer. Paths are exact, so that a video can be compared with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import world
from .metrics import SMALLEST_AREA, largest_piece, object_pixels

# Pixels between the middle of a motion and its outermost point.
REACH = 13.0
RADII = (9.0, 11.0)
# How a prompt says them, in words that every Toybox model has read, though never so.
UNSEEN_MOTIONS: dict[str, str] = {"circle": "moves", "zigzag": "moves"}


def path(motion: str, frames: int) -> np.ndarray:
    """Where the centre is in relation to the middle of the motion, in pixels: float [T, 2] of (x, y).

    ``circle`` is one turn clockwise from the top; ``zigzag`` goes from left to right and twice down and up again.

    Raises:
        ValueError: an unknown motion.
    """
    time = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    if motion == "circle":
        return REACH * np.stack([np.sin(2 * np.pi * time), -np.cos(2 * np.pi * time)], axis=1)
    if motion == "zigzag":
        # A triangle wave: up at 0, 1/2 and 1, down at 1/4 and 3/4.
        wave = 4.0 * np.abs((2.0 * time) % 1.0 - 0.5) - 1.0
        return REACH * np.stack([2.0 * time - 1.0, -wave], axis=1)
    raise ValueError(f"the motion is {motion!r}; choose one of {', '.join(UNSEEN_MOTIONS)}.")


@dataclass(frozen=True)
class UnseenObject(world.SceneObject):
    """An object on one of these paths; ``start`` is the middle of its motion."""

    def centres(self, frames: int) -> np.ndarray:
        """Centre (x, y) in pixels at each of ``frames`` frames: float [T, 2]."""
        return np.array(self.start) + path(self.motion, frames)


def unseen_scene(motion: str, colour: str, shape: str, background: str, generator: np.random.Generator) -> world.Scene:
    """A scene of one object on such a path, its size and place at random, all of it inside the picture."""
    path(motion, 1)
    radius = float(generator.uniform(*RADII))
    low = REACH + 1.25 * radius + 1
    middle = tuple(float(generator.uniform(low, world.SIZE - low)) for _ in range(2))
    item = UnseenObject(colour, shape, motion, radius, (middle[0], middle[1]), REACH)
    return world.Scene(background, (item,))


def unseen_prompt(scene: world.Scene) -> str:
    """The sentence for such a scene: ``a red ball moves on sand``."""
    item = scene.objects[0]
    return f"a {world.phrase(item)} {UNSEEN_MOTIONS[item.motion]} {world.BACKGROUNDS[scene.background]}"


def film_centres(frames: np.ndarray, background: str) -> np.ndarray:
    """Centre (x, y) in pixels of the object in each frame, whatever its colour; NaN where none is seen: float [T, 2].

    Args:
        frames: float [T, 64, 64, 3] in 0..1.
        background: a word of ``world.BACKGROUNDS``.
    """
    centres = np.full((len(frames), 2), np.nan)
    for number, pixels in enumerate(object_pixels(frames, background)):
        rows, columns = np.nonzero(largest_piece(pixels))
        if len(rows) >= SMALLEST_AREA:
            centres[number] = columns.mean() + 0.5, rows.mean() + 0.5
    return centres


def motion_error(centres: np.ndarray, wanted: np.ndarray) -> float:
    """Mean distance in pixels between two paths [T, 2] laid over each other by their means; infinite where the object
    is missing in more than a quarter of the frames. A video that stands still has ``REACH`` on a circle.
    """
    seen = np.isfinite(centres).all(axis=1)
    if seen.mean() < 0.75:
        return float("inf")
    apart = centres[seen] - wanted[seen]
    return float(np.linalg.norm(apart - apart.mean(axis=0), axis=1).mean())
