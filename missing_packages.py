"""Messages about packages that a feature needs and that are not installed. Uses the standard library only."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

INSTALLER = Path(__file__).resolve().parent / "install.py"
# Extras of install.py by the packages in them; all others come without a name.
EXTRA_OF = {"accelerate": "motion-tuning", "peft": "motion-tuning", "scipy": "evaluation"}
# What the nodes cannot do without and a plain requirements.txt does not bring.
NEEDED = ("cv2", "diffusers")


def install_command(package: str) -> str:
    """The shell command that gives the running Python a package and moves nothing that is there."""
    extra = [EXTRA_OF[package]] if package in EXTRA_OF else []
    return subprocess.list2cmdline([sys.executable, str(INSTALLER), *extra])


def missing_package(feature: str, package: str) -> ImportError:
    """The error of a feature whose package is missing: names both, and the command that mends it."""
    return ImportError(f"{feature} needs the package {package}; run: {install_command(package)}")


def warn_of_missing_packages() -> None:
    """Say once, when the nodes are loaded, what they will miss; their own errors could name a module only."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        logging.getLogger(__name__).warning(
            "Mask-Guided Video needs %s; run: %s", " and ".join(missing), install_command(missing[0])
        )
