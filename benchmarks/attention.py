"""Time and memory of guided attention beside plain attention, on the same tensors.

    python benchmarks/attention.py            # CPU, and CUDA where there is one
    python benchmarks/attention.py --quick    # the two shorter lengths only

Everything is called as a model calls it: one attention call with the patch stack as its override. Compared are plain
attention, region channels (``separate``, soft), partition (``separate``, hard) and, as what they replace, a dense additive
bias that is ready made. Calls alternate, and each ratio is the median of the ratios to the plain call of the same turn.
Peak memory is that of a fresh process around one call, tables included, and counts q, k, v and the result.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KERNELS = ("plain", "channels", "partition", "dense")
SHARES = (0.1, 0.3, 0.5)


@dataclass(frozen=True)
class Case:
    """One shape: ``frames`` rows of ``height * width`` tokens."""

    frames: int
    height: int
    width: int
    heads: int
    head_dim: int
    repeats: int

    @property
    def tokens(self) -> int:
        """N, the length of one sequence."""
        return self.height * self.width


# LaVie's finest level (8 heads of 40) for one or two dozen frames, and a clip in one sequence with more heads.
CASES = (Case(16, 32, 32, 8, 40, 9), Case(8, 40, 64, 8, 40, 4), Case(1, 80, 128, 16, 40, 2))


def import_engine() -> None:
    """Import the package under its fixed name, wherever this script is started."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    bootstrap.import_package()


def make_tensors(case: Case, device: str) -> list[Tensor]:
    """q, k and v [frames, N, heads * d], as a model's projections give them."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.frames, case.tokens, case.heads * case.head_dim)
    dtype = torch.float32 if device == "cpu" else torch.float16
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]


def make_masks(case: Case, share: float) -> Tensor:
    """[1, frames, height, width], a rectangle that moves by one cell a frame."""
    height = max(1, round(share**0.5 * case.height))
    width = min(case.width, max(1, round(share * case.tokens / height)))
    masks = torch.zeros(1, case.frames, case.height, case.width)
    for frame in range(case.frames):
        left = frame % max(case.width - width, 1)
        masks[0, frame, :height, left : left + width] = 1.0
    return masks


def make_call(kernel: str, case: Case, share: float, qkv: list[Tensor]) -> Callable[[], Tensor]:
    """Return one attention call of the kind ``kernel``."""
    from mask_guided_video.attention_patches.attention import attention
    from mask_guided_video.attention_patches.mask_guidance import MaskGuidance, mask_guidance_patch
    from mask_guided_video.attention_patches.site import SITE_KEY, AttentionSite, BatchRows
    from mask_guided_video.attention_patches.stack import PatchStack

    if kernel == "plain":
        return lambda: attention(*qkv, case.heads)
    masks = make_masks(case, share)
    if kernel == "dense":
        inside = masks[0].flatten(1).to(qkv[0])
        bias = -8.0 * (inside[:, :, None] - inside[:, None, :]).abs()
        return lambda: attention(*qkv, case.heads, bias)
    site = AttentionSite(
        kind="self",
        block="down.0.0",
        index=0,
        total=1,
        level=0,
        grid=(case.frames, case.height, case.width),
        frames=tuple(range(case.frames)),
        clip_frames=case.frames,
        video=slice(0, case.tokens),
        text=None,
        rows=BatchRows(samples=1, folded="frames", folded_size=case.frames),
        progress=0.0,
        sigma=1.0,
    )
    guide = MaskGuidance(masks, mode="separate", hard=kernel == "partition")
    stack = PatchStack([mask_guidance_patch(guide)])
    options = {"optimized_attention_override": stack.override, SITE_KEY: site}
    return lambda: attention(*qkv, case.heads, transformer_options=options)


def seconds(call: Callable[[], Tensor], device: str) -> tuple[float, float]:
    """Wall time and processor time of one call; the second one does not count other programs on a busy machine."""
    if device != "cpu":
        torch.cuda.synchronize()
    begin, busy = time.perf_counter(), time.process_time()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - busy


def time_case(case: Case, share: float, device: str) -> dict[str, Any]:
    """Time all kernels in turns."""
    qkv = make_tensors(case, device)
    calls = {kernel: make_call(kernel, case, share, qkv) for kernel in KERNELS}
    repeats = case.repeats if device == "cpu" else 5 * case.repeats
    wall: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
    busy: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
    for turn in range(repeats + 1):
        for kernel, call in calls.items():
            taken = seconds(call, device)
            if turn:  # the first turn warms up and makes the tables
                wall[kernel].append(round(taken[0], 6))
                busy[kernel].append(round(taken[1], 6))
    covered = float(make_masks(case, share).mean())
    found: dict[str, Any] = {"share": share, "covered": round(covered, 4), "seconds": wall, "ratio": ratios_of(wall)}
    if device == "cpu":
        found.update(processor_seconds=busy, processor_ratio=ratios_of(busy))
    return found


def ratios_of(times: dict[str, list[float]]) -> dict[str, float]:
    """Median of the ratios to the plain call of the same turn."""
    return {
        kernel: round(statistics.median(a / b for a, b in zip(own, times["plain"], strict=True)), 4)
        for kernel, own in times.items()
    }


def peak_bytes(kernel: str, case: Case, share: float, device: str) -> int:
    """Peak memory of one call in this process, q, k, v and the result included."""
    if device != "cpu":
        qkv = make_tensors(case, device)
        call = make_call(kernel, case, share, qkv)
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated()
    small = Case(2, 8, 8, case.heads, case.head_dim, 1)
    for warm in KERNELS:
        make_call(warm, small, share, make_tensors(small, device))()
    gc.collect()
    before = resident("VmRSS")
    qkv = make_tensors(case, device)
    call = make_call(kernel, case, share, qkv)
    # Linux starts a new high-water mark here; making the tensors shall not count.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    out = call()
    peak = resident("VmHWM") - before
    del out
    return peak


def resident(field: str) -> int:
    """Bytes of a memory field of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure_peaks(index: int, device: str) -> dict[str, int]:
    """Peak memory of each kernel at 30 % foreground, each in a process of its own."""
    peaks = {}
    for kernel in KERNELS:
        command = [sys.executable, str(Path(__file__).resolve()), "--peak", kernel, str(index), device]
        # Have freed tensors go back to the system at once: memory that the C library keeps for later is not in use.
        environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536")
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks[kernel] = int(done.stdout)
    return peaks


