"""Stable Diffusion in folders of its parts (``text_encoder/``, ``vae/``), in ComfyUI's model folder ``diffusers``."""

from __future__ import annotations

from pathlib import Path

import folder_paths

FOLDER = "diffusers"
PARTS = ("text_encoder", "vae")


def diffusers_folders() -> dict[str, Path]:
    """Folders that hold both parts, at most two levels deep, by the names that nodes list."""
    found: dict[str, Path] = {}
    for place in folder_paths.get_folder_paths(FOLDER):
        root = Path(place)
        if not root.is_dir():
            continue
        for pattern in (f"*/{PARTS[0]}", f"*/*/{PARTS[0]}"):
            for encoder in sorted(root.glob(pattern)):
                if (encoder.parent / PARTS[1]).is_dir():
                    name = f"{FOLDER}/{encoder.parent.relative_to(root).as_posix()}"
                    found.setdefault(name, encoder.parent)
    return found
