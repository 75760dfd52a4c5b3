"""Import this folder under the fixed name ``mask_guided_video``.

ComfyUI picks its own name for the package, and a clone may lie in a folder of any name; scripts and tests need one
that never changes. This is the only place where that name is bound.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PACKAGE_NAME = "mask_guided_video"
ROOT = Path(__file__).resolve().parent


def import_package() -> ModuleType:
    """Import the root folder as ``mask_guided_video`` (once) and return the module."""
    if PACKAGE_NAME in sys.modules:
        return sys.modules[PACKAGE_NAME]
    spec = importlib.util.spec_from_file_location(
        PACKAGE_NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{ROOT / '__init__.py'} cannot be imported: the checkout is incomplete; clone it again.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE_NAME] = module
    spec.loader.exec_module(module)
    return module
