"""Write results so that an interrupted run leaves nothing half-written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``folder`` when the block ends well, and vanish when it does not.

    Entering makes ``folder`` and proves that it can be written to, so that a run of minutes does not end in an error.

    Args:
        folder: where the files shall be; made when missing. Files of the same name are replaced.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise ValueError(
            f"the output folder {str(folder)!r} cannot be written to ({error.strerror}); choose another one."
        ) from error
    complete = False
    try:
        yield stage
        for path in sorted(stage.iterdir()):
            os.replace(path, folder / path.name)
        complete = True
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not complete and not existed and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` with the same suffix; it takes the place of ``path`` at the end.

    Raises:
        ValueError: the folder of ``path`` does not exist.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{str(path)!r} cannot be written: the folder does not exist; make it first.")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
