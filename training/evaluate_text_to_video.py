"""Measure the Toybox text-to-video model with the world's exact metrics.

``python cli.py evaluate text_to_video`` samples a fixed list of prompts, a third of them word combinations that
training never saw, and writes how often colour, background, shape and motion are right; beside it the same metrics on
rendered clips and on their VAE reconstructions, which bound what can be measured. ``--model toybox-joint`` measures the
model in which text and video are one sequence. ``--detail-prompts`` adds prompts of textured and small objects.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..recipes.given.paths import given_path
from ..toybox import metrics, world
from ..video_models.joint.model import load_joint_toybox
from ..video_models.toybox import load_toybox
from ..video_models.video_model import StandaloneVideoModel, TextEmbedding
from .detail_figures import detail_figures, detail_scenes

ROOT = Path(__file__).resolve().parent.parent
SEED = 2024
# Loader and file of results of each model.
MODELS = {
    "toybox": (load_toybox, "toybox_text_to_video.json"),
    "toybox-joint": (load_joint_toybox, "toybox_joint_text_to_video.json"),
}
WORDS = [field.name for field in fields(metrics.PromptScore)]


def evaluation_scenes(count: int) -> list[tuple[world.Scene, bool]]:
    """A fixed list of scenes and whether each is held out (every third one)."""
    generator = np.random.default_rng(SEED)
    return [
        (world.random_scene(generator, "held_out" if number % 3 == 2 else "train"), number % 3 == 2)
        for number in range(count)
    ]


def sample_prompts(
    model: StandaloneVideoModel, prompts: Sequence[str], seed: int, steps: int, cfg: float, batch: int
) -> list[Tensor]:
    """One clip per prompt, float [T, 64, 64, 3]; clip number n starts from the noise of seed + n."""
    negative = model.encode_prompt("")
    clips = []
    size = (model.geometry.native_frames, model.geometry.height, model.geometry.width)
    for first in range(0, len(prompts), batch):
        chosen = prompts[first : first + batch]
        noise = torch.cat([model.noise(*size, seed + first + offset) for offset in range(len(chosen))])
        embedding = torch.cat([model.encode_prompt(prompt).embedding for prompt in chosen])
        latents = model.sample(noise, TextEmbedding("", embedding), negative, steps=steps, cfg=cfg)
        clips += [model.decode(clip[None]) for clip in latents]
    return clips


def accuracy(scores: Sequence[metrics.PromptScore]) -> dict[str, float]:
    """Share of right answers per word."""
    return dict(zip(WORDS, np.mean([astuple(score) for score in scores], axis=0).round(4).tolist(), strict=True))


def reference_accuracy(
    scenes: Sequence[world.Scene], through: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """The metrics on drawn clips, or on what ``through`` makes of them."""
    scores = []
    for scene in scenes:
        frames = torch.from_numpy(world.render(scene).frames)
        scores.append(metrics.score_prompt((through(frames) if through else frames).numpy(), scene))
    return accuracy(scores)


def picture_quality(scenes: Sequence[world.Scene], through: Callable[[Tensor], Tensor]) -> float:
    """Mean PSNR in dB of what ``through`` makes of drawn clips."""
    values = []
    for scene in scenes:
        frames = torch.from_numpy(world.render(scene).frames)
        error = (through(frames) - frames).square().mean(dim=(1, 2, 3))
        values.append(float((-10 * error.log10()).mean()))
    return round(float(np.mean(values)), 2)


def _details(
    model: StandaloneVideoModel, options: argparse.Namespace, reconstruct: Callable[[Tensor], Tensor]
) -> tuple[dict[str, object], list[Tensor]]:
    """Figures of detail prompts beside those of the drawn clips and of their reconstructions; the model's clips."""
    scenes = detail_scenes(options.detail_prompts)
    drawn = [torch.from_numpy(world.render(scene).frames) for scene in scenes]
    prompts = [world.prompt(scene) for scene in scenes]
    clips = sample_prompts(model, prompts, options.seed, options.steps, options.cfg, options.batch)
    figures: dict[str, object] = {"prompts": options.detail_prompts}
    kinds = {"model": clips, "drawn": drawn, "VAE reconstructions": [reconstruct(frames) for frames in drawn]}
    for kind, films in kinds.items():
        figures[kind] = detail_figures([film.numpy() for film in films], scenes)
    return figures, clips


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="evaluate text_to_video", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="toybox")
    parser.add_argument("--folder", type=given_path, help="of the model (default: the one of the pack)")
    parser.add_argument("--out", type=given_path, help="default: the model's file in benchmarks/results")
    parser.add_argument("--sheet", type=given_path, help="write a PNG with four frames of every clip")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--detail-prompts", type=int, default=0, help="also of textured and small objects, this many")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10)
    options = parser.parse_args(arguments)

    loader, results = MODELS[options.model]
    folder = {"folder": options.folder} if options.folder else {}
    model = loader("cuda" if torch.cuda.is_available() else "cpu", **folder)
    scenes = evaluation_scenes(options.prompts)
    prompts = [world.prompt(scene) for scene, _ in scenes]
    clips = sample_prompts(model, prompts, options.seed, options.steps, options.cfg, options.batch)
    scores = [metrics.score_prompt(clip.numpy(), scene) for clip, (scene, _) in zip(clips, scenes, strict=True)]
    alone = [scene for scene, _ in scenes]

    def reconstruct(frames: Tensor) -> Tensor:
        return model.decode(model.encode(frames))

    pairs = list(zip(scores, scenes, strict=True))
    report = {
        "settings": {name: getattr(options, name) for name in ("prompts", "steps", "cfg", "seed")},
        "all": accuracy(scores),
        "seen combinations": accuracy([score for score, (_, held_out) in pairs if not held_out]),
        "held-out combinations": accuracy([score for score, (_, held_out) in pairs if held_out]),
        "one object": accuracy([score for score, (scene, _) in pairs if len(scene.objects) == 1]),
        "two objects": accuracy([score for score, (scene, _) in pairs if len(scene.objects) == 2]),
        "metrics on rendered clips": reference_accuracy(alone),
        "metrics on VAE reconstructions": reference_accuracy(alone, reconstruct),
        "VAE PSNR in dB": picture_quality(alone, reconstruct),
        "clips": [
            {"prompt": prompt, "held_out": held_out, **dict(zip(WORDS, astuple(score), strict=True))}
            for prompt, score, (_, held_out) in zip(prompts, scores, scenes, strict=True)
        ],
    }
    if options.detail_prompts:
        detailed, detail_clips = _details(model, options, reconstruct)
        report["details"] = detailed
        clips = clips + detail_clips
    out = options.out or ROOT / "benchmarks" / "results" / results
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.sheet is not None:
        write_sheet(clips, options.sheet)
    summary = {key: value for key, value in report.items() if key != "clips"}
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")


def write_sheet(clips: Sequence[Tensor], path: Path) -> None:
    """Four frames of every clip, three clips a row."""
    from PIL import Image

    rows = [torch.cat([clip[frame] for frame in torch.linspace(0, len(clip) - 1, 4).long()], dim=1) for clip in clips]
    rows += [torch.ones_like(rows[0])] * (-len(rows) % 3)
    sheet = torch.cat([torch.cat(rows[number : number + 3], dim=1) for number in range(0, len(rows), 3)])
    Image.fromarray((sheet * 255).round().byte().numpy()).save(path)
