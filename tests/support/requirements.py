"""The installer as a module, and what ComfyUI brings: for tests of what is declared and installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
# ComfyUI's own modules, found on its path when it runs.
HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "node_helpers", "nodes"}
HOST_MODULES |= {"comfy_config", "comfy_execution", "execution", "server", "utils"}
# What ComfyUI's requirements.txt brings; only tests that run with it may import them.
HOST_PACKAGES = {"aiohttp", "sentencepiece"}


def load_installer() -> ModuleType:
    """install.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("requirements_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
