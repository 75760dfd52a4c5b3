"""Mask-Guided Video from a shell: ``python cli.py refine --prompt ... --object ...``, ``python cli.py follow FILM ...``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bootstrap import PACKAGE_NAME, ROOT, import_package

if TYPE_CHECKING:
    from tqdm import tqdm

CANCELLED = 130
WRONG_INPUT = 2


class StageBars:
    """One progress bar per stage of a run, on standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.stage = ""
        self.bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show ``done`` of ``total`` for a stage; a new stage gets a new bar."""
        from tqdm import tqdm

        if self.quiet:
            return
        if stage != self.stage or self.bar is None:
            self.close()
            self.stage = stage
            self.bar = tqdm(desc=f"{stage:>14}", bar_format="{desc} {bar:30} {n_fmt}/{total_fmt} {elapsed}", leave=True)
        self.bar.total = total
        self.bar.n = done
        self.bar.refresh()

    def close(self) -> None:
        """End the current bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __enter__(self) -> StageBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def module(name: str) -> Any:
    """Import a module of the package, which gets its fixed name first."""
    import_package()
    return importlib.import_module(f"{PACKAGE_NAME}.{name}")


def script_names(kind: str) -> list[str]:
    """``training/train_detector.py`` is ``detector`` of the kind ``train``."""
    return sorted(path.stem[len(kind) + 1 :] for path in (ROOT / "training").glob(f"{kind}_*.py"))


def build_parser() -> argparse.ArgumentParser:
    """The command line; defaults that are None are the recipe's own."""
    parser = argparse.ArgumentParser(prog="cli.py", description="Mask-Guided Video from a shell.")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_refine(commands.add_parser("refine", help="make a film, find its objects, make it again guided by their masks"))
    add_follow(commands.add_parser("follow", help="find objects in a film of your own by words and follow their masks"))
    add_generate(commands.add_parser("generate", help="make a film that is longer than those a model was trained on"))
    add_convert(commands.add_parser("convert", help="write a LaVie model file as safetensors"))
    for kind, words in (("train", "train a Toybox model"), ("evaluate", "measure a Toybox model")):
        script = commands.add_parser(kind, help=words, add_help=False)
        script.add_argument("name", help=f"one of: {', '.join(script_names(kind)) or 'none yet'}")
        script.add_argument("arguments", nargs=argparse.REMAINDER, help="for the script; --help lists them")
    return parser


