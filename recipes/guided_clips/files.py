"""What a run of guided clips writes beside its video: the video with the masks drawn on it, the sheet, the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...perception.tracks import Tracks
from ..films.files import shown_enlargement, write_pictures
from ..films.record import FilmRecord
from ..films.sheet import Lane, film_sheet
from ..films.sheets import with_outlines, write_picture
from ..report import write_report
from .recipe import FILM, SHOWN, GuidedClipsResult, first_shown
from .report import guided_clips_summary

WITH_MASKS = "film_with_masks.mp4"
SHEET = "sheet.png"
REPORT = "report.json"
FILES = (FILM, WITH_MASKS, SHEET, REPORT)
# Rounds from which the sheet does not name each.
MAX_LANES = 16


def write_guided_clips(folder: Path, result: GuidedClipsResult) -> None:
    """Write the video with the outlines of its masks, frame by frame, the sheet and the report into a folder."""
    settings, record = result.settings, result.record
    outlined = FilmRecord(record.frames, result.rounds[0].frames, SHOWN)
    write_pictures(folder / WITH_MASKS, outlined.watch(_outlined(result)), settings.frames_per_second)
    lines = guided_clips_summary(result.report).splitlines()
    films = [("video", record), ("with its masks", outlined)]
    write_picture(
        folder / SHEET, film_sheet(films, settings.prompt, round_lanes(settings.rounds, record.frames), lines)
    )
    write_report(folder / REPORT, result.report)


def round_lanes(rounds: int, frames: int) -> tuple[Lane, ...]:
    """Which frames of a video belong to which round; empty for one round, or for too many to name."""
    if not 1 < rounds <= MAX_LANES:
        return ()
    share = (torch.arange(frames) * rounds // frames).clamp(max=rounds - 1)
    return tuple(Lane(f"round {number + 1}", (share == number).float()) for number in range(rounds))


def _outlined(result: GuidedClipsResult) -> Iterator[Tensor]:
    """The video's frames with outlines, small ones enlarged, a few at a time."""
    factor = shown_enlargement(result.record.height, result.record.width)
    for number, stored in enumerate(result.rounds):
        masks = result.masks.of_round(number, result.settings.phrases, result.record.height, result.record.width)
        at = first_shown(result.settings, number)
        for part in stored.parts(at):
            tracks = Tracks.from_masks(masks[:, at : at + len(part)])
            yield with_outlines(part, tracks, factor)
            at += len(part)
