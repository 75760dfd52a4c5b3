"""Make a video, find its objects, make it again guided by their masks."""

from __future__ import annotations

import argparse
import time
from typing import Any

from ..recipes.given.paths import given_path
from .progress_bars import StageBars
from .running import add_common, add_share, given_goal, given_settings, set_threads, write_result

MODELS = ("model", "device", "parts", "tokenizer", "detector", "segmenter")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``refine``."""
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", required=True, help="of both videos")
    what.add_argument(
        "--object", required=True, action="append", dest="phrases", metavar="PHRASE",
        help="words of the prompt that name an object to find and guide; give it once per object",
    )  # fmt: skip
    what.add_argument("--negative-prompt", metavar="TEXT", help="of both videos (default: empty)")
    what.add_argument("--seed", type=int, help="of the noise (default: 0)")
    what.add_argument("--frames", type=int, help="length (default: the model's native length)")
    what.add_argument("--height", type=int, help="in pixels (default: the model's)")
    what.add_argument("--width", type=int, help="in pixels (default: the model's)")
    what.add_argument("--steps", type=int, help="sampling steps (default: 25)")
    what.add_argument("--cfg", type=float, help="classifier-free guidance scale (default: 4)")
    what.add_argument("--sampler", help="ddim or euler (default: ddim)")
    _add_models(parser.add_argument_group("models"))
    guide = parser.add_argument_group("guidance")
    guide.add_argument(
        "--mode", help="focus, focus_fg, separate, cross_text, dmg ...; see docs/modes.md (default: focus_fg)"
    )
    guide.add_argument(
        "--strength", type=float,
        help="0 (none) upwards: gap of separate, gain of cross_text, exponent of focus; of others a factor (default: "
        "the mode's own)",
    )  # fmt: skip
    add_share(guide)
    guide.add_argument(
        "--constant",
        action="append",
        dest="constants",
        metavar="NAME=VALUE",
        help="of the mode, such as gamma_cross=12",
    )
    guide.add_argument(
        "--background", dest="background_phrase", metavar="PHRASE", help="words that name the background"
    )
    guide.add_argument("--start-percent", type=float, help="of the schedule, guidance begins (default: the mode's own)")
    guide.add_argument("--end-percent", type=float, help="of the schedule, guidance ends (default: the mode's own)")
    guide.add_argument("--blocks", help="all, or a comma list such as mid,up (default: the mode's own)")
    guide.add_argument(
        "--hard", action="store_true", default=None, help="cut the masks at one half (focus, separate, cross_text)"
    )
    guide.add_argument(
        "--masks", type=given_path, metavar="FILE", help="your own guide masks (.npy, picture, video or folder)"
    )
    guide.add_argument("--grow", type=int, metavar="PIXELS", help="grow the found masks (below 0: shrink)")
    guide.add_argument("--box-threshold", type=float, help="of the detector (default: 0.35)")
    guide.add_argument("--text-threshold", type=float, help="of the detector (default: 0.25)")
    second = parser.add_argument_group("the second video")
    second.add_argument("--regenerate", help="same_noise, fresh or refine (default: same_noise)")
    second.add_argument("--refine-strength", type=float, help="for refine: 0 the first video .. 1 all noise (0.6)")
    second.add_argument(
        "--background-lock", action="store_true", default=None, help="keep the first video outside of the objects"
    )
    add_common(parser)
    parser.add_argument("--fps", type=float, default=8.0, help="of the videos (default: 8)")


def _add_models(models: Any) -> None:
    """Which models ``refine`` runs on."""
    models.add_argument(
        "--model",
        default="toybox",
        help="toybox, toybox-joint (tiny demo models) or a file of LaVie's base model (default: toybox)",
    )
    models.add_argument(
        "--parts", type=given_path, metavar="PATH", help="Stable Diffusion 1 checkpoint or folder, for LaVie"
    )
    models.add_argument("--tokenizer", type=given_path, metavar="FOLDER", help="where the parts are a single file")
    models.add_argument(
        "--detector", type=given_path, metavar="PATH", help="as in follow (default: the Toybox detector)"
    )
    models.add_argument("--segmenter", type=given_path, metavar="PATH", help="as in follow (default: the Toybox one)")


def run(options: argparse.Namespace) -> int:
    """Run Mask Refine and write its videos, sheet and report."""
    from ..perception.phrases import read_phrases
    from ..recipes.files import staged_folder
    from ..recipes.films.files import check_rate
    from ..recipes.given.mask_names import read_names
    from ..recipes.given.masks import objects_of, read_masks
    from ..recipes.mask_refine.files import FILES, write_mask_refine
    from ..recipes.mask_refine.recipe import mask_refine
    from ..recipes.mask_refine.settings import MaskRefineSettings
    from ..recipes.model_sets import load_model_set, load_models
    from ..recipes.report import summary

    given = given_settings(options, (*MODELS, "masks", "fps", "share", "share_among")) | given_goal(options)
    given |= {"phrases": read_phrases(given["phrases"]), "constants": "\n".join(given.get("constants", ()))}
    settings = MaskRefineSettings(**given)
    check_rate(options.fps, "fps")
    set_threads(options.threads)
    masks = read_masks(options.masks) if options.masks else None
    names = () if masks is None else read_names(options.masks, objects_of(masks))
    with staged_folder(options.out) as stage:
        started = time.perf_counter()
        models = load_models(load_model_set, *(getattr(options, name) for name in MODELS))
        loading = time.perf_counter() - started
        with StageBars(options.quiet) as bars:
            result = mask_refine(models.model, models.detector, models.tracker, settings, masks, bars, names=names)
        result.report["model"] = models.name
        result.report["timings"]["loading models"] = loading
        write_mask_refine(stage, result, options.fps)
    write_result(summary(result.report), options.out, FILES)
    return 0
