"""Whether levers beside words bring the object under its masks, on one or more sets of the Toybox's weights.

    python benchmarks/levers.py run                                     # the bundled weights
    python benchmarks/levers.py run --weights toybox/text_to_video DIR  # several, in turn
    python benchmarks/levers.py run --variants "mode alone" crude_film --noises 3
    python benchmarks/levers.py summary

A guide is a track of masks of the object's shape and size in one of the world's six motions; its prompt names another
motion. All variants share guide, prompt and noise, and all go with the same mode of mask guidance. ``auto`` is the
recipe's own choice; where it samples what another variant has sampled, that film is taken, since it is the same bit for
bit. A folder of weights may lack ``vae`` and ``tokenizer``: then those of the bundled ones are taken. Raw numbers go to
``benchmarks/results/levers.json`` as they come; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from guidance import fingerprint, rounded
from mask_modes import Task, make_tasks, measure
from shared.measuring import RESULTS as RESULTS_FOLDER
from shared.measuring import ROOT, module

RESULTS = RESULTS_FOLDER / "levers.json"
BUNDLED = ROOT / "toybox" / "text_to_video"
ALONE, AUTO = "mode alone", "auto"
VARIANTS: dict[str, tuple[str, ...]] = {
    ALONE: (),
    "crude_film": ("crude_film",),
    "noise": ("noise",),
    "energy": ("energy",),
    "energy + crude_film": ("energy", "crude_film"),
}
NAMES = (*VARIANTS, AUTO)
MEASURES = ("iou", "colour", "shape", "background", "background_error")
PARTS = ("vae", "tokenizer")


@dataclass(frozen=True)
class Bench:
    """A set of weights and how it samples."""

    model: Any
    weights: str
    steps: int
    cfg: float
    mode: str

    def clip(self, task: Task, seed: int) -> Any:
        """A guide's clip for one noise, as the recipe would sample it."""
        world, model = module("toybox.world"), self.model
        guides, patches = module("attention_patches.guidance.guide"), module("attention_patches.guidance.patch")
        masks = torch.from_numpy(world.render(task.scene).masks).float()
        phrases, background = (world.phrase(task.item),), world.BACKGROUNDS[task.scene.background]
        mode = module("attention_patches.guidance.modes.registry").make_mode(self.mode)
        spans = model.token_spans(task.prompt, phrases, background)
        guide = guides.Guide(masks, phrases=phrases, background_phrase=background, mode=mode)
        guided, prompts = (
            patches.guide_patches(guide, spans),
            (model.encode_prompt(task.prompt), model.encode_prompt("")),
        )

        def sample(noise: Any, levers: Any, chosen: Sequence[Any]) -> Any:
            return model.sample(noise, *prompts, steps=self.steps, cfg=self.cfg, patches=chosen, levers=levers)

        size = model.geometry
        return module("recipes.guided_clips.levers").LeverClip(
            model,
            lambda noise, levers: sample(noise, levers, guided),
            lambda noise, levers: sample(noise, levers, ()),
            model.noise(size.native_frames, size.height, size.width, seed),
            masks,
            spans,
            seed,
        )


class Store:
    """Records on disk, by weights, variant, guide and noise."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content
        self.found = {self._key(record): record for record in content["records"]}

    @staticmethod
    def _key(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[name] for name in ("weights", "variant", "task", "noise"))

    def film(self, bench: Bench, tasks: Sequence[Task], variant: str, number: int, noise: int) -> dict[str, Any]:
        """The record of a variant's film; sampled where it is not there yet."""
        found = self.found.get((bench.weights, variant, number, noise))
        if found is not None:
            return found
        clip, task = bench.clip(tasks[number], 1000 * number + noise), tasks[number]
        if variant == AUTO:
            film, attempts = self._automatic(bench, tasks, clip, number, noise)
            told = {"attempts": [asdict(attempt) for attempt in attempts]}
        else:
            latents, attempt = clip.with_levers(VARIANTS[variant])
            film, told = measure(bench.model.decode(latents), task), {"attempts": [asdict(attempt)]}
        place = {"weights": bench.weights, "variant": variant, "task": number, "noise": noise}
        words = {"shape_word": task.item.shape, "colour_word": task.item.colour, "ground": task.scene.background}
        record = {**place, **words, "prompt": task.prompt, **told, "film": film}
        self.content["records"].append(record)
        self.found[self._key(record)] = record
        taken = next((" + ".join(a["levers"]) or ALONE for a in told["attempts"] if a["taken"]), variant)
        sys.stdout.write(f"{bench.weights} {number:2} {noise} {variant:20} IoU {film['iou']:.2f} ({taken})\n")
        sys.stdout.flush()
        self.save()
        return record

    def _automatic(
        self, bench: Bench, tasks: Sequence[Task], clip: Any, number: int, noise: int
    ) -> tuple[dict[str, float], tuple[Any, ...]]:
        levers = module("recipes.guided_clips.levers")
        store, names = self, {chosen: name for name, chosen in VARIANTS.items()}

        class Recorded(levers.LeverClip):
            """The clip with the films that are recorded in the place of sampling."""

            def with_levers(self, chosen: tuple[str, ...], least: float = 0.0) -> Any:
                record = store.film(bench, tasks, names[chosen], number, noise)
                attempt = levers.Attempt(**{**record["attempts"][0], "levers": chosen})
                if attempt.overlap < least:
                    raise levers.NotReached(attempt)
                return record["film"], attempt

        values = {name: getattr(clip, name) for name in clip.__dataclass_fields__}
        return Recorded(**values).choose()

    def save(self) -> None:
        """Write settings, summary and records; the file is replaced when it is complete."""
        self.content["summary"] = summarise(self.content["records"])
        ordered = {key: self.content[key] for key in ("settings", "summary", "records")}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with module("weight_files.writing").replacing(self.path) as temporary:
            temporary.write_text(json.dumps(rounded(ordered), indent=1, allow_nan=False) + "\n", encoding="ascii")


