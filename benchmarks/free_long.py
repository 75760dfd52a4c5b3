"""Time and memory of FreeLong beside plain temporal attention and beside its original formulation, on the same tensors.

    python benchmarks/free_long.py            # CPU, and CUDA where there is one
    python benchmarks/free_long.py --quick    # the shorter clip only

Shapes are LaVie's at 320 x 512: 640 cells of 640 channels and, at the finest grid, 2560 cells of 320, both with 8
heads. Compared are, once as the attention call alone and once as the whole temporal layer (projections, rotary
positions, relative bias and attention, as the original runs it): plain attention; FreeLong (blended, and windows alone
as at the finest grid and late in the schedule); FreeLong++; and the original: the layer twice, once with a mask over
all pairs of frames, and whole complex spectra of both results. Calls alternate, and each ratio is the median of the
ratios to the plain call of the same turn, by processor time on a CPU. Peak memory is that of a fresh process around one
attention call; it counts q, k, v and the result.
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
    ratios_of,
    resident,
    time_in_turns,
)

if TYPE_CHECKING:
    from torch import Tensor

HEADS = 8
KINDS = ("plain", "free_long", "windows", "free_long_plus", "original")


@dataclass(frozen=True)
class Case:
    """One clip at one grid of the U-Net, one sample."""

    frames: int
    height: int
    width: int
    channels: int

    @property
    def cells(self) -> int:
        """Rows of the batch."""
        return self.height * self.width

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is compared: at the finest grid nothing is blended."""
        return KINDS if self.cells < 2560 else ("plain", "windows")


CASES = (Case(64, 20, 32, 640), Case(64, 40, 64, 320), Case(128, 20, 32, 640))


def options_of(kind: str, case: Case) -> dict[str, Any]:
    """What an attention call is given so that it is of a kind."""
    from mask_guided_video.attention_patches.free_long import OCTAVES, FreeLong, FreeLongPatch
    from mask_guided_video.attention_patches.local_windows import shifted_windows
    from mask_guided_video.attention_patches.site import SITE_KEY, AttentionSite, BatchRows, Span
    from mask_guided_video.attention_patches.stack import PatchStack

    site = AttentionSite(
        kind="temporal",
        block="down.1.0",
        index=0,
        total=1,
        level=1,
        grid=(case.frames, case.height, case.width),
        frames=tuple(range(case.frames)),
        clip_frames=case.frames,
        video=Span(0, case.frames),
        text=None,
        rows=BatchRows((0,), 1, "positions", case.cells),
        progress=0.25,
        sigma=1.0,
    )
    if kind == "plain":
        return {}
    if kind == "masked":
        closed = torch.full((case.frames, case.frames), float("-inf"))
        for frame, (first, last) in enumerate(shifted_windows(case.frames, 16)):
            closed[frame, first:last] = 0.0

        def patch(attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            return attend.with_bias(attend.bias + closed.to(q))(q, k, v, site)
    else:
        settings = {
            "free_long": FreeLong(),
            "windows": FreeLong(end_percent=0.0),
            "free_long_plus": FreeLong(bands=OCTAVES),
        }
        patch = FreeLongPatch(settings[kind])
    return {"optimized_attention_override": PatchStack([patch]).override, SITE_KEY: site}


def blend_as_published(local: Tensor, wide: Tensor, case: Case) -> Tensor:
    """Whole spectra of both results [cells, ..., T, C or d] and the published filter, repeated over channels."""

    def on_grid(values: Tensor) -> Tensor:
        return values.reshape(case.height, case.width, -1, case.frames, values.shape[-1]).permute(2, 4, 3, 0, 1).float()

    axes = [
        torch.exp(-0.5 * ((2.0 * torch.arange(size, device=local.device) / size - 1.0) / 0.25) ** 2)
        for size in (case.frames, case.height, case.width)
    ]
    weights = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    dims = (-3, -2, -1)
    spectra = [torch.fft.fftshift(torch.fft.fftn(on_grid(values), dim=dims), dim=dims) for values in (wide, local)]
    weights = weights.expand(spectra[0].shape).clone()
    mixed = spectra[0] * weights + spectra[1] * (1.0 - weights)
    mixed = torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=dims), dim=dims).real
    return mixed.permute(3, 4, 0, 2, 1).reshape(local.shape).to(local.dtype)


