"""What masked attention does to a clip, measured on the Toybox, where every answer is exact.

    python benchmarks/guidance.py own        # masks found in the clip itself, same noise, every mode
    python benchmarks/guidance.py foreign    # mask tracks that do not come from the model: shifted or reversed motion
    python benchmarks/guidance.py summary    # the figures of what has been measured

Raw numbers of every clip go to ``benchmarks/results/guidance.json`` as they come; a run that was interrupted goes on
where it stopped. Guided and unguided clips are paired: same prompt, same noise, same settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from shared.measuring import RESULTS as RESULTS_FOLDER
from shared.measuring import ROOT, module, plain_guide

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = RESULTS_FOLDER / "guidance.json"
UNGUIDED = "none"

# Every variant is one or more guides at once; values left out are the mode's defaults.
OWN_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "focus_fg": ({"mode": "focus_fg"},),
    "separate": ({"mode": "separate"},),
    "cross_text": ({"mode": "cross_text"},),
}
FOREIGN_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "separate": ({"mode": "separate"},),
    "cross_text": ({"mode": "cross_text"},),
    "cross_text, hard": ({"mode": "cross_text", "hard": True},),
}
# What is measured of a clip; True where more is better.
MEASURES = {
    "iou": True,
    "colour_purity": True,
    "edge_sharpness": True,
    "change_outside": False,
    "colour": True,
    "background": True,
    "shape": True,
}


@dataclass(frozen=True)
class Bench:
    """The model and how it samples."""

    model: Any
    steps: int
    cfg: float

    def sample(self, prompt: str, noise: Tensor, guides: Sequence[Any] = ()) -> list[Tensor]:
        """One clip per noise: float [T, H, W, 3]."""
        make_patches = module("attention_patches.guidance.patch").guide_patches
        spans = [self.model.token_spans(prompt, guide.phrases) for guide in guides]
        patches = tuple(patch for pair in zip(guides, spans, strict=True) for patch in make_patches(*pair))
        positive, negative = self.model.encode_prompt(prompt), self.model.encode_prompt("")
        latents = self.model.sample(noise, positive, negative, steps=self.steps, cfg=self.cfg, patches=patches)
        return [self.model.decode(clip[None]) for clip in latents]

    def noise(self, seeds: Iterable[int]) -> Tensor:
        """Starting noise of the model's native clip, one clip per seed."""
        size = self.model.geometry
        return torch.cat([self.model.noise(size.native_frames, size.height, size.width, seed) for seed in seeds])


def scenes(count: int, seed: int) -> list[Any]:
    """Scenes with one object, words at random, the same for a seed."""
    world = module("toybox.world")
    generator = np.random.default_rng(seed)
    return [world.random_scene(generator, "any", max_objects=1) for _ in range(count)]


def foreign_track(scene: Any, number: int) -> tuple[Tensor, str]:
    """A mask track [T, H, W] of the scene's shape and size that the prompt does not lead to.

    Even numbers: the prompt's motion from another place (shifted). Odd numbers: that track played backwards, so
    that the object goes against its prompt (reversed); scenes that stand still or bounce get a sideways path instead.
    """
    world = module("toybox.world")
    item, kind = scene.objects[0], "reversed" if number % 2 else "shifted"
    motion = item.motion
    if kind == "reversed" and motion in ("still", "bounce"):
        motion = "left" if number % 4 == 1 else "right"
    generator = np.random.default_rng(1000 + number)
    placed = world.scene_from_words([(item.colour, item.shape, motion)], scene.background, generator).objects[0]
    masks = world.render(replace(scene, objects=(placed,))).masks[0]
    backwards = kind == "reversed" and item.motion == motion
    return torch.from_numpy(masks[::-1].copy() if backwards else masks).float(), kind


def measure(film: Tensor, unguided: Tensor, mask: Tensor, scene: Any) -> dict[str, float | None]:
    """All measures of one clip under a guiding mask [T, H, W]."""
    metrics, measurements = module("toybox.metrics"), module("recipes.measurements")
    frames = film.numpy()
    seen = metrics.colour_segmentation(frames, scene.objects[0].colour, scene.background)
    score = metrics.score_prompt(frames, scene)
    return {
        "iou": metrics.intersection_over_union(seen, (mask > 0.5).numpy()),
        **measurements.measure_film(film, mask),
        "change_outside": measurements.change_outside(unguided, film, mask),
        "colour": float(score.colour),
        "background": float(score.background),
        "shape": float(score.shape),
        "motion": float(score.motion),
    }


def guides(mask: Tensor, phrase: str, variant: Iterable[dict[str, Any]]) -> list[Any]:
    """The guides of a variant for one object."""
    return [plain_guide(mask[None], (phrase,), **values) for values in variant]


