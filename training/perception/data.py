"""Pictures for training the Toybox detector and segmenter: drawn scenes, made as imperfect as generated clips are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ...toybox import world

MAX_OBJECTS = 2
# A shape with fewer visible pixels than this is neither searched for nor counted as absent.
SMALLEST_AREA = 40


@dataclass(frozen=True)
class Pictures:
    """Still pictures and the truth about them; empty places of the object axis have an all-false mask.

    Attributes:
        images: uint8 [P, 3, 64, 64].
        masks: bool [P, 2, 64, 64], visible pixels per object.
        words: for each picture the (colour, shape) of its objects.
    """

    images: Tensor
    masks: Tensor
    words: tuple[tuple[tuple[str, str], ...], ...]


def draw_pictures(generator: np.random.Generator, count: int, split: world.Split, pairs: float = 0.5) -> Pictures:
    """Single frames of random scenes.

    Args:
        generator: the only source of randomness.
        count: how many pictures.
        split: which word combinations may appear.
        pairs: share of pictures with two objects; one picture in twenty has none.
    """
    images = torch.zeros(count, 3, world.SIZE, world.SIZE, dtype=torch.uint8)
    masks = torch.zeros(count, MAX_OBJECTS, world.SIZE, world.SIZE, dtype=torch.bool)
    words = []
    for index in range(count):
        scene = _draw_scene(generator, split, pairs)
        # A random moment, so that every place on every path occurs; drawn alone, as the other frames are not needed.
        moment = int(generator.integers(world.NATIVE_FRAMES))
        clip = world.render(_still(scene, moment), 1)
        images[index] = torch.from_numpy((clip.frames[0] * 255).round().astype(np.uint8)).permute(2, 0, 1)
        masks[index, : len(scene.objects)] = torch.from_numpy(clip.masks[:, 0])
        words.append(tuple((item.colour, item.shape) for item in scene.objects))
    return Pictures(images, masks, tuple(words))


def _still(scene: world.Scene, moment: int) -> world.Scene:
    """The scene with every object held at its place in frame ``moment``."""
    places = [item.centres(world.NATIVE_FRAMES)[moment] for item in scene.objects]
    held = [
        replace(item, motion="still", start=(float(x), float(y)))
        for item, (x, y) in zip(scene.objects, places, strict=True)
    ]
    return replace(scene, objects=tuple(held))


def _draw_scene(generator: np.random.Generator, split: world.Split, pairs: float) -> world.Scene:
    background = str(generator.choice(list(world.BACKGROUNDS)))
    brightness = float(generator.uniform(0.97, 1.03))
    chance = float(generator.random())
    if chance < 0.05:
        return world.Scene(background, (), brightness)
    if chance > 0.05 + 0.95 * pairs:
        return world.Scene(background, (_random_object(generator, split),), brightness)
    while True:
        first, second = (_placed(_random_object(generator, split), generator) for _ in range(2))
        apart = np.hypot(first.start[0] - second.start[0], first.start[1] - second.start[1])
        if apart > 1.2 * (first.radius + second.radius):
            return world.Scene(background, (first, second), brightness)


def _random_object(generator: np.random.Generator, split: world.Split) -> world.SceneObject:
    """An object of a split, colour and shape drawn evenly in training.

    Held-out combinations hold one shape of each colour for half of the motions. Left as it is, that makes the shape
    guessable from the colour, and a still picture does not show the motion.
    """
    if split == "train":
        colour, shape = str(generator.choice(list(world.COLOURS))), str(generator.choice(world.SHAPES))
        motions = [motion for motion in world.MOTIONS if not world.is_held_out(colour, shape, motion)]
        words = [(colour, shape, str(generator.choice(motions)))]
        return world.scene_from_words(words, next(iter(world.BACKGROUNDS)), generator).objects[0]
    return world.random_scene(generator, split, max_objects=1).objects[0]


def _placed(item: world.SceneObject, generator: np.random.Generator) -> world.SceneObject:
    """The object, held still anywhere inside the picture and small enough for two."""
    radius = float(generator.uniform(world.RADIUS_RANGE[0], 12.0))
    low, high = 1.25 * radius + 1, world.SIZE - 1.25 * radius - 1
    start = (float(generator.uniform(low, high)), float(generator.uniform(low, high)))
    return replace(item, motion="still", radius=radius, start=start)


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Tight boxes: float [..., 4], x0, y0, x1, y1 in pixels, zeros for an empty mask. ``masks``: bool [..., H, W]."""
    columns, rows = masks.any(-2), masks.any(-1)
    width, height = columns.shape[-1], rows.shape[-1]
    x0, y0 = columns.int().argmax(-1), rows.int().argmax(-1)
    x1 = width - columns.flip(-1).int().argmax(-1)
    y1 = height - rows.flip(-1).int().argmax(-1)
    boxes = torch.stack([x0, y0, x1, y1], dim=-1).float()
    return boxes * masks.any(-1).any(-1).unsqueeze(-1)


