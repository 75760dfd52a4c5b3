"""Stable Diffusion as folders of its parts (``text_encoder/``, ``vae/``, ``unet/``) in the folder ``diffusers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import folder_paths

FOLDER = "diffusers"
PARTS = ("text_encoder", "vae")
WHOLE = (*PARTS, "unet")


def diffusers_folders(parts: Sequence[str] = PARTS) -> dict[str, Path]:
    """Folders that hold all of these parts, at most two levels deep, by the names that nodes list."""
    found: dict[str, Path] = {}
    for place in folder_paths.get_folder_paths(FOLDER):
        root = Path(place)
        if not root.is_dir():
            continue
        for pattern in (f"*/{parts[0]}", f"*/*/{parts[0]}"):
            for first in sorted(root.glob(pattern)):
                if all((first.parent / part).is_dir() for part in parts[1:]):
                    name = f"{FOLDER}/{first.parent.relative_to(root).as_posix()}"
                    found.setdefault(name, first.parent)
    return found
