"""Colours matched by cumulative histograms: literal levels, identity, sizes, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mask_guided_video.perception.pictures.histogram_match import histogram_match


def grey(levels: list[list[int]]) -> Tensor:
    """A picture [H, W, 3] whose channels are alike."""
    return torch.tensor(levels)[..., None].expand(-1, -1, 3).float() / 255


def levels_of(picture: Tensor) -> list[list[int]]:
    return (picture[..., 0] * 255).round().int().tolist()


def test_literal_levels() -> None:
    frame = grey([[10, 10, 20, 30]])
    reference = grey([[100, 150, 150, 200]])
    # Parts at or below: 10 has 2 of 4 and becomes 150 (3 of 4), 20 has 3 of 4 and becomes 150, 30 has all: 200.
    assert levels_of(histogram_match(frame[None], reference)[0]) == [[150, 150, 150, 200]]
    # 1 of 4 is 100's own part.
    assert levels_of(histogram_match(grey([[7, 30, 30, 30]])[None], reference)[0]) == [[100, 200, 200, 200]]


def test_a_reference_of_another_size_counts_by_parts() -> None:
    frame = grey([[0, 0, 5, 5, 5, 5]])
    # A third of the reference lies at 40, the rest at 90.
    assert levels_of(histogram_match(frame[None], grey([[40], [90], [90]]))[0]) == [[40, 40, 90, 90, 90, 90]]


def test_channels_and_frames_are_matched_each_for_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(3, 16, 20, 3, generator=generator) * torch.tensor([0.3, 0.6, 0.9])
    reference = torch.rand(12, 9, 3, generator=generator) ** 2
    given = frames.clone()
    result = histogram_match(frames, reference)
    assert torch.equal(frames, given) and result.dtype == torch.float32
    for frame in range(3):
        assert torch.equal(result[frame], histogram_match(frames[frame : frame + 1], reference)[0])
        for channel in range(3):
            # The distributions are alike to within the pixels of a level.
            quantiles = torch.linspace(0, 1, 9)
            one, other = (
                part.flatten().quantile(quantiles) for part in (result[frame][..., channel], reference[..., channel])
            )
            torch.testing.assert_close(one, other, atol=0.04, rtol=0)
            # Order is kept: what was darker is not brighter now.
            order = (frames[frame, ..., channel] * 255).round().flatten().argsort()
            assert bool((result[frame, ..., channel].flatten()[order].diff() >= 0).all())


def test_a_frame_of_the_references_colours_stays_as_it_is() -> None:
    reference = (torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    moved = reference.roll((3, 2), dims=(0, 1))
    torch.testing.assert_close(
        histogram_match(torch.stack([reference, moved]), reference), torch.stack([reference, moved])
    )


def test_flat_pictures_and_values_beyond_the_range() -> None:
    black, white = torch.zeros(1, 4, 4, 3), torch.ones(4, 4, 3)
    assert torch.equal(histogram_match(black, white), torch.ones(1, 4, 4, 3))
    assert torch.equal(histogram_match(black - 5.0, white * 7.0), torch.ones(1, 4, 4, 3))
    assert histogram_match(torch.zeros(0, 4, 4, 3), white).shape == (0, 4, 4, 3)


@pytest.mark.parametrize(
    ("frames", "reference", "message"),
    [
        (torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), "give .T, H, W, 3."),
        (torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 3), "give .T, H, W, 3."),
        (torch.zeros(1, 4, 4, 3), torch.zeros(4, 4, 4), "give .T, H, W, 3."),
        (torch.zeros(1, 4, 4, 3), torch.zeros(0, 4, 3), "give .T, H, W, 3."),
        (torch.full((1, 4, 4, 3), math.nan), torch.zeros(4, 4, 3), "the frames hold NaN"),
        (torch.zeros(1, 4, 4, 3), torch.full((4, 4, 3), math.inf), "the reference hold"),
    ],
)
def test_bad_pictures_are_named(frames: Tensor, reference: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        histogram_match(frames, reference)
