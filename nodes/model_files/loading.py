"""What the loaders of detectors and segmenters share: widgets, checks before a run, files and downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..support.host import progress, toybox_folder
from ..support.types import TOYBOX
from .downloads import fetch_model
from .folders import bert_folders, find_installed, find_model, missing_message, target_folder
from .known_models import known_model


def loading_inputs(names: list[str], where: str, safe: str) -> list[io.Input]:
    """Widgets of a loader.

    Args:
        names: of models.
        where: which folders and files are read, for the tooltip.
        safe: what auto precision does, likewise.
    """
    return [
        io.Combo.Input(
            "model_name",
            options=names,
            default=TOYBOX,
            tooltip=f"Toybox (bundled toy), then what is in {where}, then known models that are not there yet.",
        ),
        io.Combo.Input(
            "precision",
            options=["auto", "fp32", "fp16", "bf16"],
            default="auto",
            optional=True,
            tooltip=f"How the weights are kept. auto: {safe}. fp16 and bf16 halve the memory and cost a little "
            "accuracy.",
        ),
        io.Boolean.Input(
            "download",
            default=False,
            optional=True,
            tooltip="On: a known model that is not there is fetched from its page when the node runs (0.1 to 3 GB). "
            "Off: nothing is ever fetched, and the error says which file belongs where.",
        ),
    ]


def check_model(name: Any, download: Any, *folders: str) -> bool | str:
    """For ``validate_inputs``: true, or why this model cannot be loaded. Values that come over a wire are None.

    Core would only accept what is listed right now; here a workflow stays valid wherever its model can be had.
    """
    if not isinstance(name, str) or name == TOYBOX or find_installed(name, *folders) is not None:
        return True
    model = known_model(name, *folders)
    if model is not None and model.source and download is not False:
        return True
    return missing_message(name, *folders)


def model_path(name: str, download: bool, toybox: str, *folders: str) -> Path:
    """Where a model is, after fetching it if that is asked for.

    Args:
        name: as listed.
        download: whether it may be fetched.
        toybox: folder of the bundled model of this kind.
        folders: model folders to look in.

    Raises:
        FileNotFoundError: when it is not there.
        RuntimeError: when it cannot be fetched.
    """
    if name == TOYBOX:
        return toybox_folder(toybox)
    path, model = find_installed(name, *folders), known_model(name, *folders)
    if not download or model is None or not model.source:
        return path or find_model(name, *folders)
    report = progress()
    needed = known_model(model.needs, *folders)
    if needed is not None and not bert_folders():
        fetch_model(needed, target_folder(needed), report)
    return path or fetch_model(model, target_folder(model), report)
