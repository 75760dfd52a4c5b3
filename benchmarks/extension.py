"""Videos of ten rounds on the Toybox: are joins seen, and what drifts?

    python benchmarks/extension.py            # 6 scenes, every way to go on; then the table
    python benchmarks/extension.py summary    # the table of what has been measured
    python benchmarks/extension.py sheet FILE.png --scenes 1    # the same videos to look at

In each scene an object of another size goes round in a circle, which no prompt asks for; the video begins with a drawn
picture. Compared are what frames take their colours from and what the next round begins with. ``real`` is the drawn
scene itself through the VAE: what its measures are is as good as can be. Raw numbers of every video go to
``benchmarks/results/extension.json`` as they come; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared.measuring import RESULTS as RESULTS_FOLDER
from shared.measuring import ROOT, describe, module
from torch import Tensor

RESULTS = RESULTS_FOLDER / "extension.json"
ROUNDS, FRAMES = 10, 8
# Pixels from the middle of the picture, and frames of one turn: 2.2 pixels from frame to frame.
REACH, TURN = 14.0, 40
RADII = (9.0, 12.0)
# Measured over the frames of each round.
MEASURES = ("iou", "colour", "size", "background")
REAL = "real"
VARIANTS: dict[str, dict[str, str]] = {
    f"{reference}, {begins}": {"colour_reference": reference, "next_frame": begins}
    for begins in ("latent", "picture")
    for reference in ("none", "global", "local")
}
# The model tuned to clips whose first frame was given; its motion, one turn in 8 frames, is not that of the masks.
TUNED = "none, tuned"
VARIANTS[TUNED] = {"colour_reference": "none", "next_frame": "picture"}
MOTION = ROOT / "toybox" / "motions" / "circle.safetensors"
TUNED_CONSTANTS = {"gamma_self": 2.0, "beta": 3.0}


def scene_of(number: int) -> tuple[Any, str, np.ndarray, np.ndarray]:
    """A scene, its prompt, its pictures [T, 64, 64, 3] and the masks [T, 64, 64] of its object on the circle."""
    world = module("toybox.world")
    generator = np.random.default_rng(700 + number)
    scene = world.random_scene(generator, "any", max_objects=1)
    item = scene.objects[0]
    radius = float(generator.uniform(*RADII))
    angle = 2 * np.pi * (np.arange(length(True)) / TURN + generator.uniform())
    centres = world.SIZE / 2 + REACH * np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    coverage = world.shape_coverage(item.shape, centres, radius)
    ground = world.background_image(scene.background)
    colour = np.array(world.COLOURS[item.colour], dtype=np.float32)
    frames = ground + coverage[..., None] * (colour - ground)
    return scene, world.prompt(scene), frames.astype(np.float32), coverage > 0.5


def length(drops: bool) -> int:
    """Frames of a video."""
    return ROUNDS * (FRAMES - 1) + 1 if drops else ROUNDS * FRAMES


def film_of(model: Any, number: int, variant: str, options: argparse.Namespace) -> tuple[Tensor, dict[str, Any]]:
    """A video [T, 64, 64, 3] that shows the frame between two rounds once, and its report; checks both lengths."""
    recipe = module("recipes.guided_clips.recipe")
    scene, prompt, frames, masks = scene_of(number)
    world = module("toybox.world")
    values = {
        "prompt": prompt,
        "phrases": (world.phrase(scene.objects[0]),),
        "background_phrase": world.BACKGROUNDS[scene.background].split()[-1],
        **{"rounds": ROUNDS, "frames": FRAMES, "seed": 1000 * number, "steps": options.steps, "cfg": options.cfg},
        **{"mode": options.mode, "constants": json.loads(options.constants)},
        **VARIANTS[variant],
    }
    if variant == TUNED:
        motions = module("video_models.motion.motion_files")
        model = motions.apply_motion(model, motions.read_motion(MOTION))
        values["constants"] = {**values["constants"], **TUNED_CONSTANTS}
    given = torch.from_numpy(masks)[None].float()
    store = torch.zeros(length(True), world.SIZE, world.SIZE, 3)
    with tempfile.TemporaryDirectory() as folder:
        make = module("recipes.guided_clips.settings").GuidedClipsSettings
        place, picture = Path(folder), torch.from_numpy(frames[0])
        result = recipe.guided_clips(model, make(**values), given, place, picture, store=store)
        kept = recipe.guided_clips(model, make(**values, overlap="keep"), given, place, picture)
    for report, drops in ((result.report, True), (kept.report, False)):
        if report["film"]["frames"] != length(drops):
            raise RuntimeError(f"the video has {report['film']['frames']} frames instead of {length(drops)}.")
    return store, result.report


def measure(film: np.ndarray, number: int) -> dict[str, list[float | None]]:
    """Measures of each round of a video [T, 64, 64, 3].

    iou: of the object, whatever its colour, with its mask. colour: distance (RGB, 0..1.73) of its mean colour from the
    one that the prompt names. size: its diameter as a part of the mask's. background: mean difference of a background
    pixel from the world's picture, 0..1. None where no object is seen in a round.
    """
    world, metrics = module("toybox.world"), module("toybox.metrics")
    scene, _, _, masks = scene_of(number)
    found = np.stack([metrics.largest_piece(frame) for frame in metrics.object_pixels(film, scene.background)])
    colour = np.array(world.COLOURS[scene.objects[0].colour], dtype=np.float32)
    error = np.abs(film - world.background_image(scene.background)).mean(axis=-1)
    measured: dict[str, list[float | None]] = {name: [] for name in MEASURES}
    for turn in range(ROUNDS):
        part = slice(turn * (FRAMES - 1), turn * (FRAMES - 1) + FRAMES)
        seen, wanted = found[part], masks[part]
        present = seen.sum() > 0
        measured["iou"].append(round(metrics.intersection_over_union(seen, wanted), 5))
        distance = np.linalg.norm(film[part][seen].mean(axis=0) - colour) if present else None
        measured["colour"].append(None if distance is None else round(float(distance), 5))
        size = np.sqrt(seen.sum(axis=(1, 2)) / wanted.sum(axis=(1, 2))).mean()
        measured["size"].append(round(float(size), 5) if present else None)
        measured["background"].append(round(float(error[part][~(seen | grown(wanted))].mean()), 5))
    return measured


def grown(masks: np.ndarray, pixels: int = 2) -> np.ndarray:
    """Masks [T, H, W] with the soft edge of the object."""
    import cv2

    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return np.stack([cv2.dilate(mask.astype(np.uint8), kernel).astype(bool) for mask in masks])


def joins_of(film: np.ndarray) -> dict[str, Any]:
    """How joins compare with all other changes from frame to frame, in a video that shows the shared frame once."""
    changes = np.abs(np.diff(film, axis=0)).mean(axis=(1, 2, 3)).tolist()
    found = module("recipes.guided_clips.report").measured_joins(changes, ROUNDS, FRAMES, False)
    elsewhere = found["elsewhere"]
    return {
        "at": round(found["mean"], 6),
        "elsewhere": round(elsewhere["mean"], 6),
        "deviation": round(elsewhere["deviation"], 6),
        "deviations": round(found["deviations"], 4),
        "beyond": sum(change > elsewhere["largest"] for change in found["at"]),
    }


def run(options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Make and measure what has not been measured yet."""
    model = module("video_models.toybox").load_toybox()
    settings = {
        **{"rounds": ROUNDS, "frames": FRAMES, "steps": options.steps, "cfg": options.cfg},
        **{"mode": options.mode, "constants": json.loads(options.constants)},
    }
    if content.get("settings") != settings:
        # Figures of other settings do not belong beside these.
        content.update(settings=settings, lengths={"drop": length(True), "keep": length(False)}, films=[])
    done = {(film["scene"], film["variant"]) for film in content["films"]}
    started = time.monotonic()
    for number in range(options.scenes):
        for variant in (REAL, *VARIANTS):
            if (number, variant) in done:
                continue
            if variant == REAL:
                film = coded(model, number)
            else:
                film = film_of(model, number, variant, options)[0].numpy()
            entry = {"scene": number, "prompt": scene_of(number)[1], "variant": variant}
            content["films"].append({**entry, "joins": joins_of(film), **measure(film, number)})
            save(options.results, content)
        sys.stdout.write(f"{time.monotonic() - started:6.0f} s  scene {number}\n")
        sys.stdout.flush()


