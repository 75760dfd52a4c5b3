"""Tuning a model to an unseen motion, measured on the Toybox: what follows it before and after.

    python benchmarks/motion_tuning.py tune circle       # draw 8 clips, tune on them; minutes on two cores
    python benchmarks/motion_tuning.py measure circle    # clips of new colours and shapes, then the table
    python benchmarks/motion_tuning.py summary circle    # the table of what has been measured
    python benchmarks/motion_tuning.py sheet circle FILE.png

The clips are red, green, blue and yellow balls and squares; what is measured is of other colours or another shape. A
clip follows the motion when its object's path, laid over the exact one, is apart from it by less than ``NEAR`` pixels
in the mean (standing still is 13 on a circle). Raw numbers go to ``benchmarks/results/motion_tuning.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from shared.measuring import RESULTS as RESULTS_FOLDER
from shared.measuring import ROOT, describe, module

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = RESULTS_FOLDER / "motion_tuning.json"
MOTIONS = ROOT / "toybox" / "motions"
RUNS = ROOT / "training" / "runs"
# Mean distance in pixels from which a clip no longer follows the motion.
NEAR = 5.0
TRAINED = [(colour, shape) for colour in ("red", "green", "blue", "yellow") for shape in ("ball", "square")]
NEW = [
    *[("white", "ball"), ("purple", "square"), ("white", "triangle"), ("purple", "ball"), ("red", "triangle")],
    *[("white", "square"), ("blue", "triangle"), ("purple", "triangle"), ("green", "triangle"), ("yellow", "triangle")],
]
BACKGROUNDS = ("grass", "sand", "sea", "night")
# The mask mode that is active in tuning and in sampling, in all rows of the table.
CONSTANTS = {
    **{"blocks": "all", "end_percent": 1.0, "gamma_self": 2.0, "gamma_temporal": 4.0, "gamma_cross": 20.0},
    **{"beta": 3.0, "beta_decay_percent": 0.0},
}
TUNING = (
    *("--steps", "1000", "--batch", "4", "--learning-rate", "0.002", "--rank", "16", "--flip", "0"),
    *("--first-frame", "0.75", "--mask-drop", "0.35", "--mask-grow", "1", "--checkpoint-every", "40"),
    *(part for name, value in CONSTANTS.items() for part in ("--constant", f"{name}={value}")),
)


def scene_of(motion: str, number: int, pairs: Sequence[tuple[str, str]], seed: int) -> Any:
    """A scene of one object on the motion's path, the same for the same number."""
    colour, shape = pairs[number % len(pairs)]
    generator = np.random.default_rng(seed + number)
    background = BACKGROUNDS[(number + number // len(BACKGROUNDS)) % len(BACKGROUNDS)]
    return module("toybox.unseen_motions").unseen_scene(motion, colour, shape, background, generator)


def write_clips(folder: Path, motion: str) -> None:
    """Draw the training clips: videos and their words in ``videos``, exact masks in ``masks``."""
    world, unseen = module("toybox.world"), module("toybox.unseen_motions")
    for name in ("videos", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(len(TRAINED)):
        scene = scene_of(motion, number, TRAINED, 0)
        drawn, name = world.render(scene), f"{motion}_{number}"
        module("recipes.films.files").write_film(folder / "videos" / f"{name}.mp4", torch.from_numpy(drawn.frames))
        np.save(folder / "masks" / f"{name}.npy", drawn.masks)
        words = [unseen.unseen_prompt(scene), world.phrase(scene.objects[0]), f"background: {scene.background}"]
        (folder / "videos" / f"{name}.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def tune(motion: str, threads: int) -> dict[str, Any]:
    """Draw the clips, tune, and report what it took."""
    run = RUNS / f"motion-{motion}"
    write_clips(run / "clips", motion)
    begin, busy, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
    module("training.train_motion").main(
        [
            *("--videos", str(run / "clips" / "videos"), "--masks", str(run / "clips" / "masks")),
            *("--out", str(MOTIONS / f"{motion}.safetensors"), "--run", str(run), "--threads", str(threads), *TUNING),
        ]
    )
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "processor_seconds": round(time.process_time() - busy, 1),
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
        "settings": " ".join(TUNING),
        **describe("cpu"),
    }


def film(model: Any, scene: Any, seed: int, locked: bool, masked: bool, steps: int, cfg: float) -> Tensor:
    """One clip of a scene's prompt: [T, 64, 64, 3]."""
    world, unseen = module("toybox.world"), module("toybox.unseen_motions")
    guide, presets = module("attention_patches.guidance.guide"), module("attention_patches.guidance.modes.registry")
    drawn, prompt = world.render(scene), unseen.unseen_prompt(scene)
    phrases = (world.phrase(scene.objects[0]),)
    patches: tuple[Any, ...] = ()
    if masked:
        mode = presets.make_mode("dmg", **CONSTANTS)
        wanted = guide.Guide(
            torch.from_numpy(drawn.masks).float(), phrases=phrases, background_phrase=scene.background, mode=mode
        )
        patches = module("attention_patches.guidance.patch").guide_patches(
            wanted, model.token_spans(prompt, phrases, scene.background)
        )
    first = None
    if locked:
        first = module("video_models.sampling.first_frame").FirstFrame(model.encode(torch.from_numpy(drawn.frames[:1])))
    sampled = model.sample(
        model.noise(world.NATIVE_FRAMES, world.SIZE, world.SIZE, seed),
        model.encode_prompt(prompt),
        model.encode_prompt(""),
        steps=steps,
        cfg=cfg,
        patches=patches,
        first_frame=first,
    )
    return model.decode(sampled)


def measured(frames: np.ndarray, scene: Any) -> dict[str, Any]:
    """How far a clip is from its scene: motion, masks, colour and shape."""
    metrics, unseen, world = module("toybox.metrics"), module("toybox.unseen_motions"), module("toybox.world")
    item = scene.objects[0]
    error = unseen.motion_error(unseen.film_centres(frames, scene.background), unseen.path(item.motion, len(frames)))
    found = metrics.measure_object(frames, item.colour, scene.background)
    overlap = metrics.intersection_over_union(found.mask, world.render(scene).masks[0])
    return {
        # A clip without an object has no path.
        "error": round(error, 3) if np.isfinite(error) else None,
        "overlap": round(overlap, 4),
        "shape": found.shape == item.shape,
    }


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the clips of a motion depend on."""
    mode = module("attention_patches.guidance.modes.registry").make_mode("dmg", **CONSTANTS)
    tuned = hashlib.sha256((MOTIONS / f"{options.motion}.safetensors").read_bytes()).hexdigest()
    return {"steps": options.steps, "cfg": options.cfg, "mode": asdict(mode), "file": tuned}


def measure(options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Sample and measure every clip that is not there yet; the results are written as they come."""
    files = module("video_models.motion.motion_files")
    base = module("video_models.toybox").load_toybox()
    tuned = files.apply_motion(base, files.read_motion(MOTIONS / f"{options.motion}.safetensors"))
    settings = settings_of(options)
    if content.setdefault("settings", {}).get(options.motion) != settings:
        # Figures of another tuned file or other settings do not belong beside these.
        content["films"] = [entry for entry in content.get("films", []) if entry["motion"] != options.motion]
        content["settings"][options.motion] = settings
    films = content["films"]
    done = {(entry["motion"], entry["model"], entry["locked"], entry["masked"], entry["number"]) for entry in films}
    for number in range(options.films):
        scene = scene_of(options.motion, number, NEW, 1000)
        for name, model in (("untuned", base), ("tuned", tuned)):
            for locked in (True, False):
                for masked in (False, True):
                    key = (options.motion, name, locked, masked, number)
                    if key in done:
                        continue
                    frames = film(model, scene, number, locked, masked, options.steps, options.cfg).numpy()
                    names = ("motion", "model", "locked", "masked", "number")
                    films.append({**dict(zip(names, key, strict=True)), **measured(frames, scene)})
                    save(options.results, content)


def summarise(films: Sequence[dict[str, Any]], motion: str) -> list[dict[str, Any]]:
    """One entry per kind of clip: how many follow the motion, the median error, overlap with the masks, shape kept."""
    entries = []
    for name in ("untuned", "tuned"):
        for locked in (True, False):
            for masked in (False, True):
                key = {"motion": motion, "model": name, "locked": locked, "masked": masked}
                chosen = [entry for entry in films if all(entry[field] == value for field, value in key.items())]
                if not chosen:
                    continue
                errors = [float("inf") if entry["error"] is None else entry["error"] for entry in chosen]
                entries.append(
                    {
                        **key,
                        "films": len(chosen),
                        "follow": sum(error < NEAR for error in errors) / len(chosen),
                        "error": statistics.median(errors),
                        "overlap": statistics.fmean(entry["overlap"] for entry in chosen),
                        "shape": statistics.fmean(entry["shape"] for entry in chosen),
                    }
                )
    return entries


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The summary in Markdown."""
    lines = [
        "| model | first frame | masks | clips | follow the motion | median error, px | overlap with masks | shape |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        cells = (
            *(entry["model"], "given" if entry["locked"] else "free", "yes" if entry["masked"] else "no"),
            *(str(entry["films"]), f"{entry['follow']:.0%}", f"{entry['error']:.1f}", f"{entry['overlap']:.2f}"),
            f"{entry['shape']:.0%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sheet(path: Path, options: argparse.Namespace) -> None:
    """Rows of pictures, three scenes: drawn, untuned and tuned with the first frame given, without masks and with."""
    from PIL import Image

    files, world = module("video_models.motion.motion_files"), module("toybox.world")
    base = module("video_models.toybox").load_toybox()
    tuned = files.apply_motion(base, files.read_motion(MOTIONS / f"{options.motion}.safetensors"))
    rows = []
    for number in range(3):
        scene = scene_of(options.motion, number, NEW, 1000)
        films = [torch.from_numpy(world.render(scene).frames)]
        for model in (base, tuned):
            for masked in (False, True):
                films.append(film(model, scene, number, True, masked, options.steps, options.cfg))
        rows += [(frames.clamp(0, 1) * 255).byte().transpose(0, 1).flatten(1, 2) for frames in films]
    Image.fromarray(torch.cat(rows).numpy()).save(path)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the results; the file is replaced when it is complete."""
    with module("weight_files.writing").replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")


def main(arguments: list[str] | None = None) -> int:
    """Tune, measure, print the table, or draw the sheet."""
    parser = argparse.ArgumentParser(description="Tuning the Toybox to a motion that it never saw.")
    parser.add_argument("part", choices=("tune", "measure", "summary", "sheet"))
    parser.add_argument("motion", choices=("circle", "zigzag"))
    parser.add_argument("path", nargs="?", type=Path, help="of the sheet")
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    content: dict[str, Any] = {}
    if options.results.exists():
        content = json.loads(options.results.read_text(encoding="ascii"))
    if options.part == "tune":
        content.setdefault("tuning", {})[options.motion] = tune(options.motion, options.threads)
        save(options.results, content)
    elif options.part == "measure":
        measure(options, content)
    elif options.part == "sheet":
        if options.path is None:
            parser.error("give the file that the sheet is written to.")
        sheet(options.path, options)
        return 0
    sys.stdout.write(table(summarise(content.get("films", []), options.motion)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
