"""What is kept of a video while its frames pass by on their way to the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...perception.pictures.film_strip import spread
from ..protocols import Progress
from .files import check_frames, to_bytes

# Height and width at most of the pictures that are kept for a sheet, in pixels.
KEPT_SIDE = 192


class FilmRecord:
    """Fingerprint, numbers over time and a few small pictures of a video that is seen once, frame after frame.

    Args:
        frames: how many there will be.
        window: length of the model's clips; colours at both ends are measured over as many.
        shown: how many pictures to keep, evenly spread.

    Attributes:
        frames, height, width: of the video; the sides are 0 until a frame was seen.
        changes: mean absolute difference (0..1, over RGB) of each frame to the one before; one less than frames.
        colours: mean colour [3] of each frame, 0..1.
        pictures: the kept ones by their number, uint8 [h, w, 3], small.
        middle_rows: uint8 [w, 3] of each frame, the row of pixels in the middle of its height.
    """

    def __init__(self, frames: int, window: int, shown: int = 16) -> None:
        self.frames = frames
        self.height = self.width = 0
        self.window = min(window, frames)
        self.changes: list[float] = []
        self.colours: list[Tensor] = []
        self.pictures: dict[int, Tensor] = {}
        self.middle_rows: list[Tensor] = []
        self._chosen = set(spread(frames, shown))
        self._digest = hashlib.sha256()

    def watch(
        self, parts: Iterable[Tensor], report: Progress | None = None, store: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Pass frames on as bytes, one by one, and keep what this record is for.

        Args:
            parts: frames [n, H, W, 3] in 0..1.
            report: called with (frames so far, all) after each part.
            store: [T, H, W, 3]; takes the frames as they are.

        Yields:
            uint8 [H, W, 3].

        Raises:
            ValueError: frames that are not a video, or more or fewer of them than expected.
        """
        done, before = 0, None
        for part in parts:
            check_frames(part)
            if done + len(part) > self.frames:
                raise ValueError(f"the video has more than the {self.frames} frames that were expected of the model.")
            if store is not None:
                store[done : done + len(part)] = part
            for number, picture in enumerate(part, start=done):
                frame = to_bytes(picture)
                self._keep(number, frame, before)
                before = frame
                yield frame
            done += len(part)
            # Not beside the next part in memory.
            del part, picture
            if report is not None:
                report(done, self.frames)
        if done != self.frames:
            raise ValueError(
                f"the video ended after {done} of the {self.frames} frames that were expected of the model."
            )

    def _keep(self, number: int, frame: Tensor, before: Tensor | None) -> None:
        if before is None:
            self.height, self.width = frame.shape[:2]
            # As for the whole video at once.
            self._digest.update(str((self.frames, *frame.shape)).encode("ascii"))
        else:
            self.changes.append((frame.float() - before.float()).abs().mean().item() / 255)
        self._digest.update(frame.numpy().tobytes())
        self.colours.append(frame.float().mean((0, 1)) / 255)
        small = reduced(frame, KEPT_SIDE)
        self.middle_rows.append(small[len(small) // 2].clone())
        if number in self._chosen:
            self.pictures[number] = small.clone()

    def measured(self) -> dict[str, Any]:
        """Plain JSON values: size, fingerprint, change from frame to frame and drift of the colours."""
        colours = torch.stack(self.colours)
        drift = (colours[: self.window].mean(0) - colours[-self.window :].mean(0)).norm().item()
        largest = max(range(len(self.changes)), key=self.changes.__getitem__, default=None)
        return {
            "frames": self.frames,
            "height": self.height,
            "width": self.width,
            "sha256": self._digest.hexdigest(),
            "change_mean": sum(self.changes) / len(self.changes) if self.changes else None,
            "change_largest": None if largest is None else self.changes[largest],
            "change_largest_at": None if largest is None else largest + 1,
            "colour_drift": drift,
        }


def reduced(picture: Tensor, side: int) -> Tensor:
    """A picture [H, W, 3] uint8, averaged so that its longer side is at most ``side``; small ones stay as they are."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= side:
        return picture
    size = [max(1, round(length * side / longest)) for length in (height, width)]
    pooled = functional.adaptive_avg_pool2d(picture.movedim(-1, 0)[None].float(), size)
    return (pooled[0].movedim(0, -1) + 0.5).to(torch.uint8)
