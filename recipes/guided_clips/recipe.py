"""Clips in which objects go where masks go, one after another: each round begins with the frame that the one before
ended with.

After the auto-regressive extension of first-frame-based models (LAMP, arXiv 2310.10769; dynamic mask guidance, arXiv
2503.18386, whose rule for the shared frame is not public: both are offered).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...attention_patches.checks import check_blocks, check_shape
from ...attention_patches.guidance.guide import Guide
from ...attention_patches.guidance.patch import guide_patches, idle_steps, shares_of
from ...attention_patches.guidance.text_spans import TextSpans, spans_of_named
from ...attention_patches.patch import Patch
from ...perception.pictures.histogram_match import histogram_match
from ...video_models.sampling.first_frame import FirstFrame
from ...weight_files.writing import check_room
from ..checked_settings import MAX_FRAMES
from ..films.files import check_frames, enlarge, shown_enlargement, to_bytes, write_pictures
from ..films.record import FilmRecord
from ..protocols import Progress, PromptEmbedding, VideoModel
from ..stages import StageProgress, Stages, release
from .levers import LeverClip, attempts_summary
from .masks import RoundMasks
from .report import RoundColours, build_report
from .rounds import RoundFolder, StoredRound, sha256
from .settings import GuidedClipsSettings

FILM = "film.mp4"
ROUNDS = "rounds"
SHOWN = 32


@dataclass(frozen=True, eq=False)
class GuidedClipsResult:
    """What was written, and what is kept of it.

    Attributes:
        record: of the video.
        settings: as given.
        masks: where the objects were to be, by round.
        rounds: the stored rounds, in order.
        report: settings, measurements, timings and notes; plain JSON values.
    """

    record: FilmRecord
    settings: GuidedClipsSettings
    masks: RoundMasks
    rounds: tuple[StoredRound, ...]
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Run:
    """The video that is being made."""

    model: VideoModel
    settings: GuidedClipsSettings
    size: tuple[int, int, int]
    masks: RoundMasks
    rounds: RoundFolder
    stages: Stages
    identity: dict[str, Any]
    positive: PromptEmbedding
    negative: PromptEmbedding
    colours: list[RoundColours] = field(default_factory=list)
    attempts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def progress(self, number: int, step: int, total: int) -> None:
        """Steps of all rounds together; decoding belongs to a round's last step, and can be cancelled too."""
        if self.stages.progress is not None:
            self.stages.progress("rounds", number * total + step, self.settings.rounds * total)


def guided_clips(
    model: VideoModel,
    settings: GuidedClipsSettings,
    masks: Tensor,
    folder: Path,
    first_image: Tensor | None = None,
    *,
    rounds: Path | None = None,
    model_name: str = "",
    store: Tensor | None = None,
    fresh: bool = False,
    progress: StageProgress | None = None,
) -> GuidedClipsResult:
    """Make a video round by round; each finished round is on disk, and a stopped run goes on after the last one.

    A run that goes on makes the same video, bit for bit, as one that was never stopped. One round at most is in memory.

    Args:
        model: makes the clips.
        settings: what to make and how.
        masks: [N, L, H, W] in 0..1, one per object, as ``RoundMasks.of`` takes them; of any size.
        folder: exists; takes ``film.mp4``.
        first_image: [H, W, 3] in 0..1 that the video begins with, brought to its size; None leaves it to the first
            round.
        rounds: folder of the finished rounds, from which a later run with as many or more goes on; None is ``rounds``
            in ``folder``.
        model_name: of the model with all that was loaded onto it; rounds of another one are refused.
        store: [T, H, W, 3]; takes the video's frames (``film_length`` says how many).
        fresh: discard rounds that are there.
        progress: called with (stage, done, total); may raise to cancel.

    Raises:
        ValueError: before any work, sizes that the model cannot make, masks that do not fit, words that are not in the
            prompt, or rounds in the folder that were made otherwise or are being made by another run.
        OSError: too little room; finished rounds stay.
    """
    started = time.perf_counter()
    run = _prepared(model, settings, masks, rounds or folder / ROUNDS, first_image, model_name, Stages(progress))
    check_room(run.rounds.folder, settings.rounds * math.prod(run.size) * 3, "the rounds")
    with run.rounds.alone(), torch.inference_mode():
        if fresh:
            run.rounds.clear()
        stored = _make_rounds(run, first_image)
        release(model)
        with run.stages.stage("writing film") as written:
            record = _write_film(run, stored, folder / FILM, store, written)
    run.stages.timings["total"] = time.perf_counter() - started
    report = build_report(settings, run.size, record, run.colours, run.stages)
    if settings.uses_levers:
        report["levers"] = run.attempts
    return GuidedClipsResult(record, settings, run.masks, stored, report)


