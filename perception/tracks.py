"""Objects followed through a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .mask_stack import MaskStack


@dataclass(frozen=True)
class Tracks:
    """Masks of N objects over T frames, on the CPU; N may be 0.

    Attributes:
        masks: a stack that reads as uint8 [N, T, H, W], 0 outside to 255 inside; a tensor of that kind is packed.
        ids: N different numbers, the same object keeps its number.
        labels: N phrases.
        scores: float [N, T], 0..1, confidence of the mask in each frame, 0 where the object was not seen.
        misses: bool [N, T], frames in which the object was not seen; their masks are filled from neighbours or empty.

    Raises:
        ValueError: when shapes, types or counts do not agree, or a score is not finite.
    """

    masks: MaskStack
    ids: tuple[int, ...]
    labels: tuple[str, ...]
    scores: Tensor
    misses: Tensor

    def __post_init__(self) -> None:
        if isinstance(self.masks, Tensor):
            object.__setattr__(self, "masks", MaskStack.from_tensor(self.masks))
        objects, frames = self.masks.shape[:2]
        if len(self.ids) != objects or len(set(self.ids)) != objects or len(self.labels) != objects:
            raise ValueError(
                f"{objects} tracks have ids {self.ids} and labels {self.labels}; give each a different id and a label."
            )
        for name, value in (("scores", self.scores), ("misses", self.misses)):
            if tuple(value.shape) != (objects, frames):
                raise ValueError(f"track {name} have shape {list(value.shape)}; give [{objects}, {frames}].")
        if not bool(torch.isfinite(self.scores).all()):
            number, frame = (~torch.isfinite(self.scores)).nonzero()[0].tolist()
            raise ValueError(
                f"the score of object {self.ids[number]} in frame {frame} is {float(self.scores[number, frame])}; give "
                "numbers in 0..1, 0 where the object was not seen."
            )

    @classmethod
    def empty(cls, frames: int, height: int, width: int) -> Tracks:
        """Tracks without objects: masks [0, T, H, W]."""
        return cls(
            MaskStack(frames, height, width),
            (),
            (),
            torch.zeros(0, frames),
            torch.zeros(0, frames, dtype=torch.bool),
        )

    @classmethod
    def from_masks(cls, masks: Tensor, labels: tuple[str, ...] | None = None) -> Tracks:
        """Tracks of given masks, each frame counted as seen where its mask is not empty.

        Args:
            masks: float [N, T, H, W] or [T, H, W], 0..1.
            labels: one per object, empty by default.

        Raises:
            ValueError: for another shape or values that are not finite.
        """
        if masks.ndim == 3:
            masks = masks[None]
        if masks.ndim != 4:
            raise ValueError(f"masks have shape {list(masks.shape)}; give [objects, frames, height, width].")
        stack = _packed(masks)
        seen = torch.tensor([[bool((mask > 0.5).any()) for mask in film] for film in masks], dtype=torch.bool)
        seen = seen.reshape(masks.shape[:2])
        count = masks.shape[0]
        names = labels if labels is not None else ("",) * count
        return cls(stack, tuple(range(1, count + 1)), names, seen.float(), ~seen)

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return self.masks.frames

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.masks.height, self.masks.width

    def object_masks(self) -> Tensor:
        """Float [N, T, H, W], 0..1. Four bytes a pixel: for long videos read ``masks`` in parts instead."""
        return self.masks.tensor().float().div_(255)

    def union(self) -> Tensor:
        """All objects together: float [T, H, W], 0..1, zero without objects. Four bytes a pixel."""
        whole = torch.empty(self.frames, *self.size)
        for part in self.masks.chunks():
            torch.div(self.masks.union(part), 255, out=whole[part])
        return whole

    def with_masks(self, masks: Tensor) -> Tracks:
        """The same objects with other masks: float [N, T, H, W], 0..1.

        Raises:
            ValueError: for another shape or values that are not finite.
        """
        if tuple(masks.shape) != self.masks.shape:
            raise ValueError(f"masks have shape {list(masks.shape)}; give {list(self.masks.shape)} as the tracks have.")
        return replace(self, masks=_packed(masks))

    def select(self, indices: Sequence[int]) -> Tracks:
        """Only the tracks at these positions, in this order."""
        indices = list(indices)
        return Tracks(
            self.masks.select(indices),
            tuple(self.ids[index] for index in indices),
            tuple(self.labels[index] for index in indices),
            self.scores[indices],
            self.misses[indices],
        )

    def report(self) -> str:
        """One line per object: how often it was seen and where it was missed."""
        if not self.ids:
            return f"no object in {self.frames} frames"
        lines = []
        for number, (identity, label) in enumerate(zip(self.ids, self.labels, strict=True)):
            missed = self.misses[number].nonzero().flatten().tolist()
            seen = self.frames - len(missed)
            line = f"{identity} {label or 'object'}: seen in {seen} of {self.frames} frames"
            if seen:
                line += f", mean score {self.scores[number][~self.misses[number]].mean().item():.2f}"
            if missed:
                line += f", missed in {frame_ranges(missed)}"
            lines.append(line)
        return "\n".join(lines)


def frame_ranges(frames: Sequence[int], most: int = 12) -> str:
    """Frame numbers as readable text: ``0, 3-5`` for [0, 3, 4, 5].

    Args:
        frames: in rising order.
        most: numbers and ranges that are written out; the count of further frames follows in one number.
    """
    parts: list[tuple[int, int]] = []
    for frame in frames:
        if parts and parts[-1][1] == frame - 1:
            parts[-1] = (parts[-1][0], frame)
        else:
            parts.append((frame, frame))
    words = [str(first) if first == last else f"{first}-{last}" for first, last in parts[:most]]
    left = sum(last - first + 1 for first, last in parts[most:])
    return ", ".join(words) + (f" and {left} more" if left else "")


def _packed(masks: Tensor) -> MaskStack:
    """Pack float masks [N, T, H, W] frame by frame: as bits when every pixel is 0 or 1, else as bytes."""
    hard = True
    for mask in masks.flatten(0, 1):
        if not torch.isfinite(mask).all():
            raise ValueError("masks hold NaN or infinite values; give numbers in 0..1.")
        hard = hard and bool(((mask <= 0) | (mask >= 1)).all())
    stack = MaskStack(*masks.shape[1:], "bit" if hard else "byte")
    for film in masks:
        number = stack.add_object()
        for frame, mask in enumerate(film):
            stack.write(number, frame, mask.float())
    return stack
