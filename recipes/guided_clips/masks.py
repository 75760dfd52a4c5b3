"""The masks of each round of guided clips, cut out of one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attention_patches.checks import check_shape
from ...perception.masks.mask_paths import ObjectPath, path_tracks
from ..given.masks import checked_masks, fit_masks
from .settings import MaskBorders, joined_frames

# Masks whose first and last frames differ by more than this, averaged over the picture, do not meet at a border: half a
# pixel of an outline is less, an object elsewhere is more.
BORDER_TOLERANCE = 0.002


@dataclass(frozen=True, eq=False)
class RoundMasks:
    """Where each round's masks lie in the given sequence.

    Attributes:
        masks: [N, L, h, w] in 0..1, one per object; L is 1, or what ``rounds`` rounds need.
        rounds: how many.
        frames: of each round.
        step: frames from the beginning of one round to that of the next; 0 where one mask serves all.
        borders: what to do where rounds do not meet.
    """

    masks: Tensor
    rounds: int
    frames: int
    step: int
    borders: MaskBorders

    @classmethod
    def of(
        cls, masks: Tensor, rounds: int, frames: int, height: int, width: int, borders: MaskBorders = "check"
    ) -> RoundMasks:
        """Find the rounds in a sequence.

        Args:
            masks: [H, W], [L, H, W] or [N, L, H, W] in 0..1. L is 1 (the mask of all frames), R * (n - 1) + 1 (one
                sequence; neighbouring rounds share a mask) or R * n (n masks for each round, of which the first
                equals the last of the round before).
            rounds, frames: R and n.
            height, width: of the video; masks of another size are brought to it later, but not distorted.
            borders: ``check``, or ``repair``, which puts the last mask of a round in the place of the next one's first.

        Raises:
            ValueError: another number of masks, a broken sequence, a picture of quite another shape,
                or rounds that do not meet.
        """
        if masks.ndim == 4 and not len(masks):
            # Without objects: as one that is nowhere.
            masks = masks.new_zeros(1, *masks.shape[1:])
        masks = checked_masks(masks)
        check_shape("the masks are", masks.shape[2:], (height, width))
        found = cls(masks, rounds, frames, _step(masks.shape[1], rounds, frames), borders)
        found._check_borders()
        return found

    def _check_borders(self) -> None:
        if self.borders == "repair" or self.step != self.frames:
            return
        for number in range(1, self.rounds):
            before, after = self.masks[:, number * self.step - 1], self.masks[:, number * self.step]
            difference = (before.float() - after.float()).abs().mean((1, 2))
            worst = int(difference.argmax())
            if float(difference[worst]) > BORDER_TOLERANCE:
                raise ValueError(
                    f"round {number + 1} begins with another mask of object {worst + 1} than round {number} ends with "
                    f"({float(difference[worst]):.1%} of the picture differs), so the object would jump; let mask "
                    f"{number * self.step} (counted from 0) equal the one before it, or repair the borders."
                )

    def of_round(self, number: int, phrases: Sequence[str], height: int, width: int) -> Tensor:
        """The masks of a round, counted from 0: float [N, n, height, width] in 0..1."""
        start = number * self.step
        chunk = self.masks[:, start : start + self.frames].float()
        if number and self.borders == "repair" and self.step == self.frames:
            chunk = torch.cat([self.masks[:, start - 1 : start].float(), chunk[:, 1:]], dim=1)
        names = tuple(phrases) or tuple(f"object {place}" for place in range(1, len(chunk) + 1))
        return fit_masks(chunk, names, self.frames, height, width).object_masks()

    def strength_of_round(self, number: int, frame_strength: Sequence[float]) -> tuple[float, ...]:
        """The factors of a round's frames, taken from those of the whole sequence.

        Raises:
            ValueError: the count is not 0, 1 or the number of masks.
        """
        if len(frame_strength) < 2:
            return tuple(frame_strength)
        if len(frame_strength) != self.masks.shape[1]:
            raise ValueError(
                f"there are {len(frame_strength)} frame strengths for {self.masks.shape[1]} masks; give one per mask."
            )
        return tuple(frame_strength[number * self.step : number * self.step + self.frames])


def path_masks(paths: Sequence[ObjectPath], rounds: int, frames: int, height: int, width: int) -> Tensor:
    """Masks [N, L, H, W] of objects on their paths, over a video in which neighbouring rounds share a frame.

    Args:
        paths: at least one; frames of their keyframes count over the whole video.
        rounds, frames: how many rounds of how many frames.
        height, width: of the video in pixels.

    Raises:
        ValueError: no path.
    """
    if not paths:
        raise ValueError("the path holds no objects; draw at least one.")
    return path_tracks(paths, joined_frames(rounds, frames), height, width).object_masks()


def _step(length: int, rounds: int, frames: int) -> int:
    if length == 1:
        return 0
    if length == joined_frames(rounds, frames):
        return frames - 1
    if length == rounds * frames:
        return frames
    if rounds == 1:
        raise ValueError(
            f"there are {length} masks and the clip has {frames} frames; give one per frame, or a single one."
        )
    raise ValueError(
        f"there are {length} masks, not a whole number of rounds: {rounds} rounds of {frames} frames take "
        f"{joined_frames(rounds, frames)} (one sequence; neighbouring rounds share a frame) or {rounds * frames} "
        f"({frames} for each round)."
    )
