"""Whether the object goes where the masks go, in every mode of dynamic mask guidance, measured on the Toybox.

    python benchmarks/mask_modes.py run                   # 6 motions x 5 prompts x 3 noises, every variant
    python benchmarks/mask_modes.py run --variants dmg    # only some; figures of the others are kept
    python benchmarks/mask_modes.py summary               # the table of what has been measured
    python benchmarks/mask_modes.py sheet --out modes.png # clips of a few guides, the masks drawn on them

A guide is a track of masks of the object's shape and size, in one of the world's six motions; its prompt names
another motion. All variants of a guide share prompt and noise. ``+ first frame`` locks the first frame to a picture of
the object at its first mask; frames after it are what counts there, so that the given frame is not counted as followed.
Raw numbers go to ``benchmarks/results/mask_modes.json`` as they come; a run that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from guidance import fingerprint, rounded
from shared.measuring import RESULTS as RESULTS_FOLDER
from shared.measuring import module

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = RESULTS_FOLDER / "mask_modes.json"
PROMPTS_PER_MOTION = 5
SEEDS_PER_PROMPT = 3
UNGUIDED = "none"
LOCKED = " + first frame"
# The mask rule for self-attention with the first frame's keys, off by default (see docs/measured.md).
SELF_ATTENTION = {"gamma_self": 8.0, "self_end_percent": 0.4, "keys": "first_self"}
VARIANTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    # name: mode, constants that differ from the published ones, whether the background is named
    "dmg": ("dmg", {}, True),
    "dmg, self-attention too": ("dmg", SELF_ATTENTION, True),
    "dmg, background not named": ("dmg", {}, False),
    # In place of the gain that was found on one training: what each head needs for a share of its attention.
    **{f"dmg, share {share:g}": ("dmg", {"share": share}, True) for share in (0.5, 0.7, 0.9)},
    "peekaboo": ("peekaboo", {}, True),
    # The first 2 or 3 of 50 steps are none of 12.
    "peekaboo, 2 of 12 steps": ("peekaboo", {"end_percent": 0.2}, True),
    "trailblazer": ("trailblazer", {}, True),
    "freetraj": ("freetraj", {}, True),
    "freetraj, clean, half the steps": ("freetraj", {"cross": "clean", "end_percent": 0.5}, True),
    "direct_a_video": ("direct_a_video", {}, True),
    "direct_a_video, 2 of 12 steps": ("direct_a_video", {"amplify_percent": 0.2}, True),
    "motionbooth": ("motionbooth", {}, True),
    "videograin": ("videograin", {}, True),
    "through_the_mask": ("through_the_mask", {}, True),
}
NAMES = (UNGUIDED, *VARIANTS, *(name + LOCKED for name in (UNGUIDED, "dmg", "dmg, self-attention too")))
MEASURES = ("iou", "later_iou", "colour", "shape", "background", "background_error")
# Pixels around masks and objects that belong to their soft edges.
EDGE = 2


@dataclass(frozen=True, eq=False)
class Task:
    """A guide and a prompt that asks for something else.

    Attributes:
        motion: of the masks.
        scene: of the masks: where the object should be.
        prompt: names another motion.
    """

    motion: str
    scene: Any
    prompt: str

    @property
    def item(self) -> Any:
        """The object."""
        return self.scene.objects[0]


def make_tasks(seed: int) -> list[Task]:
    """The guides, the same for a seed: every motion as often, words and places at random."""
    world = module("toybox.world")
    generator = np.random.default_rng(seed)
    found = []
    for motion in world.MOTIONS:
        for _ in range(PROMPTS_PER_MOTION):
            words = world.random_scene(generator, "any", max_objects=1)
            item = words.objects[0]
            scene = world.scene_from_words([(item.colour, item.shape, motion)], words.background, generator)
            other = str(generator.choice([name for name in world.MOTIONS if name != motion]))
            prompted = replace(scene, objects=(replace(scene.objects[0], motion=other),))
            found.append(Task(motion, scene, world.prompt(prompted)))
    return found


def measure(film: Tensor, task: Task) -> dict[str, float]:
    """What a clip [T, H, W, 3] has of its guide, words and background."""
    world, metrics = module("toybox.world"), module("toybox.metrics")
    frames, masks = film.numpy(), world.render(task.scene).masks[0]
    seen = metrics.colour_segmentation(frames, task.item.colour, task.scene.background)
    free = ~(grown(masks) | grown(seen))
    error = np.abs(frames - world.background_image(task.scene.background)).mean(axis=-1)
    return {
        "iou": metrics.intersection_over_union(seen, masks),
        "later_iou": metrics.intersection_over_union(seen[1:], masks[1:]),
        "colour": float(metrics.find_colours(frames, 1) == [task.item.colour]),
        "shape": float(metrics.measure_shape(seen) == task.item.shape),
        "background": float(metrics.measure_background(frames) == task.scene.background),
        "background_error": float(error[free].mean()),
    }


def grown(masks: np.ndarray) -> np.ndarray:
    """Masks [T, H, W] grown by ``EDGE`` pixels."""
    size = 2 * EDGE + 1
    spread = torch.nn.functional.max_pool2d(torch.from_numpy(masks).float()[:, None], size, stride=1, padding=EDGE)
    return spread[:, 0].numpy() > 0.5


@dataclass(frozen=True)
class Bench:
    """The model and how it samples."""

    model: Any
    steps: int
    cfg: float

    def films(self, task: Task, number: int, name: str) -> list[Tensor]:
        """The clips of a variant, one per noise."""
        world, model = module("toybox.world"), self.model
        size = model.geometry
        seeds = range(1000 * number, 1000 * number + SEEDS_PER_PROMPT)
        noise = torch.cat([model.noise(size.native_frames, size.height, size.width, seed) for seed in seeds])
        first = None
        if name.endswith(LOCKED):
            picture = torch.from_numpy(world.render(task.scene).frames[:1])
            first = module("video_models.sampling.first_frame").FirstFrame(model.encode(picture))
        latents = model.sample(
            noise,
            model.encode_prompt(task.prompt),
            model.encode_prompt(""),
            steps=self.steps,
            cfg=self.cfg,
            patches=self.patches(task, name.removesuffix(LOCKED)),
            first_frame=first,
        )
        return [model.decode(clip[None]) for clip in latents]

    def patches(self, task: Task, variant: str) -> Sequence[Any]:
        """Attention patches of a variant."""
        if variant == UNGUIDED:
            return ()
        world, guides = module("toybox.world"), module("attention_patches.guidance.guide")
        masks = torch.from_numpy(world.render(task.scene).masks).float()
        phrases = (world.phrase(task.item),)
        background = world.BACKGROUNDS[task.scene.background] if VARIANTS[variant][2] else ""
        share = VARIANTS[variant][1].get("share")
        goal = None if share is None else module("attention_patches.guidance.attention_share").ShareGoal(share)
        guide = guides.Guide(masks, phrases=phrases, background_phrase=background, mode=make_mode(variant), goal=goal)
        spans = self.model.token_spans(task.prompt, phrases, background)
        return module("attention_patches.guidance.patch").guide_patches(guide, spans)


def make_mode(variant: str) -> Any:
    """The mode of a variant."""
    name, given, _ = VARIANTS[variant]
    constants = {key: value for key, value in given.items() if key != "share"}
    return module("attention_patches.guidance.modes.registry").make_mode(name, **constants)


def settings_of(name: str) -> dict[str, Any]:
    """What the figures of a variant depend on."""
    variant = name.removesuffix(LOCKED)
    if variant == UNGUIDED:
        return {"locked": name.endswith(LOCKED)}
    mode = json.loads(json.dumps(asdict(make_mode(variant))))
    return {
        "locked": name.endswith(LOCKED),
        "mode": VARIANTS[variant][0],
        "background_named": VARIANTS[variant][2],
        **({"share": VARIANTS[variant][1]["share"]} if "share" in VARIANTS[variant][1] else {}),
        **mode,
    }


def run(bench: Bench, content: dict[str, Any], names: Sequence[str], tasks: Sequence[Task], path: Path) -> None:
    """Measure what is not yet recorded; the file is written after every guide."""
    for name in names:
        if content["variants"].get(name) != settings_of(name):
            content["records"] = [record for record in content["records"] if record["variant"] != name]
            content["variants"][name] = settings_of(name)
    done = {(record["variant"], record["task"]) for record in content["records"]}
    for number, task in enumerate(tasks):
        for name in names:
            if (name, number) in done:
                continue
            films = [measure(film, task) for film in bench.films(task, number, name)]
            place = {"variant": name, "task": number, "motion": task.motion, "prompt": task.prompt}
            content["records"].append({**place, "films": films})
            later = statistics.fmean(film["later_iou"] for film in films)
            sys.stdout.write(f"{number:2} {name:42} IoU after the first frame {later:.2f}\n")
            sys.stdout.flush()
        save(path, content)


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of each variant with the standard error over guides (noises of a guide are averaged first)."""
    summary: dict[str, Any] = {}
    for name in NAMES:
        chosen = [record for record in records if record["variant"] == name]
        if not chosen:
            continue
        entry: dict[str, Any] = {"films": sum(len(record["films"]) for record in chosen)}
        for key in MEASURES:
            means = [statistics.fmean(film[key] for film in record["films"]) for record in chosen]
            error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
            entry[key] = {"mean": statistics.fmean(means), "standard_error": error}
        motions = sorted({record["motion"] for record in chosen})
        entry["later_iou_by_motion"] = {
            motion: statistics.fmean(
                film["later_iou"] for record in chosen if record["motion"] == motion for film in record["films"]
            )
            for motion in motions
        }
        shapes = sorted(module("toybox.world").SHAPES)
        entry["later_iou_by_shape"] = {
            shape: statistics.fmean(films)
            for shape in shapes
            if (films := [f["later_iou"] for r in chosen if shape in r["prompt"].split() for f in r["films"]])
        }
        summary[name] = entry
    return summary


