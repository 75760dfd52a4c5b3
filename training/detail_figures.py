"""Figures of details in clips of the Toybox world: contrast and correlation of textures, small objects.

Used by ``python cli.py evaluate text_to_video --detail-prompts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np

from ..toybox import detail_metrics, metrics, world

SEED = 2025
WORDS = [field.name for field in fields(metrics.PromptScore)]


def detail_scenes(count: int) -> list[world.Scene]:
    """A fixed list of scenes with one object each; its detail is each of ``world.DETAILS`` in turn."""
    generator = np.random.default_rng(SEED)
    scenes = []
    for number in range(count):
        scene = world.random_scene(generator, "train", max_objects=1)
        detail = world.DETAILS[number % len(world.DETAILS)]
        item = world.with_detail(scene.objects[0], detail, generator)
        scenes.append(world.Scene(scene.background, (item,), scene.brightness))
    return scenes


def detail_figures(clips: Sequence[np.ndarray], scenes: Sequence[world.Scene]) -> dict[str, dict[str, float]]:
    """What clips show of the details of their scenes.

    Args:
        clips: float [T, 64, 64, 3] in 0..1, one for each scene.
        scenes: of one object with a detail.

    Returns:
        For each texture: ``contrast`` and ``correlation`` (means, 0..1), ``recognised`` (share of the clips whose
        texture is the named one); for each size: ``found`` (share of the clips). For all: the shares of right words.
    """
    rows: dict[str, list[dict[str, float]]] = {}
    for clip, scene in zip(clips, scenes, strict=True):
        item = scene.objects[0]
        score = dict(zip(WORDS, map(float, astuple(metrics.score_prompt(clip, scene))), strict=True))
        rows.setdefault(item.texture or item.size, []).append({**_figures(clip, item, scene.background), **score})
    return {detail: {"clips": len(found), **_means(found)} for detail, found in rows.items()}


def _figures(clip: np.ndarray, item: world.SceneObject, background: str) -> dict[str, float]:
    if not item.texture:
        mask = metrics.object_segmentation(clip, item, background)
        return {"found": float(detail_metrics.is_small(mask, item.shape))}
    texture = detail_metrics.measure_texture(clip, item, background)
    return {
        "contrast": texture.contrast,
        "correlation": texture.correlation,
        "recognised": float(detail_metrics.recognised_texture(clip, item, background) == item.texture),
    }


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}
