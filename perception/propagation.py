"""What the tracker needs from a segmentation model: masks from prompts in a frame, and masks carried to the next.

Two techniques provide this: models with a memory of earlier frames, and optical flow with a model for single pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .frames import Film
from .prompts import ObjectPrompt


@dataclass(frozen=True, eq=False)
class Sighting:
    """An object in one frame.

    Attributes:
        mask: uint8 [H, W], 0..255 with a soft edge, at frame size, on the CPU.
        score: 0..1, confidence that the object is there and the mask is right; 0 when it is not visible.
    """

    mask: Tensor
    score: float


class Propagator(Protocol):
    """Follows objects through a video in one direction of time, frame after frame, keeping only what it needs.

    The caller visits frames in order; in each it calls ``step`` first (if any object is followed) and ``prompt`` for
    what is known of this very frame after.
    """

    def step(self, frame: int) -> dict[int, Sighting]:
        """Every followed object in this frame, by identity, from what was seen in the frames visited before."""

    def prompt(self, frame: int, prompts: dict[int, ObjectPrompt]) -> dict[int, Sighting]:
        """Set where objects are in this frame, by identity; new ones are followed from now on.

        The prompts fit the video (``fit_prompt``).
        """

    def forget(self, identity: int) -> None:
        """Stop following an object and free its memory."""

    # Those that look at colours may also have ``claim(frame, taken)``, called before ``step``: pixels of the coming
    # frame, bool [H, W], that are known to belong to objects which are not followed here.


class PropagationModel(Protocol):
    """A segmentation model that can follow objects.

    Attributes:
        model: the torch module; it runs wherever its parameters are at the time of a call.
        corrected_by_boxes: whether a detected box beats what was carried over (picture models: a fresh mask from the
            box is better) or is only used when the two disagree (models with memory).

    Models that look for words themselves have ``takes_text`` True and
    ``find(film, frame, phrases) -> list[ObjectPrompt]``.
    """

    model: nn.Module
    corrected_by_boxes: bool

    def follow(self, film: Film, reverse: bool = False) -> Propagator:
        """Start following in a video, forwards or backwards in time."""


class Segmenter(Protocol):
    """A segmentation model for single pictures.

    Attributes:
        model: the torch module; it runs wherever its parameters are at the time of a call.
    """

    model: nn.Module

    def open(self, film: Film) -> SegmentedFilm:
        """Open a video; pictures are encoded when they are first needed."""


class SegmentedFilm(Protocol):
    """A video whose pictures a segmenter encodes, a few at a time and ahead of use, keeping only the latest ones."""

    def segment(
        self, frame: int, prompts: Sequence[ObjectPrompt], guesses: Sequence[Tensor | None] = ()
    ) -> list[Sighting]:
        """Masks of prompted objects in one frame, one a prompt.

        Args:
            frame: to look at.
            prompts: in pixels of the video; box, points and mask of one prompt are used together.
            guesses: per prompt a rough mask, float [H, W] 0..1, that the model may refine (its dense prompt), or None.
        """