def mean_and_error(records: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """Mean over guides, with its standard error; noises of a guide are averaged first."""
    guides = sorted({record["task"] for record in records})
    means = [statistics.fmean(r["film"][key] for r in records if r["task"] == guide) for guide in guides]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return {"mean": statistics.fmean(means), "standard_error": error}


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each set of weights and variant: measures, IoU by shape, colour and background, and what auto took."""
    summary: dict[str, Any] = {}
    for weights in sorted({record["weights"] for record in records}):
        summary[weights] = {}
        for name in NAMES:
            chosen = [r for r in records if (r["weights"], r["variant"]) == (weights, name)]
            if not chosen:
                continue
            entry: dict[str, Any] = {"films": len(chosen), "guides": len({record["task"] for record in chosen})}
            entry |= {key: mean_and_error(chosen, key) for key in MEASURES}
            for word in ("shape_word", "colour_word", "ground"):
                values = sorted({record[word] for record in chosen})
                entry[f"iou by {word}"] = {
                    value: mean_and_error([r for r in chosen if r[word] == value], "iou") for value in values
                }
            if name == AUTO:
                taken = [" + ".join(a["levers"]) or ALONE for r in chosen for a in r["attempts"] if a["taken"]]
                entry["taken"] = {levers: taken.count(levers) for levers in sorted(set(taken))}
            summary[weights][name] = entry
    return summary


def table(summary: dict[str, Any]) -> str:
    """The summary as a table of text."""

    def cell(value: dict[str, Any]) -> str:
        error = value["standard_error"]
        return f"{value['mean']:.3f}" + ("" if error is None else f" (se {error:.3f})")

    lines = []
    for weights, variants in summary.items():
        lines.append(f"{weights:24} {'films':>5} " + " ".join(f"{key:>17}" for key in MEASURES))
        for name, entry in variants.items():
            lines.append(f"{name:24} {entry['films']:5} " + " ".join(f"{cell(entry[key]):>17}" for key in MEASURES))
            for word in ("shape_word", "colour_word", "ground"):
                found = entry[f"iou by {word}"].items()
                lines.append("    IoU " + ", ".join(f"{value} {cell(measured)}" for value, measured in found))
            if "taken" in entry:
                lines.append("    took " + ", ".join(f"{levers} {count}" for levers, count in entry["taken"].items()))
    return "\n".join(lines)


@contextmanager
def opened(folder: Path) -> Iterator[Any]:
    """The model of a folder of weights; parts that it lacks are the bundled ones."""
    toybox = module("video_models.toybox")
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary)
        for part in folder.iterdir():
            (whole / part.name).symlink_to(part.resolve())
        for name in PARTS:
            if not (whole / name).exists():
                (whole / name).symlink_to(BUNDLED / name)
        yield toybox.load_toybox(folder=whole)


def main(arguments: list[str] | None = None) -> int:
    """Measure, or print what has been measured."""
    parser = argparse.ArgumentParser(description="Levers beside words, on sets of the Toybox's weights.")
    parser.add_argument("part", choices=("run", "summary"))
    parser.add_argument("--weights", type=Path, nargs="+", default=[BUNDLED], metavar="FOLDER")
    parser.add_argument("--variants", nargs="*", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--guides", type=int, default=30, help="the first N of 30")
    parser.add_argument("--every", type=int, default=1, help="only each N-th of them")
    parser.add_argument("--noises", type=int, default=3, help="of each guide")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--mode", default="dmg", help="of mask guidance, in all variants")
    parser.add_argument("--seed", type=int, default=53, help="of the guides; constants were found on 907")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    content: dict[str, Any] = {"settings": {}, "records": []}
    if options.results.exists():
        content = json.loads(options.results.read_text(encoding="ascii"))
    if options.part == "summary":
        sys.stdout.write(table(summarise(content["records"])) + "\n")
        return 0
    constants = asdict(module("recipes.guided_clips.levers").LeverConstants())
    settings = {"steps": options.steps, "cfg": options.cfg, "mode": options.mode, "seed": options.seed, **constants}
    for folder in options.weights:
        with opened(folder) as model:
            wanted = {**settings, "weights": fingerprint(model)}
            if content["settings"].get(folder.name) != wanted:
                # Figures of other weights or settings do not belong beside these.
                content["records"] = [record for record in content["records"] if record["weights"] != folder.name]
            content["settings"][folder.name] = wanted
            store, tasks = Store(options.results, content), make_tasks(options.seed)[: options.guides]
            bench = Bench(model, folder.name, options.steps, options.cfg, options.mode)
            for noise in range(options.noises):
                for number in range(0, len(tasks), options.every):
                    for name in options.variants:
                        store.film(bench, tasks, name, number, noise)
    sys.stdout.write(table(summarise(content["records"])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
