"""Long videos from text: noise, prompts and attention that hold a clip together beyond the length a model was trained
on, then frames in between and a larger size, all of it written while it is made.

After FreeNoise (arXiv 2310.15169), FreeLong (arXiv 2407.19918), FreeLong++ (arXiv 2507.00162) and the three stages of
LaVie (arXiv 2309.15103).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...attention_patches.checks import check_blocks
from ...attention_patches.free_long import FreeLongPatch
from ...attention_patches.prompt_schedule import frame_weights
from ...prompt_text.words import shorten
from ...video_models.sampling.noise import video_noise
from ..films.files import enlarge, shown_enlargement, write_pictures
from ..films.record import FilmRecord
from ..films.sheet import Lane
from ..films.stored_film import stored_film
from ..protocols import Interpolator, Progress, SampleCallback, Upscaler, VideoModel
from ..report import environment, peak_memory_bytes
from ..stages import StageProgress, Stages, release
from .schedule import schedule_prompts
from .settings import LongVideoSettings

FILM = "film.mp4"
INTERPOLATED = "interpolated.mp4"
UPSCALED = "upscaled.mp4"
# Pictures of the first video and of each later one on the sheet.
SHOWN, SHOWN_LATER = 16, 8


@dataclass(frozen=True, eq=False)
class LongVideoResult:
    """What was written, and what is kept of it.

    Attributes:
        films: records of the videos by their file names, in order of the stages.
        lanes: prompts over time; empty without a schedule.
        report: settings, measurements, timings and notes; plain JSON values.
    """

    films: dict[str, FilmRecord]
    lanes: tuple[Lane, ...]
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Run:
    """The video that is being made.

    Attributes:
        window: the model's length in frames.
        sizes: frames, height and width of each stage's video, by its file.
        stores: videos that a later stage needs, on disk.
        films: records of the videos that are written.
        rates: their frames per second.
    """

    settings: LongVideoSettings
    folder: Path
    stages: Stages
    window: int
    sizes: dict[str, tuple[int, int, int]]
    stores: dict[str, Tensor]
    films: dict[str, FilmRecord] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)


def long_video(
    model: VideoModel,
    settings: LongVideoSettings,
    folder: Path,
    interpolator: Interpolator | None = None,
    upscaler: Upscaler | None = None,
    progress: StageProgress | None = None,
) -> LongVideoResult:
    """Sample a long video, fill in frames, enlarge it; write each stage's video frame by frame.

    Only latents (and the small video while it is enlarged) grow in memory with the video's length: a video
    that a later stage needs lies on disk.

    Args:
        model: makes the video.
        settings: what to make and how.
        folder: exists; takes ``film.mp4``, ``interpolated.mp4`` and ``upscaled.mp4`` as far as there are models for
            them. Small videos are enlarged for viewing; the report's fingerprints are of the pixels before that.
        interpolator: fills in frames; None leaves that stage out.
        upscaler: enlarges the last video; None leaves that stage out.
        progress: called with (stage, done, total); may raise to cancel.

    Raises:
        ValueError: before any work, a prompt beside a schedule that no stage would use, sizes that the model cannot
            make, a prompt that begins after the end, or a video that is too short to fill in frames; later, videos that
            are broken.
        OSError: before any work, the disk has too little room for the videos that later stages need.
    """
    started = time.perf_counter()
    stages = Stages(progress)
    if settings.prompt.strip() and settings.schedule.strip():
        if interpolator is None and upscaler is None:
            raise ValueError(
                f"there is a prompt ({shorten(settings.prompt)!r}) beside a schedule, "
                "whose prompts would be used instead; leave one of the two out."
            )
        stages.notes.append("The schedule's prompts made the video; the prompt beside it was that of the later stages.")
    frames, height, width = settings.film_size(model.geometry)
    check_blocks(settings.blocks, model.block_names)
    if interpolator is not None and frames < 2:
        raise ValueError(f"frames is {frames}; there is nothing in between to fill in, make at least 2.")
    sizes = {FILM: (frames, height, width)}
    if interpolator is not None:
        sizes[INTERPOLATED] = (interpolator.factor * (frames - 1) + 1, height, width)
    if upscaler is not None:
        longest = max(size[0] for size in sizes.values())
        sizes[UPSCALED] = (longest, height * upscaler.factor, width * upscaler.factor)
    stores = {name: stored_film(folder, *sizes[name]) for name in list(sizes)[:-1]}
    window = settings.window or model.geometry.native_frames
    run = _Run(settings, folder, stages, window, sizes, stores)
    with torch.inference_mode():
        latents, facts = _sample(run, model)
        with run.stages.stage("writing films") as report:
            _write(run, FILM, model.decode_parts(latents), settings.frames_per_second, report)
        del latents
        release(model)
        if interpolator is not None:
            _interpolate(run, interpolator)
        if upscaler is not None:
            _upscale(run, upscaler)
    run.stages.timings["total"] = time.perf_counter() - started
    return LongVideoResult(run.films, _lanes(settings, frames), _report(run, facts))


def _sample(run: _Run, model: VideoModel) -> tuple[Tensor, dict[str, Any]]:
    """The video's latents, and what the report says about how they were made."""
    settings = run.settings
    prompts = settings.prompts
    mode = settings.noise or ("freenoise" if len(prompts) == 1 else "plain")
    # It checks the size, and says what latents of it look like.
    size = tuple(model.noise(*run.sizes[FILM], settings.seed).shape)
    window = settings.latent_window(model.geometry)
    noise = video_noise(size, settings.seed, mode, window=window, stride=min(settings.noise_stride, window))
    positive, patches = model.encode_prompt(prompts[0].text), ()
    if len(prompts) > 1:
        positive, patches = schedule_prompts(model, prompts, settings.schedule_overlap)
    free_long = settings.free_long(model.geometry)
    if free_long is not None:
        patches = (*patches, FreeLongPatch(free_long))
        if size[2] <= window:
            run.stages.notes.append(f"the window of {run.window} frames covers the whole video: FreeLong does not act.")
    with run.stages.stage("sampling") as report:
        latents = model.sample(
            noise,
            positive,
            model.encode_prompt(settings.negative_prompt),
            steps=settings.steps,
            cfg=settings.cfg,
            seed=settings.seed,
            patches=patches,
            sampler=settings.sampler,
            callback=lambda step, total, _denoised: report(step, total),
        )
    facts = {
        "noise": mode,
        "window": run.window,
        "prompts": [{"frame": prompt.start, "prompt": prompt.text} for prompt in prompts],
        "latents": list(size),
    }
    return latents, facts


