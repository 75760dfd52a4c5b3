"""The files that finding and following objects writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...perception.frames import Film
from ...perception.pictures.drawing import draw_masks
from ...perception.pictures.film_strip import strip_over_time
from ...perception.tracks import Tracks
from ...weight_files.writing import replacing
from ..films.files import to_bytes, write_pictures
from ..films.sheets import write_picture
from ..given.mask_names import names_path, write_names
from ..report import write_report
from .recipe import FollowResult

MASK_FILM = "masks.mp4"
MASK_ARRAY = "masks.npy"
TRACKED_FILM = "tracked.mp4"
STRIP = "strip.png"
REPORT = "report.json"
MASK_NAMES = names_path(Path(MASK_ARRAY)).name
FILES = (MASK_FILM, MASK_ARRAY, MASK_NAMES, TRACKED_FILM, STRIP, REPORT)


def write_find_and_follow(folder: Path, film: Film, result: FollowResult, frames_per_second: float) -> None:
    """Write the masks as a video and as an array, the video with the objects drawn on it, a strip and the report.

    The array is bool [objects, frames, height, width], and the names of its objects lie beside it: ``refine``,
    ``guide``, ``metrics`` and ``train-motion`` read both. All are written frame by frame.
    """
    from PIL import Image

    tracks = result.tracks
    frames = range(tracks.frames)
    union = (tracks.masks.union(slice(frame, frame + 1))[0] for frame in frames)
    write_pictures(folder / MASK_FILM, (mask[..., None].expand(-1, -1, 3) for mask in union), frames_per_second)
    _write_array(folder / MASK_ARRAY, tracks)
    write_names(folder / MASK_ARRAY, tracks.labels)
    drawn = (to_bytes(draw_masks(film, tracks, chosen=[frame]))[0] for frame in frames)
    write_pictures(folder / TRACKED_FILM, drawn, frames_per_second)
    strip = to_bytes(strip_over_time(film, tracks))[0]
    write_picture(folder / STRIP, Image.fromarray(strip.numpy()))
    write_report(folder / REPORT, result.report)


def _write_array(path: Path, tracks: Tracks) -> None:
    with replacing(path) as temporary:
        if not tracks.ids:
            np.save(temporary, np.zeros(tracks.masks.shape, dtype=bool))
            return
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=bool, shape=tracks.masks.shape)
        for part in tracks.masks.chunks():
            array[:, part] = (tracks.masks[:, part] > 127).numpy()
        array.flush()


def follow_summary(result: FollowResult) -> str:
    """A few lines that say what was found."""
    total = sum(result.report["timings"].values())
    return f"{result.tracks.report()}\ntime: {total:.1f} s"
