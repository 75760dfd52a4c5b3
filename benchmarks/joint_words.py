"""Whether words reach their own object where text and video are one sequence, measured on the joint Toybox model.

    python benchmarks/joint_words.py run --half        # 12 scenes x 2 colourings x 2 noises, every variant
    python benchmarks/joint_words.py few_steps --half  # 4, 8 and 25 steps, with and without classifier-free guidance
    python benchmarks/joint_words.py choose --half     # the strengths of "run", on scenes and noises of their own
    python benchmarks/joint_words.py summary           # the tables of what has been measured
    python benchmarks/joint_words.py sheet --out joint_words.png

A scene has two objects of two shapes; it is asked for twice, the second time with the two colours exchanged, under the
same masks and noises. Masks are those of the drawn scene. Everything is read from pixels with the world's metrics.
Raw numbers go to ``benchmarks/results/joint_words.json`` as they come; a run that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
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

RESULTS = RESULTS_FOLDER / "joint_words.json"
UNGUIDED = "none"
# As many steps as the other comparisons of modes on the Toybox take.
STEPS = 12
CFG = 4.0
# Part of the schedule that counts as the first half of the steps, and as all of them.
HALF, ALL = 0.5, 1.0
MEASURES = ("own_place", "own_shape", "swapped", "alike", "both_seen", "background", "iou", "motion")


@dataclass(frozen=True)
class Variant:
    """How a clip is made.

    Attributes:
        modes: name and constants of each guide that acts, all on the same masks and phrases.
        steps, cfg: of the sampler.
    """

    modes: tuple[tuple[str, dict[str, Any]], ...] = ()
    steps: int = STEPS
    cfg: float = CFG


@dataclass(frozen=True)
class Part:
    """A set of scenes, and what is done to them.

    Attributes:
        seed: of the scenes; noises are counted from it too, so that no part shares them.
        scenes: how many.
        noises: clips per prompt.
        variants: by name.
    """

    seed: int
    scenes: int
    noises: int
    variants: dict[str, Variant]


def cross(gain: float, end: float = ALL) -> tuple[str, dict[str, float]]:
    """Words of an object gain as much inside of it."""
    return ("cross_text", {"gain": gain, "end_percent": end})


def separate(gap: float, end: float = ALL) -> tuple[str, dict[str, float]]:
    """Regions lose as much to each other."""
    return ("separate", {"gap": gap, "end_percent": end})


def focus(exponent: float, end: float = ALL) -> tuple[str, dict[str, float]]:
    """Each object looks at itself."""
    return ("focus_fg", {"exponent": exponent, "end_percent": end})


def choices() -> dict[str, Variant]:
    """What the strengths are chosen from."""
    pairs = [(3.0, 2.0), (6.0, 2.0)]
    return {
        UNGUIDED: Variant(),
        **{f"cross_text {gain:g}": Variant((cross(gain),)) for gain in (3.0, 6.0)},
        **{f"separate {gap:g}": Variant((separate(gap),)) for gap in (2.0, 4.0)},
        **{f"cross_text {gain:g} + separate {gap:g}": Variant((cross(gain), separate(gap))) for gain, gap in pairs},
        **{f"focus_fg {exponent:g}": Variant((focus(exponent),)) for exponent in (0.25,)},
    }


def compared() -> dict[str, Variant]:
    """What is reported, of what ``choose`` left: it could not tell gains of 3 and 6 apart, so that both are here."""
    return {
        UNGUIDED: Variant(),
        **{f"cross_text {gain:g}": Variant((cross(gain),)) for gain in (3.0, 6.0)},
        "separate 4": Variant((separate(4.0),)),
        "cross_text 3 + separate 2": Variant((cross(3.0), separate(2.0))),
        "focus_fg 0.25": Variant((focus(0.25),)),
        # With its published constants, for which nothing was chosen here.
        "dmg": Variant((("dmg", {}),)),
    }


def few_steps() -> dict[str, Variant]:
    """Steps and classifier-free guidance against gain and schedule of ``cross_text``."""
    found = {}
    for cfg, gains in ((4.0, (3.0, 6.0)), (1.0, (3.0, 6.0, 12.0))):
        for steps in (4, 8, 25):
            label = f"{steps} steps, cfg {cfg:g}"
            found[f"{label}, none"] = Variant((), steps, cfg)
            for end, schedule in ((HALF, "first half"), (ALL, "all")):
                for gain in gains:
                    found[f"{label}, {schedule}, gain {gain:g}"] = Variant((cross(gain, end),), steps, cfg)
    return found


PARTS: dict[str, Part] = {
    "choose": Part(71, 6, 1, choices()),
    "run": Part(72, 12, 2, compared()),
    "few_steps": Part(73, 6, 1, few_steps()),
}


@dataclass(frozen=True, eq=False)
class Task:
    """A prompt and the places of its objects.

    Attributes:
        number: of the scene; both colourings of a scene share it, and its noises.
        exchanged: whether the two colours are exchanged.
        scene: drawn, it gives the masks.
    """

    number: int
    exchanged: bool
    scene: Any


def make_tasks(part: Part, count: int | None = None) -> list[Task]:
    """The scenes of a part, each in both colourings; the same for a seed."""
    world = module("toybox.world")
    generator = np.random.default_rng(part.seed)
    tasks: list[Task] = []
    while len(tasks) < 2 * (part.scenes if count is None else min(count, part.scenes)):
        scene = world.random_scene(generator, "any", pair_share=1.0)
        first, second = scene.objects
        if first.shape == second.shape:
            continue
        # A brightness of 1, as the measures' own pictures have.
        scene = replace(scene, brightness=1.0)
        objects = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        number = len(tasks) // 2
        tasks += [Task(number, False, scene), Task(number, True, replace(scene, objects=objects))]
    return tasks


def colour_at(colours: np.ndarray, mask: np.ndarray) -> int:
    """The colour that most pixels of a mask [T, H, W] show, of ``metrics.colour_map``; -1 for background."""
    values, counts = np.unique(colours[mask], return_counts=True)
    return int(values[counts.argmax()])


def pieces(colours: np.ndarray, index: int, smallest: int) -> int:
    """How many pieces of a colour most frames show."""
    import cv2

    found = []
    for frame in colours == index:
        _, _, statistics_of, _ = cv2.connectedComponentsWithStats(frame.astype(np.uint8), connectivity=4)
        found.append(int((statistics_of[1:, cv2.CC_STAT_AREA] >= smallest).sum()))
    return int(np.median(found))


def measure(film: Tensor, scene: Any) -> dict[str, float]:
    """What a clip [T, H, W, 3] shows of a scene with two objects.

    - own_place: in each object's mask most pixels have the object's own colour;
    - own_shape: each colour is seen in the shape that the prompt gives it, wherever it is;
    - swapped: each colour is seen in the other's shape;
    - alike: one of the two colours is seen in two pieces, the other not at all;
    - both_seen: both colours are seen, in whatever shape;
    - background, motion: as the prompt says, the latter of each object;
    - iou: of each colour's largest piece with its object's mask, mean of both.
    """
    world, metrics = module("toybox.world"), module("toybox.metrics")
    frames, masks = film.numpy(), world.render(scene).masks
    colours, names = metrics.colour_map(frames, scene.background), list(world.COLOURS)
    own = [names.index(item.colour) for item in scene.objects]
    found = [metrics.measure_object(frames, item.colour, scene.background) for item in scene.objects]
    shapes, asked = [item.shape for item in found], [item.shape for item in scene.objects]
    counts = [pieces(colours, index, metrics.SMALLEST_AREA) for index in own]
    overlaps = [metrics.intersection_over_union(item.mask, mask) for item, mask in zip(found, masks, strict=True)]
    return {
        "own_place": float(all(colour_at(colours, mask) == index for mask, index in zip(masks, own, strict=True))),
        "own_shape": float(shapes == asked),
        "swapped": float(shapes == asked[::-1]),
        "alike": float(min(counts) == 0 and max(counts) >= 2),
        "both_seen": float(min(counts) >= 1),
        "background": float(metrics.measure_background(frames) == scene.background),
        "iou": statistics.fmean(overlaps),
        "motion": float(all(item.motion == one.motion for item, one in zip(found, scene.objects, strict=True))),
    }


def films(model: Any, task: Task, part: Part, variant: Variant) -> list[Tensor]:
    """The clips of a variant, one per noise: float [T, H, W, 3]."""
    size, prompt = model.geometry, module("toybox.world").prompt(task.scene)
    first = 1000 * part.seed + part.noises * task.number
    noise = [
        model.noise(size.native_frames, size.height, size.width, seed) for seed in range(first, first + part.noises)
    ]
    latents = model.sample(
        torch.cat(noise),
        model.encode_prompt(prompt),
        model.encode_prompt(""),
        steps=variant.steps,
        cfg=variant.cfg,
        patches=patches(model, task.scene, variant),
    )
    return [model.decode(clip[None]) for clip in latents]


def patches(model: Any, scene: Any, variant: Variant) -> list[Any]:
    """Attention patches of a variant."""
    world, guides = module("toybox.world"), module("attention_patches.guidance.guide")
    registry, guide_patches = (
        module("attention_patches.guidance.modes.registry"),
        module("attention_patches.guidance.patch"),
    )
    masks = torch.from_numpy(world.render(scene).masks).float()
    phrases = tuple(world.phrase(item) for item in scene.objects)
    found: list[Any] = []
    for name, constants in variant.modes:
        # A mode's published blocks are those of a U-Net.
        guide = guides.Guide(masks, registry.make_mode(name, **constants), phrases).on_blocks(model.block_names)
        found += guide_patches.guide_patches(guide, model.token_spans(world.prompt(scene), phrases))
    return found


def measure_part(
    model: Any, name: str, content: dict[str, Any], tasks: Sequence[Task], names: Iterable[str], path: Path
) -> None:
    """Measure what is not yet recorded of a part; the file is written after every variant."""
    part, kept = PARTS[name], content["parts"].setdefault(name, {"variants": {}, "records": []})
    for label in names:
        variant = part.variants[label]
        settings = json.loads(json.dumps(asdict(variant)))
        if kept["variants"].get(label) != settings:
            kept["records"] = [record for record in kept["records"] if record["variant"] != label]
            kept["variants"][label] = settings
        done = {(record["scene"], record["exchanged"]) for record in kept["records"] if record["variant"] == label}
        for task in tasks:
            if (task.number, task.exchanged) in done:
                continue
            values = [measure(film, task.scene) for film in films(model, task, part, variant)]
            place = {"variant": label, "scene": task.number, "exchanged": task.exchanged}
            prompt = module("toybox.world").prompt(task.scene)
            kept["records"].append({**place, "prompt": prompt, "films": values})
        entry = summarise(kept)[label]
        sys.stdout.write(line(label, entry) + "\n")
        sys.stdout.flush()
        save(path, content)


def summarise(kept: dict[str, Any]) -> dict[str, Any]:
    """Means of each variant with the standard error over scenes; colourings and noises of a scene are averaged first.

    ``both_colourings`` is the share of noises with which both colourings of a scene have ``own_place``.
    """
    summary: dict[str, Any] = {}
    for name in kept["variants"]:
        chosen = [record for record in kept["records"] if record["variant"] == name]
        scenes = sorted({record["scene"] for record in chosen})
        groups = [[record for record in chosen if record["scene"] == scene] for scene in scenes]
        entry: dict[str, Any] = {"films": sum(len(record["films"]) for record in chosen)}
        values = {
            key: [statistics.fmean(film[key] for record in group for film in record["films"]) for group in groups]
            for key in MEASURES
        }
        values["both_colourings"] = [
            statistics.fmean(
                min(film["own_place"] for film in pair)
                for pair in zip(*(record["films"] for record in group), strict=True)
            )
            for group in groups
        ]
        for key, means in values.items():
            error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
            entry[key] = {"mean": statistics.fmean(means), "standard_error": error}
        summary[name] = entry
    return summary


COLUMNS = (*MEASURES[:1], "both_colourings", *MEASURES[1:])


def line(name: str, entry: dict[str, Any]) -> str:
    """One row of the table."""
    cells = []
    for key in COLUMNS:
        error = entry[key]["standard_error"]
        cells.append(f"{entry[key]['mean']:.2f}" + ("" if error is None else f" ({error:.2f})"))
    return f"{name:36} {entry['films']:5} " + " ".join(f"{cell:>15}" for cell in cells)


def table(name: str, kept: dict[str, Any]) -> str:
    """The summary of a part as a table of text; standard errors in brackets."""
    part = PARTS[name]
    head = f"\n{name}: seed {part.seed}, {part.scenes} scenes x 2 colourings x {part.noises} noises"
    columns = f"{'':36} {'films':>5} " + " ".join(f"{key:>15}" for key in COLUMNS)
    return "\n".join([head, columns, *(line(label, entry) for label, entry in summarise(kept).items())])


def save(path: Path, content: dict[str, Any]) -> None:
    """Write settings, summaries and records; the file is replaced when it is complete."""
    parts = {name: {"summary": summarise(kept), **kept} for name, kept in content["parts"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with module("weight_files.writing").replacing(path) as temporary:
        text = json.dumps(rounded({"settings": content["settings"], "parts": parts}), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="ascii")


def draw_sheet(model: Any, part: Part, tasks: Sequence[Task], names: Sequence[str], path: Path) -> None:
    """One row per task and variant: the clip of the first noise, the masks' outlines on it."""
    from PIL import Image

    world, rows = module("toybox.world"), []
    for task in tasks:
        masks = torch.from_numpy(world.render(task.scene).masks.any(axis=0)).float()[:, None]
        outline = (masks + torch.nn.functional.max_pool2d(-masks, 3, stride=1, padding=1))[:, 0].numpy() > 0.5
        for name in names:
            film = films(model, task, replace(part, noises=1), part.variants[name])[0].numpy().copy()
            film[outline] = (1.0, 0.0, 1.0)
            rows.append(np.concatenate(list(film), axis=1))
    picture = Image.fromarray((np.concatenate(rows) * 255.0).round().astype(np.uint8))
    picture.resize((2 * picture.width, 2 * picture.height), Image.NEAREST).save(path)


