"""What nodes ask of the host: model folders, memory, progress and cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths

from .types import TOYBOX, HelperModel

MODEL_EXTENSIONS = {".safetensors", ".sft", ".pth", ".pt", ".bin"}


def register_folder(name: str) -> None:
    """Make sure a model folder is known; paths that the user's own settings gave it stay, and stay first."""
    default = str(Path(folder_paths.models_dir) / name)
    paths, extensions = folder_paths.folder_names_and_paths.get(name, ([], set()))
    merged = [*paths] if default in paths else [*paths, default]
    folder_paths.folder_names_and_paths[name] = (merged, {*extensions, *MODEL_EXTENSIONS})


def model_files(*folders: str) -> list[str]:
    """``Toybox`` first, then every weight file of these model folders, without repeats."""
    names: dict[str, None] = {}
    for folder in folders:
        for name in folder_paths.get_filename_list(folder):
            names.setdefault(name)
    return [TOYBOX, *names]


def model_path(name: str, *folders: str) -> Path:
    """Full path of a listed file.

    Raises:
        FileNotFoundError: naming the file and the folders that were searched.
    """
    for folder in folders:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return Path(path)
    searched = ", ".join(f"models/{folder}" for folder in folders)
    raise FileNotFoundError(f"{name!r} is not in {searched}; put the file there and refresh, or choose {TOYBOX}.")


def progress(total: int | None = None) -> Callable[[int, int], None]:
    """A progress function for long work: moves the node's bar, and raises when the user cancels."""
    bar = comfy.utils.ProgressBar(total or 1)

    def report(done: int, of: int) -> None:
        bar.update_absolute(done, of)
        management.throw_exception_if_processing_interrupted()

    return report


def load_helper(model: HelperModel, frames: int) -> Any:
    """Bring a helper model to the device it runs on, evicting others when memory is short, and return its helper."""
    activations = 256 * 1024 * 1024 + frames * 1024 * 1024
    management.load_models_gpu([model.patcher], memory_required=activations)
    return model.helper
