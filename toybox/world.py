"""The Toybox world: what exists in it, how it is written in words, drawn in pixels, and what is true about it.

Everything that trains, tests or measures on the Toybox takes palette, renderer and ground truth from here. Objects are
even by default; as an option they have a texture (stripes, dots, two eyes) or are small. A clip is 64 x 64 pixels and
natively 8 frames; motions are defined over the length of the clip, so any number of frames renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

SIZE = 64
NATIVE_FRAMES = 8
RADIUS_RANGE = (9.0, 15.0)
SMALL_RADIUS_RANGE = (5.5, 8.0)

# RGB in 0..1. Far from each other and from every background.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.10),
    "green": (0.25, 0.95, 0.30),
    "blue": (0.15, 0.25, 0.98),
    "yellow": (0.98, 0.92, 0.15),
    "purple": (0.70, 0.15, 0.85),
    "white": (0.97, 0.97, 0.97),
}
SHAPES: tuple[str, ...] = ("ball", "square", "triangle")
# The second tone of a textured object: far from its colour, the other colours and every background.
MARKS: dict[str, tuple[float, float, float]] = {
    "red": (0.42, 0.05, 0.04),
    "green": (0.66, 1.00, 0.68),
    "blue": (0.56, 0.66, 1.00),
    "yellow": (0.74, 0.50, 0.04),
    "purple": (0.34, 0.06, 0.42),
    "white": (0.50, 0.50, 0.50),
}
TEXTURES: tuple[str, ...] = ("striped", "dotted", "staring")
SIZES: tuple[str, ...] = ("small",)
DETAILS: tuple[str, ...] = (*TEXTURES, *SIZES)
# Pixels; a latent is 4 pixels wide. ``cli.py evaluate text_to_video --detail-prompts`` says what an autoencoder keeps
# of textures of these sizes.
STRIPE_PERIOD = 10.0
DOT_SPACING = 9.0
DOT_RADIUS = 2.8
EYE_RADIUS = 2.8
MOTIONS: dict[str, str] = {
    "still": "stays still",
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "bounce": "bounces",
}
# Background name -> how a prompt says it.
BACKGROUNDS: dict[str, str] = {"grass": "on grass", "sand": "on sand", "sea": "on the sea", "night": "at night"}

Split = Literal["train", "held_out", "any"]


@dataclass(frozen=True)
class SceneObject:
    """One object: words, size (pixels) and path (pixels, fractions of the clip).

    ``texture`` is a word of ``TEXTURES`` and ``size`` a word of ``SIZES``, or empty for an object that has none.
    """

    colour: str
    shape: str
    motion: str
    radius: float
    start: tuple[float, float]
    travel: float
    phase: float = 0.0
    texture: str = ""
    size: str = ""

    def centres(self, frames: int) -> np.ndarray:
        """Centre (x, y) in pixels at each of ``frames`` frames: float [T, 2]."""
        time = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
        x = np.full(frames, self.start[0])
        y = np.full(frames, self.start[1])
        if self.motion == "left":
            x = x - self.travel * time
        elif self.motion == "right":
            x = x + self.travel * time
        elif self.motion == "up":
            y = y - self.travel * time
        elif self.motion == "down":
            y = y + self.travel * time
        elif self.motion == "bounce":
            # ``start`` is the ground contact; one and a half hops hold at least one full turn of direction.
            y = y - self.travel * np.abs(np.sin(np.pi * (1.5 * time + self.phase)))
        return np.stack([x, y], axis=1)


@dataclass(frozen=True)
class Scene:
    """A background and the objects on it, the last one in front."""

    background: str
    objects: tuple[SceneObject, ...]
    brightness: float = 1.0


@dataclass(frozen=True)
class RenderedClip:
    """A drawn scene and the truth about it.

    Attributes:
        frames: float32 [T, H, W, 3], 0..1.
        masks: bool [N, T, H, W], visible pixels of each object.
        boxes: float32 [N, T, 4], x0, y0, x1, y1 in pixels of the visible part (zeros where nothing is visible).
        flow: float32 [T - 1, H, W, 2], motion in pixels (x, y) of what is seen at t, to t + 1.
    """

    frames: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    flow: np.ndarray


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether this combination of words is kept out of training (one in six; every pair of words is seen)."""
    index = list(COLOURS).index(colour) + 2 * SHAPES.index(shape) + 3 * list(MOTIONS).index(motion)
    return index % 6 == 5


def prompt(scene: Scene) -> str:
    """The sentence for a scene: ``a red ball bounces on sand``, ``a small blue square moves left at night``."""
    parts = [f"a {phrase(item)} {MOTIONS[item.motion]}" for item in scene.objects]
    return " and ".join(parts) + " " + BACKGROUNDS[scene.background]


def phrase(item: SceneObject) -> str:
    """How a prompt names the object: ``red ball``, ``red striped ball``, ``small red ball``."""
    return " ".join(word for word in (item.size, item.colour, item.texture, item.shape) if word)