def add_refine(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``refine``."""
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", required=True, help="of both films")
    what.add_argument(
        "--object", required=True, action="append", dest="phrases", metavar="PHRASE",
        help="words of the prompt that name an object to find and guide; give it once per object",
    )  # fmt: skip
    what.add_argument("--negative-prompt", metavar="TEXT", help="of both films (default: empty)")
    what.add_argument("--seed", type=int, help="of the noise (default: 0)")
    what.add_argument("--frames", type=int, help="length (default: the model's native length)")
    what.add_argument("--height", type=int, help="in pixels (default: the model's)")
    what.add_argument("--width", type=int, help="in pixels (default: the model's)")
    what.add_argument("--steps", type=int, help="sampling steps (default: 25)")
    what.add_argument("--cfg", type=float, help="classifier-free guidance scale (default: 4)")
    what.add_argument("--sampler", help="ddim or euler (default: ddim)")
    add_refine_models(parser.add_argument_group("models"))
    guide = parser.add_argument_group("guidance")
    guide.add_argument("--mode", help="focus, focus_fg, separate or cross_text (default: focus_fg)")
    guide.add_argument("--strength", type=float, help="0 (none) upwards (default: the mode's own)")
    guide.add_argument("--start-percent", type=float, help="of the schedule, guidance begins (default: 0)")
    guide.add_argument("--end-percent", type=float, help="of the schedule, guidance ends (default: 0.52)")
    guide.add_argument("--blocks", help="all, or a comma list such as mid,up (default: all)")
    guide.add_argument("--hard", action="store_true", default=None, help="cut the masks at one half")
    guide.add_argument("--masks", type=Path, metavar="FILE", help="your own guide masks (.npy, .png or a film)")
    guide.add_argument("--grow", type=int, metavar="PIXELS", help="grow the found masks (below 0: shrink)")
    guide.add_argument("--box-threshold", type=float, help="of the detector (default: 0.35)")
    guide.add_argument("--text-threshold", type=float, help="of the detector (default: 0.25)")
    second = parser.add_argument_group("the second film")
    second.add_argument("--regenerate", help="same_noise, fresh or refine (default: same_noise)")
    second.add_argument("--refine-strength", type=float, help="for refine: 0 the first film .. 1 all noise (0.6)")
    second.add_argument(
        "--background-lock", action="store_true", default=None, help="keep the first film outside of the objects"
    )
    add_common(parser)
    parser.add_argument("--fps", type=float, default=8.0, help="of the films (default: 8)")


def add_refine_models(models: Any) -> None:
    """Which models ``refine`` runs on."""
    models.add_argument(
        "--model", default="toybox", help="toybox (tiny demo models), or a file of LaVie's base model (default: toybox)"
    )
    models.add_argument("--parts", metavar="PATH", help="Stable Diffusion 1 checkpoint or folder, for LaVie")
    models.add_argument("--tokenizer", metavar="FOLDER", help="where the parts are a single file")
    models.add_argument("--detector", metavar="PATH", help="as in follow (default: the Toybox detector)")
    models.add_argument("--segmenter", metavar="PATH", help="as in follow (default: the Toybox one)")


def add_follow(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``follow``."""
    parser.add_argument("film", type=Path, help="MP4, WebM, GIF ...")
    parser.add_argument(
        "--object", required=True, action="append", dest="phrases", metavar="PHRASE",
        help="what to find; give it once per object",
    )  # fmt: skip
    parser.add_argument(
        "--detector", metavar="PATH", help="GroundingDINO folder or .pth file (default: the Toybox detector)"
    )
    parser.add_argument(
        "--segmenter",
        metavar="PATH",
        help="SAM, SAM-HQ, SAM 2, SAM 3 or EdgeTAM folder or file (default: the Toybox one)",
    )
    parser.add_argument("--box-threshold", type=float, help="of the detector (default: 0.35)")
    parser.add_argument("--text-threshold", type=float, help="of the detector (default: 0.25)")
    parser.add_argument("--detect-every", type=int, metavar="FRAMES", help="look at every so many-th (default: 4)")
    parser.add_argument("--max-objects", type=int, help="keep so many (default: all)")
    refinement = parser.add_argument_group("refinement of the masks (default: none)")
    refinement.add_argument("--fill-gaps", type=int, metavar="FRAMES", help="fill empty runs up to this long")
    refinement.add_argument("--median-frames", type=int, metavar="FRAMES", help="odd: median over time")
    refinement.add_argument("--grow", type=int, metavar="PIXELS", help="grow the masks (below 0: shrink)")
    parser.add_argument(
        "--on-disk", action="store_true", help="keep the masks in a temporary file while working, for very long films"
    )
    add_common(parser)


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``generate``."""
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", help="of the film")
    what.add_argument(
        "--schedule", type=Path, metavar="FILE", help="prompts over time, lines such as '32: a blue ball'"
    )
    what.add_argument("--schedule-overlap", type=int, metavar="FRAMES", help="of a fade between prompts (default: 8)")
    what.add_argument("--negative-prompt", metavar="TEXT", help="of the film (default: empty)")
    what.add_argument("--frames", type=int, help="length (default: four times the model's native length)")
    what.add_argument("--height", type=int, help="in pixels (default: the model's)")
    what.add_argument("--width", type=int, help="in pixels (default: the model's)")
    what.add_argument("--seed", type=int, help="of the noise (default: 0)")
    what.add_argument("--steps", type=int, help="sampling steps (default: 25)")
    what.add_argument("--cfg", type=float, help="classifier-free guidance scale (default: 4; LaVie 7.5)")
    what.add_argument("--sampler", help="ddim or euler (default: ddim)")
    long = parser.add_argument_group("what holds a long film together")
    long.add_argument("--free-long", dest="technique", help="freelong, freelong++ or none (default: freelong)")
    long.add_argument("--window", type=int, metavar="FRAMES", help="that a frame sees (default: the native length)")
    long.add_argument("--temporal-cutoff", type=float, help="of the low frequencies over time (default: 0.25)")
    long.add_argument("--spatial-cutoff", type=float, help="of the low frequencies over space (default: 0.25)")
    long.add_argument("--strength", type=float, help="0 (plain attention) to 1 (default: 1)")
    long.add_argument("--end-percent", type=float, help="of the schedule, the whole film counts (default: 0.5)")
    long.add_argument("--largest-level", help="local or blend (default: local)")
    long.add_argument("--key-stride", type=int, help="of the whole film every n-th frame counts (default: 1)")
    long.add_argument("--blocks", help="all, or a comma list such as mid,up (default: all)")
    long.add_argument(
        "--noise", help="plain, freenoise, specmix or shared (default: freenoise; plain with several prompts)"
    )
    long.add_argument("--noise-stride", type=int, metavar="FRAMES", help="shuffled together by freenoise (default: 4)")
    models = parser.add_argument_group("models")
    models.add_argument("--model", default="toybox", help="toybox, or a file of LaVie's base model (default: toybox)")
    models.add_argument("--parts", type=Path, metavar="PATH", help="Stable Diffusion 1 checkpoint or folder, for LaVie")
    models.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="where the parts are a single file")
    models.add_argument("--interpolate", type=Path, metavar="FILE", help="LaVie's interpolation model: fill in frames")
    models.add_argument("--upscale", type=Path, metavar="FILE", help="LaVie's upscaler: four times the size")
    models.add_argument("--upscale-parts", type=Path, metavar="PATH", help="x4 upscaler checkpoint or folder")
    for stage, words, cfg in (("interpolation", "filling in frames", 4), ("upscaling", "enlarging", 5)):
        models.add_argument(f"--{stage}-steps", type=int, metavar="STEPS", help=f"of {words} (default: 50)")
        models.add_argument(f"--{stage}-cfg", type=float, metavar="CFG", help=f"of {words} (default: {cfg})")
    models.add_argument("--upscaling-noise-level", type=int, metavar="LEVEL", help="0 to 350 (default: 50)")
    models.add_argument("--upscaling-window", type=int, metavar="FRAMES", help="enlarged at once (default: 8)")
    models.add_argument("--upscaling-overlap", type=int, metavar="FRAMES", help="shared by windows (default: 4)")
    add_common(parser)
    parser.add_argument("--fps", type=float, dest="frames_per_second", help="of the film (default: 8)")


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``convert``."""
    parser.add_argument(
        "source", type=Path, help="lavie_base.pt, lavie_interpolation.pt, lavie_vsr.pt or a copy of one"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: the source's name with .safetensors")
    parser.add_argument("--precision", help="float32, float16 or bfloat16 (default: as in the source)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of the same name")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that runs models."""
    parser.add_argument("--out", type=Path, default=Path("output"), metavar="FOLDER", help="default: output")
    parser.add_argument("--device", help="cpu, cuda ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


MODELS = ("model", "device", "parts", "tokenizer", "detector", "segmenter")
NOT_SETTINGS = {"command", "debug", "masks", "out", "threads", "fps", "quiet", *MODELS}


def refine(options: argparse.Namespace) -> int:
    """Run Mask Refine and write its films, sheet and report."""
    given = {key: value for key, value in vars(options).items() if key not in NOT_SETTINGS and value is not None}
    given["phrases"] = tuple(given["phrases"])
    settings = module("recipes.mask_refine_settings").MaskRefineSettings(**given)
    if not 0.0 < options.fps <= 1000.0:
        raise ValueError(f"fps is {options.fps:g}; give a value above 0, up to 1000.")
    if options.threads is not None:
        set_threads(options.threads)
    masks = module("recipes.given_masks").read_masks(options.masks) if options.masks else None
    files = module("recipes.mask_refine_files")
    with module("recipes.files").staged_folder(options.out) as stage:
        started = time.perf_counter()
        models = load("load_model_set", *(getattr(options, name) for name in MODELS))
        loading = time.perf_counter() - started
        with StageBars(options.quiet) as bars:
            result = module("recipes.mask_refine").mask_refine(
                models.model, models.detector, models.tracker, settings, masks, bars
            )
        result.report["model"] = models.name
        result.report["timings"]["loading models"] = loading
        files.write_mask_refine(stage, result, options.fps)
    write("\n" + module("recipes.report").summary(result.report) + "\n\n")
    for name in files.FILES:
        write(f"{(options.out / name).resolve()}\n")
    return 0


def follow(options: argparse.Namespace) -> int:
    """Find and follow objects in a film and write masks, drawn film, strip and report."""
    if options.threads is not None:
        set_threads(options.threads)
    settings = follow_settings(options)
    film, rate = module("recipes.films").read_film_bytes(options.film)
    film = module("perception.frames").Film(film)
    files = module("recipes.find_and_follow_files")
    with module("recipes.files").staged_folder(options.out) as stage:
        detector, tracker = load("load_finders", options.detector, options.segmenter, options.device)
        with StageBars(options.quiet) as bars:
            result = module("recipes.find_and_follow").find_and_follow(film, detector, tracker, settings, bars)
        files.write_find_and_follow(stage, film, result, rate)
    write("\n" + files.follow_summary(result) + "\n\n")
    for name in files.FILES:
        write(f"{(options.out / name).resolve()}\n")
    return 0


def generate(options: argparse.Namespace) -> int:
    """Make a long film, with frames in between and enlarged where there are models for it."""
    settings, long_video = generate_settings(options), module("recipes.long_video_models")
    model_files = long_video.ModelFiles(
        options.model, options.interpolate, options.upscale, options.parts, options.upscale_parts, options.tokenizer
    )
    if options.threads is not None:
        set_threads(options.threads)
    files = module("recipes.long_video_files")
    with module("recipes.files").staged_folder(options.out) as stage:
        started = time.perf_counter()
        models = load(long_video.open_long_video_models, model_files, options.device)
        loading = time.perf_counter() - started
        with StageBars(options.quiet) as bars:
            result = module("recipes.long_video").long_video(
                models.model, settings, stage, models.interpolator, models.upscaler, bars
            )
        result.report["model"] = models.name
        result.report["timings"]["loading models"] = loading
        files.write_long_video(stage, result)
    write("\n" + files.long_video_summary(result.report) + "\n\n")
    for name in files.files_of(result):
        write(f"{(options.out / name).resolve()}\n")
    return 0


# Options of ``generate`` that name files, not settings of the film.
MODEL_FILES = {"interpolate", "upscale", "parts", "upscale_parts", "tokenizer"}


def generate_settings(options: argparse.Namespace) -> Any:
    """The settings of ``generate``; what was not given is the recipe's own."""
    given = {key: value for key, value in vars(options).items() if value is not None}
    given = {key: value for key, value in given.items() if key not in NOT_SETTINGS | MODEL_FILES}
    room = module("recipes.long_video_settings")
    if options.schedule is not None:
        given["schedule"] = room.read_schedule(options.schedule)
    for stage, kind in (("interpolation", room.InterpolationSettings), ("upscaling", room.UpscalingSettings)):
        own = [key for key in given if key.startswith(f"{stage}_")]
        given[stage] = kind(**{key[len(stage) + 1 :]: given.pop(key) for key in own})
    return room.LongVideoSettings(**given)


def convert(options: argparse.Namespace) -> int:
    """Write a LaVie model file as safetensors."""
    with StageBars(options.quiet) as bars:
        result = module("recipes.convert_weights").convert_weights(
            options.source, options.out, options.precision, options.overwrite, bars
        )
    write(f"{result.summary()}\n{result.target.resolve()}\n")
    return 0


def follow_settings(options: argparse.Namespace) -> Any:
    """The settings of ``follow``; what was not given is the recipe's own."""

    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(options, name) for name in names if getattr(options, name) is not None}

    tracking = given("max_objects") | ({"folder": tempfile.gettempdir()} if options.on_disk else {})
    return module("recipes.find_and_follow").FollowSettings(
        tuple(options.phrases),
        **given("box_threshold", "text_threshold", "detect_every"),
        tracking=module("perception.tracking.track_settings").TrackSettings(**tracking),
        refinement=module("perception.masks.mask_refinement").RefinementSettings(
            **given("fill_gaps", "median_frames", "grow")
        ),
    )


def set_threads(count: int) -> None:
    """Compute with so many threads."""
    if not 1 <= count <= 1024:
        raise ValueError(f"threads is {count}; give a number from 1 to 1024.")
    import torch

    torch.set_num_threads(count)


def load(function: str | Callable[..., Any], *arguments: Any) -> Any:
    """Call a loader (by name: of recipes/model_sets.py); what is wrong with the files becomes one kind of error."""
    from transformers.utils.logging import disable_progress_bar

    # The run has bars of its own.
    disable_progress_bar()
    try:
        if isinstance(function, str):
            function = getattr(module("recipes.model_sets"), function)
        return function(*arguments)
    except (OSError, RuntimeError, ImportError) as error:
        raise ValueError(f"the models cannot be loaded: {error}") from error


def run_script(kind: str, name: str, arguments: Sequence[str]) -> int:
    """Run ``main(arguments)`` of a script in training/."""
    known = script_names(kind)
    if name not in known:
        raise ValueError(f"there is nothing named {name!r} to {kind}; choose one of {', '.join(known) or 'none yet'}.")
    return int(module(f"training.{kind}_{name}").main(list(arguments)) or 0)


def write(text: str) -> None:
    """To standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 wrong input, 130 cancelled."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = build_parser().parse_args(arguments)
    try:
        commands = {"refine": refine, "follow": follow, "generate": generate, "convert": convert}
        if options.command in commands:
            return commands[options.command](options)
        return run_script(options.command, options.name, options.arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\ncli.py: cancelled; no file was left half-written.\n")
        return CANCELLED
    except ModuleNotFoundError as error:
        if options.debug or (error.name or "").startswith(PACKAGE_NAME):
            raise
        sys.stderr.write(
            f"cli.py: the package {error.name!r} is not installed; run: python -m pip install -r requirements.txt\n"
        )
        return WRONG_INPUT
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        sys.stderr.write(f"cli.py: {' '.join(str(error).split())}\n")
        return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
