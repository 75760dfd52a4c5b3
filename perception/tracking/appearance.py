"""The appearance of an object as a histogram of its colours, to recognise it and tell it from its surroundings."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

# Steps per colour channel.
STEPS = 16
# Share of a histogram that is spread evenly, so that no colour is impossible.
ANY_COLOUR = 0.05


def colour_places(picture: np.ndarray) -> Tensor:
    """The place of each pixel's colour in a histogram: int64 [H, W].

    Args:
        picture: uint8 [H, W, 3].
    """
    steps = (picture // (256 // STEPS)).astype(np.int64)
    return torch.from_numpy((steps[..., 0] * STEPS + steps[..., 1]) * STEPS + steps[..., 2])


def histogram(places: Tensor, inside: Tensor) -> Tensor | None:
    """Shares of colours inside a mask, smoothed to neighbouring colours: float [STEPS ** 3] with sum 1.

    Args:
        places: from :func:`colour_places`.
        inside: bool [H, W].

    Returns:
        None when nothing is inside.
    """
    chosen = places[inside]
    if not len(chosen):
        return None
    counts = torch.bincount(chosen, minlength=STEPS**3).float() / len(chosen)
    cube = counts.view(1, 1, STEPS, STEPS, STEPS)
    for _ in range(2):
        cube = functional.avg_pool3d(cube, 3, 1, 1, count_include_pad=False)
    smooth = cube.flatten()
    return smooth / smooth.sum() * (1 - ANY_COLOUR) + ANY_COLOUR / STEPS**3


def likeness(first: Tensor | None, second: Tensor | None) -> float:
    """How alike two histograms are: 0 (no colour in common) to 1 (Bhattacharyya coefficient); 0 when one is missing."""
    if first is None or second is None:
        return 0.0
    return float((first * second).sqrt().sum())