def table(summary: dict[str, Any]) -> str:
    """The summary as a table of text."""
    lines = [f"{'':42} {'films':>5} " + " ".join(f"{key:>17}" for key in MEASURES)]
    for name, entry in summary.items():
        cells = []
        for key in MEASURES:
            error = entry[key]["standard_error"]
            cells.append(f"{entry[key]['mean']:.3f}" + ("" if error is None else f" (se {error:.3f})"))
        shapes = " ".join(f"{shape} {value:.2f}" for shape, value in entry["later_iou_by_shape"].items())
        lines.append(f"{name:42} {entry['films']:5} " + " ".join(f"{cell:>17}" for cell in cells) + f"  {shapes}")
    return "\n".join(lines)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write settings, summary and records; the file is replaced when it is complete."""
    content["summary"] = summarise(content["records"])
    ordered = {key: content[key] for key in ("settings", "variants", "summary", "records")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with module("weight_files.writing").replacing(path) as temporary:
        temporary.write_text(json.dumps(rounded(ordered), indent=1, allow_nan=False) + "\n", encoding="ascii")


def draw_sheet(bench: Bench, tasks: Sequence[Task], names: Sequence[str], path: Path) -> None:
    """One row per guide and variant: the clip of the first noise, the mask's outline on it."""
    from PIL import Image

    world = module("toybox.world")
    rows = []
    for number, task in enumerate(tasks):
        outline = world.render(task.scene).masks[0]
        inner = torch.nn.functional.max_pool2d(-torch.from_numpy(outline).float()[:, None], 3, stride=1, padding=1)
        outline = outline & (inner[:, 0].numpy() > -0.5)
        for name in names:
            film = bench.films(task, number, name)[0].numpy().copy()
            film[outline] = (1.0, 0.0, 1.0)
            rows.append(np.concatenate(list(film), axis=1))
    picture = Image.fromarray((np.concatenate(rows) * 255.0).round().astype(np.uint8))
    picture.resize((2 * picture.width, 2 * picture.height), Image.NEAREST).save(path)


