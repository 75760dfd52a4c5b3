"""Clips round after round: each begins with the last frame of the one before, and objects follow their masks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..attention_patches.guidance.guide import Guide as MaskGuide
from ..host.motion.model_identity import model_identity
from ..host.sampling.comfy_video_model import ComfyVideoModel
from ..recipes.films.stored_film import stored_film
from ..recipes.guided_clips.files import write_guided_clips
from ..recipes.guided_clips.recipe import film_length, guided_clips
from ..recipes.guided_clips.report import guided_clips_summary
from ..recipes.guided_clips.settings import (
    ColourReference,
    FirstRound,
    GuidedClipsSettings,
    MaskBorders,
    NextFrame,
    Overlap,
)
from .support.file_names import FOLDER, prefix_problem, save_path
from .support.host import SamplingProgress
from .support.inputs import decimal_input, frames_of, size_inputs
from .support.types import CATEGORY, SEED_RANGE, Guide

SAMPLERS = ("ddim", "euler")


class MaskGuidedExtend(io.ComfyNode):
    """MGV_MaskGuidedExtend."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_MaskGuidedExtend",
            display_name="Mask-Guided Extend",
            category=f"{CATEGORY}/video",
            description=(
                "Makes a video of any length in rounds: every round is a clip of the model's own length that begins "
                "with the last frame of the round before, and its objects go where the guide's masks go. Rounds are "
                "kept on disk; with a name, a video that was cancelled goes on where it stopped."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The video model, for example from Load Video Model."),
                io.Clip.Input("clip", tooltip="Its text encoder; words are located in the prompt with it."),
                io.Vae.Input("vae", tooltip="Its VAE; decodes each round, and encodes first pictures."),
                Guide.Input(
                    "guide",
                    tooltip="From Dynamic Mask Guidance: mode, words, strength, and masks of the whole video: rounds * "
                    "(frames - 1) + 1 of them (neighbouring rounds share one), rounds * frames, or one for all.",
                ),
                io.String.Input("prompt", multiline=True, tooltip="What the whole video should show, in words."),
                io.String.Input("negative_prompt", multiline=True, default="", tooltip="What it should not show."),
                *_size_inputs(),
                *_sampling_inputs(),
                *_round_inputs(),
                *_start_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The video, [frames, height, width, 3]; it is kept on disk and read where it is looked at.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Rounds, change where they begin against elsewhere, and notes."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """Before anything runs."""
        return prefix_problem(name, FOLDER, "name") or True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        guide: MaskGuide,
        prompt: str,
        width: int,
        height: int,
        first_image: Tensor | None = None,
        name: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        settings |= {"frames": settings["frames"] or None, "sampler": settings.pop("sampler_name")}
        chosen = GuidedClipsSettings.of_guide(guide, prompt, width=width, height=height, **settings)
        film_model = ComfyVideoModel(model, clip, vae, width, height)
        report = SamplingProgress(model)
        film_model.preview = report.show
        picture = None if first_image is None else frames_of(first_image)[0]
        temporary = Path(folder_paths.get_temp_directory())
        temporary.mkdir(parents=True, exist_ok=True)
        store = stored_film(temporary, *film_length(film_model, chosen))
        with run_folder(name, temporary) as folder:
            result = guided_clips(
                film_model,
                chosen,
                guide.masks,
                folder,
                picture,
                model_name=model_identity(model),
                store=store,
                progress=lambda _stage, done, total: report(done, total),
            )
            if name.strip():
                write_guided_clips(folder, result)
        return io.NodeOutput(store, guided_clips_summary(result.report))


def _size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "rounds",
            default=3,
            min=1,
            max=512,
            tooltip="Clips that follow one another. 1: a plain guided clip. Each takes as long as one clip.",
        ),
        io.Int.Input(
            "frames",
            default=0,
            min=0,
            max=1024,
            tooltip="Frames of each round. 0: the model's own length (Toybox 8, LaVie 16).",
        ),
        *size_inputs("Pixels; Toybox's own are 64 x 64, LaVie's 512 x 320."),
    ]


def _sampling_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            control_after_generate=True,
            tooltip="Of the first round's noise; every later round draws from the next number.",
            **SEED_RANGE | {"max": 2**53 - 1},
        ),
        io.Int.Input(
            "steps", default=25, min=1, max=1000, tooltip="Denoising steps of each round. More: finer and slower."
        ),
        decimal_input(
            "cfg",
            4.0,
            "Classifier-free guidance. 1: the prompt alone, half the work. Toybox 4, LaVie 7.5.",
            least=1.0,
            most=100.0,
            step=0.1,
        ),
        io.Combo.Input(
            "sampler_name", options=list(SAMPLERS), default="ddim", tooltip="Sampling method; ddim is LaVie's own."
        ),
    ]


def _round_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "overlap",
            options=list(get_args(Overlap)),
            default="drop",
            tooltip="The frame that two rounds share. drop: shown once, rounds * (frames - 1) + 1 frames; keep: shown "
            "twice, rounds * frames.",
        ),
        io.Combo.Input(
            "colour_reference",
            options=list(get_args(ColourReference)),
            default="global",
            tooltip="Whose colours frames take (histograms). global: the video's first frame, against drift; local: "
            "the frame their round begins with; none: as they are.",
        ),
        io.Combo.Input(
            "next_frame",
            options=list(get_args(NextFrame)),
            default="picture",
            tooltip="What the next round begins with. picture: the last one, colours matched, encoded again (on the "
            "Toybox objects follow better so); latent: the last latents as they are (not where the VAE compresses "
            "time).",
        ),
        io.Combo.Input(
            "mask_borders",
            options=list(get_args(MaskBorders)),
            default="check",
            tooltip="Masks with a first one for each round. check: it must equal the last one of the round before; "
            "repair: that one takes its place.",
        ),
    ]


def _start_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "first_round",
            options=list(get_args(FirstRound)),
            default="clip",
            tooltip="Without first_image. clip: the first round is sampled freely; frame: one guided frame is sampled "
            "first, and the round begins with it.",
        ),
        io.Boolean.Input(
            "match_statistics",
            default=False,
            tooltip="On: later frames take mean and spread of the first one's latents between steps (LAMP); steadier "
            "colours, less change.",
        ),
        decimal_input(
            "shared_noise",
            0.0,
            "How much of the first frame's noise all others hold. 0: independent; 0.2: LAMP, calmer; 1: all alike.",
        ),
        io.Image.Input(
            "first_image",
            optional=True,
            tooltip="What the video begins with (the first picture of a batch), scaled to its size. Not connected: the "
            "first round makes its own.",
        ),
        io.String.Input(
            "name",
            default="",
            optional=True,
            tooltip="Folder in ComfyUI's output folder, such as video/zebra, that keeps the rounds, the video as MP4, "
            "a sheet and a report; the same settings go on from its rounds, others are refused. Empty: nothing is "
            "kept.",
        ),
    ]


@contextmanager
def run_folder(name: str, temporary: Path) -> Iterator[Path]:
    """Where a run writes: a named folder that stays, or one that vanishes.

    Args:
        name: in ComfyUI's output folder; the host refuses what lies outside. Empty is a folder that vanishes.
        temporary: for that.

    Raises:
        ValueError: a name of dots and strokes only, or one that no folder can have.
    """
    if not name.strip():
        folder = Path(tempfile.mkdtemp(prefix="rounds-", dir=temporary))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    if not name.strip(" ./\\"):
        raise ValueError(f"name is {name!r}; give one, such as video/zebra, or leave it empty.")
    place, last, *_ = save_path(name.strip(), folder_paths.get_output_directory(), FOLDER, name="name")
    folder = place / last
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"name is {name!r}, and the folder cannot be made ({error.strerror}); give another name."
        ) from error
    yield folder
