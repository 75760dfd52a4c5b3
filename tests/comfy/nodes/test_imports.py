"""What comes into memory when ComfyUI imports the nodes."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.comfy

# Prints the packages that our nodes bring along, besides our own, ComfyUI's and Python's.
SCRIPT = """
import importlib, pkgutil, sys
root, core = sys.argv[1:]
sys.path.insert(0, core)
sys.argv = sys.argv[:1]
import torch
from comfy.cli_args import args
args.cpu = not torch.cuda.is_available()
import comfy_api.latest, latent_preview, nodes
before = {name.split(".")[0] for name in sys.modules}
sys.path.append(root)
import bootstrap
package = bootstrap.import_package()
assert package.NODE_CLASS_MAPPINGS
ours = importlib.import_module(package.__name__ + ".nodes")
for module in pkgutil.walk_packages(ours.__path__, ours.__name__ + "."):
    importlib.import_module(module.name)
after = {name.split(".")[0] for name in sys.modules}
print(*sorted(after - before - sys.stdlib_module_names - {"bootstrap", package.__name__}))
"""


def test_nodes_bring_no_package_that_comfyui_has_not_imported(root, comfy_folder):
    """Above all not diffusers, cv2, peft, accelerate and matplotlib, which are slow or missing."""
    command = [sys.executable, "-c", SCRIPT, str(root), str(comfy_folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [], result.stdout
