"""Peak memory and time of writing a long video: decoded whole and then written, or streamed into the file.

    python benchmarks/film_decoding.py

Random latents of 128 frames of 512 x 320 pixels, and half as many, through a VAE with Stable Diffusion's layout and few
channels; on a CPU, without ComfyUI. ``plain`` decodes all frames and writes them; ``streamed`` is what the recipe does,
``decode_parts`` straight into the file. Both give the VAE as many frames at once, so that the VAE's memory, which with
the channels of a real one is larger, is the same in both. Each peak is taken in its own process, above what it had
after a small video: the VAE and the libraries do not count, the video, the encoder and the VAE's pictures do. Times are
medians of the ratios to the plain way of the same turn, by processor time.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from shared.measuring import (
    PLAIN,
    RESULTS,
    ROOT,
    can_measure_memory,
    describe,
    module,
    peak_of,
    peaks_in_children,
    ratios_of,
    resident,
    time_in_turns,
)

FRAMES = (64, 128)
WIDTH, HEIGHT = 512, 320
WAYS = (PLAIN, "streamed")
# Frames of the small video, and of the model's clips.
SMALL, WINDOW = 4, 16
CPU = "cpu"


def make_coder() -> Any:
    """A VAE of four levels, which makes pictures eight times smaller, in the code that decodes videos."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    return module("video_models.frame_coding").FrameCoder(vae)


def random_latents(coder: Any, frames: int, width: int, height: int) -> torch.Tensor:
    """[1, C, T, h, w], the same every time."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, coder.channels, frames, height // coder.factor, width // coder.factor)
    return torch.randn(shape, generator=generator)


def write(way: str, coder: Any, latents: torch.Tensor, path: Path) -> None:
    """Decode latents and write their video, in one of ``WAYS``; the same file in both."""
    parts: Iterable[torch.Tensor] = coder.decode_parts(latents, torch.device(CPU))
    if way == PLAIN:
        parts = [torch.cat(list(parts))]
    record = module("recipes.films.record").FilmRecord(latents.shape[2], WINDOW)
    module("recipes.films.files").write_pictures(path, record.watch(parts))


def peak_bytes(way: str, frames: int, width: int, height: int) -> int:
    """Peak memory of one video in this process, beside what a small one leaves behind."""
    with tempfile.TemporaryDirectory() as folder:
        coder, path = make_coder(), Path(folder) / "film.mp4"
        latents = random_latents(coder, frames, width, height)
        write(way, coder, latents[:, :, :SMALL], path)
        gc.collect()
        return peak_of(lambda: write(way, coder, latents, path), CPU, resident("VmRSS"))


def measure(frames: int, width: int, height: int, repeats: int) -> dict[str, Any]:
    """Time one length in both ways."""
    with tempfile.TemporaryDirectory() as folder:
        coder = make_coder()
        latents = random_latents(coder, frames, width, height)
        calls = {way: lambda way=way: write(way, coder, latents, Path(folder) / f"{way}.mp4") for way in WAYS}
        # Not the first video of the process, which loads the encoder.
        write(PLAIN, coder, latents[:, :, :SMALL], Path(folder) / "small.mp4")
        wall, busy = time_in_turns(calls, CPU, repeats, 0)
    entry: dict[str, Any] = {"frames": frames, "film_bytes": frames * width * height * 3 * 4, "seconds": wall}
    return {**entry, "processor_seconds": busy, "ratio": ratios_of(busy)}


def compare_peaks(entries: list[dict[str, Any]]) -> dict[str, float]:
    """What one run shows of memory.

    Returns:
        ``streamed_to_plain``: at the longest video; ``growth_<way>``: of the peak from the shortest to the longest.
    """
    first, last = (entry["peak_bytes"] for entry in (entries[0], entries[-1]))
    growth = {f"growth_{way}": round(last[way] / first[way], 4) for way in WAYS}
    return {"streamed_to_plain": round(last["streamed"] / last[PLAIN], 4), **growth}


def show(entry: dict[str, Any]) -> None:
    """Print one length."""
    film = entry["film_bytes"] / 2**20
    sys.stdout.write(
        f"{entry['frames']:4} frames  {film:.0f} MB as floats  time streamed {entry['ratio']['streamed']}\n"
    )
    for way, value in entry.get("peak_bytes", {}).items():
        sys.stdout.write(f"{'':13}{way:9} peak {value / 2**20:.0f} MB\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and write ``benchmarks/results/film_decoding_cpu.json``."""
    parser = argparse.ArgumentParser(description="A long video decoded whole, or streamed into its file.")
    parser.add_argument("--frames", type=int, nargs="+", default=list(FRAMES), help="lengths, the shortest first")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), default=[WIDTH, HEIGHT])
    parser.add_argument("--repeats", type=int, default=1, help="turns that count for the times")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "FRAMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        way, frames = arguments.peak
        sys.stdout.write(str(peak_bytes(way, int(frames), *arguments.size)))
        return
    entries = []
    for frames in arguments.frames:
        entries.append(measure(frames, *arguments.size, arguments.repeats))
        if can_measure_memory(CPU):
            common = ("--size", *map(str, arguments.size), "--threads", str(arguments.threads))
            options = {way: (*common, "--peak", way, str(frames)) for way in WAYS}
            entries[-1]["peak_bytes"] = peaks_in_children(__file__, options)
        show(entries[-1])
    results = {**describe(CPU), "size": arguments.size, "lengths": entries}
    if can_measure_memory(CPU):
        results["memory"] = compare_peaks(entries)
        sys.stdout.write(f"memory {json.dumps(results['memory'])}\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "film_decoding_cpu.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"raw numbers: {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
