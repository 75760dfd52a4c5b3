"""Make clips in which objects go where masks go, one after another."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from ..recipes.given.paths import given_path
from .progress_bars import StageBars
from .running import add_common, add_share, given_goal, given_settings, set_threads, write_result

if TYPE_CHECKING:
    from torch import Tensor

    from ..perception.masks.mask_paths import ObjectPath
    from ..recipes.guided_clips.settings import GuidedClipsSettings

# Options that are not settings of the video.
OTHERS = (
    *("path", "masks", "phrases", "constants", "frame_strength", "first_image", "fresh", "share", "share_among"),
    *("model", "parts", "tokenizer", "motion", "motion_strength"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``guide``."""
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", required=True, help="of the video")
    what.add_argument(
        "--object", action="append", dest="phrases", metavar="PHRASE",
        help="words of the prompt that name an object, one per mask (default: the labels of the path, or the names "
        "that follow wrote beside its masks)",
    )  # fmt: skip
    what.add_argument("--background", dest="background_phrase", metavar="PHRASE", help="words that name the background")
    what.add_argument("--negative-prompt", metavar="TEXT", help="of the video (default: empty)")
    what.add_argument("--rounds", type=int, help="clips, each beginning where the one before ended (default: 1)")
    what.add_argument("--frames", type=int, help="of each round (default: the model's native length)")
    what.add_argument("--height", type=int, help="in pixels (default: the model's)")
    what.add_argument("--width", type=int, help="in pixels (default: the model's)")
    what.add_argument("--seed", type=int, help="of the first round; later ones count on (default: 0)")
    what.add_argument("--steps", type=int, help="sampling steps (default: 25)")
    what.add_argument("--cfg", type=float, help="classifier-free guidance scale (default: 4)")
    what.add_argument("--sampler", help="ddim or euler (default: ddim)")
    _add_guide(parser.add_argument_group("where the objects go"))
    _add_rounds(parser.add_argument_group("first frames and rounds"))
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model",
        default="toybox",
        help="toybox, toybox-joint, LaVie's base model or Stable Diffusion 1.x (default: toybox)",
    )
    models.add_argument(
        "--parts", type=given_path, metavar="PATH", help="Stable Diffusion 1 checkpoint or folder, for LaVie"
    )
    models.add_argument("--tokenizer", type=given_path, metavar="FOLDER", help="where the parts are a single file")
    models.add_argument("--motion", type=given_path, metavar="FILE", help="a tuned motion, from train-motion")
    models.add_argument("--motion-strength", type=float, default=1.0, help="0 (none) upwards (default: 1)")
    add_common(parser)
    parser.add_argument("--fps", type=float, dest="frames_per_second", help="of the video (default: 8)")


def _add_guide(guide: Any) -> None:
    """Masks, and how they act."""
    guide.add_argument("--path", type=given_path, metavar="FILE", help="drawn paths (JSON) over the whole video")
    guide.add_argument(
        "--masks", type=given_path, action="append", metavar="PATH",
        help="video, .npy, picture or folder of pictures, once per object, instead of a path",
    )  # fmt: skip
    guide.add_argument("--mode", help="dmg, separate, peekaboo, trailblazer ...; see docs/modes.md (default: dmg)")
    guide.add_argument(
        "--constant",
        action="append",
        dest="constants",
        metavar="NAME=VALUE",
        help="of the mode, such as gamma_cross=12",
    )
    guide.add_argument("--strength", type=float, help="factor on all of it, 0 (none) upwards (default: 1)")
    add_share(guide)
    guide.add_argument("--frame-strength", metavar="TEXT", help="over time, such as '0: 1, 8: 0.5' (default: 1)")
    guide.add_argument(
        "--lever", action="append", dest="levers", metavar="NAME",
        help="energy, noise or crude_film: acts beside the mode, may be given several times; see docs/levers.md",
    )  # fmt: skip
    guide.add_argument(
        "--auto", action="store_true", default=None, help="the mode alone, or levers where the object is not followed"
    )
    guide.add_argument("--key-source", help="self, first, first_prev, first_self ... (default: the mode's own)")


def _add_rounds(rounds: Any) -> None:
    """How rounds begin and meet."""
    rounds.add_argument("--first-image", type=given_path, metavar="FILE", help="picture that the video begins with")
    rounds.add_argument("--first-round", help="without one: clip (free) or frame (one guided frame) (default: clip)")
    rounds.add_argument("--overlap", help="drop or keep the frame that two rounds share (default: drop)")
    rounds.add_argument("--colour-reference", help="global, local or none: whose colours frames take (default: global)")
    rounds.add_argument("--next-frame", help="picture or latent: what the next round begins with (default: picture)")
    rounds.add_argument("--mask-borders", help="check, or repair masks that do not meet (default: check)")
    rounds.add_argument(
        "--match-statistics", action="store_true", default=None, help="of the first frame's latents between steps"
    )
    rounds.add_argument("--shared-noise", type=float, help="part of the first frame's noise in all (default: 0)")
    rounds.add_argument("--fresh", action="store_true", help="do not go on from rounds of an earlier run")


