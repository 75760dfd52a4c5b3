"""How well objects are followed through crossings, occlusions, exits and returns, beside plain per-frame matching.

    python benchmarks/tracking_quality.py                  # 100 clips, all ways of saying what to follow
    python benchmarks/tracking_quality.py --clips 20 --seed 7 --steps 1,0

The Toybox detector finds, the Toybox segmenter draws, optical flow carries. Figures go to standard output and to
``benchmarks/results/tracking_quality.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from shared.measuring import RESULTS as RESULTS_FOLDER
from shared.measuring import ROOT, module

RESULTS = RESULTS_FOLDER / "tracking_quality.json"
WAYS = {1: "boxes in every frame", 4: "boxes in every 4th frame", 0: "one prompt per object"}


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """To four places."""
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Draw the clips, detect once, follow in every way, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--steps", default="1,4,0", help="n: every n-th frame has boxes; 0 for one prompt per object")
    parser.add_argument("--baseline", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()

    evaluation = module("training.evaluate_tracking")
    detector = module("perception.open_models").open_detector(ROOT / "toybox" / "detector")
    tracker = module("perception.open_models").open_tracker(ROOT / "toybox" / "segmenter")
    clips = evaluation.draw_clips(detector, options.clips, options.seed)
    ways = {"tracker": lambda frames, boxes, prompts: tracker.track(frames, boxes, prompts=prompts)}
    if options.baseline:
        association = module("training.perception.box_association")
        ways["matching boxes only"] = lambda frames, boxes, prompts: association.track_boxes(tracker, frames, boxes)
    result: dict[str, Any] = {"clips": options.clips, "seed": options.seed, "torch": torch.__version__}
    for step in (int(text) for text in options.steps.split(",")):
        for name, follow in ways.items():
            if step == 0 and name != "tracker":
                continue
            started = time.perf_counter()
            whole, parts = evaluation.measure(clips, follow, step)
            entry = {"all": rounded(whole.summary()), "seconds": round(time.perf_counter() - started, 1)}
            entry["parts"] = {part: rounded(figures.summary()) for part, figures in sorted(parts.items())}
            result[f"{WAYS.get(step, f'boxes in every {step}th frame')}, {name}"] = entry
            sys.stdout.write(f"{WAYS.get(step, step)}, {name}: {json.dumps(entry['all'])}\n")
            sys.stdout.flush()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