def make_attention(case: Case, device: str, of_layer: bool) -> Callable[[dict[str, Any]], Tensor]:
    """Return a call of the layer or of the attention alone that takes ``transformer_options``; the tensors are made."""
    from mask_guided_video.attention_patches.kernels.torch_attention import attention
    from mask_guided_video.video_models.lavie.config import LaVieConfig
    from mask_guided_video.video_models.lavie.layers import TemporalAttention

    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.float16

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    if of_layer:
        layer = TemporalAttention(case.channels, LaVieConfig(), torch.nn, attention, device=device, dtype=dtype)
        hidden = random(case.cells, case.frames, case.channels)

        def call(options: dict[str, Any]) -> Tensor:
            return layer(hidden, options)
    else:
        # As the layer leaves them: q and k are rotated with their heads apart, v is a projection.
        head_dim = case.channels // HEADS
        q, k = (random(case.cells, HEADS, case.frames, head_dim) for _ in range(2))
        v = random(case.cells, case.frames, HEADS, head_dim).transpose(1, 2)
        bias = random(1, HEADS, case.frames, case.frames)

        def call(options: dict[str, Any]) -> Tensor:
            return attention(q, k, v, HEADS, bias, skip_reshape=True, transformer_options=options)

    return call


def make_call(kind: str, case: Case, call: Callable[[dict[str, Any]], Tensor]) -> Callable[[], Tensor]:
    """Return a call of a kind."""
    if kind != "original":
        options = options_of(kind, case)
        return lambda: call(options)
    masked = options_of("masked", case)
    return lambda: blend_as_published(call(masked), call({}), case)


def time_case(case: Case, device: str, of_layer: bool, repeats: int) -> dict[str, Any]:
    """Time all kinds in turns."""
    attend = make_attention(case, device, of_layer)
    calls = {kind: make_call(kind, case, attend) for kind in case.kinds}
    # The first turn makes the plans; on a CPU a layer takes so long that this does not show.
    wall, busy = time_in_turns(calls, device, repeats, int(device != "cpu" or not of_layer))
    return {"seconds": wall, "processor_seconds": busy, "ratio": ratios_of(busy if device == "cpu" else wall)}


def peak_bytes(kind: str, case: Case, device: str) -> int:
    """Peak memory of one attention call in this process, q, k, v and the result included."""
    if device == "cpu":
        small = Case(24, 2, 4, 64)
        make_call(kind, small, make_attention(small, device, False))()
        gc.collect()
    before = resident("VmRSS") if device == "cpu" else 0
    return peak_of(make_call(kind, case, make_attention(case, device, False)), device, before)


def measure_peaks(index: int, device: str, threads: int) -> dict[str, int]:
    """Peak memory of each kind, each in its own process."""
    options = ("--threads", str(threads))
    return peaks_in_children(
        __file__, {kind: ("--peak", kind, str(index), device, *options) for kind in CASES[index].kinds}
    )


def run_device(device: str, cases: tuple[Case, ...], repeats: int, layer_repeats: int) -> dict[str, Any]:
    """Measure cases on one device and print the table as it grows."""
    sys.stdout.write(f"{device}: ratios to plain temporal attention\n")
    sys.stdout.write(
        f"{'frames':>6} {'cells':>6} {'':10} {'plain':>9} " + " ".join(f"{kind:>14}" for kind in KINDS[1:])
    )
    results = []
    for index, case in enumerate(cases):
        entry: dict[str, Any] = {**asdict(case), "heads": HEADS}
        for name, of_layer in (("call", False), ("layer", True)):
            entry[name] = time_case(case, device, of_layer, layer_repeats if of_layer else repeats)
            plain = statistics.median(entry[name]["seconds"]["plain"])
            write_line(case, name, f"{plain:.4f} s", entry[name]["ratio"])
        if can_measure_memory(device):
            peaks = entry["peak_bytes"] = measure_peaks(index, device, torch.get_num_threads())
            write_line(
                case,
                "memory",
                f"{peaks['plain'] / 2**20:.0f} MB",
                {kind: peaks[kind] / peaks["plain"] for kind in peaks},
            )
        results.append(entry)
    sys.stdout.write("\n")
    return {**describe(device), "cases": results}


def write_line(case: Case, name: str, plain: str, ratio: dict[str, float]) -> None:
    """Print one line of the table."""
    columns = " ".join(f"{ratio[kind]:14.2f}" if kind in ratio else " " * 14 for kind in KINDS[1:])
    sys.stdout.write(f"\n{case.frames:6d} {case.cells:6d} {name:10} {plain:>9} {columns}")
    sys.stdout.flush()


def main() -> None:
    """Measure and write ``benchmarks/results/free_long_<device>.json``."""
    parser = argparse.ArgumentParser(description="Time and memory of FreeLong beside plain temporal attention.")
    parser.add_argument("--quick", action="store_true", help="leave out the longer clip")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--layer-repeats", type=int, default=3, help="the same for the whole layer")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "CASE", "DEVICE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    module("attention_patches")
    with torch.inference_mode():
        if arguments.peak:
            kind, index, device = arguments.peak
            sys.stdout.write(str(peak_bytes(kind, CASES[int(index)], device)))
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        cases = CASES[:2] if arguments.quick else CASES
        for device in devices():
            results = run_device(device, cases, arguments.repeats, arguments.layer_repeats)
            path = RESULTS / f"free_long_{device}.json"
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"raw numbers: {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
