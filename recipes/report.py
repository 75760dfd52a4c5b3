"""The report of a run as JSON, and its short form in words."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..weight_files.writing import replacing

REPORTED_PACKAGES = ("torch", "diffusers", "transformers")


def environment() -> dict[str, Any]:
    """Versions, threads and device kind that a result depends on; names no machine."""
    packages = {}
    for name in REPORTED_PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": packages,
        "threads": torch.get_num_threads(),
    }


def peak_memory_bytes() -> int | None:
    """Highest resident memory of this process so far; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux getrusage may report the process that started this one.
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
        return int(peak) * 1024 if peak else None
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def rounded(value: Any, digits: int = 4) -> Any:
    """The same structure with its floats rounded, for readers."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry, digits) for entry in value]
    return value


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report; NaN and infinity are refused, since JSON cannot hold them.

    Raises:
        ValueError: a value that is not finite, or a missing folder.
    """
    text = json.dumps(rounded(report), indent=2, ensure_ascii=True, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="ascii")


def summary(report: dict[str, Any]) -> str:
    """A few lines on what the guidance did."""
    lines = list(report["notes"])
    if report["guided"]:
        first, second = report["films"]["first"], report["films"]["second"]
        for name, words in (
            ("object_iou", "object under the mask (IoU)"),
            ("colour_purity", "one colour inside the mask"),
            ("edge_sharpness", "edge sharpness at the outline"),
        ):
            lines.append(f"{words}: {_number(first[name])} -> {_number(second[name])}")
        lines.append(f"mean change outside the mask: {_number(report['change_outside'])}")
    lines.append(f"time: {report['timings']['total']:.1f} s")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
