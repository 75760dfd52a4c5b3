"""Write files so that an interrupted run leaves nothing half-written; the next run removes what a killed one left."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

# Folders in which results wait until they are complete.
STAGE = ".partial-"
# Held by the process that works in a folder; the system releases it when the process ends, however it ends.
LOCK = ".lock"
# A stage without a lock may be one that was made just now.
SECONDS_TO_LOCK = 60
# System errors that more room would fix.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SYSTEM_ERROR = re.compile(r"os error (\d+)")


class NotWritten(OSError):
    """A file cannot be written.

    Its text is a sentence with the name and the folder that a user knows; ``errno`` and ``strerror`` are the system's.
    """

    def __str__(self) -> str:
        path = visible(Path(self.filename))
        way_out = "make room there, or choose another folder" if self.errno in FULL else "choose another name or folder"
        return f"{path.name!r} cannot be written to {str(path.parent)!r} ({self.strerror}); {way_out}."


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file of the same name, not made yet; it takes the place of ``path`` at the end.

    Raises:
        ValueError: the folder of ``path`` does not exist.
        NotWritten: no room, no right to write, or a name that no file can have.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{str(path)!r} cannot be written: the folder does not exist; make it first.")
    try:
        with stage_in(path.parent) as stage:
            yield stage / path.name
            # As readable as any file that is made here: some writers keep theirs to the user.
            shutil.copymode(stage / LOCK, stage / path.name)
            os.replace(stage / path.name, path)
    except NotWritten:
        raise
    except OSError as error:
        if error.errno is None or not _is_of(error, path):
            raise
        raise NotWritten(error.errno, error.strerror, str(path)) from error


@contextmanager
def stage_in(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder in an existing one, for files that are not complete yet; it vanishes at the end.

    Those that killed processes left in ``folder`` are removed.

    Raises:
        OSError: the folder cannot be written to.
    """
    for left in folder.glob(f"{STAGE}*"):
        _remove_abandoned(left)
    stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=folder))
    try:
        with (stage / LOCK).open("ab") as file:
            _lock(file)
            yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def only_process(folder: Path, what: str) -> Iterator[None]:
    """Work in a folder that no other process works in meanwhile; it is made, and removed again if it stays empty.

    Where the file system does not support locks, nothing is held.

    Args:
        folder: to work in.
        what: the other process does there, for the message.

    Raises:
        ValueError: another process works in it.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    file = _held(path)
    if file is None:
        raise ValueError(
            f"another run {what} in {str(folder)!r} right now; wait until it has ended, or choose another folder."
        )
    try:
        yield
    finally:
        # It must be gone before the next process locks it; some systems remove no open file.
        on_close = os.name == "nt"
        if not on_close:
            path.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):
            if on_close:
                path.unlink()
            folder.rmdir()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; its folder is made, and it appears under its name when it is complete.

    Raises:
        NotWritten: no room, or no right to write.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {name: value.contiguous() for name, value in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror, str(path)) from error
    with replacing(path) as temporary:
        try:
            save_file(ready, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            # Its writer hides the system's error in its own text.
            number = _SYSTEM_ERROR.search(str(error))
            if number is None:
                raise
            code = int(number[1])
            raise NotWritten(code, os.strerror(code), str(path)) from error


def check_room(folder: Path, size: int, what: str) -> None:
    """Make sure that the disk has room for what will be written.

    Args:
        folder: to write to; it need not exist yet.
        size: in bytes.
        what: will be written, in the plural, for the message.

    Raises:
        OSError: too little room.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    room = shutil.disk_usage(there).free
    if room < size:
        raise OSError(
            f"{str(visible(folder))!r} has room for {size_text(room)} and {what} take {size_text(size)}; free some, or "
            "choose another folder."
        )


def check_writable(path: Path) -> None:
    """Make sure, before long work, that a file can be written; folders that are made for the trial are removed.

    Raises:
        NotWritten: no right to write, no folder can be made there, or a name that no file can have.
    """
    made: list[Path] = []
    try:
        made += [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with stage_in(path.parent) as stage:
            (stage / path.name).touch()
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NotWritten(getattr(error, "errno", None), reason, str(path)) from error
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def size_text(size: int) -> str:
    """A number of bytes as readable text: ``12 KiB``, ``3.4 MiB``."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.{0 if value >= 10 or units[0] == 'bytes' else 1}f} {units[0]}"


def visible(path: Path) -> Path:
    """A path as a user knows it: without the folder in which it waits until it is complete."""
    return Path(*(part for part in path.parts if not part.startswith(STAGE)))


def _is_of(error: OSError, path: Path) -> bool:
    """Whether an error is about a file that was to be written, or the disk as a whole, not about one that was read."""
    if error.filename is None:
        return True
    shown = visible(Path(os.fsdecode(error.filename)))
    return visible(path).parent in (shown, shown.parent)


def _remove_abandoned(stage: Path) -> None:
    """Remove a stage unless a process may still be at work in it."""
    # Of another user, or removed by another process in the same moment.
    with suppress(OSError):
        if not (stage / LOCK).is_file():
            if time.time() - stage.stat().st_mtime > SECONDS_TO_LOCK:
                shutil.rmtree(stage, ignore_errors=True)
            return
        with (stage / LOCK).open("ab") as file:
            abandoned = _lock(file)
        if abandoned:
            shutil.rmtree(stage, ignore_errors=True)


def _held(path: Path) -> BinaryIO | None:
    """Make a file and lock it; None when another process has it. Closing releases it."""
    while True:
        file = path.open("ab")
        if _lock(file) is False:
            file.close()
            return None
        # Between opening and locking, whoever had it may have removed it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _lock(file: BinaryIO) -> bool | None:
    """Lock an open file; False when another has it, None where the file system does not support locks."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True