def main(arguments: list[str] | None = None) -> int:
    """Measure, draw, or print what has been measured."""
    parser = argparse.ArgumentParser(description="Words and their objects in joint attention of text and video.")
    parser.add_argument("part", choices=(*PARTS, "summary", "sheet"))
    parser.add_argument("--variants", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--scenes", type=int, help="only the first N")
    parser.add_argument("--weights", type=Path, help="model folder (default: toybox/joint_text_to_video)")
    parser.add_argument("--half", action="store_true", help="compute in bfloat16, which the recorded figures are in")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("joint_words.png"), help="picture of the sheet")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    content: dict[str, Any] = {"settings": {}, "parts": {}}
    if options.results.exists():
        content = json.loads(options.results.read_text(encoding="ascii"))
    if options.part != "summary":
        loader = module("video_models.joint.model").load_joint_toybox
        model = loader(folder=options.weights) if options.weights else loader()
        name = "run" if options.part == "sheet" else options.part
        tasks, names = make_tasks(PARTS[name], options.scenes), options.variants or list(PARTS[name].variants)
        unknown = [label for label in names if label not in PARTS[name].variants]
        if unknown:
            parser.error(f"{name} has no variant {unknown[0]!r}; choose of {', '.join(PARTS[name].variants)}.")
        if options.part == "sheet":
            draw_sheet(model, PARTS[name], tasks, names, options.out)
            return 0
        settings = {"weights": fingerprint(model), "dtype": "bfloat16" if options.half else "float32"}
        if content["settings"] != settings:
            content = {"settings": settings, "parts": {}}
        with torch.autocast("cpu", torch.bfloat16, enabled=options.half):
            measure_part(model, name, content, tasks, names, options.results)
    for name, kept in content["parts"].items():
        sys.stdout.write(table(name, kept) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