def spoil(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make pictures imperfect the way generated ones are: bent outlines, wrong tints, blotches, softness, noise.

    A quarter of the pictures keeps its shapes, and each kind of damage strikes about half of them.

    Args:
        images: float [B, 3, H, W], 0..1.
        masks: bool [B, N, H, W].

    Returns:
        (images, masks) of the same shapes; masks are bent with their pictures.
    """
    images, masks = _bend(images, masks.float(), generator)
    images = _tint(images, generator)
    images = _blotch(images, generator)
    images = _soften(images, generator)
    images = _ghost(images, generator)
    noise = torch.randn(images.shape, generator=generator) * _strength(images, 0.5, 0.06, generator)
    return (images + noise).clamp(0, 1), masks > 0.5


def _strength(images: Tensor, chance: float, most: float, generator: torch.Generator) -> Tensor:
    """Per picture a number in 0..most, 0 for a share of ``1 - chance``: float [B, 1, 1, 1]."""
    count = images.shape[0]
    chosen = torch.rand(count, generator=generator) < chance
    return (torch.rand(count, generator=generator) * most * chosen).view(-1, 1, 1, 1)


def _smooth_noise(count: int, channels: int, cells: int, size: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(count, channels, cells, cells, generator=generator)
    return functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)


def _bend(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, shift, scale and warp pictures and masks together."""
    count, _, size, _ = images.shape
    bent = torch.rand(count, generator=generator) < 0.75
    zoom = 1 + (torch.rand(count, 2, generator=generator) - 0.5) * 0.4 * bent[:, None]
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift = (torch.rand(count, 2, generator=generator) - 0.5) * 0.35 * bent[:, None]
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = zoom[:, 0] * flip, zoom[:, 1], shift
    grid = functional.affine_grid(matrix, [count, 3, size, size], align_corners=False)
    warp = _smooth_noise(count, 2, 7, size, generator) * _strength(images, 0.5, 1.3, generator) * (2.0 / size)
    grid = grid + warp.permute(0, 2, 3, 1)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    masks = functional.grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return images.clamp(0, 1), masks


def _tint(images: Tensor, generator: torch.Generator) -> Tensor:
    count = images.shape[0]
    chosen = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).float()
    gain = 1 + (torch.rand(count, 3, 1, 1, generator=generator) - 0.5) * 0.2 * chosen
    offset = (torch.rand(count, 3, 1, 1, generator=generator) - 0.5) * 0.1 * chosen
    grey = images.mean(dim=1, keepdim=True)
    fade = _strength(images, 0.4, 0.25, generator)
    return ((images + (grey - images) * fade) * gain + offset).clamp(0, 1)


def _blotch(images: Tensor, generator: torch.Generator) -> Tensor:
    blotches = _smooth_noise(images.shape[0], 3, 8, images.shape[-1], generator)
    return (images + blotches * _strength(images, 0.4, 0.08, generator)).clamp(0, 1)


def _soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blend with a coarser copy (what a VAE loses) and blur."""
    size = images.shape[-1]
    coarse = functional.interpolate(functional.avg_pool2d(images, 2), (size, size), mode="bilinear")
    images = images + (coarse - images) * _strength(images, 0.5, 1.0, generator)
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = functional.pad(images, (2, 2, 2, 2), mode="replicate")
    weight = (kernel[:, None] * kernel[None]).expand(3, 1, 5, 5).contiguous()
    blurred = functional.conv2d(padded, weight, groups=3)
    return images + (blurred - images) * _strength(images, 0.4, 1.0, generator)


def _ghost(images: Tensor, generator: torch.Generator) -> Tensor:
    """A faint second copy a few pixels off, as left by a neighbouring frame."""
    dx, dy = (int(value) for value in torch.randint(-5, 6, (2,), generator=generator))
    return images + (images.roll((dy, dx), (-2, -1)) - images) * _strength(images, 0.15, 0.35, generator)
