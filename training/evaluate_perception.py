"""Measure the Toybox detector and segmenter on pictures they never saw.

``python cli.py evaluate perception detector``, ``... segmenter`` or ``... chain`` prints the figures and writes them as
JSON to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..perception.boxes import Box, iou
from ..perception.detection.detector import ObjectDetector
from ..perception.open_models import open_detector, open_tracker
from ..perception.tracking.tracker import ObjectTracker
from ..recipes.given.paths import given_path
from ..toybox import metrics, world
from ..video_models.toybox import load_toybox
from .perception.data import SMALLEST_AREA, Pictures, boxes_of_masks, draw_pictures, spoil
from .perception.phrases import Phrase, absent_phrase
from .train_segmenter import jitter_boxes, visible_rows

ROOT = Path(__file__).resolve().parent.parent
# The defaults of the detector and of the nodes.
BOX_THRESHOLD, TEXT_THRESHOLD, NMS_THRESHOLD = 0.35, 0.25, 0.7


def average_precision(scores: Sequence[float], correct: Sequence[bool], total: int) -> float:
    """Area under the precision-recall curve, precision made monotone (the COCO way without sampling).

    Args:
        scores: of all predictions.
        correct: whether each is a hit; a second hit on the same object counts as wrong.
        total: objects that there are to find.
    """
    if not scores or total == 0:
        return 0.0
    order = np.argsort(-np.asarray(scores), kind="stable")
    hits = np.asarray(correct, dtype=float)[order]
    recall = np.cumsum(hits) / total
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def damaged(pictures: Pictures, seed: int) -> Pictures:
    """The same pictures made imperfect; objects that left the picture keep an empty mask."""
    images, masks = spoil(pictures.images.float() / 255, pictures.masks, torch.Generator().manual_seed(seed))
    return Pictures((images * 255).round().to(torch.uint8), masks, pictures.words)


def match_boxes(boxes: Sequence[Box], truth: Sequence[Box]) -> list[bool]:
    """Whether each box, best score first, finds an object (IoU of at least 0.5) that no better one has found."""
    free = list(truth)
    hits = []
    for box in boxes:
        best = max(free, key=lambda item: iou(item, box), default=None)
        hit = best is not None and iou(best, box) >= 0.5
        if hit:
            free.remove(best)
        hits.append(hit)
    return hits


def detector_figures(detector: ObjectDetector, pictures: Pictures, seed: int) -> dict[str, float]:
    """Search each picture for every object by colour and shape, and for two phrases that fit nothing in it.

    Returns:
        ``AP50``: over all questions together, those without an answer too. ``recall``, ``boxes per object``, ``false
        alarms`` (share of the questions without an answer that get a box), ``mean IoU`` of found boxes: at the
        default thresholds.
    """
    generator = np.random.default_rng(seed)
    questions: dict[str, list[tuple[int, Phrase]]] = {}
    for row, words in enumerate(pictures.words):
        sought = {" ".join(item): Phrase(" ".join(item), *item) for item in words}
        # An object that is too small to judge makes its phrase neither right nor wrong.
        sought = {text: phrase for text, phrase in sought.items() if _all_visible(pictures, row, phrase)}
        absent = [absent_phrase(generator, words) for _ in range(2)]
        for phrase in [*sought.values(), *absent]:
            questions.setdefault(phrase.text, []).append((row, phrase))
    boxes = boxes_of_masks(pictures.masks)
    scores: list[float] = []
    correct: list[bool] = []
    counts = dict.fromkeys(("objects", "found", "boxes", "absent", "alarms"), 0)
    overlaps: list[float] = []
    for text, entries in questions.items():
        rows = [row for row, _ in entries]
        frames = pictures.images[rows].permute(0, 2, 3, 1).float() / 255
        answers = detector.detect(frames, [text], 0.02, 0.0, NMS_THRESHOLD)
        for (row, phrase), answer in zip(entries, answers, strict=True):
            truth = [
                Box.from_corners(*boxes[row, number].tolist())
                for number, item in enumerate(pictures.words[row])
                if phrase.fits(item)
            ]
            hits = match_boxes(answer, truth)
            scores.extend(box.score for box in answer)
            correct.extend(hits)
            confident = [hit for hit, box in zip(hits, answer, strict=True) if box.score > BOX_THRESHOLD]
            counts["objects"] += len(truth)
            counts["found"] += sum(confident)
            if truth:
                counts["boxes"] += len(confident)
                overlaps.extend(
                    max(iou(box, item) for item in truth) for box, hit in zip(answer, hits, strict=True) if hit
                )
            else:
                counts["absent"] += 1
                counts["alarms"] += bool(confident)
    return {
        "AP50": average_precision(scores, correct, counts["objects"]),
        "recall": counts["found"] / counts["objects"],
        "boxes per object": counts["boxes"] / counts["objects"],
        "false alarms": counts["alarms"] / counts["absent"],
        "mean IoU of hits": float(np.mean(overlaps)) if overlaps else 0.0,
        "objects": counts["objects"],
        "absent phrases": counts["absent"],
    }


def _all_visible(pictures: Pictures, row: int, phrase: Phrase) -> bool:
    fitting = [number for number, item in enumerate(pictures.words[row]) if phrase.fits(item)]
    return all(int(pictures.masks[row, number].sum()) >= SMALLEST_AREA for number in fitting)


def segmenter_figures(tracker: ObjectTracker, pictures: Pictures, jitter: float, seed: int) -> dict[str, float]:
    """IoU of masks from boxes whose corners are off by up to ``jitter`` of their size."""
    rows = visible_rows(pictures.masks)
    truth = pictures.masks[rows[:, 0], rows[:, 1]]
    boxes = jitter_boxes(boxes_of_masks(truth), jitter, torch.Generator().manual_seed(seed))
    values = []
    for (row, _), box, wanted in zip(rows.tolist(), boxes, truth, strict=True):
        frame = pictures.images[row].permute(1, 2, 0).float() / 255
        values.append(_mask_iou(tracker.masks_at_boxes(frame, [Box.from_corners(*box.tolist())])[0] > 0.5, wanted))
    array = np.asarray(values)
    return {"mean IoU": float(array.mean()), "5th percentile": float(np.quantile(array, 0.05)), "objects": len(array)}


def chain_figures(detector: ObjectDetector, tracker: ObjectTracker, clips: int, seed: int) -> dict[str, float]:
    """Drawn clips of held-out word combinations, softened as a VAE does: boxes, masks, tracks; IoU with the truth."""
    generator = np.random.default_rng(seed)
    overlaps, objects, missed, extra = [], 0, 0, 0
    for _ in range(clips):
        scene = world.random_scene(generator, "held_out")
        clip = world.render(scene)
        pictures = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        soft = torch.nn.functional.interpolate(
            torch.nn.functional.avg_pool2d(pictures, 2), (world.SIZE, world.SIZE), mode="bilinear"
        )
        frames = soft.permute(0, 2, 3, 1)
        phrases = [world.phrase(item) for item in scene.objects]
        tracks = tracker.track(frames, detector.detect(frames, phrases))
        objects += len(phrases)
        extra += max(0, len(tracks.ids) - len(phrases))
        for number, phrase in enumerate(phrases):
            chosen = [place for place, label in enumerate(tracks.labels) if label == phrase]
            missed += not chosen
            found = tracks.select(chosen[:1]).union() > 0.5
            truth = torch.from_numpy(clip.masks[number])
            overlaps.extend(_mask_iou(mask, wanted) for mask, wanted in zip(found, truth, strict=True))
    return {
        "mean IoU": float(np.mean(overlaps)),
        "5th percentile": float(np.quantile(overlaps, 0.05)),
        "objects": objects,
        "objects missed": missed,
        "objects too many": extra,
    }


def generated_figures(
    detector: ObjectDetector, tracker: ObjectTracker, films: int, seed: int, steps: int, cfg: float
) -> dict[str, float]:
    """Clips made by the Toybox text-to-video model: IoU of the tracked masks with the clip's colour segmentation.

    Objects that the clip does not show (too few pixels of their colour in half of its frames) are counted apart.
    """
    model = load_toybox()
    generator = np.random.default_rng(seed)
    negative = model.encode_prompt("")
    overlaps, shown, absent, missed = [], 0, 0, 0
    for film in range(films):
        scene = world.random_scene(generator, "any")
        noise = model.noise(world.NATIVE_FRAMES, world.SIZE, world.SIZE, seed + film)
        positive = model.encode_prompt(world.prompt(scene))
        latents = model.sample(noise, positive, negative, steps=steps, cfg=cfg, seed=seed + film)
        frames = model.decode(latents)
        phrases = [world.phrase(item) for item in scene.objects]
        tracks = tracker.track(frames, detector.detect(frames, phrases))
        for item, phrase in zip(scene.objects, phrases, strict=True):
            truth = metrics.colour_segmentation(frames.numpy(), item.colour, scene.background)
            if np.median(truth.sum(axis=(1, 2))) < metrics.SMALLEST_AREA:
                absent += 1
                continue
            shown += 1
            chosen = [place for place, label in enumerate(tracks.labels) if label == phrase]
            missed += not chosen
            found = tracks.select(chosen[:1]).union() > 0.5
            overlaps.append(metrics.intersection_over_union(found.numpy(), truth))
    return {
        "mean IoU": float(np.mean(overlaps)) if overlaps else 0.0,
        "5th percentile": float(np.quantile(overlaps, 0.05)) if overlaps else 0.0,
        "objects shown": shown,
        "objects shown but missed": missed,
        "objects that the film does not show": absent,
    }


def _mask_iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / (first | second).sum().clamp(min=1))


def main(arguments: list[str]) -> None:
    """Measure one model, or both one after another, and write the figures."""
    parser = argparse.ArgumentParser(prog="evaluate perception", description=__doc__)
    parser.add_argument("what", choices=["detector", "segmenter", "chain"])
    parser.add_argument("--detector", type=given_path, default=ROOT / "toybox" / "detector")
    parser.add_argument("--segmenter", type=given_path, default=ROOT / "toybox" / "segmenter")
    parser.add_argument("--pictures", type=int, default=300, help="pictures, or clips for the chain divided by 10")
    parser.add_argument("--films", type=int, default=30, help="clips to generate for the chain, 0 for none")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps of a clip")
    parser.add_argument("--cfg", type=float, default=4.0, help="classifier-free guidance of a clip")
    parser.add_argument("--seed", type=int, default=90_001)
    parser.add_argument("--out", type=given_path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)

    figures: dict[str, object] = {"pictures": options.pictures, "seed": options.seed, "split": "held_out"}
    if options.what == "chain":
        pair = open_detector(options.detector), open_tracker(options.segmenter)
        figures["softened clips"] = chain_figures(*pair, max(1, options.pictures // 10), options.seed)
        if options.films:
            figures["sampling"] = {"films": options.films, "steps": options.steps, "cfg": options.cfg}
            figures["generated films"] = generated_figures(
                *pair, options.films, options.seed, options.steps, options.cfg
            )
    else:
        clean = draw_pictures(np.random.default_rng(options.seed), options.pictures, "held_out")
        kinds = {"clean": clean, "damaged": damaged(clean, options.seed)}
        if options.what == "detector":
            detector = open_detector(options.detector)
            figures["thresholds"] = {"box": BOX_THRESHOLD, "text": TEXT_THRESHOLD, "nms": NMS_THRESHOLD}
            for kind, pictures in kinds.items():
                figures[kind] = detector_figures(detector, pictures, options.seed)
        else:
            tracker = open_tracker(options.segmenter)
            for kind, pictures in kinds.items():
                for jitter in (0.0, 0.06, 0.12):
                    name = f"{kind}, boxes off by {jitter:.0%}" if jitter else f"{kind}, true boxes"
                    figures[name] = segmenter_figures(tracker, pictures, jitter, options.seed)
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"perception_{options.what}.json").write_text(text + "\n", encoding="utf-8")
