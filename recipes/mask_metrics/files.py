"""Videos with the masks that belong to them: one of each, or two folders of equally many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...attention_patches.checks import check_shape
from ...perception.phrases import phrase_key
from ...perception.tracks import Tracks
from ..films.decoding import FILM_SUFFIXES
from ..films.files import read_film_bytes
from ..given.mask_names import read_names
from ..given.masks import MASK_SUFFIXES, fit_masks, objects_of, read_masks


@dataclass(frozen=True)
class Clip:
    """Files of one video.

    Attributes:
        name: for the report.
        film: video to judge.
        masks: where its objects should be; None where a path says so.
        reference: to compare the background with, or None.
        found: masks of what is in the video, or None where it is to be detected.
    """

    name: str
    film: Path
    masks: Path | None = None
    reference: Path | None = None
    found: Path | None = None


def match_clips(
    films: Path, masks: Path | None = None, reference: Path | None = None, found: Path | None = None
) -> list[Clip]:
    """Pair videos with their masks.

    Args:
        films: one video, or a folder of videos.
        masks: of one video a file or folder as ``read_masks`` takes it; of a folder of videos a folder with an entry of
            the same name for each (``a.mp4`` and ``a.npy`` or ``a/``). None: masks come from elsewhere.
        reference: likewise, a video or a folder of videos.
        found: as ``masks``.

    Returns:
        At least one, in the order of the names.

    Raises:
        ValueError: nothing there, or counts or names of masks and videos that differ; the message has both.
    """
    if not films.is_dir():
        return [Clip(films.stem, films, masks, reference, found)]
    paths = _entries(films, FILM_SUFFIXES, folders=False)
    if not paths:
        raise ValueError(f"the folder {str(films)!r} holds no videos ({', '.join(FILM_SUFFIXES)}); put them there.")
    partners = {
        kind: _partners(paths, folder, kind, suffixes)
        for kind, folder, suffixes in (
            ("masks", masks, MASK_SUFFIXES),
            ("reference", reference, FILM_SUFFIXES),
            ("found", found, MASK_SUFFIXES),
        )
        if folder is not None
    }
    return [Clip(name, path, **{kind: found[name] for kind, found in partners.items()}) for name, path in paths.items()]


def check_readable(clips: list[Clip]) -> None:
    """Read every video and its masks once, before anything is computed.

    Raises:
        ValueError: one that cannot be read, or masks for another number of frames or of quite another shape; the
            message names the file.
    """
    for clip in clips:
        film = read_film_bytes(clip.film)[0]
        frames = len(film)
        for path in (clip.masks, clip.found):
            if path is None:
                continue
            count, *size = read_masks(path).shape[-3:]
            check_shape(f"the masks of {path.name} are", size, film.shape[1:3], f"video {clip.film.name}")
            if count not in (1, frames):
                raise ValueError(
                    f"{path.name} has masks for {count} frames and {clip.film.name} has {frames}; give one mask per "
                    "frame, or a single one."
                )
        if clip.reference is not None:
            count = len(read_film_bytes(clip.reference)[0])
            if count != frames:
                raise ValueError(
                    f"{clip.reference.name} has {count} frames and {clip.film.name} {frames}; give equal ones."
                )


def read_tracks(path: Path, phrases: tuple[str, ...], frames: int, height: int, width: int) -> Tracks:
    """Masks of a file or folder, fitted to a video, with their phrases.

    Args:
        path: as ``read_masks`` takes it; a file without objects gives none.
        phrases: of the objects, as in ``fit_masks``.
        frames: of the video.
        height: of the video in pixels.
        width: of the video in pixels.

    Raises:
        ValueError: they cannot be read, or the number of objects or frames is wrong.
    """
    masks = read_masks(path)
    objects = objects_of(masks)
    if objects == 0 and not phrases:
        return Tracks.empty(frames, height, width)
    return fit_masks(masks, phrases, frames, height, width, read_names(path, objects))


def read_found(path: Path, phrases: Sequence[str], frames: int, height: int, width: int) -> Tracks:
    """Masks of what is in a video, for comparison with objects of these phrases.

    Args:
        path, frames, height, width: as in ``read_tracks``.
        phrases: of the objects that they are compared with.

    Returns:
        Tracks that are labelled only where every name beside the file is one of the phrases: other names do not show
        which object is which.
    """
    tracks = read_tracks(path, (), frames, height, width)
    wanted = {phrase_key(phrase) for phrase in phrases}
    if all(phrase_key(label) in wanted for label in tracks.labels):
        return tracks
    return replace(tracks, labels=("",) * len(tracks.labels))


def _entries(folder: Path, suffixes: tuple[str, ...], folders: bool) -> dict[str, Path]:
    """Files of these kinds, and folders if they count, by their names without suffix, in order."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.suffix.lower() in suffixes or (folders and path.is_dir())):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise ValueError(
                f"{found[name].name} and {path.name} in {str(folder)!r} have the same name; rename one of them."
            )
        found[name] = path
    return found


def _partners(films: dict[str, Path], folder: Path, kind: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(
            f"there is a folder of videos, but {kind} is {str(folder)!r}; give a folder with one entry for each."
        )
    found = _entries(folder, suffixes, folders=kind != "reference")
    if len(found) != len(films):
        raise ValueError(
            f"there are {len(films)} videos and {len(found)} entries for {kind} in {str(folder)!r}; "
            "give one for each video."
        )
    missing = next((path for name, path in films.items() if name not in found), None)
    if missing is not None:
        raise ValueError(
            f"the video {missing.name} has no entry for {kind} of its name in {str(folder)!r} (there: "
            f"{', '.join(sorted(found)[:5])}); name it {missing.stem}."
        )
    return found