def describe(device: str) -> dict[str, Any]:
    """What the numbers depend on, without naming a machine."""
    found = {"device": device, "torch": torch.__version__, "system": platform.system(), "cores": os.cpu_count()}
    found["threads"] = torch.get_num_threads()
    found["dtype"] = "float32" if device == "cpu" else "float16"
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def run_device(device: str, cases: int) -> dict[str, Any]:
    """Measure all cases on one device and print the table as it grows."""
    sys.stdout.write(f"{device}: ratios to plain attention\n")
    sys.stdout.write(
        f"{'N':>6} {'share':>6} {'plain s':>9} {'channels':>9} {'partition':>9} {'dense':>9}   by processor time\n"
    )
    results = []
    for index, case in enumerate(CASES[:cases]):
        timed = []
        for share in SHARES:
            timed.append(time_case(case, share, device))
            plain = statistics.median(timed[-1]["seconds"]["plain"])
            columns = " ".join(f"{timed[-1]['ratio'][kernel]:9.3f}" for kernel in KERNELS[1:])
            busy = timed[-1].get("processor_ratio", {})
            more = " ".join(f"{busy[kernel]:9.3f}" for kernel in KERNELS[1:] if busy)
            sys.stdout.write(f"{case.tokens:6d} {share:6.0%} {plain:9.4f} {columns}   {more}\n")
            sys.stdout.flush()
        entry: dict[str, Any] = {"tokens": case.tokens, **asdict(case), "timed": timed}
        if device != "cpu" or Path("/proc/self/clear_refs").exists():
            peaks = measure_peaks(index, device)
            entry["peak_bytes"] = peaks
            columns = " ".join(f"{peaks[kernel] / peaks['plain']:9.3f}" for kernel in KERNELS[1:])
            sys.stdout.write(f"{case.tokens:6d} memory {peaks['plain'] / 2**20:7.0f}MB {columns}\n")
        results.append(entry)
    return {**describe(device), "cases": results}


def main() -> None:
    """Measure and write ``benchmarks/results/attention_<device>.json``."""
    parser = argparse.ArgumentParser(description="Time and memory of guided attention beside plain attention.")
    parser.add_argument("--quick", action="store_true", help="leave out the longest sequence")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--peak", nargs=3, metavar=("KERNEL", "CASE", "DEVICE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    import_engine()
    with torch.inference_mode():
        if arguments.peak:
            kernel, index, device = arguments.peak
            sys.stdout.write(str(peak_bytes(kernel, CASES[int(index)], 0.3, device)))
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            results = run_device(device, 2 if arguments.quick else len(CASES))
            path = RESULTS / f"attention_{device}.json"
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"raw numbers: {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
