"""Time and memory of guided attention beside plain attention, on the same tensors.

    python benchmarks/attention.py            # CPU, and CUDA where there is one
    python benchmarks/attention.py --quick    # the two shorter lengths only

Everything is called as a model calls it: one attention call with the patch stack as its override. Compared are plain
attention, region channels (``separate``, soft), partition (``separate``, hard) and, as what they replace, a dense
additive bias that is ready made. Calls alternate, and each ratio is the median of the ratios to the plain call of the
same turn. Peak memory is that of a fresh process around one call, tables included, and counts q, k, v and the result.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from shared.measuring import (
    RESULTS,
    ROOT,
    can_measure_memory,
    describe,
    devices,
    module,
    peak_of,
    peaks_in_children,
    plain_guide,
    ratios_of,
    resident,
    time_in_turns,
)

if TYPE_CHECKING:
    from torch import Tensor

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
    from mask_guided_video.attention_patches.guidance.patch import GuidePatch
    from mask_guided_video.attention_patches.kernels.torch_attention import attention
    from mask_guided_video.attention_patches.site import SITE_KEY, AttentionSite, BatchRows, Span
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
        video=Span(0, case.tokens),
        text=None,
        rows=BatchRows(samples=1, folded="frames", folded_size=case.frames),
        progress=0.0,
        sigma=1.0,
    )
    guide = plain_guide(masks, mode="separate", hard=kernel == "partition")
    stack = PatchStack([GuidePatch(guide)])
    options = {"optimized_attention_override": stack.override, SITE_KEY: site}
    return lambda: attention(*qkv, case.heads, transformer_options=options)


def time_case(case: Case, share: float, device: str) -> dict[str, Any]:
    """Time all kernels in turns."""
    qkv = make_tensors(case, device)
    calls = {kernel: make_call(kernel, case, share, qkv) for kernel in KERNELS}
    repeats = case.repeats if device == "cpu" else 5 * case.repeats
    # The first turn makes the tables.
    wall, busy = time_in_turns(calls, device, repeats)
    covered = float(make_masks(case, share).mean())
    found: dict[str, Any] = {"share": share, "covered": round(covered, 4), "seconds": wall, "ratio": ratios_of(wall)}
    if device == "cpu":
        found.update(processor_seconds=busy, processor_ratio=ratios_of(busy))
    return found


def peak_bytes(kernel: str, case: Case, share: float, device: str) -> int:
    """Peak memory of one call in this process, q, k, v and the result included."""
    if device == "cpu":
        small = Case(2, 8, 8, case.heads, case.head_dim, 1)
        for warm in KERNELS:
            make_call(warm, small, share, make_tensors(small, device))()
        gc.collect()
    before = resident("VmRSS") if device == "cpu" else 0
    return peak_of(make_call(kernel, case, share, make_tensors(case, device)), device, before)


def measure_peaks(index: int, device: str) -> dict[str, int]:
    """Peak memory of each kernel at 30 % foreground, each in its own process."""
    return peaks_in_children(__file__, {kernel: ("--peak", kernel, str(index), device) for kernel in KERNELS})


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
        if can_measure_memory(device):
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
    module("attention_patches")
    with torch.inference_mode():
        if arguments.peak:
            kernel, index, device = arguments.peak
            sys.stdout.write(str(peak_bytes(kernel, CASES[int(index)], 0.3, device)))
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        for device in devices():
            results = run_device(device, 2 if arguments.quick else len(CASES))
            path = RESULTS / f"attention_{device}.json"
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"raw numbers: {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
