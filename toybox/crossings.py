"""Clips that are hard to follow: objects of the Toybox world cross, hide each other, leave the picture and come back.

Drawn by the world's renderer, so that the truth is exact: which pixels of which object are seen in every frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from . import world

# What happens: paths that graze each other; one object wholly behind the other for a while; behind something that
# stands in the way; out of the picture and back; into the picture for the first time.
Event = Literal["graze", "hide", "wall", "exit", "enter"]
EVENTS: tuple[Event, ...] = ("graze", "hide", "wall", "exit", "enter")
# How the two differ: in colour, or only in shape, or in nothing but size and path.
Look = Literal["colour", "shape", "twins"]
LOOKS: tuple[Look, ...] = ("colour", "shape", "twins")
FRAMES_RANGE = (16, 32)


@dataclass(frozen=True)
class Walker:
    """An object on a path through given places.

    Attributes:
        colour: a word of ``world.COLOURS``.
        shape: a word of ``world.SHAPES``.
        radius: in pixels.
        places: (time, x, y): fractions of the clip, rising from 0 to 1, and pixels; straight lines between them.
    """

    colour: str
    shape: str
    radius: float
    places: tuple[tuple[float, float, float], ...]
    # Walkers are plain: neither textured nor small.
    texture: ClassVar[str] = ""
    size: ClassVar[str] = ""

    def centres(self, frames: int) -> np.ndarray:
        """Centre (x, y) in pixels at each of ``frames`` frames: float [T, 2]."""
        time = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
        moments, x, y = np.array(self.places).T
        return np.stack([np.interp(time, moments, x), np.interp(time, moments, y)], axis=1)


@dataclass(frozen=True)
class Crossing:
    """A scene in which objects meet.

    Attributes:
        event: what happens in it.
        look: how the two objects differ.
        background: a word of ``world.BACKGROUNDS``.
        walkers: to be followed, the last one in front.
        walls: stand in front of all walkers and are not followed.
        frames: length of the clip.
    """

    event: Event
    look: Look
    background: str
    walkers: tuple[Walker, ...]
    walls: tuple[Walker, ...]
    frames: int

    @property
    def phrases(self) -> list[str]:
        """The walkers in words, once each: ``["red ball", "blue square"]``."""
        return list(dict.fromkeys(world.phrase(walker) for walker in self.walkers))


def render(crossing: Crossing) -> world.RenderedClip:
    """Draw it; masks and boxes are those of the walkers, by what is seen of them."""
    clip = world.render(world.Scene(crossing.background, (*crossing.walkers, *crossing.walls)), crossing.frames)
    count = len(crossing.walkers)
    return world.RenderedClip(clip.frames, clip.masks[:count], clip.boxes[:count], clip.flow)


def full_areas(crossing: Crossing) -> np.ndarray:
    """Pixels that each walker has when nothing hides it: float [N]."""
    middle = np.full((1, 2), world.SIZE / 2)
    return np.array([world.shape_coverage(walker.shape, middle, walker.radius).sum() for walker in crossing.walkers])


def random_crossing(generator: np.random.Generator, event: Event | None = None, look: Look | None = None) -> Crossing:
    """Draw a random crossing.

    Args:
        generator: the only source of randomness.
        event: what happens; None for any.
        look: how the objects differ; None mostly for colour. Twins never hide each other wholly: nothing in the
            picture would show which of the two comes out again.
    """
    event = event or EVENTS[int(generator.integers(len(EVENTS)))]
    if look is None:
        look = str(generator.choice(LOOKS, p=(0.6, 0.25, 0.15)))
    if event == "hide" and look == "twins":
        look = "shape"
    frames = int(generator.integers(FRAMES_RANGE[0], FRAMES_RANGE[1] + 1))
    background = str(generator.choice(list(world.BACKGROUNDS)))
    (back_colour, back_shape), (front_colour, front_shape) = _looks(generator, look)
    radii = _radii(generator, event)
    paths, walls = _paths(generator, event, radii)
    walkers = (
        Walker(back_colour, back_shape, radii[0], paths[0]),
        Walker(front_colour, front_shape, radii[1], paths[1]),
    )
    others = [colour for colour in world.COLOURS if colour not in (back_colour, front_colour)]
    blocks = tuple(Walker(str(generator.choice(others)), "square", radius, path) for radius, path in walls)
    return Crossing(event, look, background, walkers, blocks, frames)


def random_crossings(count: int, seed: int) -> list[Crossing]:
    """Several of them, the events in turn."""
    generator = np.random.default_rng(seed)
    return [random_crossing(generator, EVENTS[number % len(EVENTS)]) for number in range(count)]


def _looks(generator: np.random.Generator, look: Look) -> list[tuple[str, str]]:
    colours = [str(colour) for colour in generator.permutation(list(world.COLOURS))]
    shapes = [str(shape) for shape in generator.permutation(list(world.SHAPES))]
    if look == "colour":
        other = shapes[0] if generator.random() < 0.4 else shapes[1]
        return [(colours[0], shapes[0]), (colours[1], other)]
    if look == "shape":
        return [(colours[0], shapes[0]), (colours[0], shapes[1])]
    return [(colours[0], shapes[0])] * 2


def _radii(generator: np.random.Generator, event: Event) -> tuple[float, float]:
    """Radii of the object behind and of the one in front, which hides it wholly where it must."""
    small, large = world.RADIUS_RANGE
    if event == "hide":
        return float(generator.uniform(small, small + 0.5)), float(generator.uniform(large - 1.0, large))
    if event == "wall":
        return float(generator.uniform(small, small + 0.5)), float(generator.uniform(small, small + 0.5))
    return float(generator.uniform(small, small + 2.0)), float(generator.uniform(small, small + 2.0))


Path = tuple[tuple[float, float, float], ...]


def _paths(
    generator: np.random.Generator, event: Event, radii: tuple[float, float]
) -> tuple[tuple[Path, Path], list[tuple[float, Path]]]:
    """Paths of both walkers, and radius and place of the walls; turned and mirrored at random."""
    paths, walls = _level_paths(generator, event, radii)
    mirrored_x, mirrored_y, turned = generator.random(3) < 0.5
    # Upright shapes pass each other side by side as well as one above the other.
    every = [*paths, *(path for _, path in walls)]
    moved = [_place(path, bool(mirrored_x), bool(mirrored_y), bool(turned)) for path in every]
    return (moved[0], moved[1]), [(radius, path) for (radius, _), path in zip(walls, moved[2:], strict=True)]


def _place(path: Path, mirrored_x: bool, mirrored_y: bool, turned: bool) -> Path:
    def move(x: float, y: float) -> tuple[float, float]:
        x, y = (world.SIZE - x if mirrored_x else x), (world.SIZE - y if mirrored_y else y)
        return (y, x) if turned else (x, y)

    return tuple((time, *move(x, y)) for time, x, y in path)


def _level_paths(
    generator: np.random.Generator, event: Event, radii: tuple[float, float]
) -> tuple[tuple[Path, Path], list[tuple[float, Path]]]:
    """From left to right and from right to left; at first all are apart, so that each can be found."""
    size, (back, front) = float(world.SIZE), radii

    def near(value: float, spread: float = 1.5) -> float:
        return value + float(generator.uniform(-spread, spread))

    left, right = 1.3 * max(radii) + 1, size - 1.3 * max(radii) - 1
    if event == "graze":
        # They cover each other by a third to two thirds where they pass.
        apart = float(generator.uniform(0.35, 0.75)) * (back + front)
        row = (size - apart) / 2
        return (
            ((0.0, near(left), near(row)), (1.0, near(right), near(row))),
            ((0.0, near(right), near(row + apart)), (1.0, near(left), near(row + apart))),
        ), []
    start = back + 1.5
    if event == "hide":
        row = near(size / 2, 5.0)
        still = generator.random() < 0.5
        middle = near(0.62 * size)
        ahead = ((0.0, middle, row), (1.0, middle, row)) if still else ((0.0, right, row), (1.0, left, row))
        return (
            ((0.0, near(start, 0.5), near(row, 1.0)), (1.0, near(size - 0.5 * back), near(row, 1.0))),
            ahead,
        ), []
    if event == "wall":
        # It hides nearly all of the first one for a while.
        row, middle = near(0.3 * size, 2.0), near(0.62 * size)
        wall = float(generator.uniform(1.1, 1.25)) * back
        return (
            ((0.0, near(start, 0.5), row), (1.0, near(size - 0.5 * back), row)),
            ((0.0, near(right), near(0.75 * size)), (1.0, near(left), near(0.7 * size))),
        ), [(wall, ((0.0, middle, row), (1.0, middle, row)))]
    out = -1.5 * back
    if event == "exit":
        # Out at the left for a while, and back in another row.
        row, gone = near(0.3 * size, 3.0), float(generator.uniform(0.3, 0.4))
        return (
            (
                (0.0, near(0.45 * size), row),
                (gone, out, row),
                (gone + 0.2, out, row + 6),
                (1.0, near(0.6 * size), row + 6),
            ),
            ((0.0, near(0.7 * size), near(0.72 * size)), (1.0, near(0.35 * size), near(0.72 * size))),
        ), []
    # Enters when the clip has begun, and meets the other one.
    apart, begins = float(generator.uniform(0.5, 0.9)) * (back + front), float(generator.uniform(0.15, 0.3))
    row = (size - apart) / 2
    return (
        ((0.0, out, near(row)), (begins, out, near(row)), (1.0, near(0.75 * size), near(row))),
        ((0.0, near(right), near(row + apart)), (1.0, near(left), near(row + apart))),
    ), []
