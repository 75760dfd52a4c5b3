"""Mean and spread that frames take from one another: literal numbers, and the order in which LAMP does it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mask_guided_video.video_models.sampling.latent_statistics import match_after_step, take_statistics

STEPS = 50


def frames_of(*values: tuple[float, float]) -> Tensor:
    """A film of one channel whose frames have the given (mean, spread): two cells, one below and one above."""
    # The unbiased variance of two values that differ by d is d^2 / 2.
    cells = [[mean - spread / math.sqrt(2.0), mean + spread / math.sqrt(2.0)] for mean, spread in values]
    return torch.tensor(cells, dtype=torch.float64).view(1, 1, len(values), 1, 2)


def statistics(film: Tensor) -> list[tuple[float, float]]:
    """(mean, spread) of each frame of a film of one channel, rounded."""
    return [(round(float(frame.mean()), 4), round(float(frame.std(correction=1)), 4)) for frame in film[0, 0].unbind(0)]


def test_statistics_on_two_cells() -> None:
    film = torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 2)
    reference = torch.tensor([10.0, 20.0]).view(1, 1, 1, 1, 2)
    torch.testing.assert_close(take_statistics(film, reference), reference)
    # Upside down, by the mean 15 and the spread sqrt(50) of the reference.
    torch.testing.assert_close(take_statistics(-film, reference), reference.flip(-1))


def test_variances_are_unbiased_and_a_hundred_millionth_larger() -> None:
    film = torch.tensor([0.0, 0.0, 0.0, 1e-4], dtype=torch.float64).view(1, 1, 1, 2, 2)
    reference = torch.zeros(1, 1, 1, 2, 2, dtype=torch.float64)
    # Mean 2.5e-5; the variance is 2.5e-9 over four cells less one; that of the flat reference is 1e-8 alone.
    mean, variance = 2.5e-5, (3 * 2.5e-5**2 + 7.5e-5**2) / 3
    assert variance == pytest.approx(2.5e-9)
    expected = (film - mean) / math.sqrt(variance + 1e-8) * 1e-4
    torch.testing.assert_close(take_statistics(film, reference), expected, atol=1e-12, rtol=0)


def test_every_frame_and_channel_has_its_own() -> None:
    generator = torch.Generator().manual_seed(1)
    film = torch.randn(2, 3, 4, 5, 6, generator=generator)
    reference = 2.0 * torch.randn(2, 3, 1, 5, 6, generator=generator) + 1.0
    given = film.clone()
    result = take_statistics(film, reference)
    assert torch.equal(film, given)
    wanted = reference.mean(dim=(-2, -1)), reference.std(dim=(-2, -1), correction=1)
    torch.testing.assert_close(result.mean(dim=(-2, -1)), wanted[0].expand(2, 3, 4))
    torch.testing.assert_close(result.std(dim=(-2, -1), correction=1), wanted[1].expand(2, 3, 4))


def test_a_single_cell_and_flat_frames_stay_finite() -> None:
    cell, reference = torch.full((1, 1, 2, 1, 1), 3.0), torch.full((1, 1, 1, 1, 1), -2.0)
    torch.testing.assert_close(take_statistics(cell, reference), torch.full((1, 1, 2, 1, 1), -2.0))
    flat = torch.full((1, 1, 2, 4, 4), 3.0)
    torch.testing.assert_close(take_statistics(flat, torch.zeros(1, 1, 1, 4, 4)), torch.zeros(1, 1, 2, 4, 4))


OTHERS = (3.0, 2.0), (7.0, 4.0), (9.0, 5.0)
CLEAN = (-1.0, 0.5)


@pytest.mark.parametrize("step", [0, 15, 30])
def test_until_the_switch_frames_take_the_second_frames_statistics(step: int) -> None:
    film = frames_of((100.0, 50.0), *OTHERS)
    result = match_after_step(film, frames_of(CLEAN), step, STEPS)
    assert torch.equal(result[:, :, :2], film[:, :, :2])
    assert statistics(result) == [(100.0, 50.0), (3.0, 2.0), (3.0, 2.0), (3.0, 2.0)]


@pytest.mark.parametrize("step", [31, 40, 49])
def test_after_the_switch_frames_take_the_clean_first_frames_statistics(step: int) -> None:
    film = frames_of((100.0, 50.0), *OTHERS)
    result = match_after_step(film, frames_of(CLEAN), step, STEPS)
    assert statistics(result) == [(100.0, 50.0), CLEAN, CLEAN, CLEAN]
    assert torch.equal(result[:, :, :1], film[:, :, :1])


def test_nineteen_of_fifty_steps_are_behind_the_switch() -> None:
    film = frames_of((100.0, 50.0), *OTHERS)
    late = [
        step
        for step in range(STEPS)
        if statistics(match_after_step(film, frames_of(CLEAN), step, STEPS))[1] == (-1.0, 0.5)
    ]
    assert late == list(range(31, 50))


def test_after_the_last_step_all_frames_are_like_the_first_whatever_the_switch() -> None:
    film = frames_of((100.0, 50.0), *OTHERS)
    assert statistics(match_after_step(film, frames_of(CLEAN), 49, STEPS, 1.0))[1:] == [CLEAN] * 3
    assert statistics(match_after_step(film, frames_of(CLEAN), 48, STEPS, 1.0))[1:] == [(3.0, 2.0)] * 3
    assert statistics(match_after_step(film, frames_of(CLEAN), 1, STEPS, 0.0))[1:] == [CLEAN] * 3


@pytest.mark.parametrize("frames", [1, 2])
def test_short_films(frames: int) -> None:
    film = frames_of(*((100.0, 50.0), (3.0, 2.0))[:frames])
    assert torch.equal(match_after_step(film, frames_of(CLEAN), 0, 10), film)
    assert statistics(match_after_step(film, frames_of(CLEAN), 9, 10))[1:] == [CLEAN][: frames - 1]
