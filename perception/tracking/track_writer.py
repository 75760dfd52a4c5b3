"""Masks and scores of tracks while they are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..frames import Film
from ..mask_stack import MaskStack
from ..tracks import Tracks

# Score of a mask that is there, however low its confidence: 0 says that the object is not visible.
LEAST_SCORE = 1e-3


class TrackWriter:
    """Puts masks away as they are made; what was never written is empty and missed.

    Args:
        film: video that the masks are of.
        soft: keep soft edges.
        folder: see :class:`~.mask_stack.MaskStack`.
    """

    def __init__(self, film: Film, soft: bool, folder: str | Path | None) -> None:
        self.masks = MaskStack(len(film), film.height, film.width, "byte" if soft else "bit", folder)
        self._rows: dict[int, int] = {}
        self._scores: dict[int, Tensor] = {}

    def add(self, identity: int) -> None:
        """Make room for an object."""
        self._rows[identity] = self.masks.add_object()
        self._scores[identity] = torch.zeros(self.masks.frames)

    def rename(self, old: int, new: int) -> None:
        """The same object under another number."""
        self._rows[new], self._scores[new] = self._rows.pop(old), self._scores.pop(old)

    def put(self, identity: int, frame: int, mask: Tensor, score: float) -> None:
        """Write a mask, uint8 [H, W], that shows something."""
        self.masks.write(self._rows[identity], frame, mask)
        self._scores[identity][frame] = min(max(score, LEAST_SCORE), 1.0)

    def clear_outside(self, identity: int, first: int, last: int) -> None:
        """Take away what was written for frames before ``first`` and after ``last``."""
        nothing = torch.zeros(self.masks.height, self.masks.width, dtype=torch.uint8)
        for frame in self._scores[identity].nonzero().flatten().tolist():
            if not first <= frame <= last:
                self.masks.write(self._rows[identity], frame, nothing)
                self._scores[identity][frame] = 0.0

    def seen(self, identity: int, frame: int) -> bool:
        """Whether a mask was written."""
        return bool(self._scores[identity][frame] > 0)

    def inside(self, identity: int, frame: int) -> Tensor:
        """Pixels of an object: bool [H, W]."""
        return self.masks[self._rows[identity], frame] > 127

    def tracks(self, identities: Sequence[int], labels: Sequence[str]) -> Tracks:
        """The tracks of some of the objects."""
        if not identities:
            return Tracks.empty(self.masks.frames, self.masks.height, self.masks.width)
        scores = torch.stack([self._scores[identity] for identity in identities])
        masks = self.masks.select([self._rows[identity] for identity in identities])
        return Tracks(masks, tuple(identities), tuple(labels), scores, scores == 0)
