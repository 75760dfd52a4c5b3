"""What holds a clip together that is longer than the model was trained on, measured on the Toybox.

    python benchmarks/long_clips.py            # 20 seeds at 32 and 64 frames, then the table
    python benchmarks/long_clips.py summary    # the table of what has been measured
    python benchmarks/long_clips.py sheet FILE.png --frames 32 --seeds 3    # the same clips to look at

Toybox was trained on 8 frames. Each seed has its own prompt; direct sampling and the others share it, and those of
one kind of noise also share the noise. Raw numbers of every clip go to ``benchmarks/results/long_clips.json`` as they
come; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from shared.measuring import RESULTS as RESULTS_FOLDER
from shared.measuring import module

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = RESULTS_FOLDER / "long_clips.json"
DIRECT = "direct"
# What is measured (toybox/consistency.py); True where more is better, None where neither is.
MEASURES: dict[str, bool | None] = {
    "colour_drift": False,
    "size_drift": False,
    "split": False,
    "flicker": False,
    "jerk": False,
    "travel": None,
    "presence": True,
    "colour_right": True,
}


@dataclass(frozen=True)
class Variant:
    """How a clip is sampled.

    Attributes:
        noise: kind of starting noise.
        free_long: settings of FreeLong beside the window, or None without it.
    """

    noise: str
    free_long: dict[str, Any] | None = None


def variants() -> dict[str, Variant]:
    """All that is compared; direct sampling comes first."""
    octaves = module("attention_patches.free_long").OCTAVES
    return {
        DIRECT: Variant("plain"),
        "FreeNoise": Variant("freenoise"),
        "FreeLong": Variant("plain", {}),
        "FreeLong, FreeNoise": Variant("freenoise", {}),
        "FreeLong++": Variant("plain", {"bands": octaves}),
        "FreeLong++, SpecMix": Variant("specmix", {"bands": octaves}),
    }


def scene_of(seed: int) -> Any:
    """A scene with one object, words at random, the same for a seed."""
    return module("toybox.world").random_scene(np.random.default_rng(100 + seed), "any", max_objects=1)


def sample(model: Any, variant: Variant, seed: int, frames: int, steps: int, cfg: float) -> Tensor:
    """One clip: float [T, H, W, 3]."""
    engine, world, size = module("attention_patches.free_long"), module("toybox.world"), model.geometry
    latents = size.latent_size(frames, size.height, size.width)
    noise = module("video_models.sampling.noise").video_noise(latents, seed, variant.noise, window=size.native_frames)
    patches = ()
    if variant.free_long is not None:
        settings = engine.FreeLong(window=size.native_frames, **variant.free_long)
        patches = (engine.FreeLongPatch(settings),)
    positive, negative = model.encode_prompt(world.prompt(scene_of(seed))), model.encode_prompt("")
    return model.decode(model.sample(noise, positive, negative, steps=steps, cfg=cfg, patches=patches))


def measure(film: Tensor, seed: int) -> dict[str, float | None]:
    """All measures of one clip."""
    scene = scene_of(seed)
    found = module("toybox.consistency").film_consistency(film.numpy(), scene.background, scene.objects[0].colour)
    return {name: None if value is None else round(value, 6) for name, value in asdict(found).items()}


def run(options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Sample and measure what has not been measured yet."""
    model = module("video_models.toybox").load_toybox()
    settings = {"steps": options.steps, "cfg": options.cfg, "window": model.geometry.native_frames}
    if content.get("settings") != settings:
        # Figures of other settings do not belong beside these.
        content.update(settings=settings, films=[])
    done = {(film["frames"], film["seed"], film["variant"]) for film in content["films"]}
    started = time.monotonic()
    for seed in range(options.seeds):
        for frames in options.frames:
            for name, variant in variants().items():
                if (frames, seed, name) in done:
                    continue
                film = sample(model, variant, seed, frames, options.steps, options.cfg)
                content["films"].append({"frames": frames, "seed": seed, "variant": name, **measure(film, seed)})
            save(options.results, content)
            sys.stdout.write(f"{time.monotonic() - started:6.0f} s  seed {seed}, {frames} frames\n")
            sys.stdout.flush()


