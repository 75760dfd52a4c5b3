"""The names of the objects in a file of masks: a small file beside it, which ``follow`` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

NAMES_SUFFIX = ".names.json"


def names_path(masks: Path) -> Path:
    """``masks.names.json`` for ``masks.npy``."""
    return masks.with_suffix(NAMES_SUFFIX)


def write_names(masks: Path, names: Sequence[str]) -> None:
    """Write the names of the objects of an array of masks beside it, in their order; an empty one means no name."""
    names_path(masks).write_text(json.dumps(list(names), ensure_ascii=False) + "\n", encoding="utf-8")


def read_names(masks: Path, objects: int | None = None) -> tuple[str, ...]:
    """Names of the objects in a file of masks; empty ones where nothing is written beside it.

    Args:
        masks: NumPy array; other files and folders hold one object without a name.
        objects: how many there are in it; None where that is not known yet.

    Raises:
        ValueError: the file of names is not a list of texts, or its length is not the number of objects.
    """
    path = names_path(masks)
    if masks.suffix.lower() != ".npy" or not path.is_file():
        return ("",) * (objects or 0)
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"the names {str(path)!r} cannot be read ({error}); correct or delete the file.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{str(path)!r} does not hold a list of texts; write one name per object, or delete the file.")
    if objects not in (None, len(names)):
        raise ValueError(
            f"{path.name} names {len(names)} objects and {masks.name} holds {objects}; correct or delete the names."
        )
    return tuple(" ".join(name.split()) for name in names)
