"""Measure whether the objects of videos went where their masks are."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipes.given.paths import given_path
from .progress_bars import StageBars
from .running import add_common, set_threads, write_result

if TYPE_CHECKING:
    from ..perception.masks.mask_paths import ObjectPath
    from ..recipes.mask_metrics.files import Clip

REPORT = "metrics.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``metrics``."""
    parser.add_argument("film", type=given_path, help="MP4, WebM, GIF ..., or a folder of them")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--masks", type=given_path, metavar="PATH",
        help="where the objects should be: .npy, a picture, a video, or a folder of pictures; for a folder of videos a "
        "folder with one of these for each, of the same name",
    )  # fmt: skip
    where.add_argument(
        "--path", type=given_path, metavar="FILE.json", help="instead of masks: a drawn path, for every video"
    )
    parser.add_argument(
        "--object", action="append", default=[], dest="phrases", metavar="PHRASE",
        help="what the masks are of; give it once per object (default: the labels of the path, or the names that "
        "follow wrote beside its masks)",
    )  # fmt: skip
    parser.add_argument(
        "--found", type=given_path, metavar="PATH",
        help="masks of what is in the video, given like --masks, instead of looking for it (masks.npy of follow); "
        "objects pair by their names where all are among the phrases, else by overlap",
    )  # fmt: skip
    parser.add_argument(
        "--reference", type=given_path, metavar="PATH", help="video (or folder) to compare the background with"
    )
    parser.add_argument("--prompt", default="", help="of the videos, for text alignment")
    parser.add_argument(
        "--clip", type=given_path, metavar="FOLDER",
        help="CLIP model in the transformers layout, for text alignment and frame consistency (default: not measured)",
    )  # fmt: skip
    parser.add_argument(
        "--detector", type=given_path, metavar="PATH", help="as in follow (default: the Toybox detector)"
    )
    parser.add_argument("--segmenter", type=given_path, metavar="PATH", help="as in follow (default: the Toybox one)")
    parser.add_argument("--box-threshold", type=float, help="of the detector (default: 0.35)")
    parser.add_argument("--text-threshold", type=float, help="of the detector (default: 0.25)")
    parser.add_argument("--detect-every", type=int, metavar="FRAMES", help="look at every n-th frame (default: 1)")
    parser.add_argument(
        "--protocol", choices=("peekaboo",),
        help="measure by a published evaluation too: volume IoU, coverage, centroid distance and AP50 of Peekaboo, as "
        "published and corrected, by the detector's best box in every frame (or by --found)",
    )  # fmt: skip
    add_common(parser)


def run(options: argparse.Namespace) -> int:
    """Measure videos and write the report."""
    from ..perception.masks.mask_paths import parse_paths
    from ..perception.phrases import read_phrases
    from ..recipes.files import staged_folder
    from ..recipes.mask_metrics.clip import load_clip
    from ..recipes.mask_metrics.files import check_readable, match_clips
    from ..recipes.mask_metrics.peekaboo_report import peekaboo_report, peekaboo_summary
    from ..recipes.mask_metrics.recipe import Finding
    from ..recipes.mask_metrics.report import mean_report, metrics_summary
    from ..recipes.model_sets import check_device, load_finders, load_models
    from ..recipes.report import environment, write_report

    set_threads(options.threads)
    clips = match_clips(options.film, options.masks, options.reference, options.found)
    options.phrases = read_phrases(options.phrases)
    paths = _named(parse_paths(_text_of(options.path)), options.phrases) if options.path is not None else ()
    check_readable(clips)
    names = ("box_threshold", "text_threshold", "detect_every")
    finding = Finding(**{name: getattr(options, name) for name in names if getattr(options, name) is not None})
    with staged_folder(options.out) as stage:
        device = check_device(options.device)
        scorer = load_models(load_clip, options.clip, device) if options.clip is not None else None
        finders = None
        if options.found is None:
            finders = load_models(load_finders, options.detector, options.segmenter, options.device)
        with StageBars(options.quiet) as bars:
            measured = [
                {"name": clip.name, **_measure(clip, options, paths, finders, finding, scorer, bars)} for clip in clips
            ]
        report: dict[str, Any] = {"clips": measured, "mean": mean_report(measured), "prompt": options.prompt}
        if options.protocol is not None:
            objects = [entry for clip in measured for entry in clip["peekaboo"]]
            report["peekaboo"] = peekaboo_report(objects)["summary"]
        write_report(stage / REPORT, report | {"environment": environment()})
    words = metrics_summary(measured[0] if len(measured) == 1 else report["mean"])
    if options.protocol is not None:
        words += "\n" + peekaboo_summary(peekaboo_report(objects))
    write_result(f"{len(measured)} videos\n{words}" if len(measured) > 1 else words, options.out, [REPORT])
    return 0


def _measure(
    clip: Clip, options: argparse.Namespace, paths: Any, finders: Any, finding: Any, scorer: Any, bars: StageBars
) -> dict[str, Any]:
    from ..perception.frames import Film
    from ..perception.masks.mask_paths import path_tracks
    from ..recipes.films.files import read_film_bytes
    from ..recipes.mask_metrics.files import read_found, read_tracks
    from ..recipes.mask_metrics.peekaboo_report import peekaboo_of_boxes, peekaboo_of_tracks
    from ..recipes.mask_metrics.recipe import find_objects
    from ..recipes.mask_metrics.report import film_report

    film = Film(read_film_bytes(clip.film)[0])
    size = len(film), film.height, film.width
    wanted = path_tracks(paths, *size) if clip.masks is None else read_tracks(clip.masks, options.phrases, *size)
    reference = Film(read_film_bytes(clip.reference)[0]) if clip.reference is not None else None
    before = None
    if finders is None:
        found = read_found(clip.found, wanted.labels, *size)
    else:
        found = find_objects(film, wanted.labels, *finders, finding, bars)
        if reference is not None:
            before = find_objects(reference, wanted.labels, *finders, finding, bars)
    report = film_report(
        film, wanted, found, options.prompt, scorer, reference, before, lambda done, total: bars("clip", done, total)
    )
    if options.protocol is None:
        return report
    if finders is None:
        return report | {"peekaboo": peekaboo_of_tracks(film, wanted, found)}
    boxes = peekaboo_of_boxes(film, wanted, finders[0], finding, lambda done, total: bars("boxes", done, total))
    return report | {"peekaboo": boxes}


def _named(paths: tuple[ObjectPath, ...], phrases: tuple[str, ...]) -> tuple[ObjectPath, ...]:
    """The paths that phrases name, with these as labels; all paths where there are none."""
    from ..perception.phrases import named_objects

    if len(paths) < len(phrases):
        raise ValueError(f"the path has {len(paths)} objects and there are {len(phrases)} phrases; give one for each.")
    named = named_objects(phrases, [path.label for path in paths], "paths")
    return tuple(replace(paths[place], label=phrase) for place, phrase in named)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the path file {str(path)!r} cannot be read ({error}); give a JSON file.") from error
