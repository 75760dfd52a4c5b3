"""Joins and colours of guided clips, on numbers that can be checked by hand."""

import pytest
import torch

from mask_guided_video.recipes.guided_clips.report import RoundColours, measured_joins


def test_joins_are_held_against_all_other_changes():
    # Two rounds of three frames, the shared frame shown once: frames 0 1 2 | 3 4.
    found = measured_joins([0.1, 0.2, 0.9, 0.3], 2, 3, False)
    assert found["at"] == [0.9] and found["shared"] == []
    assert found["elsewhere"]["mean"] == pytest.approx(0.2) and found["elsewhere"]["largest"] == 0.3
    assert found["elsewhere"]["deviation"] == pytest.approx(0.1) and found["deviations"] == pytest.approx(7.0)
    # Shown twice: frames 0 1 2 | 2 3 4.
    found = measured_joins([0.1, 0.2, 0.0, 0.9, 0.3], 2, 3, True)
    assert (found["at"], found["shared"]) == ([0.9], [0.0])
    assert found["elsewhere"]["mean"] == pytest.approx(0.2)
    assert measured_joins([0.1, 0.2], 1, 3, False) is None
    assert measured_joins([0.5, 0.5, 0.5, 0.5], 2, 3, False)["deviations"] is None


def test_colours_of_a_round():
    frames = torch.zeros(2, 2, 2, 3)
    frames[:, 0, 0] = torch.tensor([1.0, 0.5, 0.0])
    masks = torch.zeros(1, 2, 2, 2)
    masks[:, :, 0, 0] = 1
    found = RoundColours.of(frames.split(1), masks)
    assert found == RoundColours((1.0, 0.5, 0.0), (0.0, 0.0, 0.0))
    assert RoundColours.of([frames], torch.zeros(1, 2, 2, 2)).objects is None
    assert RoundColours.of([frames], torch.ones(1, 2, 2, 2)).background is None
