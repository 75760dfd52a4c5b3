"""What the benchmarks share: the package under its fixed name, clocks, peak memory and what the numbers depend on.

A script of the folder above is started by its path, so that this one is found beside it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLAIN = "plain"


def module(name: str) -> Any:
    """Import a module of the package under its fixed name, wherever a script is started."""
    if "bootstrap" not in sys.modules:
        spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
        bootstrap = importlib.util.module_from_spec(spec)
        sys.modules["bootstrap"] = bootstrap
        spec.loader.exec_module(bootstrap)
    sys.modules["bootstrap"].import_package()
    return importlib.import_module(f"mask_guided_video.{name}")


def plain_guide(masks: torch.Tensor, phrases: tuple[str, ...] = (), mode: str = "focus_fg", **settings: Any) -> Any:
    """A guide in one of the modes that have one constant as their strength; ``strength`` is that constant."""
    chosen, factor = module("attention_patches.guidance.modes.registry").mode_at(mode, **settings)
    return module("attention_patches.guidance.guide").Guide(masks, chosen, phrases, strength=factor)


def seconds(call: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall time and processor time of one call; the second one leaves out other programs on a busy machine."""
    if device != "cpu":
        torch.cuda.synchronize()
    begin, busy = time.perf_counter(), time.process_time()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - busy


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]], device: str, repeats: int, warm_ups: int = 1
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of each call, ``repeats`` times in turns after those that only warm up."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + warm_ups):
        for name, call in calls.items():
            taken = seconds(call, device)
            if turn >= warm_ups:
                wall[name].append(round(taken[0], 6))
                busy[name].append(round(taken[1], 6))
    return wall, busy


def ratios_of(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median of the ratios to the plain call of the same turn."""
    return {
        name: round(statistics.median(a / b for a, b in zip(taken, times[PLAIN], strict=True)), 4)
        for name, taken in times.items()
    }


def resident(field: str) -> int:
    """Bytes of a memory field of this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def can_measure_memory(device: str) -> bool:
    """Whether ``peak_of`` works for a device here."""
    return device != "cpu" or Path("/proc/self/clear_refs").exists()


def peak_of(call: Callable[[], Any], device: str, before: int) -> int:
    """Peak memory of one call in bytes: above ``before`` resident bytes on a CPU, of all tensors on a GPU."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated()
    # Linux starts a new high-water mark here; what was made before should not count.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    out = call()
    peak = resident("VmHWM") - before
    del out
    return peak


def peaks_in_children(script: str, arguments: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Run a script once per name, each in its own process, and read the bytes that it prints."""
    peaks = {}
    # Have freed tensors go back to the system at once: memory that the C library keeps for later is not in use.
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536")
    for name, options in arguments.items():
        command = [sys.executable, str(Path(script).resolve()), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks[name] = int(done.stdout)
    return peaks


def describe(device: str) -> dict[str, Any]:
    """What the numbers depend on, without naming a machine."""
    found = {"device": device, "torch": torch.__version__, "system": platform.system(), "cores": os.cpu_count()}
    found["threads"] = torch.get_num_threads()
    found["dtype"] = "float32" if device == "cpu" else "float16"
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def devices() -> tuple[str, ...]:
    """The CPU, and CUDA where there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
