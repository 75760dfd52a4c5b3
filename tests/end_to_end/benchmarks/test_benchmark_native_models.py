"""A quick run of the benchmark of native models, as a process of its own with ComfyUI."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


def test_a_quick_run_measures_and_writes_nothing(root, comfy_folder):
    script = root / "benchmarks" / "native_models.py"
    before = sorted((root / "benchmarks" / "results").iterdir())
    command = [sys.executable, str(script), "--device", "cpu", "--quick", "--families", "ltx", "--threads", "1"]
    environment = {**os.environ, "COMFYUI_PATH": str(comfy_folder)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=root)
    rows = {line[:34].strip(): line[34:].split() for line in done.stdout.splitlines()}
    differences = rows["difference to dense, relative"]
    assert len(differences) == 6 and all(float(value) < 1e-4 for value in differences[:4])
    assert differences[4:] == ["-", "-"]
    # What was ready before the call is the dense bias and no more.
    assert rows["of the dense bias"][-1] == "100.0%"
    assert sorted((root / "benchmarks" / "results").iterdir()) == before