def run(options: argparse.Namespace) -> int:
    """Make the video; a run that was stopped goes on with the round that it was at."""
    from ..recipes.files import staged_folder
    from ..recipes.films.files import read_picture
    from ..recipes.guided_clips.files import FILES, write_guided_clips
    from ..recipes.guided_clips.models import open_guided_model
    from ..recipes.guided_clips.recipe import ROUNDS, guided_clips
    from ..recipes.guided_clips.report import guided_clips_summary
    from ..recipes.long_video.models import ModelFiles
    from ..recipes.model_sets import load_models

    paths, masks, phrases = _read_objects(options)
    settings = guide_settings(options, phrases)
    picture = None if options.first_image is None else read_picture(options.first_image)
    files = ModelFiles(options.model, parts=options.parts, tokenizer=options.tokenizer)
    set_threads(options.threads)
    with staged_folder(options.out) as stage:
        started = time.perf_counter()
        name, model = load_models(open_guided_model, files, options.motion, options.motion_strength, options.device)
        loading = time.perf_counter() - started
        if masks is None:
            masks = _drawn(paths, settings, model)
        settings = _with_frame_strength(settings, options.frame_strength, masks)
        with StageBars(options.quiet) as bars:
            result = guided_clips(
                model,
                settings,
                masks,
                stage,
                picture,
                rounds=options.out / ROUNDS,
                model_name=name,
                fresh=options.fresh,
                progress=bars,
            )
        result.report["model"] = name
        result.report["timings"]["loading models"] = loading
        write_guided_clips(stage, result)
    write_result(guided_clips_summary(result.report), options.out, FILES)
    return 0


def guide_settings(options: argparse.Namespace, phrases: tuple[str, ...] = ()) -> GuidedClipsSettings:
    """The settings; what was not given is the recipe's own."""
    from ..recipes.guided_clips.settings import GuidedClipsSettings

    given = given_settings(options, OTHERS) | given_goal(options)
    return GuidedClipsSettings(**given, phrases=phrases, constants=", ".join(options.constants or ()))


def _read_objects(options: argparse.Namespace) -> tuple[tuple[ObjectPath, ...], Tensor | None, tuple[str, ...]]:
    """Drawn paths, or masks [N, L, H, W], and the phrase of each (none where no object has one)."""
    from ..perception.phrases import named_objects, read_phrases

    paths, masks, labels = _read_places(options)
    wanted = read_phrases(options.phrases or ())
    if not labels:
        # Nothing was found: the video is made without guidance.
        return paths, masks, wanted
    named = named_objects(wanted, labels, "paths" if paths else "masks")
    places = [place for place, _ in named]
    phrases = tuple(phrase for _, phrase in named)
    paths = tuple(paths[place] for place in places) if paths else ()
    return paths, None if masks is None else masks[places], phrases if any(phrases) else ()


def _read_places(options: argparse.Namespace) -> tuple[tuple[ObjectPath, ...], Tensor | None, tuple[str, ...]]:
    """Drawn paths, or masks [N, L, H, W], and what each object is called there, if anything."""
    import torch

    from ..perception.masks.mask_paths import parse_paths
    from ..recipes.given.mask_names import read_names
    from ..recipes.given.masks import objects_of, read_masks

    if (options.path is None) == (options.masks is None):
        raise ValueError("give the objects' places: either --path FILE or --masks PATH, once per object.")
    if options.path is not None:
        if not options.path.is_file():
            raise ValueError(f"there is no path {str(options.path)!r}; check the name.")
        try:
            paths = parse_paths(options.path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"the path {str(options.path)!r} is not UTF-8 text ({error.reason}).") from error
        return paths, None, tuple(path.label for path in paths)
    films = [read_masks(path) for path in options.masks]
    films = [film if film.ndim == 4 else film[None] for film in films]
    other = next((film for film in films if film.shape[1:] != films[0].shape[1:]), None)
    if other is not None:
        raise ValueError(
            f"the masks have {list(films[0].shape[1:])} and {list(other.shape[1:])} frames, rows and columns; give all "
            "objects masks of one length and size."
        )
    labels = [read_names(path, objects_of(film)) for path, film in zip(options.masks, films, strict=True)]
    return (), torch.cat(films), tuple(label for names in labels for label in names)


def _drawn(paths: tuple[ObjectPath, ...], settings: GuidedClipsSettings, model: Any) -> Tensor:
    from ..recipes.guided_clips.masks import path_masks

    return path_masks(paths, settings.rounds, *settings.round_size(model.geometry))


def _with_frame_strength(settings: GuidedClipsSettings, text: str | None, masks: Tensor) -> GuidedClipsSettings:
    from dataclasses import replace

    from ..perception.masks.keyframes import parse_values

    return settings if not text else replace(settings, frame_strength=parse_values(text, masks.shape[-3]))
