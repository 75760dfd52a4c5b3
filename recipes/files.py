"""Results of a run appear in their folder together, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..weight_files.writing import LOCK, stage_in


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``folder`` when the block ends well, and vanish when it does not.

    Entering makes ``folder`` and proves that it can be written to, so that a run of minutes does not end in an error.

    Args:
        folder: where the files go; made when missing. Files of the same name are replaced.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    existed = folder.exists()
    try:
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stage = stack.enter_context(stage_in(folder))
            except OSError as error:
                raise ValueError(
                    f"the output folder {str(folder)!r} cannot be written to ({error.strerror}); choose another one."
                ) from error
            yield stage
            for path in sorted(stage.iterdir()):
                if path.name != LOCK:
                    os.replace(path, folder / path.name)
    finally:
        if not existed:
            # Only where it is empty.
            with suppress(OSError):
                folder.rmdir()
