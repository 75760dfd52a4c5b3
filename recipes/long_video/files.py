"""What a run writes beside its videos: the sheet and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..films.sheet import film_sheet
from ..films.sheets import write_picture
from ..report import write_report
from .recipe import FILM, INTERPOLATED, UPSCALED, LongVideoResult

SHEET = "sheet.png"
REPORT = "report.json"
NAMES = {FILM: "film", INTERPOLATED: "interpolated", UPSCALED: "upscaled"}


def write_long_video(folder: Path, result: LongVideoResult) -> None:
    """Write the sheet and the report into the folder of the videos."""
    films = [(NAMES[name], record) for name, record in result.films.items()]
    lines = long_video_summary(result.report).splitlines()
    title = result.report["settings"]["prompt"] or result.report["prompts"][0]["prompt"]
    write_picture(folder / SHEET, film_sheet(films, title, result.lanes, lines))
    write_report(folder / REPORT, result.report)


def files_of(result: LongVideoResult) -> tuple[str, ...]:
    """Names of all files of a run."""
    return (*result.films, SHEET, REPORT)


def long_video_summary(report: dict[str, Any]) -> str:
    """A few lines on what was made and how steady it is."""
    settings = report["settings"]
    lines = [
        *report["notes"],
        f"{settings['technique']}, window {report['window']}, {report['noise']} noise, {settings['steps']} steps, "
        f"cfg {settings['cfg']:g}, seed {settings['seed']}",
    ]
    for film in report["films"]:
        words = f"{film['file']}: {film['frames']} frames, {film['width']} x {film['height']}"
        if film["change_mean"] is not None:
            words += (
                f"; change from frame to frame {film['change_mean']:.4f}, at most {film['change_largest']:.4f} "
                f"at frame {film['change_largest_at']}"
            )
        lines.append(f"{words}; colours drift by {film['colour_drift']:.4f}")
    lines.append(f"time: {report['timings']['total']:.1f} s")
    return "\n".join(lines)