def film_length(model: VideoModel, settings: GuidedClipsSettings) -> tuple[int, int, int]:
    """Frames, height and width of the video.

    Raises:
        ValueError: sizes that the model cannot make, or a video that is too long.
    """
    frames, height, width = settings.round_size(model.geometry)
    length = settings.film_frames(frames)
    if length > MAX_FRAMES:
        raise ValueError(
            f"{settings.rounds} rounds of {frames} frames make {length} frames; make at most {MAX_FRAMES} in one video."
        )
    if settings.rounds > 1 and frames < 2:
        raise ValueError(f"frames is {frames}; a round that begins with the last frame of another needs at least 2.")
    return length, height, width


def _prepared(
    model: VideoModel,
    settings: GuidedClipsSettings,
    masks: Tensor,
    rounds: Path,
    first_image: Tensor | None,
    model_name: str,
    stages: Stages,
) -> _Run:
    """Check everything that can be checked before the first step."""
    size = settings.round_size(model.geometry)
    film_length(model, settings)
    found = RoundMasks.of(masks, settings.rounds, *size, settings.mask_borders)
    found.strength_of_round(0, settings.frame_strength)
    first = _guide(model, settings, found.of_round(0, settings.phrases, *size[1:]), ())
    check_blocks(first.mode.blocks, model.block_names)
    stages.notes += idle_steps(first, model.step_progress(settings.steps, settings.sampler))
    if settings.phrases or settings.background_phrase:
        _spans(model, settings)
    elif first.mode.only_words and first.is_active:
        stages.notes.append(f"no phrase names the objects: only the part of {settings.mode} that needs no words acts.")
    positive = model.encode_prompt(settings.prompt)
    identity = {
        "model": model_name,
        **settings.round_settings(),
        **dict(zip(("frames", "height", "width"), size, strict=True)),
        "text encoder": sha256(positive.embedding.float()),
        "first image": None if first_image is None else sha256(_fitted(first_image, *size[1:])),
    }
    return _Run(
        model,
        settings,
        size,
        found,
        RoundFolder(rounds),
        stages,
        identity,
        positive,
        model.encode_prompt(settings.negative_prompt),
    )


def _make_rounds(run: _Run, first_image: Tensor | None) -> tuple[StoredRound, ...]:
    """Make the rounds that are not there yet."""
    settings, (_, height, width) = run.settings, run.size
    stored: list[StoredRound] = []
    for number in range(settings.rounds):
        masks = run.masks.of_round(number, settings.phrases, height, width)
        strength = run.masks.strength_of_round(number, settings.frame_strength)
        identity = {**run.identity, "masks": sha256(masks), "frame_strength": strength}
        origin = "" if not stored else sha256(stored[-1].last())
        if not bool((masks > 0.5).any()):
            run.stages.notes.append(f"the masks of round {number + 1} are empty: nothing guides it.")
        done = run.rounds.finished(number, identity, origin)
        if done is None:
            latents = _sample(run, number, masks, strength, _beginning(run, stored, first_image, masks, strength))
            with run.stages.stage("decoding"):
                pictures = _decode(run, latents, stored)
            done = run.rounds.store(number, identity, origin, pictures, latents[:, :, -1:])
        else:
            run.stages.notes.append(f"round {number + 1} was finished by an earlier run.")
        run.colours.append(RoundColours.of(done.parts(), masks))
        stored.append(done)
    return tuple(stored)


def _beginning(
    run: _Run, stored: list[StoredRound], first_image: Tensor | None, masks: Tensor, strength: tuple[float, ...]
) -> Tensor | None:
    """Latents [1, C, 1, h, w] of a round's first frame; None lets it come from the noise."""
    settings = run.settings
    if stored:
        if settings.next_frame == "latent" and run.model.geometry.temporal_factor == 1:
            return stored[-1].last()
        return run.model.encode(stored[-1].picture(-1)[None])
    if first_image is not None:
        return run.model.encode(_fitted(first_image, *run.size[1:])[None])
    if settings.first_round == "frame":
        return _sample(run, 0, masks[:, :1], strength[:1], None, frames=1)
    return None


