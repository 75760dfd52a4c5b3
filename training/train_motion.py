"""Tune a video model to a motion, with a handful of clips and the masks of what moves in them.

    python cli.py train-motion --videos clips --masks masks --prompt "a horse runs" --phrase horse --base lavie_base.pt
        --parts v1-5-pruned-emaonly.safetensors --out horse.safetensors

A video ``horse.mp4`` belongs to the masks ``horse.npy`` (or a video, a picture, a folder of pictures); ``horse.txt``
beside it may hold its prompt, then its phrases, one a line, and ``background: ...``. The result loads with Load
Motion in ComfyUI, with ``--motion`` here, and a LoRA with ComfyUI's loader too. An interrupted run goes on from its
folder by the same command.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..recipes.given.constants import read_constants
from ..recipes.given.paths import given_path
from ..recipes.model_sets import check_device, load_models
from ..video_models.motion.motion_files import write_motion
from .command_line import RUNS, log_to_file
from .motion.architectures import (
    ARCHITECTURES,
    DEFAULT_MODULES,
    MODULE_SETS,
    Architecture,
    make_architecture,
)
from .motion.data import TrainingClip, find_clips
from .motion.examples import ExampleMaker
from .motion.report import validation_film, write_loss_curve, write_validation_film
from .motion.settings import MaskAugmentation, MotionSettings, Precision
from .motion.tuning import MotionJob, TunedMotion, tune_motion

logger = logging.getLogger(__name__)

TOYBOX = "toybox"
# Steps between two lines of the log.
LOG_EVERY = 10


def build_parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of ``MotionSettings``."""
    usual, rough = MotionSettings(), MaskAugmentation()
    parser = argparse.ArgumentParser(
        prog="cli.py train-motion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--videos", type=given_path, required=True, help="folder of videos, 2 or more; 8 to 16 are usual")
    add(
        "--masks",
        type=given_path,
        help="folder of masks by the videos' names; without it the model is tuned without masks",
    )
    add("--prompt", default="", help="of clips that come without words")
    add(
        "--phrase", action="append", default=[], help="words of the prompt that name the masked object; once per object"
    )
    add("--background", default="", help="words of the prompt that name the background")
    add(
        "--base",
        default=TOYBOX,
        help="the model: toybox, a file of LaVie's base model, or Stable Diffusion 1.x (for lamp; default: toybox)",
    )
    add("--parts", type=given_path, help="for LaVie: Stable Diffusion 1 checkpoint or folder, for text encoder and VAE")
    add("--out", type=given_path, required=True, help="motion file to write, ending in .safetensors")
    add(
        "--run",
        type=given_path,
        help=f"folder of checkpoint, curve and videos (default: {RUNS}/<name of the motion file>)",
    )
    add("--arch", choices=list(ARCHITECTURES), default="lora", help="what is tuned (default: lora)")
    add("--rank", type=int, default=16, help="of the LoRA (default: 16)")
    add("--modules", default=",".join(DEFAULT_MODULES), help=f"layers of the LoRA, of {', '.join(MODULE_SETS)}")
    add("--frames", type=int, default=0, help="of a clip; 0 is the model's native length")
    add("--width", type=int, default=0, help="pixels; 0 is the model's native size")
    add("--height", type=int, default=0, help="pixels; 0 is the model's native size")
    add("--stride", type=int, default=usual.stride, help="take every n-th frame of a video (default: 1)")
    add("--steps", type=int, default=usual.steps, help=f"of the optimizer (default: {usual.steps})")
    add("--batch", type=int, default=usual.batch, help=f"clips per step (default: {usual.batch})")
    add("--learning-rate", type=float, default=usual.learning_rate, help=f"(default: {usual.learning_rate:g})")
    add("--first-frame", type=float, default=usual.first_frame, help="how often the first frame is given clean, 0..1")
    add("--prompt-dropout", type=float, default=usual.prompt_dropout, help="how often the prompt is left out, 0..1")
    add("--flip", type=float, default=usual.flip, help="how often clips are mirrored; 0 where left and right matter")
    add("--mask-grow", type=int, default=rough.grow, help="masks grow or shrink by up to this many latent cells")
    add("--mask-box", type=float, default=rough.box, help="how often a mask becomes its box, 0..1")
    add("--mask-drop", type=float, default=rough.drop, help="how often a clip is seen without masks, 0..1")
    add("--mode", default=usual.mode, help=f"of the masks in attention (default: {usual.mode})")
    add("--constant", action="append", default=[], metavar="NAME=VALUE", help="a constant of the mode; may be repeated")
    add("--key-source", default="", help="frames whose keys self-attention reads; the mode's default when left out")
    add("--checkpointing", action="store_true", help="less memory, a third more time")
    add("--precision", choices=list(Precision.__args__), default="no", help="of the forward pass; no is float32")
    add("--seed", type=int, default=usual.seed, help=f"of all random numbers (default: {usual.seed})")
    add("--checkpoint-every", type=int, default=usual.checkpoint_every, help="steps between checkpoints")
    add("--validate-every", type=int, default=0, help="steps between validation videos; 0 makes one at the end")
    add("--device", help="cpu, cuda or mps (default: cpu)")
    add("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    return parser


def settings_of(options: argparse.Namespace) -> MotionSettings:
    """The settings from the arguments.

    Raises:
        ValueError: a value out of range, or a constant that the mode does not have.
    """
    same = (
        *("frames", "width", "height", "stride", "steps", "batch", "learning_rate", "first_frame", "prompt_dropout"),
        *("flip", "mode", "key_source", "checkpointing", "precision", "seed", "checkpoint_every", "validate_every"),
    )
    return MotionSettings(
        prompt=options.prompt,
        phrases=tuple(options.phrase),
        background_phrase=options.background,
        augmentation=MaskAugmentation(options.mask_grow, options.mask_box, options.mask_drop),
        constants=read_constants(options.mode, "\n".join(options.constant)),
        **{name: getattr(options, name) for name in same},
    )


def architecture_of(options: argparse.Namespace) -> Architecture:
    """The architecture from the arguments."""
    if options.arch == "lora":
        modules = tuple(name.strip() for name in options.modules.split(",") if name.strip())
        return make_architecture("lora", rank=options.rank, modules=modules, seed=options.seed)
    return make_architecture(options.arch, seed=options.seed)


def main(arguments: list[str]) -> int:
    """Tune by the arguments of the command line; returns the exit status."""
    options = build_parser().parse_args(arguments)
    if options.out.suffix != ".safetensors":
        raise ValueError(f"--out is {str(options.out)!r}; motion files end in .safetensors.")
    settings, architecture, device = settings_of(options), architecture_of(options), check_device(options.device)
    files = find_clips(options.videos, options.masks, settings)
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.run or RUNS / f"motion-{options.out.stem}"
    log_to_file(folder)
    model, name = load_models(open_base, options, device)
    job = MotionJob(model, model.unet, name, files, settings, architecture, device, folder, options.out)
    result = tune_motion(job, progress=_log, after_step=_validation(model, settings, folder))
    try:
        write_motion(options.out, result.motion.tensors, result.motion.info)
    except OSError as error:
        raise OSError(
            f"the motion cannot be written to {str(options.out)!r} ({error.strerror}); the last checkpoint in "
            f"{str(folder)!r} stays: make room, or name another --out, and give the same command again."
        ) from error
    write_results(folder, model, result)
    logger.info("the motion is in %s; curve and videos are in %s", options.out, folder)
    return 0


def open_base(options: argparse.Namespace, device: torch.device) -> tuple[Any, str]:
    """The model to tune, and its name.

    Raises:
        ValueError, OSError, RuntimeError: it cannot be opened, or LaVie is named without parts; a checkpoint or folder
            of Stable Diffusion 1 has them itself.
    """
    if options.base == TOYBOX:
        from ..video_models.toybox import load_toybox

        return load_toybox(device), "Toybox"
    from ..video_models.lavie.models import open_lavie

    dtype = torch.float32 if options.precision == "no" else None
    return open_lavie(Path(options.base), options.parts, device, dtype), Path(options.base).stem


def write_results(folder: Path, model: Any, result: TunedMotion) -> None:
    """Draw the curve and make the last video."""
    folder.mkdir(parents=True, exist_ok=True)
    write_loss_curve(folder / "loss.png", result.losses)
    film = validation_film(model, result.unet, result.examples, result.clips[0])
    write_validation_film(folder / "validation.mp4", film)


def _validation(model: Any, settings: MotionSettings, folder: Path) -> Any:
    if not settings.validate_every:
        return None

    def after_step(step: int, tuned: nn.Module, examples: ExampleMaker, clips: list[TrainingClip]) -> None:
        if step % settings.validate_every == 0:
            film = validation_film(model, tuned, examples, clips[0])
            write_validation_film(folder / f"validation_{step:06}.mp4", film)

    return after_step


def _log(step: int, total: int, loss: float) -> None:
    if step % LOG_EVERY == 0 or step == total:
        logger.info("step %d of %d: loss %.4f", step, total, loss)
