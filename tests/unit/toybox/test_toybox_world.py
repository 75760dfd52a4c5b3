"""The world's words, pictures and truth, and the metrics that read them back."""

from __future__ import annotations

import numpy as np
import pytest

from mask_guided_video.toybox import metrics, world


def scene(motion: str = "left", shape: str = "square", colour: str = "red", background: str = "sand") -> world.Scene:
    start = {"left": (50.0, 32.0), "right": (14.0, 32.0), "up": (32.0, 50.0), "down": (32.0, 14.0)}
    item = world.SceneObject(colour, shape, motion, 10.0, start.get(motion, (32.0, 45.0)), 21.0, 0.25)
    return world.Scene(background, (item,))


def test_prompts_read_as_sentences() -> None:
    assert world.prompt(scene("bounce", "ball")) == "a red ball bounces on sand"
    first, second = scene("left").objects[0], scene("still", "triangle", "blue").objects[0]
    both = world.Scene("night", (first, second))
    assert world.prompt(both) == "a red square moves left and a blue triangle stays still at night"
    assert world.phrase(second) == "blue triangle"


def test_a_square_is_where_it_is_said_to_be() -> None:
    clip = world.render(scene("left"), 8)
    assert clip.frames.shape == (8, 64, 64, 3) and clip.frames.dtype == np.float32
    # Half side 0.9 * 10 = 9 around (50, 32), 21 pixels to the left in seven equal parts.
    assert clip.boxes[0, 0].tolist() == [41, 23, 59, 41]
    assert clip.boxes[0, 7].tolist() == [20, 23, 38, 41]
    assert clip.masks[0, 0].sum() == 18 * 18
    assert clip.flow.shape == (7, 64, 64, 2)
    assert clip.flow[0, 32, 50].tolist() == [-3.0, 0.0] and clip.flow[0, 2, 2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 24])
def test_any_length_renders(frames: int) -> None:
    clip = world.render(scene("bounce"), frames)
    assert clip.frames.shape[0] == clip.masks.shape[1] == frames and len(clip.flow) == frames - 1
    with pytest.raises(ValueError, match="frames is 0"):
        world.render(scene(), 0)


def test_the_last_object_is_in_front() -> None:
    back, front = scene("still").objects[0], scene("still", "ball", "blue").objects[0]
    clip = world.render(world.Scene("grass", (back, front)), 1)
    assert not (clip.masks[0] & clip.masks[1]).any()
    assert clip.masks[1].sum() > 300 > clip.masks[0].sum()


def test_splits_share_no_combination_and_every_pair_of_words_is_trained() -> None:
    generator = np.random.default_rng(0)
    for split, wanted in (("train", False), ("held_out", True)):
        for _ in range(60):
            for item in world.random_scene(generator, split).objects:
                assert world.is_held_out(item.colour, item.shape, item.motion) is wanted
    triples = [
        (colour, shape, motion)
        for colour in world.COLOURS
        for shape in world.SHAPES
        for motion in world.MOTIONS
        if not world.is_held_out(colour, shape, motion)
    ]
    assert len(triples) == 90
    assert len({(colour, shape) for colour, shape, _ in triples}) == 18
    assert len({(shape, motion) for _, shape, motion in triples}) == 18
    assert len({(colour, motion) for colour, _, motion in triples}) == 36


def test_objects_stay_inside_and_apart() -> None:
    generator = np.random.default_rng(1)
    for _ in range(80):
        drawn = world.random_scene(generator)
        clip = world.render(drawn)
        for item, boxes in zip(drawn.objects, clip.boxes, strict=True):
            assert (boxes[:, :2] > 0).all() and (boxes[:, 2:] < world.SIZE).all(), item
        if len(drawn.objects) == 2:
            grown = [np.stack([mask for mask in clip.masks[n]]) for n in range(2)]
            assert not (grown[0] & grown[1]).any()


def test_the_metrics_read_rendered_clips() -> None:
    generator = np.random.default_rng(2)
    scores = []
    for _ in range(60):
        drawn = world.random_scene(generator)
        scores.append(metrics.score_prompt(world.render(drawn).frames, drawn))
    for word in ("colour", "background", "shape", "motion"):
        assert np.mean([getattr(score, word) for score in scores]) >= 0.97, word


@pytest.mark.parametrize("wrong", [scene("right"), scene(shape="ball"), scene(colour="blue"), scene(background="sea")])
def test_the_metrics_notice_a_wrong_word(wrong: world.Scene) -> None:
    score = metrics.score_prompt(world.render(wrong).frames, scene())
    assert [score.motion, score.shape, score.colour, score.background].count(False) >= 1


def test_colour_segmentation_is_the_mask() -> None:
    clip = world.render(scene("down", "triangle", "green", "grass"))
    found = metrics.colour_segmentation(clip.frames, "green")
    assert metrics.intersection_over_union(found, clip.masks[0]) > 0.9
    assert not metrics.colour_segmentation(clip.frames, "white").any()


def test_a_film_without_objects_has_no_words() -> None:
    empty = world.render(world.Scene("sea", ())).frames
    assert metrics.find_colours(empty, 2) == []
    measured = metrics.measure_object(empty, "red")
    assert (measured.shape, measured.motion) == ("", "") and not measured.mask.any()


def test_intersection_over_union_literal() -> None:
    first = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]])
    second = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 1], [0, 0]]])
    assert metrics.intersection_over_union(first, second) == pytest.approx((1 / 3 + 1 + 0) / 3)
