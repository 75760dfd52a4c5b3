"""Textures and small objects of the world, and the metrics that read them from pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mask_guided_video.toybox import detail_metrics, metrics, world

PROMPTS = [
    "a yellow triangle moves left at night",
    "a blue triangle moves left on grass",
    "a yellow triangle stays still on the sea",
    "a blue square moves up at night",
    "a yellow triangle moves down and a white square moves down at night",
    "a green ball moves left at night",
]
SUMS = [
    3769.854595579207,
    6225.692693524063,
    10605.386701464653,
    3860.830282397568,
    5018.697881773114,
    3513.84549266845,
]


def item(texture: str = "", colour: str = "red", shape: str = "ball", radius: float = 12.0) -> world.SceneObject:
    return world.SceneObject(colour, shape, "right", radius, (18.0, 32.0), 24.0, texture=texture)


def drawn(thing: world.SceneObject, background: str = "sea", frames: int = 3) -> world.RenderedClip:
    return world.render(world.Scene(background, (thing,)), frames)


def blurred(frames: np.ndarray) -> np.ndarray:
    """Mean over 5 x 5 pixels."""
    padded = np.pad(frames, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    return np.mean([padded[:, y : y + 64, x : x + 64] for y in range(5) for x in range(5)], axis=0)


def test_prompts_name_details() -> None:
    striped, small = item("striped"), replace(item(), size="small", colour="blue")
    assert world.phrase(striped) == "red striped ball" and world.phrase(small) == "small blue ball"
    scene = world.Scene("night", (striped, small))
    assert world.prompt(scene) == "a red striped ball moves right and a small blue ball moves right at night"


def test_scenes_without_details_are_those_of_before() -> None:
    generator = np.random.default_rng(7)
    scenes = [world.random_scene(generator) for _ in range(6)]
    # Recorded before there were details.
    assert [world.prompt(scene) for scene in scenes] == PROMPTS
    assert [float(world.render(scene, 2).frames.sum(dtype=np.float64)) for scene in scenes] == pytest.approx(SUMS)


def test_a_share_of_the_objects_has_details_and_the_words_of_the_split() -> None:
    generator = np.random.default_rng(0)
    objects = [thing for _ in range(300) for thing in world.random_scene(generator, "train", detail_share=0.4).objects]
    assert 0.3 < np.mean([bool(thing.texture or thing.size) for thing in objects]) < 0.5
    assert {thing.texture for thing in objects} == {"", *world.TEXTURES}
    assert not any(world.is_held_out(thing.colour, thing.shape, thing.motion) for thing in objects)
    small, plain = [[thing.radius for thing in objects if bool(thing.size) is wanted] for wanted in (True, False)]
    assert max(small) <= 8.0 < 9.0 <= min(plain)
    with pytest.raises(ValueError, match="detail is 'fluffy'"):
        world.with_detail(objects[0], "fluffy", generator)


@pytest.mark.parametrize("texture", world.TEXTURES)
def test_a_texture_changes_pixels_inside_the_object_and_moves_with_it(texture: str) -> None:
    # 24 pixels in two steps: whole pixels, so that the frames are shifted copies but for the shading.
    clip, plain = drawn(item(texture)), drawn(item())
    difference = np.abs(clip.frames - plain.frames).max(axis=-1)
    assert difference[clip.masks[0]].max() > 0.2 and (clip.masks == plain.masks).all()
    assert difference[~clip.masks[0]].max() < difference[clip.masks[0]].max() / 2
    np.testing.assert_allclose(difference[0, :, 4:34], difference[2, :, 28:58], atol=1e-6)


# The colour that is most like the marks, and two that are not.
COLOURS = ("white", "blue", "yellow")


@pytest.mark.parametrize("texture", world.TEXTURES)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", world.SHAPES)
def test_contrast_is_one_drawn_less_when_blurred_and_nothing_without_texture(
    texture: str, colour: str, shape: str
) -> None:
    thing = item(texture, colour, shape, radius=11.0)
    clip = drawn(thing)
    sharp = detail_metrics.measure_texture(clip.frames, thing, "sea")
    assert sharp.contrast > 0.93 and sharp.correlation > 0.93
    soft = detail_metrics.texture_of_masks(blurred(clip.frames), clip.masks[0], thing)
    assert soft.contrast < 0.75 * sharp.contrast
    flat = detail_metrics.measure_texture(drawn(replace(thing, texture="")).frames, thing, "sea")
    assert flat.contrast < 0.05 and flat.correlation < 0.15
    assert detail_metrics.recognised_texture(clip.frames, thing, "sea") == texture
    assert detail_metrics.recognised_texture(drawn(replace(thing, texture="")).frames, thing, "sea") == ""


@pytest.mark.parametrize("texture", world.TEXTURES)
def test_contrast_bears_a_shift_of_a_pixel_and_halves_with_the_marks(texture: str) -> None:
    thing = item(texture)
    clip, plain = drawn(thing), drawn(item())
    centres = thing.centres(3)
    coverage = world.shape_coverage("ball", centres, 12.0)[..., None]
    moved = world.texture_coverage(texture, "ball", centres, 12.0, shift=(1.0, -1.0))[..., None] * coverage
    colour, mark = (np.array(table["red"]) for table in (world.COLOURS, world.MARKS))
    shifted = plain.frames + moved * (mark - colour)
    assert detail_metrics.texture_of_masks(shifted, clip.masks[0], thing).contrast > 0.93
    pale = 0.5 * (clip.frames + plain.frames)
    found = detail_metrics.texture_of_masks(pale, clip.masks[0], thing)
    assert found.contrast == pytest.approx(0.5, abs=0.05) and found.correlation > 0.93


def test_a_plain_object_has_no_texture_to_measure_and_a_missing_one_none() -> None:
    with pytest.raises(ValueError, match="the red ball has no texture"):
        detail_metrics.measure_texture(drawn(item()).frames, item())
    empty = world.render(world.Scene("sea", ()), 3).frames
    assert detail_metrics.measure_texture(empty, item("striped"), "sea") == detail_metrics.TextureMeasurement(0.0, 0.0)


def test_the_words_of_textured_and_small_objects_are_read_from_drawn_clips() -> None:
    generator = np.random.default_rng(5)
    right = []
    for _ in range(80):
        scene = world.random_scene(generator, detail_share=1.0)
        score = metrics.score_prompt(world.render(scene).frames, scene)
        right.append((score.colour, score.background, score.shape, score.motion))
    assert np.mean(right, axis=0) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("background", world.BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_segmentation_of_a_textured_object_is_its_mask(colour: str, background: str) -> None:
    for texture in world.TEXTURES:
        thing = item(texture, colour)
        clip = drawn(thing, background)
        found = metrics.object_segmentation(clip.frames, thing, background)
        assert metrics.intersection_over_union(found, clip.masks[0]) > 0.88, texture


def test_small_objects_are_told_from_ordinary_ones() -> None:
    for radius, wanted in ((5.5, True), (8.0, True), (9.2, False), (14.0, False)):
        for shape in world.SHAPES:
            masks = drawn(item(shape=shape, radius=radius)).masks[0]
            assert detail_metrics.is_small(masks, shape) is wanted, (radius, shape)
    assert not detail_metrics.is_small(np.zeros((3, 64, 64), dtype=bool), "ball")