def save(path: Path, content: dict[str, Any]) -> None:
    """Write all figures and their summary; the file is replaced when it is complete."""
    content["summary"] = summarise(content["films"])
    ordered = {key: content[key] for key in ("settings", "summary", "films")}
    with module("weight_files.writing").replacing(path) as temporary:
        temporary.write_text(json.dumps(ordered, indent=1, allow_nan=False) + "\n", encoding="ascii")


def summarise(films: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over seeds per length and variant, and the paired difference to direct sampling."""
    entries = []
    for frames in sorted({film["frames"] for film in films}):
        of_length = [film for film in films if film["frames"] == frames]
        names = list(dict.fromkeys(film["variant"] for film in of_length))
        direct = {film["seed"]: film for film in of_length if film["variant"] == DIRECT}
        for name in names:
            chosen = [film for film in of_length if film["variant"] == name]
            entry: dict[str, Any] = {"frames": frames, "variant": name, "seeds": len(chosen)}
            for key in MEASURES:
                values = [film[key] for film in chosen if film[key] is not None]
                pairs = [
                    film[key] - direct[film["seed"]][key]
                    for film in chosen
                    if film["seed"] in direct and None not in (film[key], direct[film["seed"]][key])
                ]
                entry[key] = {**spread(values), **({} if name == DIRECT else difference(pairs, MEASURES[key]))}
            entries.append(entry)
    return entries


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation."""
    return {
        "mean": round(statistics.fmean(values), 6) if values else None,
        "deviation": round(statistics.stdev(values), 6) if len(values) > 1 else None,
    }


def difference(pairs: Sequence[float], more_is_better: bool | None) -> dict[str, Any]:
    """Mean of paired differences, its standard error, and how many clips are better than direct ones."""
    if not pairs:
        return {"difference": None}
    sign = -1.0 if more_is_better is False else 1.0
    return {
        "difference": round(statistics.fmean(pairs), 6),
        "standard_error": round(statistics.stdev(pairs) / math.sqrt(len(pairs)), 6) if len(pairs) > 1 else None,
        "better": sum(sign * value > 0.0 for value in pairs),
    }


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The summary as text: mean (spread), and how many seeds are better than direct sampling."""
    lines = [f"{'frames':>6} {'':20} " + " ".join(f"{name:>22}" for name in MEASURES)]
    for entry in entries:
        cells = []
        for name, more_is_better in MEASURES.items():
            found = entry[name]
            if found["mean"] is None:
                cells.append(f"{'-':>22}")
                continue
            text = f"{found['mean']:.4f} ({found['deviation'] or 0.0:.4f})"
            if more_is_better is not None and "better" in found:
                text += f" {found['better']:2}/{entry['seeds']}"
            cells.append(f"{text:>22}")
        lines.append(f"{entry['frames']:6} {entry['variant']:20} " + " ".join(cells))
    return "\n".join(lines)


def sheet(path: Path, frames: int, seeds: int, steps: int, cfg: float, columns: int = 16) -> None:
    """Write clips as rows of pictures, evenly spaced over time: per seed one row for each variant."""
    from PIL import Image

    model, rows = module("video_models.toybox").load_toybox(), []
    chosen = torch.linspace(0, frames - 1, min(columns, frames)).round().long()
    for seed in range(seeds):
        for variant in variants().values():
            film = sample(model, variant, seed, frames, steps, cfg)
            rows.append((film[chosen].clamp(0, 1) * 255).byte().transpose(0, 1).flatten(1, 2))
    Image.fromarray(torch.cat(rows).numpy()).save(path)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, or draw the sheet."""
    parser = argparse.ArgumentParser(description="What holds long Toybox clips together.")
    parser.add_argument("part", nargs="?", choices=("run", "summary", "sheet"), default="run")
    parser.add_argument("path", nargs="?", type=Path, help="of the sheet")
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.part == "sheet":
        if options.path is None:
            parser.error("give the file that the sheet is written to.")
        sheet(options.path, options.frames[0], options.seeds, options.steps, options.cfg)
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
