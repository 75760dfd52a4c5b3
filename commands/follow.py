"""Find objects in a video of one's own by words and follow their masks."""

from __future__ import annotations

import argparse
import tempfile
from typing import TYPE_CHECKING, Any

from ..recipes.given.paths import given_path
from .progress_bars import StageBars
from .running import add_common, set_threads, write_result

if TYPE_CHECKING:
    from ..recipes.find_and_follow.recipe import FollowSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``follow``."""
    parser.add_argument("film", type=given_path, help="MP4, WebM, GIF ...")
    parser.add_argument(
        "--object", required=True, action="append", dest="phrases", metavar="PHRASE",
        help="what to find; give it once per object",
    )  # fmt: skip
    parser.add_argument(
        "--detector",
        type=given_path,
        metavar="PATH",
        help="GroundingDINO folder or .pth file (default: the Toybox detector)",
    )
    parser.add_argument(
        "--segmenter",
        type=given_path,
        metavar="PATH",
        help="SAM, SAM-HQ, SAM 2, SAM 3 or EdgeTAM folder or file (default: the Toybox one)",
    )
    parser.add_argument("--box-threshold", type=float, help="of the detector (default: 0.35)")
    parser.add_argument("--text-threshold", type=float, help="of the detector (default: 0.25)")
    parser.add_argument("--detect-every", type=int, metavar="FRAMES", help="look at every n-th frame (default: 4)")
    parser.add_argument("--max-objects", type=int, help="most objects to keep (default: all)")
    refinement = parser.add_argument_group("refinement of the masks (default: none)")
    refinement.add_argument("--fill-gaps", type=int, metavar="FRAMES", help="fill empty runs up to this long")
    refinement.add_argument("--median-frames", type=int, metavar="FRAMES", help="odd: median over time")
    refinement.add_argument("--grow", type=int, metavar="PIXELS", help="grow the masks (below 0: shrink)")
    parser.add_argument(
        "--on-disk", action="store_true", help="keep the masks in a temporary file while working, for very long videos"
    )
    add_common(parser)


def run(options: argparse.Namespace) -> int:
    """Find and follow objects in a video and write masks, drawn video, strip and report."""
    from ..perception.frames import Film
    from ..recipes.files import staged_folder
    from ..recipes.films.files import read_film_bytes
    from ..recipes.find_and_follow.files import FILES, follow_summary, write_find_and_follow
    from ..recipes.find_and_follow.recipe import find_and_follow
    from ..recipes.model_sets import load_finders, load_models

    set_threads(options.threads)
    settings = follow_settings(options)
    pictures, rate = read_film_bytes(options.film)
    film = Film(pictures)
    with staged_folder(options.out) as stage:
        detector, tracker = load_models(load_finders, options.detector, options.segmenter, options.device)
        with StageBars(options.quiet) as bars:
            result = find_and_follow(film, detector, tracker, settings, bars)
        write_find_and_follow(stage, film, result, rate)
    write_result(follow_summary(result), options.out, FILES)
    return 0


def follow_settings(options: argparse.Namespace) -> FollowSettings:
    """The settings; what was not given is the recipe's own."""
    from ..perception.masks.mask_refinement import RefinementSettings
    from ..perception.phrases import read_phrases
    from ..perception.tracking.track_settings import TrackSettings
    from ..recipes.find_and_follow.recipe import FollowSettings

    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(options, name) for name in names if getattr(options, name) is not None}

    return FollowSettings(
        read_phrases(options.phrases),
        **given("box_threshold", "text_threshold", "detect_every"),
        tracking=TrackSettings(
            **given("max_objects"), **({"folder": tempfile.gettempdir()} if options.on_disk else {})
        ),
        refinement=RefinementSettings(**given("fill_gaps", "median_frames", "grow")),
    )
