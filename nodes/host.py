"""What nodes ask of the host: model folders, memory, progress and cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch

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


def toybox_folder(name: str) -> Path:
    """A folder of the bundled demo models.

    Raises:
        FileNotFoundError: if the pack was copied without it.
    """
    folder = Path(__file__).resolve().parent.parent / "toybox" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"the Toybox is incomplete: {folder} is missing; restore the folder toybox.")
    return folder


def model_folders(*folders: str) -> list[str]:
    """``Toybox`` first, then every sub-folder with a weight file, for models that are folders of files."""
    return [name for name in folders_and_files(*folders) if Path(name).suffix not in MODEL_EXTENSIONS]


def folders_and_files(*folders: str) -> list[str]:
    """``Toybox`` first, then single weight files, and sub-folders that hold some, without repeats."""
    names: dict[str, None] = {}
    for folder in folders:
        for name in folder_paths.get_filename_list(folder):
            parent = Path(name).parent.as_posix()
            names.setdefault(name if parent == "." else parent)
    return [TOYBOX, *names]


def model_file_or_folder(name: str, *folders: str) -> Path:
    """Full path of something that :func:`folders_and_files` listed.

    Raises:
        FileNotFoundError: naming it and where it was searched.
    """
    for folder in folders:
        for listed in folder_paths.get_filename_list(folder):
            if listed == name:
                return Path(folder_paths.get_full_path_or_raise(folder, listed))
            if Path(listed).parent.as_posix() == name:
                return Path(folder_paths.get_full_path_or_raise(folder, listed)).parent
    searched = ", ".join(f"models/{folder}" for folder in folders)
    raise FileNotFoundError(f"{name!r} is not in {searched}; put it there and refresh, or choose {TOYBOX}.")


class HelperHolder(torch.nn.Module):
    """Holds a transformers model: ``ModelPatcher`` writes ``device``, which such models only let it read."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def wrap_helper(helper: Any, module: torch.nn.Module, name: str) -> HelperModel:
    """Put a helper model under ComfyUI's memory management."""
    patcher = comfy.model_patcher.ModelPatcher(
        HelperHolder(module), load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    return HelperModel(patcher, helper, name)