def _sample(
    run: _Run,
    number: int,
    masks: Tensor,
    strength: tuple[float, ...],
    first: Tensor | None,
    frames: int | None = None,
) -> Tensor:
    """Latents [1, C, T, h, w] of a round."""
    settings, model = run.settings, run.model
    guide = _guide(model, settings, masks, strength)
    spans = _spans(model, settings) if settings.phrases or settings.background_phrase else None
    noise = settings.starting_noise(model.noise(frames or run.size[0], *run.size[1:], settings.seed + number))

    def sample(noise: Tensor, patches: Sequence[Patch], **levers: Any) -> Tensor:
        return model.sample(
            noise,
            run.positive,
            run.negative,
            steps=settings.steps,
            cfg=settings.cfg,
            seed=settings.seed + number,
            patches=patches,
            sampler=settings.sampler,
            first_frame=None if first is None else FirstFrame(first, settings.match_statistics),
            callback=lambda step, total, _denoised: run.progress(number, step, total),
            **levers,
        )

    patches = guide_patches(guide, spans)
    with run.stages.stage("sampling"):
        if spans is None or not settings.uses_levers or not bool((masks > 0.5).any()):
            latents = sample(noise, patches)
        else:
            clip = LeverClip(
                model,
                lambda noise, levers: sample(noise, patches, levers=levers),
                lambda noise, levers: sample(noise, (), levers=levers),
                noise,
                masks,
                spans,
                settings.seed + number,
            )
            latents = _with_levers(run, clip, f"round {number + 1}" + (", first frame" if frames else ""))
    told = shares_of(patches)
    run.stages.notes += [line if settings.rounds == 1 else f"round {number + 1}: {line}" for line in told]
    return latents


def _with_levers(run: _Run, clip: LeverClip, name: str) -> Tensor:
    """Sample a round with its levers, and note what they reached."""
    if run.settings.auto:
        latents, attempts = clip.choose()
    else:
        latents, attempt = clip.with_levers(run.settings.levers)
        attempts = (replace(attempt, taken=True),)
    run.attempts[name] = [asdict(attempt) for attempt in attempts]
    run.stages.notes.append(f"{name}: {attempts_summary(attempts, run.settings.auto)}")
    return latents


def _guide(model: VideoModel, settings: GuidedClipsSettings, masks: Tensor, strength: tuple[float, ...]) -> Guide:
    """The guide of a round on this model's blocks."""
    return settings.guide(masks, strength).on_blocks(model.block_names)


def _spans(model: VideoModel, settings: GuidedClipsSettings) -> TextSpans:
    """Where the words of the objects stand in the prompt."""
    return spans_of_named(
        lambda phrases: model.token_spans(settings.prompt, phrases, settings.background_phrase), settings.phrases
    )


def _decode(run: _Run, latents: Tensor, stored: list[StoredRound]) -> Tensor:
    """Frames of a round, uint8 [n, H, W, 3], in the colours of the reference."""
    settings, (frames, height, width) = run.settings, run.size
    pictures = torch.empty(frames, height, width, 3, dtype=torch.uint8)
    reference = None
    if stored and settings.colour_reference != "none":
        reference = stored[0].picture(0) if settings.colour_reference == "global" else stored[-1].picture(-1)
    done = 0
    for part in run.model.decode_parts(latents):
        check_frames(part)
        if settings.colour_reference != "none":
            # For the first round it is the round's first frame, in bytes as it is stored.
            reference = to_bytes(part[0]).float() / 255.0 if reference is None else reference
            part = histogram_match(part.cpu(), reference)
        pictures[done : done + len(part)] = to_bytes(part)
        done += len(part)
        run.progress(len(stored), settings.steps, settings.steps)
    return pictures


def _write_film(
    run: _Run, stored: tuple[StoredRound, ...], path: Path, store: Tensor | None, report: Progress
) -> FilmRecord:
    settings, (frames, height, width) = run.settings, run.size
    record = FilmRecord(settings.film_frames(frames), frames, SHOWN)
    factor = shown_enlargement(height, width)
    parts = (part for number, done in enumerate(stored) for part in done.parts(first_shown(settings, number)))
    passing = record.watch(parts, report, store)
    write_pictures(path, (enlarge(picture[None], factor)[0] for picture in passing), settings.frames_per_second)
    return record


def first_shown(settings: GuidedClipsSettings, number: int) -> int:
    """The first frame of a round, counted from 0, that the video shows."""
    return 1 if number and settings.overlap == "drop" else 0


def _fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """A first picture at the video's size, in the steps of bytes.

    Raises:
        ValueError: not a picture, or one of quite another shape.
    """
    check_frames(picture[None], "the pixels of the first image")
    check_shape("the first image is", picture.shape[:2], (height, width))
    if tuple(picture.shape[:2]) != (height, width):
        planes = picture.movedim(-1, 0)[None].float()
        resized = functional.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)
        picture = resized[0].movedim(0, -1)
    return to_bytes(picture).float() / 255.0