def run_own(bench: Bench, count: int, folder: Path | None) -> Iterable[dict[str, Any]]:
    """Masks of the clip itself, found by detector and tracker (by colour where those are missing)."""
    world, metrics = module("toybox.world"), module("toybox.metrics")
    detector, tracker = load_perception(folder)
    for number, scene in enumerate(scenes(count, seed=11)):
        prompt, phrase = world.prompt(scene), world.phrase(scene.objects[0])
        key = {"part": "own", "clip": number, "seed": number, "prompt": prompt}
        done = yield key
        if done:
            continue
        noise = bench.noise([number])
        unguided = bench.sample(prompt, noise)[0]
        true_mask = metrics.colour_segmentation(unguided.numpy(), scene.objects[0].colour, scene.background)
        mask = torch.from_numpy(true_mask).float()
        found = None
        if detector is not None:
            tracks = tracker.track(unguided, detector.detect(unguided, [phrase]))
            found = metrics.intersection_over_union((tracks.union() > 0.5).numpy(), true_mask)
            mask = tracks.union()
        films = {UNGUIDED: unguided}
        if bool((mask > 0.5).any()):
            for name, variant in OWN_VARIANTS.items():
                films[name] = bench.sample(prompt, noise, guides(mask, phrase, variant))[0]
        values = {name: measure(film, unguided, mask, scene) for name, film in films.items()}
        yield {**key, "chain_iou": found, "films": values}


def run_foreign(bench: Bench, count: int, seeds: int) -> Iterable[dict[str, Any]]:
    """Tracks that do not come from the model; the seeds of a clip share its guide and are sampled at once."""
    world = module("toybox.world")
    for number, scene in enumerate(scenes(count, seed=23)):
        prompt, phrase = world.prompt(scene), world.phrase(scene.objects[0])
        mask, kind = foreign_track(scene, number)
        key = {"part": "foreign", "clip": number, "seed": list(range(seeds)), "prompt": prompt, "track": kind}
        done = yield key
        if done:
            continue
        noise = bench.noise(range(1000 * number, 1000 * number + seeds))
        unguided = bench.sample(prompt, noise)
        films = {UNGUIDED: unguided}
        for name, variant in FOREIGN_VARIANTS.items():
            films[name] = bench.sample(prompt, noise, guides(mask, phrase, variant))
        for seed in range(seeds):
            values = {name: measure(batch[seed], unguided[seed], mask, scene) for name, batch in films.items()}
            yield {**key, "seed": seed, "films": values}


def load_perception(folder: Path | None) -> tuple[Any, Any]:
    """The Toybox detector and tracker; (None, None) where the folder is missing."""
    folder = folder or ROOT / "toybox"
    if not (folder / "detector").is_dir() or not (folder / "segmenter").is_dir():
        return None, None
    detector = module("perception.open_models").open_detector(folder / "detector")
    return detector, module("perception.open_models").open_tracker(folder / "segmenter")


def fingerprint(model: Any) -> str:
    """SHA-256 of the U-Net's and the VAE's weights, so that figures of other weights are not mixed in."""
    digest = hashlib.sha256()
    for part in (model.unet, model.coder.vae):
        for value in part.state_dict().values():
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def collect(runs: Any, records: list[dict[str, Any]], save: Any) -> None:
    """Drive a generator of keys and records, skipping clips that are recorded."""
    recorded = {(record["part"], record["clip"]) for record in records}
    started, message = time.monotonic(), None
    while True:
        try:
            value = runs.send(message)
        except StopIteration:
            return
        message = None
        if "films" not in value:
            message = (value["part"], value["clip"]) in recorded
            continue
        records.append(value)
        save()
        ious = ", ".join(f"{name} {film['iou']:.2f}" for name, film in value["films"].items())
        sys.stdout.write(f"{time.monotonic() - started:6.0f} s  {value['part']} {value['clip']:2}: IoU {ious}\n")
        sys.stdout.flush()


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means per variant, and paired differences to the unguided clip with their spread over clips."""
    parts: dict[str, Any] = {}
    for part in sorted({record["part"] for record in records}):
        chosen = [record for record in records if record["part"] == part]
        groups = {"all": chosen}
        for kind in sorted({record["track"] for record in chosen if "track" in record}):
            groups[kind] = [record for record in chosen if record["track"] == kind]
        parts[part] = {name: summarise_group(group) for name, group in groups.items()}
        chain = [record["chain_iou"] for record in chosen if record.get("chain_iou") is not None]
        if chain:
            parts[part]["chain_iou"] = {"mean": statistics.fmean(chain), "least": min(chain), "films": len(chain)}
    return parts


def summarise_group(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As ``summarise``, for one group of clips."""
    # A clip in which nothing was found lacks a guide and a pair.
    found = [record for record in records if len(record["films"]) > 1]
    missed, records = len(records) - len(found), found
    names = sorted({name for record in records for name in record["films"]}, key=lambda name: (name != UNGUIDED, name))
    result: dict[str, Any] = {"films": len(records), "clips": len({record["clip"] for record in records})}
    result["films_without_object"] = missed
    for name in names:
        pairs = [record for record in records if name in record["films"]]
        entry: dict[str, Any] = {}
        for measure_name in (*MEASURES, "motion"):
            values = [record["films"][name][measure_name] for record in pairs]
            known = [value for value in values if value is not None]
            entry[measure_name] = {"mean": statistics.fmean(known) if known else None}
            if name != UNGUIDED and measure_name != "change_outside":
                entry[measure_name].update(paired_difference(pairs, name, measure_name))
        if name != UNGUIDED:
            base = statistics.fmean(record["films"][UNGUIDED]["iou"] for record in pairs)
            entry["iou"]["ratio"] = entry["iou"]["mean"] / base if base else None
        result[name] = entry
    return result