def background_image(name: str) -> np.ndarray:
    """The fixed picture of a background: float32 [64, 64, 3]."""
    y, x = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    if name == "grass":
        base = np.array([0.22, 0.45, 0.18])
        pattern = 0.05 * np.sin(x * 0.9) * np.sin(y * 0.35) - 0.08 * (1 - y / SIZE)
    elif name == "sand":
        base = np.array([0.80, 0.68, 0.46])
        pattern = 0.035 * np.sin(0.45 * y + 0.9 * np.sin(0.12 * x)) + 0.05 * (y / SIZE - 0.5)
    elif name == "sea":
        base = np.array([0.12, 0.48, 0.58])
        pattern = 0.055 * np.sin(0.55 * y + 1.1 * np.sin(0.2 * x)) + 0.06 * (0.5 - y / SIZE)
    elif name == "night":
        base = np.array([0.05, 0.06, 0.14])
        pattern = 0.06 * (1 - y / SIZE) + 0.05 * np.exp(-((x - 50) ** 2 + (y - 12) ** 2) / 40.0)
    else:
        raise ValueError(f"background is {name!r}; choose one of {', '.join(BACKGROUNDS)}.")
    return np.clip(base + pattern[..., None], 0.0, 1.0).astype(np.float32)


def shape_coverage(shape: str, centres: np.ndarray, radius: float, size: int = SIZE) -> np.ndarray:
    """Share of each pixel that the shape covers, with one pixel of antialiasing.

    Args:
        shape: one of ``SHAPES``.
        centres: (x, y) of the centre per frame, float [T, 2].
        radius: of the ball; square and triangle are sized to look as large.
        size: height and width of the picture.

    Returns:
        float32 [T, size, size] in 0..1.
    """
    y, x = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    dx = x[None] - centres[:, 0, None, None]
    dy = y[None] - centres[:, 1, None, None]
    if shape == "ball":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    elif shape == "triangle":
        # Upright, equilateral: apex at -1.2 r, base at +0.75 r, slopes of 60 degrees.
        bottom = dy - 0.75 * radius
        sides = (np.abs(dx) * 1.732 - (dy + 1.2 * radius)) / 2.0
        distance = np.maximum(bottom, sides)
    else:
        raise ValueError(f"shape is {shape!r}; choose one of {', '.join(SHAPES)}.")
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def texture_coverage(
    texture: str, shape: str, centres: np.ndarray, radius: float, size: int = SIZE, shift: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """Share of each pixel that a texture paints in the second tone, as if the object filled the picture.

    Args:
        texture: one of ``TEXTURES``: level stripes, a lattice of dots, or two eyes.
        shape: of the object; a triangle's eyes lie lower.
        centres: (x, y) of the object's centre per frame, float [T, 2]; the texture moves with it.
        radius: of the object, pixels.
        size: height and width of the picture.
        shift: (x, y) in pixels by which the texture is moved on the object.

    Returns:
        float32 [T, size, size] in 0..1.
    """
    y, x = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    dx = x[None] - centres[:, 0, None, None] - shift[0]
    dy = y[None] - centres[:, 1, None, None] - shift[1]
    if texture == "striped":
        # Distance to the nearest middle of a stripe; a stripe is half a period wide.
        distance = np.abs((dy + STRIPE_PERIOD / 2) % STRIPE_PERIOD - STRIPE_PERIOD / 2) - STRIPE_PERIOD / 4
    elif texture == "dotted":
        # Four dots around the centre, so that the smallest object has them.
        nearest = [d % DOT_SPACING - DOT_SPACING / 2 for d in (dx, dy)]
        distance = np.hypot(*nearest) - DOT_RADIUS
    elif texture == "staring":
        height = 0.2 * radius if shape == "triangle" else -0.2 * radius
        apart = max(0.4 * radius, EYE_RADIUS + 1.4)
        distance = np.hypot(np.abs(dx) - apart, dy - height) - EYE_RADIUS
    else:
        raise ValueError(f"texture is {texture!r}; choose one of {', '.join(TEXTURES)}.")
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def render(scene: Scene, frames: int = NATIVE_FRAMES) -> RenderedClip:
    """Draw a scene.

    Args:
        scene: what to draw.
        frames: how many frames, at least 1.

    Raises:
        ValueError: for fewer than one frame.
    """
    if frames < 1:
        raise ValueError(f"frames is {frames}; render at least 1.")
    picture = np.repeat(background_image(scene.background)[None] * scene.brightness, frames, axis=0)
    count = len(scene.objects)
    masks = np.zeros((count, frames, SIZE, SIZE), dtype=bool)
    flow = np.zeros((max(frames - 1, 0), SIZE, SIZE, 2), dtype=np.float32)
    shading = (1.06 - 0.12 * np.arange(SIZE) / SIZE)[None, :, None, None]
    for number, item in enumerate(scene.objects):
        centres = item.centres(frames)
        coverage = shape_coverage(item.shape, centres, item.radius)
        colour = np.array(COLOURS[item.colour], dtype=np.float32)
        if item.texture:
            marked = texture_coverage(item.texture, item.shape, centres, item.radius)[..., None]
            colour = colour * (1 - marked) + np.array(MARKS[item.colour], dtype=np.float32) * marked
        colour = colour * shading
        picture = picture * (1 - coverage[..., None]) + colour * coverage[..., None]
        visible = coverage > 0.5
        masks[:number] &= ~visible[None]
        masks[number] = visible
        for t in range(frames - 1):
            flow[t][visible[t]] = centres[t + 1] - centres[t]
    boxes = np.zeros((count, frames, 4), dtype=np.float32)
    for number in range(count):
        for t in range(frames):
            rows, columns = np.nonzero(masks[number, t])
            if len(rows):
                boxes[number, t] = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return RenderedClip(np.clip(picture, 0, 1).astype(np.float32), masks, boxes, flow)


def random_scene(
    generator: np.random.Generator,
    split: Split = "any",
    max_objects: int = 2,
    pair_share: float = 0.2,
    detail_share: float = 0.0,
) -> Scene:
    """Draw a random scene.

    Args:
        generator: the only source of chance.
        split: ``train`` (no held-out combination), ``held_out`` (every object is one) or ``any``.
        max_objects: 1, or 2 for some scenes with two objects of different colours that never touch.
        pair_share: share of the scenes with two objects where there may be, 0..1.
        detail_share: share of the objects that have a texture or are small, 0..1. At 0 the scene is the one that the
            generator gave before there were details.
    """
    scene = _plain_scene(generator, split, max_objects, pair_share)
    if not detail_share:
        return scene
    objects = tuple(
        with_detail(item, str(generator.choice(DETAILS)), generator) if generator.random() < detail_share else item
        for item in scene.objects
    )
    return replace(scene, objects=objects)


def with_detail(item: SceneObject, detail: str, generator: np.random.Generator) -> SceneObject:
    """The object with a texture of ``TEXTURES``, or made small, on the same path.

    Raises:
        ValueError: ``detail`` is neither a texture nor a size.
    """
    if detail in TEXTURES:
        return replace(item, texture=detail)
    if detail in SIZES:
        return replace(item, size=detail, radius=float(generator.uniform(*SMALL_RADIUS_RANGE)))
    raise ValueError(f"detail is {detail!r}; choose one of {', '.join(DETAILS)}.")


def _plain_scene(generator: np.random.Generator, split: Split, max_objects: int, pair_share: float) -> Scene:
    background = str(generator.choice(list(BACKGROUNDS)))
    brightness = float(generator.uniform(0.97, 1.03))
    if max_objects > 1 and generator.random() < pair_share:
        while True:
            pair = tuple(_random_object(generator, split, (9.0, 11.0)) for _ in range(2))
            if pair[0].colour != pair[1].colour and not _touching(pair):
                return Scene(background, pair, brightness)
    return Scene(background, (_random_object(generator, split, RADIUS_RANGE),), brightness)


def scene_from_words(words: Sequence[tuple[str, str, str]], background: str, generator: np.random.Generator) -> Scene:
    """A scene with given (colour, shape, motion) words and random places; for renders of a fixed prompt list."""
    radius_range = RADIUS_RANGE if len(words) == 1 else (9.0, 11.0)
    while True:
        objects = tuple(_place(generator, *word, radius_range) for word in words)
        if len(objects) < 2 or not _touching(objects):
            return Scene(background, objects, 1.0)


def _random_object(generator: np.random.Generator, split: Split, radius_range: tuple[float, float]) -> SceneObject:
    while True:
        colour = str(generator.choice(list(COLOURS)))
        shape = str(generator.choice(SHAPES))
        motion = str(generator.choice(list(MOTIONS)))
        if split == "any" or is_held_out(colour, shape, motion) == (split == "held_out"):
            return _place(generator, colour, shape, motion, radius_range)


def _place(
    generator: np.random.Generator, colour: str, shape: str, motion: str, radius_range: tuple[float, float]
) -> SceneObject:
    """Choose size and path so that the whole object stays inside the picture for the whole clip."""
    radius = float(generator.uniform(*radius_range))
    low, high = 1.25 * radius + 1, SIZE - 1.25 * radius - 1
    travel = 0.0 if motion == "still" else min(float(generator.uniform(18.0, 28.0)), high - low)
    x_low, x_high, y_low, y_high = low, high, low, high
    if motion == "left":
        x_low += travel
    elif motion == "right":
        x_high -= travel
    elif motion in ("up", "bounce"):
        y_low += travel
    elif motion == "down":
        y_high -= travel
    start = (float(generator.uniform(x_low, x_high)), float(generator.uniform(y_low, y_high)))
    return SceneObject(colour, shape, motion, radius, start, travel, float(generator.uniform(0.0, 1.0)))


def _touching(objects: Sequence[SceneObject]) -> bool:
    first, second = (item.centres(4 * NATIVE_FRAMES) for item in objects)
    reach = 1.3 * (objects[0].radius + objects[1].radius)
    return bool((np.hypot(*(first - second).T) < reach).any())
