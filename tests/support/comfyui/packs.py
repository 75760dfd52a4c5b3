"""Other people's packs, as they are: where tests find them, and their import as ComfyUI does it.

A pack is looked for in the folder that ``COMFYUI_PACKS`` names, else in ``~/comfy/packs``, and in the checkout's
``custom_nodes``. None is ever fetched; tests with a pack that is absent are skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ANIMATEDIFF = "ComfyUI-AnimateDiff-Evolved"
KJNODES = "ComfyUI-KJNodes"
RES4LYF = "RES4LYF"
GGUF = "ComfyUI-GGUF"
SOL_ATTENTION = "ComfyUI-SolAttn_triton"


def found_pack(comfy_folder: Path, name: str) -> Path | None:
    """Where a pack lies, or None where it is absent.

    Args:
        comfy_folder: the ComfyUI checkout.
        name: of its folder, in capitals or small letters.
    """
    for place in _places(comfy_folder):
        for folder in sorted(place.glob("*")):
            if folder.name.lower() == name.lower() and (folder / "__init__.py").is_file():
                return folder
    return None


def pack_folder(comfy_folder: Path, name: str) -> Path:
    """As ``found_pack``; the test is skipped where the pack is absent."""
    found = found_pack(comfy_folder, name)
    if found is None:
        pytest.skip(f"{name} is neither in {_places(comfy_folder)[0]} nor among the custom nodes of this ComfyUI")
    return found


def _places(comfy_folder: Path) -> tuple[Path, Path]:
    named = os.environ.get("COMFYUI_PACKS")
    packs = Path(named).expanduser() if named else Path.home() / "comfy" / "packs"
    return packs, comfy_folder / "custom_nodes"


def load_pack(comfy_folder: Path, name: str, module_name: str, *needs: str) -> ModuleType:
    """A pack as ComfyUI imports it.

    Args:
        comfy_folder: the ComfyUI checkout.
        name: of its folder.
        module_name: what it is called in ``sys.modules``.
        needs: packages that it imports; the test is skipped where one is absent.
    """
    if module_name in sys.modules:
        return sys.modules[module_name]
    folder = pack_folder(comfy_folder, name)
    for package in needs:
        pytest.importorskip(package, reason=f"{name} needs {package}")
    _make_server(comfy_folder)
    spec = importlib.util.spec_from_file_location(
        module_name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def run_node(pack: ModuleType, node: str, **inputs: Any) -> Any:
    """First output of one of a pack's nodes, of the older or of the newer kind."""
    made = pack.NODE_CLASS_MAPPINGS[node]
    if hasattr(made, "execute"):
        return made.execute(**inputs).args[0]
    instance = made()
    return getattr(instance, instance.FUNCTION)(**inputs)[0]


def _make_server(comfy_folder: Path) -> None:
    """Packs add routes to the server when they are imported; this one never runs."""
    import asyncio

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(comfy_folder))
        # First, as the host's main program does: older nodes put the folder ``comfy`` with another one in front.
        importlib.import_module("utils.install_util")
        import server

    if getattr(server.PromptServer, "instance", None) is None:
        server.PromptServer(asyncio.new_event_loop())