def _lanes(settings: LongVideoSettings, frames: int) -> tuple[Lane, ...]:
    """The prompts over time, as long as there are several."""
    prompts = settings.prompts
    if len(prompts) == 1:
        return ()
    weights = frame_weights([prompt.start for prompt in prompts], settings.schedule_overlap, frames)
    return tuple(Lane(prompt.text, weights[:, number]) for number, prompt in enumerate(prompts))


def _interpolate(run: _Run, interpolator: Interpolator) -> None:
    settings, options = run.settings, run.settings.interpolation
    film = run.stores.pop(FILM)
    with run.stages.stage("interpolating") as report:
        parts = interpolator.interpolate_parts(
            film,
            settings.later_prompt,
            negative_prompt=options.negative_prompt,
            steps=options.steps,
            cfg=options.cfg,
            seed=settings.seed,
            callback=_steps(report),
        )
    del film
    with run.stages.stage("writing films") as report:
        _write(run, INTERPOLATED, parts, settings.frames_per_second * interpolator.factor, report)
    release(interpolator)


def _upscale(run: _Run, upscaler: Upscaler) -> None:
    settings, options = run.settings, run.settings.upscaling
    # Of the stage before: all others have taken theirs.
    name, film = run.stores.popitem()
    with run.stages.stage("upscaling") as report:
        parts = upscaler.upscale_parts(
            film,
            settings.later_prompt,
            negative_prompt=options.negative_prompt,
            noise_level=options.noise_level,
            steps=options.steps,
            cfg=options.cfg,
            seed=settings.seed,
            window=options.window,
            overlap=options.overlap,
            callback=_steps(report),
        )
    del film
    with run.stages.stage("writing films") as report:
        _write(run, UPSCALED, parts, run.rates[name], report)
    release(upscaler)


def _steps(report: Progress) -> SampleCallback:
    return lambda step, total, _denoised: report(step, total)


def _write(run: _Run, name: str, parts: Iterator[Tensor], rate: float, report: Progress) -> None:
    """Write a stage's video, and keep its frames on disk where another stage follows."""
    frames, height, width = run.sizes[name]
    window = round(run.window * rate / run.settings.frames_per_second)
    record = FilmRecord(frames, window, SHOWN_LATER if run.films else SHOWN)
    factor = shown_enlargement(height, width)
    passing = record.watch(parts, report, run.stores.get(name))
    write_pictures(run.folder / name, (enlarge(picture[None], factor)[0] for picture in passing), rate)
    run.films[name], run.rates[name] = record, rate


def _report(run: _Run, facts: dict[str, Any]) -> dict[str, Any]:
    films = [
        {"file": name, "frames_per_second": run.rates[name], **record.measured()} for name, record in run.films.items()
    ]
    return {
        "recipe": "long_video",
        **facts,
        "films": films,
        "notes": run.stages.notes,
        "settings": run.settings.to_dict(),
        "timings": run.stages.timings,
        "environment": environment(),
        "peak_memory_bytes": peak_memory_bytes(),
    }
