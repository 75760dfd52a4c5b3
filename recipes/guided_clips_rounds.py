"""Finished rounds of guided clips on disk: each file is a place from which a run goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import replacing

KIND = "mask_guided_video.round"
# Frames that are read from disk at once.
PART = 16
MAX_SHOWN = 60


@dataclass(frozen=True)
class StoredRound:
    """A finished round.

    Attributes:
        path: its file: ``frames`` uint8 [n, H, W, 3] and ``last`` float32 [1, C, 1, h, w], the last frame's latents.
        frames: n.
    """

    path: Path
    frames: int

    def last(self) -> Tensor:
        """Latents of the last frame, to the bit: float32 [1, C, 1, h, w]."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor("last")

    def picture(self, number: int) -> Tensor:
        """One frame, counted from 0 (or from the end, below 0): float [H, W, 3] in 0..1."""
        number %= self.frames
        return next(self.parts(number, number + 1))[0]

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Frames from ``start`` on, a few at a time: float [k, H, W, 3] in 0..1."""
        stop = self.frames if stop is None else stop
        for first in range(start, stop, PART):
            with safe_open(self.path, framework="pt") as file:
                part = file.get_slice("frames")[first : min(first + PART, stop)]
            yield part.float() / 255.0


class RoundFolder:
    """The rounds of one film, each in a file that appears when it is complete.

    A file tells what its round was made of (its identity), so that a run with other settings does not go on from it.

    Args:
        folder: made when the first round is written; what an earlier run left half-written in it is removed.

    Raises:
        ValueError: the folder cannot be worked in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for path in folder.glob(".*.partial.safetensors"):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"the folder {str(folder)!r} cannot be written to ({error.strerror}); choose another one."
            ) from error

    def path(self, number: int) -> Path:
        """File of a round, counted from 0; its name counts from 1."""
        return self.folder / f"round_{number + 1:04d}.safetensors"

    def clear(self) -> None:
        """Forget all rounds."""
        for path in self.folder.glob("round_*.safetensors"):
            path.unlink()

    def finished(self, number: int, identity: dict[str, Any], origin: str) -> StoredRound | None:
        """A round that was finished earlier.

        Args:
            number: counted from 0.
            identity: what it must have been made of: plain JSON values by the names of settings.
            origin: fingerprint of what it begins with; a round that began otherwise is made again.

        Returns:
            None where there is none, or where its file is damaged.

        Raises:
            ValueError: the round was made of something else.
        """
        path = self.path(number)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                frames = file.get_slice("frames").get_shape()[0] if metadata.get("kind") == KIND else 0
        except (SafetensorError, OSError):
            return None
        try:
            before = json.loads(metadata.get("identity", ""))
        except json.JSONDecodeError:
            before = None
        if metadata.get("kind") != KIND or not isinstance(before, dict):
            raise ValueError(f"{str(path)!r} is no round of guided clips; choose another folder, or remove the file.")
        _check_identity(number, before, identity, self.folder)
        return StoredRound(path, frames) if metadata.get("origin") == origin else None

    def store(self, number: int, identity: dict[str, Any], origin: str, frames: Tensor, last: Tensor) -> StoredRound:
        """Write a round.

        Args:
            number, identity, origin: as in ``finished``.
            frames: uint8 [n, H, W, 3].
            last: float32 [1, C, 1, h, w].

        Raises:
            OSError: it cannot be written; the rounds before it stay.
        """
        metadata = {"kind": KIND, "identity": json.dumps(identity, sort_keys=True), "origin": origin}
        path = self.path(number)
        content = save({"frames": frames.contiguous(), "last": last.detach().cpu().float().contiguous()}, metadata)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise OSError(
                f"round {number + 1} cannot be written to {self.folder} ({error.strerror or error}); the {number} rounds "
                "before it are kept: make room, and start the same run again to go on from there."
            ) from error
        return StoredRound(path, len(frames))


def check_room(folder: Path, size: int) -> None:
    """Make sure that the disk takes what a run will write.

    Raises:
        OSError: too little room.
    """
    room = shutil.disk_usage(folder).free
    if room < size:
        raise OSError(
            f"{folder} has room for {room / 2**20:.0f} MiB and the rounds take {size / 2**20:.0f} MiB; free some, or choose "
            "another folder."
        )


def sha256(values: Tensor) -> str:
    """Fingerprint of a tensor: its numbers and its shape."""
    content = values.detach().cpu().contiguous()
    return hashlib.sha256(content.numpy().tobytes() + str(tuple(content.shape)).encode("ascii")).hexdigest()


def _check_identity(number: int, before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    # As JSON gives them back: lists for tuples.
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}, key=list({**now, **before}).index):
        old, new = before.get(name), now.get(name)
        if old != new:
            raise ValueError(
                f"round {number + 1} in {str(folder)!r} was made with {name} {_shown(old)}, and now {name} is "
                f"{_shown(new)}; set it back to go on, start afresh (--fresh on the command line), or choose another folder."
            )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " ..."