def coded(model: Any, number: int) -> np.ndarray:
    """The drawn scene through the VAE."""
    with torch.inference_mode():
        return model.decode(model.encode(torch.from_numpy(scene_of(number)[2]))).numpy()


def save(path: Path, content: dict[str, Any]) -> None:
    """Write all figures and their summary; the file is replaced when it is complete."""
    content |= {"summary": summarise(content["films"]), "machine": describe("cpu")}
    ordered = {key: content[key] for key in ("settings", "lengths", "machine", "summary", "films")}
    with module("weight_files.writing").replacing(path) as temporary:
        temporary.write_text(json.dumps(ordered, indent=1, allow_nan=False) + "\n", encoding="ascii")


def summarise(films: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per variant: joins, and each measure in the first round, in the last and over all, mean over scenes."""
    entries = []
    for variant in dict.fromkeys(film["variant"] for film in films):
        chosen = [film for film in films if film["variant"] == variant]
        joins = {
            key: round(statistics.fmean(film["joins"][key] for film in chosen), 6)
            for key in ("at", "elsewhere", "deviations")
        }
        joins["beyond"] = sum(film["joins"]["beyond"] for film in chosen)
        entry: dict[str, Any] = {"variant": variant, "scenes": len(chosen), "joins": joins}
        for name in MEASURES:
            entry[name] = {
                place: mean_of([value for film in chosen for value in film[name][part]])
                for place, part in (("first", slice(0, 1)), ("last", slice(-1, None)), ("all", slice(None)))
            }
        entries.append(entry)
    return entries


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of what was measured."""
    found = [value for value in values if value is not None]
    return round(statistics.fmean(found), 5) if found else None


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The summary as text: change at joins and elsewhere, then first round -> last round (all) of each measure."""
    lines = [f"{'':16} {'join':>7} {'else':>7} {'dev.':>6} {'beyond':>6} " + " ".join(f"{n:>24}" for n in MEASURES)]
    for entry in entries:
        joins = entry["joins"]
        cells = []
        for name in MEASURES:
            first, last, every = (
                "-" if entry[name][place] is None else f"{entry[name][place]:.3f}" for place in ("first", "last", "all")
            )
            cells.append(f"{f'{first} -> {last} ({every})':>24}")
        begin = f"{entry['variant']:16} {joins['at']:7.4f} {joins['elsewhere']:7.4f} {joins['deviations']:6.2f}"
        lines.append(f"{begin} {joins['beyond']:>6} " + " ".join(cells))
    return "\n".join(lines)


def sheet(path: Path, options: argparse.Namespace, columns: int = 18) -> None:
    """Write videos as rows of pictures, evenly spaced over time, with the masks' outlines; a row for each variant."""
    from PIL import Image

    drawing, model = module("recipes.films.sheets"), module("video_models.toybox").load_toybox()
    rows = []
    for number in range(options.scenes):
        tracks = module("perception.tracks").Tracks.from_masks(torch.from_numpy(scene_of(number)[3]).float())
        chosen = torch.linspace(0, length(True) - 1, columns).round().long().tolist()
        for variant in (REAL, *VARIANTS):
            if variant == REAL:
                film = torch.from_numpy(coded(model, number))
            else:
                film = film_of(model, number, variant, options)[0]
            shown = drawing.with_outlines(film, tracks, 2, chosen)
            rows.append((shown.clamp(0, 1) * 255).byte().transpose(0, 1).flatten(1, 2))
    Image.fromarray(torch.cat(rows).contiguous().numpy()).save(path)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, or draw the sheet."""
    parser = argparse.ArgumentParser(description="Videos of ten rounds on the Toybox.")
    parser.add_argument("part", nargs="?", choices=("run", "summary", "sheet"), default="run")
    parser.add_argument("path", nargs="?", type=Path, help="of the sheet")
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--mode", default="dmg")
    parser.add_argument("--constants", default="{}", help="of the mode, JSON (default: those of the mode)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.part == "sheet":
        if options.path is None:
            parser.error("give the file that the sheet is written to.")
        sheet(options.path, options)
        return 0
    content: dict[str, Any] = {"films": []}
    if options.results.exists():
        content = json.loads(options.results.read_text(encoding="ascii"))
    if options.part == "run":
        run(options, content)
    sys.stdout.write(table(summarise(content["films"])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
