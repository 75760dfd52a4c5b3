"""Which of the tiny models run by default, where a promise is proved on every one of them.

That tokens, words and frames of every model are where its family says, and that every model's guided film is that of
explicit biases (in one mode), is proved by default on all of them. What follows from these two runs by default on one
model for each way in which attention is called; the others run with ``--all``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

QUICK = {
    "wan": "self- and cross-attention over the whole clip",
    "wan_vace_reference": "a picture before the film, which is a latent frame too, and blocks beside those of the film",
    "ltx": "latent frames of eight pictures, and a mask of the text",
    "ltx_weak_guide": "film and guide picture ask apart",
    "ltxav_23": "film and sound in one block, as many tokens of each, and rows of the model's own after the text",
    "hunyuan": "joint attention, the text before the film",
    "hunyuan15_image": "joint attention, a picture and glyphs before the text",
    "kandinsky5_image": "one sequence for the whole pass, a picture laid over the first frame",
    "mochi": "joint attention, the text behind the film",
    "minimax_h3": "joint attention, sound between the text and the film",
    "cosmos": "no hook around its blocks",
    "sd15": "frames in the batch, and grids of several levels",
}


def rows(names: Iterable[str], quick: Collection[str] = tuple(QUICK)) -> list[Any]:
    """A row for each model (or whatever has a name), slow where it is not among the ``quick`` ones."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def pairs(names: Iterable[str], others: Sequence[Any], quick: Collection[str] = tuple(QUICK)) -> list[Any]:
    """Rows (name, other): every name with the first of the others, ``quick`` ones with all; what remains is slow."""
    return [
        pytest.param(name, other, marks=() if name in quick or number == 0 else pytest.mark.slow)
        for name in names
        for number, other in enumerate(others)
    ]


def all_but(*heavy: str) -> set[str]:
    """All models as quick ones but those that take many seconds."""
    from native_models import BUILDERS

    return set(BUILDERS) - set(heavy)
