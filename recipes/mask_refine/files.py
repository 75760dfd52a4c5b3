"""The files that a run of Mask Refine writes."""

from __future__ import annotations

from pathlib import Path

from ..films.files import shown_enlargement, write_film
from ..films.sheets import contact_sheet, side_by_side, write_picture
from ..report import summary, write_report
from .recipe import MaskRefineResult

FIRST_FILM = "first_film.mp4"
SECOND_FILM = "second_film.mp4"
SIDE_BY_SIDE = "side_by_side.mp4"
CONTACT_SHEET = "contact_sheet.png"
REPORT = "report.json"
FILES = (FIRST_FILM, SECOND_FILM, SIDE_BY_SIDE, CONTACT_SHEET, REPORT)


def write_mask_refine(folder: Path, result: MaskRefineResult, frames_per_second: float = 8.0) -> None:
    """Write both videos, the side-by-side video, the contact sheet and the report into an existing folder.

    Small videos are enlarged for viewing; the report's fingerprints are of the pixels before that.
    """
    enlargement = shown_enlargement(*result.first.shape[1:3])
    write_film(folder / FIRST_FILM, result.first, frames_per_second, enlargement)
    write_film(folder / SECOND_FILM, result.second, frames_per_second, enlargement)
    write_film(folder / SIDE_BY_SIDE, side_by_side(result.first, result.second, result.tracks), frames_per_second)
    lines = summary(result.report).splitlines()
    sheet = contact_sheet(result.first, result.second, result.tracks, result.report["settings"]["prompt"], lines)
    write_picture(folder / CONTACT_SHEET, sheet)
    write_report(folder / REPORT, result.report)