def main(arguments: list[str] | None = None) -> int:
    """Measure, draw, or print what has been measured."""
    parser = argparse.ArgumentParser(description="Where the object goes in every mode of dynamic mask guidance.")
    parser.add_argument("part", choices=("run", "summary", "sheet"))
    parser.add_argument("--variants", nargs="*", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=41, help="of the guides; the defaults of dmg were found on another")
    parser.add_argument("--guides", type=int, help="only the first N of 30")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("mask_modes.png"), help="picture of the sheet")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--weights", type=Path, help="folder of another training, in the bundled one's form")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    content: dict[str, Any] = {"settings": {}, "variants": {}, "records": []}
    if options.results.exists():
        content = json.loads(options.results.read_text(encoding="ascii"))
    if options.part == "summary":
        sys.stdout.write(table(summarise(content["records"])) + "\n")
        return 0
    toybox = module("video_models.toybox")
    model = toybox.load_toybox(folder=options.weights or toybox.TOYBOX_FOLDER)
    bench, tasks = Bench(model, options.steps, options.cfg), make_tasks(options.seed)[: options.guides]
    if options.part == "sheet":
        draw_sheet(bench, tasks, options.variants, options.out)
        return 0
    settings = {"weights": fingerprint(model), "steps": options.steps, "cfg": options.cfg, "seed": options.seed}
    if content["settings"] != settings:
        content = {"settings": settings, "variants": {}, "records": []}
    run(bench, content, options.variants, tasks, options.results)
    sys.stdout.write(table(summarise(content["records"])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
