"""Time and memory of FreeLong in a call of LaVie's whole U-Net, at its full size, beside the call without it.

    python benchmarks/free_long_unet.py            # CPU, and CUDA where there is one

909 million random weights; latents of 20 x 32 cells (160 x 256 pixels) on a CPU, 40 x 64 (320 x 512) on a GPU. Compared
are the plain call; FreeLong as it is in the first half of the schedule (blended at all but the finest grid) and in
the second (windows alone); FreeLong++. Calls alternate, and each ratio is the median of the ratios to the plain call of
the same turn, by processor time on a CPU. Peak memory is what a call takes beside the weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable
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
    ratios_of,
    resident,
    time_in_turns,
)

if TYPE_CHECKING:
    from torch import Tensor

FRAMES = (64, 128)
GRIDS = {"cpu": (20, 32), "cuda": (40, 64)}


def make_unet(device: str, config: Any = None) -> Any:
    """LaVie's U-Net with random weights."""
    unet = module("video_models.lavie.unet").LaVieUNet(config)
    dtype = torch.float32 if device == "cpu" else torch.float16
    return unet.to(device, dtype).eval().requires_grad_(False)


def make_calls(unet: Any, frames: int, grid: tuple[int, int], names: list[str]) -> dict[str, Callable[[], Tensor]]:
    """Calls of the U-Net on the same tensors, by kind; one sample, conditional."""
    engine, stack = module("attention_patches.free_long"), module("attention_patches.stack")
    generator = torch.Generator().manual_seed(0)
    weight = next(unet.parameters())
    x = torch.randn(1, 4, frames, *grid, generator=generator).to(weight)
    context = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator).to(weight)
    window = unet.config.native_frames
    settings = {
        "free_long": engine.FreeLong(window=window),
        "windows": engine.FreeLong(window=window, end_percent=0.0),
        "free_long_plus": engine.FreeLong(window=window, bands=engine.OCTAVES),
    }

    def make(name: str) -> Callable[[], Tensor]:
        options: dict[str, Any] = {}
        if name in settings:
            patches = stack.PatchStack([engine.FreeLongPatch(settings[name])])
            options["optimized_attention_override"] = patches.override
        # Early in the schedule.
        timesteps = torch.tensor([800.0], device=weight.device)
        return lambda: unet(x, timesteps, context, transformer_options=options)

    return {name: make(name) for name in names}


def measure(unet: Any, device: str, frames: int, grid: tuple[int, int], names: list[str], repeats: int) -> dict:
    """Time the calls of one clip length."""
    calls = make_calls(unet, frames, grid, names)
    # On a CPU a call takes minutes, and its first turn is like the others.
    wall, busy = time_in_turns(calls, device, repeats, int(device != "cpu"))
    entry: dict[str, Any] = {"frames": frames, "grid": grid, "seconds": wall, "processor_seconds": busy}
    entry["ratio"] = ratios_of(busy if device == "cpu" else wall)
    return entry


def peak_bytes(unet: Any, device: str, frames: int, grid: tuple[int, int], name: str) -> int:
    """Peak memory of one call in this process, beside the weights."""
    call = make_calls(unet, frames, grid, [name])[name]
    gc.collect()
    if device == "cpu":
        return peak_of(call, device, resident("VmRSS"))
    weights = torch.cuda.memory_allocated()
    return peak_of(call, device, 0) - weights


def show(entry: dict[str, Any]) -> None:
    """Print one length."""
    plain = statistics.median(entry["seconds"]["plain"])
    ratios = "  ".join(f"{name} {value:.3f}" for name, value in entry["ratio"].items())
    sys.stdout.write(f"{entry['frames']:4} frames  plain {plain:.2f} s  time {ratios}\n")
    peaks = entry.get("peak_bytes", {})
    if peaks:
        ratios = "  ".join(f"{name} {value / peaks['plain']:.3f}" for name, value in peaks.items())
        sys.stdout.write(f"{'':13}plain {peaks['plain'] / 2**20:.0f} MB  memory {ratios}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and write ``benchmarks/results/free_long_unet_<device>.json``."""
    parser = argparse.ArgumentParser(description="FreeLong in LaVie's whole U-Net.")
    parser.add_argument("--frames", type=int, nargs="+", default=list(FRAMES))
    parser.add_argument("--repeats", type=int, default=1, help="turns that count")
    parser.add_argument("--kinds", nargs="+", default=["free_long", "windows", "free_long_plus"])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument(
        "--memory", type=int, nargs="*", help="lengths whose peak memory is measured, a process a call (default: all)"
    )
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "FRAMES", "DEVICE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        if arguments.peak:
            kind, frames, device = arguments.peak
            sys.stdout.write(str(peak_bytes(make_unet(device), device, int(frames), GRIDS[device], kind)))
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        for device in devices():
            unet, entries = make_unet(device), []
            path = RESULTS / f"free_long_unet_{device}.json"
            for frames in arguments.frames:
                names = ["plain", *arguments.kinds]
                entries.append(measure(unet, device, frames, GRIDS[device], names, arguments.repeats))
                wanted = arguments.memory is None or frames in arguments.memory
                if wanted and can_measure_memory(device):
                    threads = ("--threads", str(torch.get_num_threads()))
                    options = {name: ("--peak", name, str(frames), device, *threads) for name in names}
                    entries[-1]["peak_bytes"] = peaks_in_children(__file__, options)
                show(entries[-1])
                results = {**describe(device), "lengths": entries}
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"raw numbers: {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
