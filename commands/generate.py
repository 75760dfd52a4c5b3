"""Make a video that is longer than those a model was trained on."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from ..recipes.given.paths import given_path
from .progress_bars import StageBars
from .running import add_common, given_settings, set_threads, write_result

if TYPE_CHECKING:
    from ..recipes.long_video.settings import LongVideoSettings

# Options that name files, not settings of the video.
MODEL_FILES = ("model", "interpolate", "upscale", "parts", "upscale_parts", "tokenizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``generate``."""
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", help="of the video")
    what.add_argument(
        "--schedule", type=given_path, metavar="FILE", help="prompts over time, lines such as '32: a blue ball'"
    )
    what.add_argument("--schedule-overlap", type=int, metavar="FRAMES", help="of a fade between prompts (default: 8)")
    what.add_argument("--negative-prompt", metavar="TEXT", help="of the video (default: empty)")
    what.add_argument("--frames", type=int, help="length (default: four times the model's native length)")
    what.add_argument("--height", type=int, help="in pixels (default: the model's)")
    what.add_argument("--width", type=int, help="in pixels (default: the model's)")
    what.add_argument("--seed", type=int, help="of the noise (default: 0)")
    what.add_argument("--steps", type=int, help="sampling steps (default: 25)")
    what.add_argument("--cfg", type=float, help="classifier-free guidance scale (default: 4; LaVie 7.5)")
    what.add_argument("--sampler", help="ddim or euler (default: ddim)")
    _add_technique(parser.add_argument_group("what holds a long video together"))
    _add_models(parser.add_argument_group("models"))
    add_common(parser)
    parser.add_argument("--fps", type=float, dest="frames_per_second", help="of the video (default: 8)")


def _add_technique(long: Any) -> None:
    """What FreeLong and FreeNoise do."""
    long.add_argument("--free-long", dest="technique", help="freelong, freelong++ or none (default: freelong)")
    long.add_argument("--window", type=int, metavar="FRAMES", help="that a frame sees (default: the native length)")
    long.add_argument("--temporal-cutoff", type=float, help="of the low frequencies over time (default: 0.25)")
    long.add_argument("--spatial-cutoff", type=float, help="of the low frequencies over space (default: 0.25)")
    long.add_argument("--strength", type=float, help="0 (plain attention) to 1 (default: 1)")
    long.add_argument("--end-percent", type=float, help="of the schedule, the whole video counts (default: 0.5)")
    long.add_argument("--largest-level", help="local or blend (default: local)")
    long.add_argument("--key-stride", type=int, help="of the whole video every n-th frame counts (default: 1)")
    long.add_argument("--blocks", help="all, or a comma list such as mid,up (default: all)")
    long.add_argument(
        "--noise", help="plain, freenoise, specmix or shared (default: freenoise; plain with several prompts)"
    )
    long.add_argument("--noise-stride", type=int, metavar="FRAMES", help="shuffled together by freenoise (default: 4)")


def _add_models(models: Any) -> None:
    """Which models make the video, and how the later stages run."""
    models.add_argument(
        "--model", default="toybox", help="toybox, toybox-joint, or a file of LaVie's base model (default: toybox)"
    )
    models.add_argument(
        "--parts", type=given_path, metavar="PATH", help="Stable Diffusion 1 checkpoint or folder, for LaVie"
    )
    models.add_argument("--tokenizer", type=given_path, metavar="FOLDER", help="where the parts are a single file")
    models.add_argument(
        "--interpolate", type=given_path, metavar="FILE", help="LaVie's interpolation model: fill in frames"
    )
    models.add_argument("--upscale", type=given_path, metavar="FILE", help="LaVie's upscaler: four times the size")
    models.add_argument("--upscale-parts", type=given_path, metavar="PATH", help="x4 upscaler checkpoint or folder")
    for stage, words, cfg in (("interpolation", "filling in frames", 4), ("upscaling", "enlarging", 5)):
        models.add_argument(f"--{stage}-steps", type=int, metavar="STEPS", help=f"of {words} (default: 50)")
        models.add_argument(f"--{stage}-cfg", type=float, metavar="CFG", help=f"of {words} (default: {cfg})")
    models.add_argument("--upscaling-noise-level", type=int, metavar="LEVEL", help="0 to 350 (default: 50)")
    models.add_argument("--upscaling-window", type=int, metavar="FRAMES", help="enlarged at once (default: 8)")
    models.add_argument("--upscaling-overlap", type=int, metavar="FRAMES", help="shared by windows (default: 4)")


def run(options: argparse.Namespace) -> int:
    """Make a long video, with frames in between and enlarged where there are models for it."""
    from ..recipes.files import staged_folder
    from ..recipes.long_video.files import files_of, long_video_summary, write_long_video
    from ..recipes.long_video.models import ModelFiles, open_long_video_models
    from ..recipes.long_video.recipe import long_video
    from ..recipes.model_sets import load_models

    settings = generate_settings(options)
    model_files = ModelFiles(*(getattr(options, name) for name in MODEL_FILES))
    set_threads(options.threads)
    with staged_folder(options.out) as stage:
        started = time.perf_counter()
        models = load_models(open_long_video_models, model_files, options.device)
        loading = time.perf_counter() - started
        with StageBars(options.quiet) as bars:
            result = long_video(models.model, settings, stage, models.interpolator, models.upscaler, bars)
        result.report["model"] = models.name
        result.report["timings"]["loading models"] = loading
        write_long_video(stage, result)
    write_result(long_video_summary(result.report), options.out, files_of(result))
    return 0


def generate_settings(options: argparse.Namespace) -> LongVideoSettings:
    """The settings; what was not given is the recipe's own."""
    from ..recipes.long_video.settings import (
        InterpolationSettings,
        LongVideoSettings,
        UpscalingSettings,
        read_schedule,
    )

    given = given_settings(options, MODEL_FILES)
    if options.schedule is not None:
        given["schedule"] = read_schedule(options.schedule)
    for stage, kind in (("interpolation", InterpolationSettings), ("upscaling", UpscalingSettings)):
        own = [key for key in given if key.startswith(f"{stage}_")]
        given[stage] = kind(**{key[len(stage) + 1 :]: given.pop(key) for key in own})
    return LongVideoSettings(**given)
