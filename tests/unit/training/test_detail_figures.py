"""Figures of details: drawn clips show them all, clips without them none."""

from __future__ import annotations

from dataclasses import replace

from mask_guided_video.toybox import world
from mask_guided_video.training.detail_figures import detail_figures, detail_scenes


def test_drawn_clips_show_every_detail_and_plain_ones_none() -> None:
    scenes = detail_scenes(8)
    assert [scene.objects[0].texture or scene.objects[0].size for scene in scenes] == [*world.DETAILS, *world.DETAILS]
    plain = [replace(scene, objects=(replace(scene.objects[0], texture="", size="", radius=11.0),)) for scene in scenes]
    shown = detail_figures([world.render(scene).frames for scene in scenes], scenes)
    missing = detail_figures([world.render(scene).frames for scene in plain], scenes)
    for texture in world.TEXTURES:
        assert shown[texture]["clips"] == 2 and shown[texture]["recognised"] == 1.0
        assert shown[texture]["contrast"] > 0.9 > 0.05 > missing[texture]["contrast"]
        assert missing[texture]["recognised"] == 0.0
    assert shown["small"]["found"] == 1.0 and missing["small"]["found"] == 0.0
    assert all(figures["colour"] == figures["motion"] == 1.0 for figures in shown.values())
