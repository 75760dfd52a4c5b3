"""Motion tuning from clips to a motion file: what the command line and the node both call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...video_models.motion.motion_files import MotionFile, MotionInfo, base_hash
from ...weight_files.writing import check_writable
from .architectures import Architecture
from .data import ClipFiles, TrainingClip, clip_sizes, load_clips
from .examples import ExampleMaker
from .loop import Run, tune
from .settings import MotionSettings

CACHE_NAME = "clips.safetensors"


@dataclass(frozen=True, eq=False)
class MotionJob:
    """All that one tuning run needs.

    Attributes:
        model: reads prompts, encodes and decodes clips: ``recipes.protocols.VideoModel``.
        unet: the network that is tuned; it is not changed.
        base_name: of the model, for display.
        files: the clips.
        settings: of the run.
        architecture: what is tuned.
        device: where to compute.
        folder: of checkpoint and encoded clips; None keeps neither.
        target: motion file to write; whether it can be written is checked before the first step.
    """

    model: Any
    unet: nn.Module
    base_name: str
    files: Sequence[ClipFiles]
    settings: MotionSettings
    architecture: Architecture
    device: torch.device
    folder: Path | None = None
    target: Path | None = None


@dataclass(frozen=True, eq=False)
class TunedMotion:
    """What a run made.

    Attributes:
        motion: the file's contents.
        losses: one per step.
        unet: the tuned network.
        clips, examples: what was learned from, to make clips of it.
    """

    motion: MotionFile
    losses: list[float]
    unet: nn.Module
    clips: list[TrainingClip]
    examples: ExampleMaker


def tune_motion(
    job: MotionJob,
    *,
    progress: Callable[[int, int, float], None] | None = None,
    encoding: Callable[[int, int], None] | None = None,
    after_step: Callable[[int, nn.Module, ExampleMaker, list[TrainingClip]], None] | None = None,
    stop_at: int | None = None,
) -> TunedMotion:
    """Encode the clips, tune, and describe the result.

    Args:
        job: what to do.
        progress: called with (steps done, steps, loss); may raise to cancel.
        encoding: called with (clips encoded, clips); may raise to cancel.
        after_step: called with the steps done, the tuned network, and what it learns from.
        stop_at: see ``motion_loop.tune``.

    Raises:
        ImportError: peft or accelerate is not installed.
        ValueError: clips, words or settings that do not fit, or a damaged checkpoint.
        OSError: the motion file could not be written.
    """
    settings = job.settings
    if job.target is not None:
        check_writable(job.target)
    clips = load_clips(
        job.files, job.model, settings, None if job.folder is None else job.folder / CACHE_NAME, encoding
    )
    examples = ExampleMaker(job.model, clips, settings)
    run = Run(settings, job.architecture, examples, job.device, job.folder, job.target)
    followed = None
    if after_step is not None:

        def followed(step: int, tuned: nn.Module) -> None:
            after_step(step, tuned, examples, clips)

    tuned = tune(run, job.unet, progress=progress, after_step=followed, stop_at=stop_at)
    return TunedMotion(_motion_file(job, clips, len(run.losses)), run.losses, tuned, clips, examples)


def _motion_file(job: MotionJob, clips: Sequence[TrainingClip], steps: int) -> MotionFile:
    settings, words = job.settings, clips[0].words
    frames, height, width = clip_sizes(settings, job.model.geometry)
    names = job.architecture.base_names()
    has_masks = any(clip.masks is not None for clip in clips)
    info = MotionInfo(
        kind=job.architecture.kind,
        base_name=job.base_name,
        base_hash=base_hash(job.unet.state_dict(), names),
        base_tensors=tuple(names),
        frames=frames,
        width=width,
        height=height,
        prompt=words.prompt,
        phrases=words.phrases,
        background_phrase=words.background,
        mode=settings.mode if has_masks else "",
        constants=dict(settings.constants) if has_masks else {},
        key_source=settings.key_source,
        first_frame=settings.first_frame,
        steps=steps,
        seed=settings.seed,
        details=job.architecture.metadata(),
    )
    return MotionFile(f"{job.architecture.kind} of {job.base_name}", info, job.architecture.state())
