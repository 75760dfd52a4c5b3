"""The original sam2 package and ours answer alike on the same random weights, SAM 2 and 2.1, at full size.

Needs the original package beside ours (``pip install sam2==1.1.0``), any transformers from 4.56, and some minutes a
size::

    python tests/parity/sam2_original.py
    python tests/parity/sam2_original.py --sizes tiny small base_plus large --frames 2

The original builds its model from its own configuration, we write its weights as a checkpoint file and open that as
users do. Both follow a box, a mask and a point through the same film, and correct a frame with clicks; mask logits
may differ by 1e-3 of their range. Fails when they differ by more.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-3
HEIGHT, WIDTH = 180, 320
SHORT_NAMES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
KINDS = ("box", "point", "mask")
BOX = (60.0, 40.0, 180.0, 130.0)
POINT = (200.0, 90.0)
CLICKS = ((100.0, 80.0, 1), (300.0, 20.0, 0))


def our_modules() -> SimpleNamespace:
    """The modules of ours that take part."""
    sys.path.insert(0, str(ROOT))
    importlib.import_module("bootstrap").import_package()
    names = ("boxes", "frames", "prompts", "segmentation.sam2")
    modules = [importlib.import_module(f"mask_guided_video.perception.{name}") for name in names]
    modules.append(importlib.import_module("mask_guided_video.weight_files.reading"))
    return SimpleNamespace(**{module.__name__.rpartition(".")[2]: module for module in modules})


def randomise(model: nn.Module) -> None:
    """Weights so large that every part has a say, and an object that is there in every frame."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "embed" in name and parameter.shape[0] < 8:
                parameter.copy_(values)
            elif parameter.ndim > 1:
                parameter.copy_(values * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(values * 0.2 + float("norm" in name and name.endswith("weight")))
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(6.0)


def make_film(frames: int) -> Tensor:
    """Coloured waves with a square that wanders: float [T, H, W, 3]."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) / 40, torch.arange(WIDTH) / 40, indexing="ij")
    film = torch.stack(
        [
            torch.stack([(rows + columns * turn + frame / 5).sin() * 0.4 + 0.5 for turn in (0.5, 1, 2)], dim=-1)
            for frame in range(frames)
        ]
    )
    for frame in range(frames):
        film[frame, 50:120, 70 + 8 * frame : 150 + 8 * frame] = torch.tensor([0.9, 0.2, 0.1])
    return film


def original_predictor(version: str, size: str) -> Any:
    """The original video predictor with random weights; its filling of holes, which needs a GPU, is off."""
    from sam2.build_sam import build_sam2_video_predictor

    folder = "sam2" if version == "2" else "sam2.1"
    predictor = build_sam2_video_predictor(f"configs/{folder}/{folder}_hiera_{SHORT_NAMES[size]}.yaml", device="cpu")
    predictor.fill_hole_area = 0
    randomise(predictor)
    return predictor


@torch.inference_mode()
def original_logits(predictor: Any, pixels: Tensor, mask: Tensor) -> dict[str, list[Tensor]]:
    """What the original finds: logits [H, W] a frame, by kind of prompt."""
    module = sys.modules[type(predictor).__module__]
    module.load_video_frames = lambda **_: (pixels, HEIGHT, WIDTH)
    state = predictor.init_state("")
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    predictor.add_new_points_or_box(state, 0, 2, points=[POINT], labels=[1])
    predictor.add_new_mask(state, 0, 3, mask)
    films = [logits[:, 0] for _, _, logits in predictor.propagate_in_video(state)]
    found = {kind: [film[number] for film in films] for number, kind in enumerate(KINDS)}
    points, labels = [click[:2] for click in CLICKS], [click[2] for click in CLICKS]
    _, _, logits = predictor.add_new_points_or_box(state, len(pixels) - 1, 1, points=points, labels=labels)
    return {**found, "clicks": [logits[0, 0]]}


def our_logits(ours: SimpleNamespace, model: Any, film: Tensor, mask: Tensor) -> dict[str, list[Tensor]]:
    """What we find, like :func:`original_logits`."""
    prompt, point = ours.prompts.ObjectPrompt, ours.prompts.Point
    prompts = {
        1: prompt(0, box=ours.boxes.Box.from_corners(*BOX)),
        2: prompt(0, points=(point(*POINT),)),
        3: prompt(0, mask=mask),
    }
    propagator = model.follow(ours.frames.Film(film))
    propagator.prompt(0, prompts)
    found = {kind: [latest_logits(propagator, number, 0)] for number, kind in enumerate(KINDS, 1)}
    for frame in range(1, len(film)):
        propagator.step(frame)
        for number, kind in enumerate(KINDS, 1):
            found[kind].append(latest_logits(propagator, number, frame))
    last = len(film) - 1
    clicks = tuple(point(x, y, bool(inside)) for x, y, inside in CLICKS)
    propagator.prompt(last, {1: prompt(last, points=clicks)})
    return {**found, "clicks": [latest_logits(propagator, 1, last)]}


def latest_logits(propagator: Any, number: int, frame: int) -> Tensor:
    """Logits [H, W] that the propagator has just turned into a mask."""
    outputs = propagator.sessions[number].output_dict_per_obj[0]
    low = {**outputs["non_cond_frame_outputs"], **outputs["cond_frame_outputs"]}[frame]["pred_masks"]
    return functional.interpolate(low, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)[0, 0]


def compare(version: str, size: str, frames: int, folder: Path) -> bool:
    """Compare one model and tell; True when it agrees."""
    ours = our_modules()
    start = time.time()
    predictor = original_predictor(version, size)
    path = folder / f"sam{version}_hiera_{size}.pt"
    torch.save({"model": predictor.state_dict()}, path)
    state = ours.reading.read_state(path)
    if not ours.sam2.claims(state):
        raise SystemExit(f"{path.name} is not recognised")
    model = ours.sam2.load_state(state, path)
    film = make_film(frames)
    pixels = torch.stack([model.prepare(ours.frames.Film(film), frame) for frame in range(frames)])
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[50:120, 70:150] = True
    theirs = original_logits(predictor, pixels, mask)
    mine = our_logits(ours, model, film, mask)
    path.unlink()
    agrees = True
    for kind, expected in theirs.items():
        spans = [float(logits.amax() - logits.amin()) for logits in expected]
        worst = max(
            float((got - wanted).abs().max()) / max(span, 1.0)
            for got, wanted, span in zip(mine[kind], expected, spans, strict=True)
        )
        flips = sum(int(((got > 0) != (wanted > 0)).sum()) for got, wanted in zip(mine[kind], expected, strict=True))
        agrees &= worst <= TOLERANCE
        tell(
            f"SAM {version} {size:9} {kind:6} {len(expected)} frames: largest difference {worst:.1e} of the range "
            f"(logits span {min(spans):.1f} to {max(spans):.1f}), {flips} pixels change sides"
        )
    tell(f"SAM {version} {size}: {time.time() - start:.0f} s")
    return agrees


def tell(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", choices=("2", "2.1"), default=["2", "2.1"])
    parser.add_argument("--sizes", nargs="+", choices=tuple(SHORT_NAMES), default=["tiny"])
    parser.add_argument("--frames", type=int, default=4)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            compare(version, size, chosen.frames, Path(folder)) for version in chosen.versions for size in chosen.sizes
        ]
    if not all(results):
        raise SystemExit(f"answers differ by more than {TOLERANCE} of the range")


if __name__ == "__main__":
    main()
