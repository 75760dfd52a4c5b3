"""Masks of many objects over many frames in little memory: a bit or a byte a pixel, in RAM or in a file."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..weight_files.writing import NotWritten, check_room, size_text

Depth = Literal["bit", "byte"]

# Pixels that are unpacked at once by the methods that walk through a video.
CHUNK_PIXELS = 64 * 1024 * 1024


class MaskStack:
    """Masks of N objects over T frames, all of an object's masks laid out when it is added.

    Reading gives uint8, 0 outside to 255 inside, however the masks are kept. ``stack[0]`` is all masks of the first
    object [T, H, W], ``stack[0, 3]`` one mask [H, W], ``stack[:, 3]`` all objects in one frame [N, H, W]: any
    combination of numbers, slices and lists of numbers in the first two places, unpacked on the spot into a copy.

    Args:
        frames: T, at least 1.
        height: of the frames in pixels.
        width: of the frames in pixels.
        depth: ``bit`` keeps hard masks (an eighth of a byte a pixel, cut at one half), ``byte`` soft ones.
        folder: where to keep the masks in files, which need no memory and vanish with the stack; None keeps them in
            memory.

    Raises:
        ValueError: when a size is below 1.
        OSError: when the folder cannot be written or is full.
    """

    def __init__(
        self, frames: int, height: int, width: int, depth: Depth = "bit", folder: str | Path | None = None
    ) -> None:
        if min(frames, height, width) < 1:
            raise ValueError(f"masks of {frames} frames of {height} x {width} pixels; give at least 1 of each.")
        self.frames, self.height, self.width = frames, height, width
        self.depth: Depth = depth
        self.folder = folder
        self._films: list[np.ndarray] = []

    @classmethod
    def from_tensor(cls, masks: Tensor, depth: Depth | None = None) -> MaskStack:
        """Pack masks.

        Args:
            masks: uint8 [N, T, H, W], 0..255.
            depth: how to keep them; None takes bits when every pixel is 0 or 255.

        Raises:
            ValueError: for another shape or type.
        """
        if masks.ndim != 4 or masks.dtype != torch.uint8:
            raise ValueError(
                f"masks are {masks.dtype} {list(masks.shape)}; give uint8 [objects, frames, height, width]."
            )
        if depth is None:
            depth = "bit" if all(_is_hard(film) for film in masks.flatten(0, 1)) else "byte"
        stack = cls(*masks.shape[1:], depth)
        for film in masks:
            number = stack.add_object()
            for frame, mask in enumerate(film):
                stack.write(number, frame, mask)
        return stack

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, T, H, W)."""
        return len(self._films), self.frames, self.height, self.width

    def __len__(self) -> int:
        return len(self._films)

    @property
    def bytes_used(self) -> int:
        """Of all objects together, in memory or on disk, if every mask filled its frame; in memory less is taken."""
        return sum(film.nbytes for film in self._films)

    @property
    def bytes_in_memory(self) -> int:
        """Of all objects together: the pages that hold something; masks in files take none."""
        return 0 if self.folder is not None else sum(_taken(film) for film in self._films)

    def add_object(self) -> int:
        """Lay out empty masks for one more object and return its place.

        Raises:
            OSError: when the folder cannot be written or has too little room.
            MemoryError: when there is not enough memory.
        """
        row = self.width if self.depth == "byte" else -(-self.width // 8)
        shape = (self.frames, self.height, row)
        if self.folder is None:
            try:
                self._films.append(_untouched(shape))
            except (OSError, OverflowError) as error:
                numbers = {"frames": self.frames, "width": self.width, "height": self.height}
                raise MemoryError(too_large("masks", math.prod(shape), **numbers)) from error
        else:
            # The file has no name, so it cannot be left behind; the mapping keeps it alive.
            with tempfile.TemporaryFile(dir=self.folder) as file:
                reserve(file.fileno(), math.prod(shape), self.folder)
                self._films.append(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))
        return len(self._films) - 1

    def write(self, number: int, frame: int, mask: Tensor) -> None:
        """Put one mask in place.

        Args:
            number: place of the object.
            frame: of the video.
            mask: [H, W], uint8 0..255, bool, or float 0..1.

        Raises:
            ValueError: for another size.
        """
        if tuple(mask.shape) != (self.height, self.width):
            raise ValueError(f"a mask has shape {list(mask.shape)}; give [{self.height}, {self.width}].")
        mask = mask.detach().cpu()
        if self.depth == "bit":
            inside = mask if mask.dtype == torch.bool else mask > 127 if mask.dtype == torch.uint8 else mask >= 0.5
            values = np.packbits(inside.numpy(), axis=-1)
        elif mask.dtype == torch.uint8:
            values = mask.numpy()
        else:
            values = (mask.float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        # What was never written takes no memory: only the rows that hold something, or did, are.
        place = self._films[number][frame]
        rows = np.flatnonzero(values.any(axis=1) | place.any(axis=1))
        if len(rows):
            place[rows[0] : rows[-1] + 1] = values[rows[0] : rows[-1] + 1]

    def __getitem__(self, key: int | slice | Sequence[int] | tuple) -> Tensor:
        objects, frames = key if isinstance(key, tuple) else (key, slice(None))
        if not isinstance(objects, slice | Sequence):
            return self._unpack(self._films[objects][frames])
        places = range(len(self._films))[objects] if isinstance(objects, slice) else objects
        # Only the shape is looked at here: an array that takes no memory.
        picked = np.broadcast_to(np.uint8(0), (self.frames,))[frames]
        whole = torch.empty(len(places), *picked.shape, self.height, self.width, dtype=torch.uint8)
        for row, place in zip(whole, places, strict=True):
            row.copy_(self._unpack(self._films[place][frames]))
        return whole

    def _unpack(self, packed: np.ndarray) -> Tensor:
        if self.depth == "byte":
            return torch.from_numpy(np.array(packed))
        bits = np.unpackbits(packed, axis=-1, count=self.width)
        bits *= 255
        return torch.from_numpy(bits)

    def any(self, number: int, frame: int) -> bool:
        """Whether a mask has a pixel inside (or, with soft masks, more than nothing), without unpacking it."""
        return bool(self._films[number][frame].any())

    def chunks(self) -> Iterator[slice]:
        """Slices of frames, in order, that hold a bounded number of pixels of all objects."""
        step = max(1, CHUNK_PIXELS // (self.height * self.width * max(1, len(self._films))))
        for start in range(0, self.frames, step):
            yield slice(start, min(start + step, self.frames))

    def union(self, frames: slice = slice(None)) -> Tensor:
        """All objects together in some frames: uint8 [t, H, W], zero without objects."""
        if not self._films:
            return torch.zeros(len(range(self.frames)[frames]), self.height, self.width, dtype=torch.uint8)
        # Bits are joined while they are packed, eight pixels at a time.
        join = np.maximum if self.depth == "byte" else np.bitwise_or
        total = np.array(self._films[0][frames])
        for film in self._films[1:]:
            join(total, film[frames], out=total)
        return self._unpack(total)

    def select(self, places: Sequence[int]) -> MaskStack:
        """Only these objects, in this order; their masks are shared, not copied."""
        chosen = MaskStack(self.frames, self.height, self.width, self.depth, self.folder)
        chosen._films = [self._films[place] for place in places]
        return chosen

    def tensor(self) -> Tensor:
        """All masks unpacked: uint8 [N, T, H, W]."""
        return self[:]


def _untouched(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that take memory page by page when they are written."""
    size = math.prod(shape)
    if not hasattr(mmap, "MAP_PRIVATE"):
        space = mmap.mmap(-1, size)
    else:
        space = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # With pages of two megabytes every frame would be taken whole; not every system has them.
        with suppress(AttributeError, OSError):
            space.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(space, dtype=np.uint8).reshape(shape)


def too_large(what: str, size: int, **numbers: int) -> str:
    """What to say where memory is lacking: of what, how many bytes it takes, and the numbers that make it so large."""
    *most, last = (f"{name} ({value})" for name, value in numbers.items())
    return f"{what} take {size_text(size)}, more memory than there is; lower {', '.join(most)} or {last}."


def _taken(film: np.ndarray) -> int:
    """Bytes of the pages of an object's masks that hold something."""
    flat = film.reshape(-1)
    whole = len(flat) // mmap.PAGESIZE * mmap.PAGESIZE
    # Eight bytes are looked at in one go.
    pages = int(flat[:whole].view(np.uint64).reshape(-1, mmap.PAGESIZE // 8).any(axis=1).sum())
    return pages * mmap.PAGESIZE + (len(flat) - whole if flat[whole:].any() else 0)


def _is_hard(mask: Tensor) -> bool:
    return bool(((mask == 0) | (mask == 255)).all())


def reserve(file: int, size: int, folder: str | Path, what: str = "these masks") -> None:
    """Make an open file ``size`` bytes long, all of it on disk: a mapped page without room would end the process.

    Args:
        file: its descriptor.
        size: in bytes.
        folder: that it lies in.
        what: that is written to it, for the message.

    Raises:
        OSError: when the disk has too little room.
    """
    check_room(Path(folder), size, what)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror, str(Path(folder) / what)) from error
