"""Which masks belong to which round, and what is said of those that fit none."""

import pytest
import torch

from mask_guided_video.perception.masks.mask_paths import parse_paths
from mask_guided_video.recipes.guided_clips.masks import RoundMasks, path_masks


# A mask of 2 x 2 pixels for each number: its bits.
def numbered(*numbers):
    return torch.tensor([[[[n & 1, n >> 1 & 1], [n >> 2 & 1, n >> 3 & 1]] for n in numbers]]).float()


def found(masks, rounds, frames, borders="check", size=2):
    chosen = RoundMasks.of(masks, rounds, frames, size, size, borders)
    return [chosen.of_round(number, (), size, size) for number in range(rounds)]


def test_one_sequence_shares_masks_at_borders():
    first, second = found(numbered(1, 2, 3, 4, 5), 2, 3)
    assert torch.equal(first, numbered(1, 2, 3)) and torch.equal(second, numbered(3, 4, 5))


def test_each_round_may_have_all_of_its_own():
    first, second = found(numbered(1, 2, 3, 3, 4, 5), 2, 3)
    assert torch.equal(first, numbered(1, 2, 3)) and torch.equal(second, numbered(3, 4, 5))


def test_one_mask_serves_all_frames():
    for chunk in found(numbered(9), 2, 3):
        assert torch.equal(chunk, numbered(9, 9, 9))
    assert torch.equal(found(numbered(9)[0, 0], 1, 2)[0], numbered(9, 9))


def test_rounds_that_do_not_meet():
    masks = numbered(1, 2, 3, 1, 4, 5)
    with pytest.raises(
        ValueError, match=r"round 2 begins with another mask of object 1 than round 1 ends with \(25.0%"
    ):
        found(masks, 2, 3)
    first, second = found(masks, 2, 3, "repair")
    assert torch.equal(first, numbered(1, 2, 3)) and torch.equal(second, numbered(3, 4, 5))
    # A single round has no border.
    assert torch.equal(found(masks, 1, 6)[0], masks)


def test_the_object_that_jumps_is_named():
    masks = torch.cat([numbered(1, 1, 1, 1), numbered(1, 2, 4, 4)])
    with pytest.raises(ValueError, match="round 2 begins with another mask of object 2"):
        found(masks, 2, 2)


@pytest.mark.parametrize(
    ("masks", "rounds", "message"),
    [
        (
            torch.zeros(1, 6, 2, 2),
            3,
            r"there are 6 masks, not a whole number of rounds: 3 rounds of 3 frames take 7 .* or 9",
        ),
        (torch.zeros(1, 6, 2, 2), 1, "there are 6 masks and the clip has 3 frames"),
        (torch.zeros(1, 0, 2, 2), 1, "none of them 0"),
        (torch.full((1, 3, 2, 2), torch.nan), 1, "NaN"),
        (torch.full((1, 3, 2, 2), 2.0), 1, "mask values reach from 2 to 2"),
        (torch.zeros(1, 3, 2, 5), 1, "the masks are 5 x 2 pixels but the film 2 x 2"),
    ],
)
def test_what_fits_no_round_is_named(masks, rounds, message):
    with pytest.raises(ValueError, match=message):
        RoundMasks.of(masks, rounds, 3, 2, 2)


def test_masks_of_another_size_are_averaged():
    large = numbered(1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    large[0, 0, 0, 0] = 0
    (chunk,) = found(large, 1, 2)
    assert chunk[0, 0].tolist() == [[pytest.approx(0.75, abs=0.01), 0.0], [0.0, 0.0]]
    assert torch.equal(chunk[:, 1:], numbered(2))


def test_no_object_is_one_that_is_nowhere():
    (chunk,) = found(torch.zeros(0, 2, 2, 2), 1, 2)
    assert torch.equal(chunk, torch.zeros(1, 2, 2, 2))


def test_strength_of_frames():
    chosen = RoundMasks.of(numbered(1, 2, 3, 4, 5), 2, 3, 2, 2)
    assert chosen.strength_of_round(1, (0.0, 0.1, 0.2, 0.3, 0.4)) == (0.2, 0.3, 0.4)
    assert chosen.strength_of_round(1, ()) == ()
    assert RoundMasks.of(numbered(1), 2, 3, 2, 2).strength_of_round(1, (0.5,)) == (0.5,)


def test_paths_run_over_the_whole_film():
    text = """{"keyframes": [{"frame": 0, "x": 0.125, "y": 0.5, "width": 0.25, "height": 1},
                             {"frame": 6, "x": 0.875, "y": 0.5}]}"""
    masks = path_masks(parse_paths(text), 2, 4, 4, 4)
    assert masks.shape == (1, 7, 4, 4)
    # The middle of the path is the frame that both rounds share.
    first, second = (RoundMasks.of(masks, 2, 4, 4, 4).of_round(number, (), 4, 4) for number in range(2))
    assert torch.equal(first[:, -1], second[:, 0])
    assert masks[0, 0, 0].tolist() == [1, 0, 0, 0] and masks[0, -1, 0].tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="holds no object"):
        path_masks((), 2, 4, 4, 4)
