"""Compare our published form of Peekaboo's evaluation with the original script, on random boxes.

    git clone https://github.com/microsoft/Peekaboo /tmp/peekaboo
    pip install pandas
    python tests/parity/peekaboo_original.py /tmp/peekaboo

Clips of several lengths and sizes, some with frames or whole clips without a detection, some with nothing wanted. The
original's figures are read from what it prints, so that they are compared to the digits that it has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
import bootstrap  # noqa: E402

bootstrap.import_package()
from mask_guided_video.recipes.mask_metrics.peekaboo_protocol import (  # noqa: E402
    draw_corners,
    measure_clip,
    summarise_clips,
)

TOLERANCE = 1e-9
# It prints mIoU and AP50 in per cent with one digit, the distance with two.
PRINTED = {"miou": 5e-4, "miou_all_clips": 5e-4, "coverage": 1e-9, "centroid_distance": 5e-3, "ap50": 5e-4,
           "ap50_clip_mean": 5e-4}  # fmt: skip


def original(folder: Path) -> Any:
    """The script as a module. Its main part imports pandas for all of it, then asks for arguments and ends."""
    path = folder / "eval" / "get_metrics.py"
    if not path.is_file():
        raise SystemExit(f"{str(path)!r} is not there; give a clone of github.com/microsoft/Peekaboo.")
    spec = importlib.util.spec_from_file_location("__main__", path)
    module = importlib.util.module_from_spec(spec)
    arguments, sys.argv = sys.argv, [str(path)]
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        spec.loader.exec_module(module)
    sys.argv = arguments
    return module


def random_box(generator: np.random.Generator) -> list[float]:
    """Relative corners, now and then beyond the right and lower edge."""
    left, top = generator.uniform(0, 0.7, 2)
    width, height = generator.uniform(0.02, 0.5, 2)
    return [float(left), float(top), float(left + width), float(top + height)]


def random_clips(count: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Lists as the original takes them, wanted and found, and our measures of the same clips."""
    generator = np.random.default_rng(seed)
    wanted, found, ours = [], [], []
    for number in range(count):
        height, width = (int(value) for value in generator.integers(20, 90, 2))
        boxes = [random_box(generator) for _ in range(int(generator.integers(6, 28)))]
        if number % 9 == 8:
            boxes = [[0.5, 0.5, 0.5, 0.5]] * len(boxes)
        missing = (0.0, 0.3, 0.7, 1.0)[number % 4]
        seen = [None if generator.random() < missing else random_box(generator) for _ in range(16)]
        # Every third clip is close to what is wanted, so that there are hits.
        if number % 3 == 0:
            seen = [box and boxes[min(frame, len(boxes) - 1)] for frame, box in enumerate(seen)]
        scaled = [
            [None if box is None else tuple(edge * (width, height)[axis % 2] for axis, edge in enumerate(box))
             for box in row]
            for row in (boxes, seen)
        ]  # fmt: skip
        first, second = (draw_corners(row, height, width) for row in scaled)
        detected = [box is not None for box in seen]
        wanted.append({"id": number, "bboxes": boxes})
        found.append(
            {"id": str(number), "subject": "Ball", "num_bb": sum(detected),
             "mask": [mask.numpy().astype(float) for mask in second]}
        )  # fmt: skip
        ours.append(measure_clip(first, second, detected))
    return wanted, found, ours


def main() -> int:
    """Compare, and say by how much they differ."""
    parser = argparse.ArgumentParser(description="Peekaboo's evaluation, original and ours.")
    parser.add_argument("clone", type=Path)
    options = parser.parse_args()
    module = original(options.clone)
    wanted, found, ours = random_clips(60, 0)
    with np.errstate(all="ignore"):
        theirs = module.process(found, wanted)
    kept = [clip["published"] for clip in ours if clip["published"]["counts"]]
    if len(kept) != len(theirs):
        raise SystemExit(f"{len(theirs)} clips count in the original and {len(kept)} here.")
    largest = 0.0
    for mine, other in zip(kept, theirs, strict=True):
        distance = other["centroid_dist"] / float(np.linalg.norm([320, 576]))
        for first, second in (
            (mine["iou"], other["iou"]), (mine["ap50"], other["ap50"]), (mine["centroid_distance"], distance)
        ):  # fmt: skip
            if (first is None) != bool(np.isnan(second)):
                raise SystemExit(f"one of them is not defined: {first} here, {second} in the original.")
            largest = max(largest, abs(first - second) if first is not None else 0.0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        module.print_metrics(theirs)
    lines = [[float(value) for value in line.split(",")] for line in printed.getvalue().splitlines()[1:3]]
    names = ("miou", "coverage", "centroid_distance", "ap50"), ("miou_all_clips", "coverage", "centroid_distance",
                                                              "ap50_clip_mean")  # fmt: skip
    summary = summarise_clips(ours)["published"]
    for row, line in zip(names, lines, strict=True):
        for name, value in zip(row, line, strict=True):
            value = value / 100 if "miou" in name or "ap50" in name else value
            if abs(summary[name] - value) > PRINTED[name] + 1e-9:
                raise SystemExit(f"{name} is {summary[name]} here and {value} in the original.")
    sys.stdout.write(f"{len(kept)} of {len(ours)} clips count; largest difference {largest:.1e}; printed: {lines}\n")
    return 0 if largest <= TOLERANCE else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
