"""Shapes of single masks, checked against literal matrices and slow definitions."""

import numpy as np
import pytest

from mask_guided_video.perception.masks.mask_morphology import (
    as_box,
    feather,
    fill_holes,
    grow,
    keep_components,
    signed_distance,
)


def mask_of(text, kind=np.uint8):
    """``#`` is inside, ``.`` outside, a digit that many tenths."""
    rows = [row.strip() for row in text.strip().splitlines()]
    levels = {"#": 1.0, ".": 0.0, **{str(tenth): tenth / 10 for tenth in range(1, 10)}}
    values = np.array([[levels[mark] for mark in row] for row in rows])
    return (values * 255).round().astype(np.uint8) if kind is np.uint8 else values.astype(np.float32)


def blob(size=40, seed=0, kind=np.uint8):
    generator = np.random.default_rng(seed)
    mask = np.zeros((size, size + 3), dtype=bool)
    for _ in range(4):
        y, x = generator.integers(0, size, 2)
        mask[y : y + int(generator.integers(1, 9)), x : x + int(generator.integers(1, 9))] = True
    return mask.astype(np.uint8) * np.uint8(255) if kind is np.uint8 else mask.astype(np.float32)


def within(mask, pixels):
    """Every pixel at most that far from one inside: the definition of growing."""
    places = np.argwhere(mask > 0)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    squared = (y[..., None] - places[:, 0]) ** 2 + (x[..., None] - places[:, 1]) ** 2
    return squared.min(-1) <= pixels * pixels


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("pixels", [1, 2, 5, 16])
def test_growing_reaches_exactly_that_far(kind, pixels):
    for seed in range(3):
        mask = blob(seed=seed, kind=kind)
        grown = grow(mask, pixels)
        assert grown.dtype == kind and np.array_equal(grown > 0, within(mask, pixels))


def test_growing_far_stays_round():
    mask = np.zeros((161, 161), dtype=np.uint8)
    mask[80, 80] = 255
    grown = grow(mask, 60) > 0
    assert within(mask, 60)[grown].all() and grown[within(mask, 58)].all()


def test_shrinking_is_growing_what_is_outside_but_not_from_the_border():
    mask = np.pad(blob(), 12)
    assert np.array_equal(grow(mask, -3), 255 - grow(255 - mask, 3))
    assert np.array_equal(grow(np.full((5, 6), 255, np.uint8), -2), np.full((5, 6), 255, np.uint8))
    assert not grow(np.zeros((5, 6), np.uint8), 3).any()


def test_growing_soft_masks_moves_every_level():
    assert np.array_equal(grow(mask_of("..3..8.."), 1), mask_of(".333888."))
    assert np.array_equal(grow(mask_of("88388888"), -1), mask_of("83338888"))


def test_feather_is_the_same_for_both_kinds_and_far_from_the_mask():
    mask = np.zeros((50, 60), dtype=np.float32)
    mask[20:30, 30:60] = 1
    soft = feather(mask, 8)
    assert soft[25, 45] > 0.9 and soft[19, 45] == pytest.approx(1 - soft[20, 45], abs=1e-3)
    # The border of the picture is no edge.
    assert soft[25, 59] == pytest.approx(soft[25, 50], abs=1e-5)
    assert not soft[:, :20].any() and not feather(np.zeros_like(mask), 8).any()
    assert np.abs(feather((mask * 255).astype(np.uint8), 8) / 255 - soft).max() < 1 / 100


@pytest.mark.parametrize(("share", "kept"), [(0, "1234"), (0.2, "123"), (0.5, "12"), (0.75, "1"), (1.0, "1")])
def test_parts_stay_by_their_share_of_the_largest(share, kept):
    parts = np.array([list("1111.22"), list("1111.22"), list("......."), list("3.....4"), list("3......")])
    mask = (parts != ".").astype(np.uint8) * np.uint8(255)
    expected = np.isin(parts, list(kept))
    assert np.array_equal(keep_components(mask, share) > 0, expected)
    assert np.array_equal(keep_components(mask.astype(np.float32) / 255, share) > 0, expected)


def test_of_equal_parts_one_stays_and_corners_connect():
    assert np.array_equal(keep_components(mask_of("##.##"), 1), mask_of("##..."))
    assert np.array_equal(keep_components(mask_of("#..#\n.#.."), 1), mask_of("#...\n.#.."))
    assert not keep_components(np.zeros((3, 3), np.uint8), 1).any()


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_soft_edges_go_with_their_part(kind):
    mask = mask_of("3##42...3#4", kind)
    assert np.array_equal(keep_components(mask, 1), mask_of("3##42......", kind))
    # Nothing is surely inside: nothing to compare.
    faint = mask_of("3.2", kind)
    assert np.array_equal(keep_components(faint, 1), faint)


HOLES = """
    ##########
    #.#..##..#
    ####.##..#
    #.########
    .#########
"""


@pytest.mark.parametrize(
    ("pixels", "filled"),
    [(0, []), (1, [(1, 1), (3, 1)]), (3, [(1, 1), (3, 1), (1, 3)]), (-1, [(1, 1), (3, 1), (1, 3), (1, 7)])],
)
def test_holes_are_filled_up_to_a_size(pixels, filled):
    mask = mask_of(HOLES)
    result = fill_holes(mask, pixels)
    assert result[4, 0] == 0
    assert [place for place in [(1, 1), (3, 1), (1, 3), (1, 7)] if result[place]] == sorted(filled, key=filled.index)
    assert np.array_equal(fill_holes(mask.astype(np.float32) / 255, pixels), (result / 255).astype(np.float32))


def test_bays_and_background_are_no_holes():
    bay = mask_of("####\n#..#\n#.##\n#.##")
    assert np.array_equal(fill_holes(bay, -1), bay)
    ring = np.pad(mask_of("###\n#.#\n###"), 2)
    assert fill_holes(ring, -1).sum() == ring.sum() + 255
    assert not fill_holes(np.zeros((4, 4), np.uint8), -1).any()


def test_box_is_padded_as_far_as_the_picture_goes():
    mask = mask_of("......\n.#....\n..#2..\n......")
    assert np.array_equal(as_box(mask), mask_of("......\n.##...\n.##...\n......"))
    assert np.array_equal(as_box(mask, 2), mask_of("#####.\n#####.\n#####.\n#####."))
    assert not as_box(mask_of("....\n.2.."), 3).any()


def test_signed_distance_is_positive_inside():
    distance = signed_distance(mask_of(".....\n.###.\n.###.\n.###.\n....."))
    assert distance[2, 2] == pytest.approx(2, abs=0.1) and distance[2, 0] == pytest.approx(-1, abs=0.1)


def test_nothing_is_changed_in_place():
    mask = np.pad(mask_of(HOLES), 1)
    before = mask.copy()
    for result in (grow(mask, 2), grow(mask, 0), feather(mask, 0), feather(mask, 3), keep_components(mask, 0),
                   keep_components(mask, 1), fill_holes(mask, -1), fill_holes(mask, 0), as_box(mask)):  # fmt: skip
        result[:] = 7
    assert np.array_equal(mask, before)
