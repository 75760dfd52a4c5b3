"""Crude films: what is cut out, pasted and filled in, on pictures whose pixels are known."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.recipes.guided_clips.crude_film import (
    CutOut,
    ObjectNotFound,
    crude_film,
    cut_out,
    find_by_words,
    paste,
    plate_behind,
)

RED, GREEN = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.2, 0.8, 0.2])


def masks_at(*corners: tuple[int, int] | None, size: int = 4, side: int = 16) -> torch.Tensor:
    """One square per frame, by its upper left corner; None leaves the frame empty."""
    found = torch.zeros(len(corners), side, side)
    for mask, corner in zip(found, corners, strict=True):
        if corner is not None:
            top, left = (max(value, 0) for value in corner)
            mask[top : corner[0] + size, left : corner[1] + size] = 1.0
    return found


def film_of(masks: torch.Tensor) -> torch.Tensor:
    return torch.where(masks[..., None] > 0.5, RED, GREEN)


class TestFinding:
    def test_edges_are_those_of_the_picture_and_not_of_the_map(self):
        masks = masks_at((4, 4), (6, 8))
        blurred = torch.nn.functional.avg_pool2d(masks[:, None], 5, stride=1, padding=2)[:, 0]
        found = find_by_words(film_of(masks), blurred / blurred.amax())
        assert torch.equal(found, masks)

    def test_nothing_is_found_where_the_words_are_nowhere(self):
        masks = masks_at((4, 4))
        assert not find_by_words(film_of(masks), torch.zeros_like(masks)).any()

    def test_another_object_of_the_same_colour_is_left_out(self):
        both = masks_at((2, 2)) + masks_at((10, 10))
        words = masks_at((2, 2)) + 0.3 * masks_at((10, 10))
        assert torch.equal(find_by_words(film_of(both), words), masks_at((2, 2)))

    def test_sizes_must_be_alike(self):
        with pytest.raises(ValueError, match="both alike"):
            find_by_words(torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 5))


class TestCuttingAndPasting:
    def test_the_largest_whole_one_is_cut_out(self):
        masks = torch.cat([masks_at((0, 0), size=6), masks_at((5, 5)), masks_at((5, 5), size=3)])
        cut = cut_out(film_of(masks), masks)
        assert cut.shape.shape == (4, 4)
        assert torch.equal(cut.picture, RED.expand(4, 4, 3))

    def test_nothing_to_cut_is_refused(self):
        with pytest.raises(ObjectNotFound, match="not found"):
            cut_out(torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4))

    def test_it_is_stretched_to_the_box_and_frames_without_one_stay(self):
        cut = CutOut(RED.expand(2, 2, 3), torch.ones(2, 2))
        track = masks_at((3, 5), None)
        found = paste(film_of(torch.zeros(2, 16, 16)), cut, track)
        assert torch.allclose(found, film_of(track), atol=1e-6)

    def test_at_the_edge_of_the_picture_a_part_is_seen(self):
        # Left half red, right half blue: cut off at the left edge, the right half is what is left.
        picture = torch.zeros(4, 4, 3)
        picture[:, :2, 0] = picture[:, 2:, 2] = 1.0
        track = torch.zeros(2, 16, 16)
        track[0, 4:8, 6:10] = track[1, 4:8, 0:2] = 1.0
        found = paste(torch.zeros(2, 16, 16, 3), CutOut(picture, torch.ones(4, 4)), track)
        assert torch.equal(found[0, 4:8, 6:10], picture)
        assert torch.equal(found[1, 4:8, 0:2], picture[:, 2:])

    def test_what_is_behind_a_moving_object_is_seen_in_other_frames(self):
        masks = masks_at((2, 2), (9, 9))
        assert torch.allclose(plate_behind(film_of(masks), masks), GREEN.expand(16, 16, 3))

    def test_what_is_behind_a_still_object_is_filled_in(self):
        masks = masks_at((5, 5), (5, 5))
        assert torch.allclose(plate_behind(film_of(masks), masks), GREEN.expand(16, 16, 3), atol=0.02)

    def test_objects_are_at_their_tracks_and_no_longer_where_they_were(self):
        masks, tracks = masks_at((2, 2), (2, 3)), masks_at((9, 9), (8, 9), (7, 9))
        found = crude_film(film_of(masks), masks[None], tracks[None])
        assert torch.allclose(found, film_of(tracks), atol=0.02)

    def test_an_object_that_is_to_be_nowhere_need_not_be_found(self):
        film = film_of(torch.zeros(2, 16, 16))
        empty = torch.zeros(1, 2, 16, 16)
        assert torch.allclose(crude_film(film, empty, empty), film)
        with pytest.raises(ObjectNotFound):
            crude_film(film, empty, masks_at((1, 1), (1, 1))[None])
