"""Finished rounds of guided clips on disk: each file is a place from which a run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...weight_files.writing import only_process, write_tensors

KIND = "mask_guided_video.round"
CHECKSUM = "sha256"
# Frames that are read from disk at once.
PART = 16
MAX_SHOWN = 60


@dataclass(frozen=True)
class StoredRound:
    """A finished round.

    Attributes:
        path: its file: ``frames`` uint8 [n, H, W, 3] and ``last`` float32 [1, C, 1, h, w], the last frame's latents.
        frames: n.
        checksum: of both, as the file names it; empty in files of versions that wrote none.

    Reading raises OSError where the file is not the one that was stored.
    """

    path: Path
    frames: int
    checksum: str

    def last(self) -> Tensor:
        """Latents of the last frame, exactly as sampled: float32 [1, C, 1, h, w]."""
        with self._opened() as file:
            return file.get_tensor("last")

    def picture(self, number: int) -> Tensor:
        """One frame, counted from 0 (or from the end, below 0): float [H, W, 3] in 0..1."""
        number %= self.frames
        return next(self.parts(number, number + 1))[0]

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Frames from ``start`` on, a few at a time: float [k, H, W, 3] in 0..1."""
        stop = self.frames if stop is None else stop
        for first in range(start, stop, PART):
            with self._opened() as file:
                part = file.get_slice("frames")[first : min(first + PART, stop)]
            yield part.float() / 255.0

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get(CHECKSUM, "") == self.checksum:
                    yield file
                    return
        except (SafetensorError, FileNotFoundError):
            pass
        raise OSError(
            f"{str(self.path)!r} was replaced or removed while this run worked with it; "
            "let only one run at a time work in a folder, and start this one again."
        )


class RoundFolder:
    """The rounds of one video, each in a file that appears when it is complete.

    A file records what its round was made of (its identity), so that a run with other settings does not go on from it.

    Args:
        folder: made by ``alone``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work in the folder while no other process does; what an earlier run left half-written in it is removed.

        Raises:
            ValueError: another run works in it, or it cannot be worked in.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(only_process(self.folder, "makes rounds"))
                for path in self.folder.glob(".*.partial.safetensors"):
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise ValueError(
                    f"the folder {str(self.folder)!r} cannot be written to ({error.strerror}); choose another one."
                ) from error
            yield

    def path(self, number: int) -> Path:
        """File of a round, counted from 0; its name counts from 1."""
        return self.folder / f"round_{number + 1:04d}.safetensors"

    def clear(self) -> None:
        """Remove all rounds."""
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
                frames, last = (
                    (file.get_tensor("frames"), file.get_tensor("last"))
                    if metadata.get("kind") == KIND
                    else (None, None)
                )
        except (SafetensorError, OSError):
            return None
        try:
            before = json.loads(metadata.get("identity", ""))
        except json.JSONDecodeError:
            before = None
        if metadata.get("kind") != KIND or not isinstance(before, dict):
            raise ValueError(f"{str(path)!r} is not a round of guided clips; choose another folder, or remove it.")
        _check_identity(number, before, identity, self.folder)
        checksum = metadata.get(CHECKSUM, "")
        if metadata.get("origin") != origin or (checksum and checksum != _checksum(frames, last)):
            return None
        return StoredRound(path, len(frames), checksum)

    def store(self, number: int, identity: dict[str, Any], origin: str, frames: Tensor, last: Tensor) -> StoredRound:
        """Write a round.

        Args:
            number, identity, origin: as in ``finished``.
            frames: uint8 [n, H, W, 3].
            last: float32 [1, C, 1, h, w].

        Raises:
            OSError: it cannot be written; the rounds before it stay.
        """
        last = last.detach().cpu().float()
        checksum = _checksum(frames, last)
        metadata = {"kind": KIND, "identity": json.dumps(identity, sort_keys=True), "origin": origin}
        path = self.path(number)
        try:
            write_tensors(path, {"frames": frames, "last": last}, {**metadata, CHECKSUM: checksum})
        except OSError as error:
            raise OSError(
                f"round {number + 1} cannot be written to {self.folder} ({error.strerror or error}); "
                f"the {number} rounds before it are kept: make room, and start the same run again to go on from there."
            ) from error
        return StoredRound(path, len(frames), checksum)


def sha256(values: Tensor) -> str:
    """Fingerprint of a tensor: its numbers and its shape."""
    content = values.detach().cpu().contiguous()
    return hashlib.sha256(content.numpy().tobytes() + str(tuple(content.shape)).encode("ascii")).hexdigest()


def _checksum(frames: Tensor, last: Tensor) -> str:
    return hashlib.sha256((sha256(frames) + sha256(last)).encode("ascii")).hexdigest()


def _check_identity(number: int, before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    # As JSON gives them back: lists for tuples.
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}, key=list({**now, **before}).index):
        old, new = before.get(name), now.get(name)
        if old != new:
            raise ValueError(
                f"round {number + 1} in {str(folder)!r} was made with {name} {_shown(old)}, and now {name} is "
                f"{_shown(new)}; set it back to go on, start afresh (--fresh on the command line), "
                "or choose another folder."
            )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " ..."
