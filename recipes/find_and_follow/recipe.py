"""Find objects in a video by their words and follow their masks: detection every few frames, tracking, refinement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...perception.boxes import Detections
from ...perception.frames import Film
from ...perception.masks.mask_refinement import RefinementSettings, refine_tracks
from ...perception.phrases import phrase_key
from ...perception.tracking.track_settings import TrackSettings
from ...perception.tracks import Tracks
from ..protocols import Detector, Tracker
from ..report import environment, peak_memory_bytes
from ..stages import StageProgress


@dataclass(frozen=True)
class FollowSettings:
    """What to look for and how.

    Attributes:
        phrases: what to find, at least one.
        box_threshold: 0..1, a box needs a better score.
        text_threshold: 0..1, a word counts as found above it.
        nms_threshold: 0..1, of boxes that overlap more, the best stays.
        detect_every: frames, at least 1: the detector looks at every n-th one.
        tracking: how detections become tracks.
        refinement: what is done to the masks at the end.

    Raises:
        ValueError: when there are no phrases. The other values are checked by what uses them.
    """

    phrases: tuple[str, ...]
    box_threshold: float = 0.35
    text_threshold: float = 0.25
    nms_threshold: float = 0.7
    detect_every: int = 4
    tracking: TrackSettings = field(default_factory=TrackSettings)
    refinement: RefinementSettings = field(default_factory=RefinementSettings)

    def __post_init__(self) -> None:
        if not self.phrases:
            raise ValueError("there are no phrases; name at least one object, for example 'red ball'.")


@dataclass(frozen=True, eq=False)
class FollowResult:
    """What was found.

    Attributes:
        detections: boxes per frame; frames that were not looked at have none.
        tracks: one mask per object and frame, objects in the order of the phrases.
        report: settings, timings and what was seen, ready for JSON.
    """

    detections: Detections
    tracks: Tracks
    report: dict[str, Any]


def find_and_follow(
    film: Film, detector: Detector, tracker: Tracker, settings: FollowSettings, progress: StageProgress | None = None
) -> FollowResult:
    """Run the three stages.

    Args:
        film: video to look at; it is read a few frames at a time.
        detector: of boxes by words.
        tracker: of masks from boxes.
        settings: see there.
        progress: called with (stage, done, total) after each piece of work.

    Raises:
        ValueError: for settings out of range or frames that are not finite.
    """
    timings: dict[str, float] = {}

    def stage(name: str) -> Callable[[int, int], None]:
        started = time.perf_counter()

        def report(done: int, total: int) -> None:
            timings[name] = time.perf_counter() - started
            if progress is not None:
                progress(name, done, total)

        return report

    detections = detector.detect(
        film,
        list(settings.phrases),
        settings.box_threshold,
        settings.text_threshold,
        settings.nms_threshold,
        every=settings.detect_every,
        progress=stage("detect"),
    )
    tracks = tracker.track(film, detections, settings.tracking, stage("track"))
    tracks = _in_order(tracks, settings.phrases)
    tracks = refine_tracks(tracks, settings.refinement, film, settings.tracking.folder, stage("refine"))
    return FollowResult(detections, tracks, _report(film, tracks, settings, timings))


def _in_order(tracks: Tracks, phrases: Sequence[str]) -> Tracks:
    """Objects in the order of the phrases that found them, whatever was found first."""
    order = {phrase_key(phrase): place for place, phrase in enumerate(phrases)}
    places = sorted(range(len(tracks.ids)), key=lambda place: order.get(phrase_key(tracks.labels[place]), len(order)))
    return tracks if places == list(range(len(places))) else tracks.select(places)


def _report(film: Film, tracks: Tracks, settings: FollowSettings, timings: dict[str, float]) -> dict[str, Any]:
    objects = []
    for number, (identity, label) in enumerate(zip(tracks.ids, tracks.labels, strict=True)):
        seen = ~tracks.misses[number]
        objects.append(
            {
                "id": identity,
                "phrase": label,
                "frames_seen": int(seen.sum()),
                "frames_missed": tracks.misses[number].nonzero().flatten().tolist(),
                "score": tracks.scores[number][seen].mean().item() if bool(seen.any()) else None,
            }
        )
    values = asdict(settings)
    values["tracking"]["folder"] = None if settings.tracking.folder is None else str(settings.tracking.folder)
    return {
        "film": {"frames": len(film), "height": film.height, "width": film.width},
        "settings": values,
        "objects": objects,
        "timings": timings,
        "peak_memory_bytes": peak_memory_bytes(),
        "environment": environment(),
    }
