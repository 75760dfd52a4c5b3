"""Mask Refine: make a video, find and track its objects, and make it again with attention guided by their masks.

After the idea of Mask Refine Video Generation (s1ckrain/MaskRefineVG), with a mask that does reach attention and,
by default, the first video's noise, so that the masks belong to the video that they guide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention_patches.checks import check_blocks
from ...attention_patches.guidance.guide import Guide
from ...attention_patches.guidance.patch import guide_patches, idle_steps, shares_of
from ...attention_patches.guidance.regions import pool_time
from ...perception.boxes import Box
from ...perception.masks.mask_refinement import RefinementSettings, refine_tracks
from ...perception.phrases import phrase_key
from ...perception.tracks import Tracks
from ...video_models.sampling.background_lock import BackgroundLock, lock_mask
from ..films.files import check_frames
from ..given.masks import fit_masks
from ..protocols import Detector, Progress, PromptEmbedding, Tracker, VideoModel
from ..stages import StageProgress, Stages, release
from .report import build_report
from .settings import MaskRefineSettings


@dataclass(frozen=True, eq=False)
class MaskRefineResult:
    """Both videos and how they were made.

    Attributes:
        first: the video of the first pass, float [T, H, W, 3] in 0..1.
        second: the regenerated video, same shape.
        tracks: the objects that guided the second video (given masks too); may hold no object.
        detections: boxes per frame of the first video; empty lists where masks were given.
        report: settings, measurements, timings and notes; plain JSON values.
    """

    first: Tensor
    second: Tensor
    tracks: Tracks
    detections: list[list[Box]]
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Run:
    """The models of one run, its clock and its notes."""

    model: VideoModel
    detector: Detector | None
    tracker: Tracker | None
    settings: MaskRefineSettings
    stages: Stages


def mask_refine(
    model: VideoModel,
    detector: Detector | None,
    tracker: Tracker | None,
    settings: MaskRefineSettings,
    masks: Tensor | None = None,
    progress: StageProgress | None = None,
    *,
    names: Sequence[str] = (),
) -> MaskRefineResult:
    """Generate, detect, track, guide, regenerate, measure.

    Args:
        model: makes both videos.
        detector: finds the objects; may be None when ``masks`` are given (object IoU is then not measured).
        tracker: segments and follows them; as the detector.
        settings: what to make and how.
        masks: guide tracks that the user gives instead of detection: [T, H, W] or [N, T, H, W] in 0..1, one per phrase,
            one frame for all or as many as the video has, of any size.
        progress: called with (stage, done, total); may raise to cancel.
        names: of the objects that ``masks`` are of, by which phrases find theirs; none: they have the phrases' order.

    Returns:
        Both videos, the tracks and a report. If no object is found, the second video is made without guidance and the
        report says so.

    Raises:
        ValueError: a phrase that is not in the prompt, masks that do not fit, or sizes that the model cannot make;
            all of it before the first video is begun.
    """
    run = _Run(model, detector, tracker, settings, Stages(progress))
    frames, height, width = settings.film_size(model.geometry)
    # Before any work: a block that the model lacks, or a phrase that is not in the prompt, ends here.
    check_blocks(settings.blocks, model.block_names)
    model.token_spans(settings.prompt, settings.phrases)
    given = None if masks is None else fit_masks(masks, settings.phrases, frames, height, width, names)
    if given is None and (detector is None or tracker is None):
        raise ValueError("there is neither a detector with a tracker nor masks; give one of them.")

    with torch.inference_mode():
        positive = model.encode_prompt(settings.prompt)
        negative = model.encode_prompt(settings.negative_prompt)
        noise = model.noise(frames, height, width, settings.seed)
        with run.stages.stage("first film") as report:
            first_latents = _sample(run, noise, positive, negative, report)
            first = model.decode(first_latents)
        release(model)
        check_frames(first, "frames of the first video")
        if given is None:
            detections, found = _find_objects(run, first)
            tracks = _refined(run, found)
        else:
            detections, found, tracks = [[] for _ in range(len(first))], None, given
        guide = _guide(run, tracks)
        with run.stages.stage("second film") as report:
            second = _regenerate(run, guide, first_latents, noise, positive, negative, report)
        release(model)
        check_frames(second, "frames of the second video")
        with run.stages.stage("measuring") as report:
            found_first = found if found is not None else _find_again(run, first, report)
            found_second = _find_again(run, second, report)
    run.stages.timings["total"] = sum(run.stages.timings.values())
    content = build_report(settings, first, second, tracks, guide, found_first, found_second, given is not None)
    content["notes"] = run.stages.notes + content["notes"]
    content["timings"] = run.stages.timings
    return MaskRefineResult(first, second, tracks, detections, content)


def _sample(
    run: _Run, noise: Tensor, positive: PromptEmbedding, negative: PromptEmbedding, report: Progress, **options: Any
) -> Tensor:
    settings = run.settings
    return run.model.sample(
        noise,
        positive,
        negative,
        steps=settings.steps,
        cfg=settings.cfg,
        seed=settings.seed,
        sampler=settings.sampler,
        callback=lambda step, total, _denoised: report(step, total),
        **options,
    )


def _find_objects(run: _Run, frames: Tensor) -> tuple[list[list[Box]], Tracks]:
    settings = run.settings
    with run.stages.stage("detecting") as report:
        detections = run.detector.detect(
            frames,
            settings.phrases,
            settings.box_threshold,
            settings.text_threshold,
            settings.nms_threshold,
            progress=report,
        )
    release(run.detector)
    with run.stages.stage("tracking") as report:
        tracks = run.tracker.track(frames, detections, progress=report)
    release(run.tracker)
    return detections, tracks


def _find_again(run: _Run, frames: Tensor, report: Progress) -> Tracks | None:
    """The objects as the detector sees them in another video; None without a detector."""
    if run.detector is None or run.tracker is None:
        return None
    settings = run.settings
    detections = run.detector.detect(
        frames, settings.phrases, settings.box_threshold, settings.text_threshold, settings.nms_threshold
    )
    release(run.detector)
    tracks = run.tracker.track(frames, detections, progress=report)
    release(run.tracker)
    return tracks


def _refined(run: _Run, tracks: Tracks) -> Tracks:
    settings = run.settings
    for phrase in settings.phrases:
        if tracks.ids and phrase_key(phrase) not in map(phrase_key, tracks.labels):
            run.stages.notes.append(f"no {phrase!r} was found in the first video; it is not guided.")
    if not tracks.ids:
        return tracks
    changes = RefinementSettings(
        median_frames=settings.median_frames, grow=settings.grow, feather=float(settings.feather)
    )
    with run.stages.stage("refining masks") as report:
        return refine_tracks(tracks, changes, progress=report)


def _guide(run: _Run, tracks: Tracks) -> Guide | None:
    settings = run.settings
    empty = not any(bool((tracks.masks.union(part) > 127).any()) for part in tracks.masks.chunks())
    if not tracks.ids or empty:
        named = ", ".join(repr(phrase) for phrase in settings.phrases)
        cause = f"no object ({named}) was found in the first video" if not tracks.ids else "the masks are empty"
        run.stages.notes.append(f"{cause}; the second video was made without guidance.")
        return None
    # A phrase is one region: an object that the tracker lost and found again is still the same object.
    labels = [phrase_key(label) for label in tracks.labels]
    phrases = tuple(phrase for phrase in settings.phrases if phrase_key(phrase) in labels)
    regions = [
        tracks.select([place for place, label in enumerate(labels) if label == phrase_key(phrase)]).union()
        for phrase in phrases
    ]
    guide = settings.guide(torch.stack(regions), phrases).on_blocks(run.model.block_names)
    run.stages.notes += idle_steps(guide, _progress(run))
    return guide


def _progress(run: _Run) -> list[float]:
    """Where in the schedule the steps of the second video lie."""
    settings = run.settings
    start = 1.0 - settings.refine_strength if settings.regenerate == "refine" else 0.0
    return run.model.step_progress(settings.steps, settings.sampler, start) if start < 1.0 else []


def _regenerate(
    run: _Run,
    guide: Guide | None,
    first_latents: Tensor,
    noise: Tensor,
    positive: PromptEmbedding,
    negative: PromptEmbedding,
    report: Progress,
) -> Tensor:
    settings, options = run.settings, {}
    if settings.regenerate == "refine" and settings.refine_strength == 0.0:
        # Nothing to denoise: the first video as it is.
        return run.model.decode(first_latents)
    if guide is not None and guide.strength > 0.0:
        spans = None
        if guide.phrases:
            spans = run.model.token_spans(settings.prompt, guide.phrases, guide.background_phrase)
        options["patches"] = guide_patches(guide, spans)
    if settings.background_lock and guide is not None:
        clip_frames, height, width = first_latents.shape[2:]
        union = pool_time(guide.masks.amax(dim=0, keepdim=True), clip_frames)[0]
        options["background_lock"] = BackgroundLock(
            first_latents, lock_mask(union, height, width, settings.lock_dilate, settings.lock_blur)
        )
    if settings.regenerate != "same_noise":
        frames, height, width = settings.film_size(run.model.geometry)
        noise = run.model.noise(frames, height, width, settings.second_seed)
    if settings.regenerate == "refine":
        options.update(latents=first_latents, start_percent=1.0 - settings.refine_strength)
    latents = _sample(run, noise, positive, negative, report, **options)
    run.stages.notes += shares_of(options.get("patches", ()))
    return run.model.decode(latents)