def paired_difference(records: Sequence[dict[str, Any]], name: str, measure_name: str) -> dict[str, Any]:
    """Guided minus unguided; seeds of one clip are averaged first, since they are not independent."""
    clips: dict[int, list[float]] = {}
    for record in records:
        guided, unguided = (record["films"][film][measure_name] for film in (name, UNGUIDED))
        if guided is not None and unguided is not None:
            clips.setdefault(record["clip"], []).append(guided - unguided)
    means = [statistics.fmean(values) for values in clips.values()]
    if not means:
        return {"difference": None}
    deviation = statistics.stdev(means) if len(means) > 1 else None
    return {
        "difference": statistics.fmean(means),
        "standard_deviation": deviation,
        "standard_error": deviation / math.sqrt(len(means)) if deviation is not None else None,
        "clips_up": sum(value > 0 for value in means),
        "clips_down": sum(value < 0 for value in means),
    }


def table(summary: dict[str, Any]) -> str:
    """The summary as lines of text."""
    lines = []
    for part, groups in summary.items():
        for group, values in groups.items():
            if group == "chain_iou":
                lines.append(f"found masks against the clip's colours: mean IoU {values['mean']:.3f}")
                continue
            lines.append(f"\n{part}, {group}: {values['films']} samples of {values['clips']} clips")
            for name, entry in values.items():
                if isinstance(entry, dict):
                    lines.append(f"  {name:22} " + "  ".join(cell(key, entry[key]) for key in MEASURES))
    return "\n".join(lines)


def cell(name: str, entry: dict[str, Any]) -> str:
    """``iou .512 (+.301 se .020, x2.4)``."""
    if entry["mean"] is None:
        return f"{name} -"
    text = f"{name} {entry['mean']:.3f}"
    if entry.get("difference") is not None:
        error = entry["standard_error"]
        text += f" ({entry['difference']:+.3f}" + (f" se {error:.3f}" if error is not None else "")
        text += f", x{entry['ratio']:.2f})" if entry.get("ratio") else ")"
    return text


def rounded(value: Any) -> Any:
    """Floats to five digits."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


def main(arguments: list[str] | None = None) -> int:
    """Measure one part, or print what has been measured."""
    parser = argparse.ArgumentParser(description="What masked attention does to Toybox clips.")
    parser.add_argument("part", choices=("own", "foreign", "summary"))
    parser.add_argument("--clips", type=int, help="20 for own, 30 for foreign")
    parser.add_argument("--seeds", type=int, default=3, help="noises per clip (foreign)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--weights", type=Path, help="text-to-video folder (default: toybox/text_to_video)")
    parser.add_argument("--perception", type=Path, help="folder of detector and segmenter (default: toybox)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    content = json.loads(options.results.read_text(encoding="ascii")) if options.results.exists() else {"records": []}
    if options.part != "summary":
        loader = module("video_models.toybox").load_toybox
        model = loader(folder=options.weights) if options.weights else loader()
        bench = Bench(model, options.steps, options.cfg)
        settings = {
            "weights": fingerprint(model),
            "steps": options.steps,
            "cfg": options.cfg,
            "variants": json.loads(json.dumps(OWN_VARIANTS if options.part == "own" else FOREIGN_VARIANTS)),
        }
        if content.setdefault("settings", {}).get(options.part) != settings:
            # Figures of other weights or settings do not belong beside these.
            content["records"] = [record for record in content["records"] if record["part"] != options.part]
        content["settings"][options.part] = settings
        runs = (
            run_own(bench, options.clips or 20, options.perception)
            if options.part == "own"
            else run_foreign(bench, options.clips or 30, options.seeds)
        )
        collect(runs, content["records"], lambda: save(options.results, content))
    sys.stdout.write(table(summarise(content["records"])) + "\n")
    return 0


def save(path: Path, content: dict[str, Any]) -> None:
    """Write all records and their summary; the file is replaced when it is complete."""
    content["summary"] = summarise(content["records"])
    ordered = {key: content[key] for key in ("settings", "summary", "records")}
    with module("weight_files.writing").replacing(path) as temporary:
        temporary.write_text(json.dumps(rounded(ordered), indent=1, allow_nan=False) + "\n", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
