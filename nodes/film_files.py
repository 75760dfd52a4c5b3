"""Decode long videos slice by slice, straight into a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.input_impl import VideoFromFile
from comfy_api.latest import io, ui
from torch import Tensor

from ..backbones.nested_latents import is_nested, video_of
from ..host.sampling.film_decoding import FRAMES_PER_PART, OVERLAP, decode_parts, decoded_frames
from ..recipes.films.files import to_bytes, write_pictures
from .support.file_names import FILM, prefix_problem, save_path
from .support.host import progress
from .support.inputs import decimal_input
from .support.types import CATEGORY

logger = logging.getLogger(__name__)


class SaveLongVideo(io.ComfyNode):
    """MGV_SaveLongVideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_SaveLongVideo",
            display_name="Save Long Video",
            category=f"{CATEGORY}/video",
            description=(
                "Decodes latents a few frames at a time and writes each slice into an MP4 at once, so that a long "
                "video is never in memory. Takes the place of VAE Decode, Create Video and Save Video."
            ),
            is_output_node=True,
            inputs=[
                io.Latent.Input(
                    "samples",
                    tooltip="The video's latents, of any length. Several videos in a batch become a file each; of a "
                    "VAE of pictures (AnimateDiff), a batch of latents is one video.",
                ),
                io.Vae.Input("vae", tooltip="The VAE of the model that made the latents."),
                io.String.Input(
                    "filename_prefix",
                    default="video/long",
                    tooltip="Folder and beginning of the file's name, inside of ComfyUI's output folder; a number "
                    "follows. %width%, %height%, %year%, %month%, %day% and so on are filled in.",
                ),
                decimal_input(
                    "fps",
                    8.0,
                    "Frames per second: Toybox and LaVie 8, interpolated LaVie 24 to 32, Wan 16, LTX 24.",
                    least=0.1,
                    most=1000.0,
                ),
                *_slice_inputs(),
                io.Int.Input(
                    "crf",
                    default=14,
                    min=0,
                    max=51,
                    tooltip="Constant rate factor of H.264: 0 is the largest file, 14 looks like the original, 23 is "
                    "small.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    is_output_list=True,
                    tooltip="The written file, one for each video of the batch; it is read when something needs it.",
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Before anything is sampled."""
        return prefix_problem(filename_prefix, FILM) or True

    @classmethod
    def execute(
        cls,
        samples: dict[str, Any],
        vae: Any,
        filename_prefix: str,
        fps: float,
        frames_per_part: int,
        overlap: int,
        crf: int,
    ) -> io.NodeOutput:
        films = films_of(video_of(samples["samples"]))
        if is_nested(samples["samples"]):
            logger.info("the latents hold sound beside the video; the file is without it, decode it by itself.")
        counts = [decoded_frames(vae, latents) for latents in films]
        paths, subfolder = new_paths(filename_prefix, films[0], vae, len(films))
        report, total = progress(sum(counts)), sum(counts)
        done = 0
        for path, latents, count in zip(paths, films, counts, strict=True):
            parts = decode_parts(vae, latents, frames_per_part, overlap)
            pictures = counted(parts, lambda frames, before=done: report(before + frames, total))
            write_pictures(path, pictures, fps, crf, saved_metadata(cls.hidden))
            done += count
        entries = [ui.SavedResult(path.name, subfolder, io.FolderType.output) for path in paths]
        return io.NodeOutput([VideoFromFile(str(path)) for path in paths], ui=ui.PreviewVideo(entries))


def _slice_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "frames_per_part",
            default=FRAMES_PER_PART,
            min=1,
            max=4096,
            tooltip="Frames of the video that are decoded at once. Fewer take less memory; with VAEs that compress "
            "time, more are faster.",
        ),
        io.Int.Input(
            "overlap",
            default=OVERLAP,
            min=0,
            max=1024,
            tooltip="Frames that two slices share and fade over, with VAEs that look across frames. More hide seams "
            "better and cost time; VAEs of single pictures need none and take none.",
        ),
    ]


def films_of(latents: Tensor) -> list[Tensor]:
    """Split a batch of videos; frames in the batch are one video.

    Args:
        latents: [B, C, T, h, w], or [T, C, h, w].

    Raises:
        ValueError: latents that are not a video's, or without a frame or pixel.
    """
    if latents.ndim not in (4, 5) or 0 in latents.shape:
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}; connect those of a video, [batch, channels, frames, height, "
            "width], or of pictures, [frames, channels, height, width]."
        )
    return list(latents.split(1)) if latents.ndim == 5 else [latents]


def new_paths(prefix: str, latents: Tensor, vae: Any, count: int) -> tuple[list[Path], str]:
    """Files that do not exist yet in ComfyUI's output folder, and their folder within it.

    Args:
        prefix: of the user, with ComfyUI's place holders.
        latents: of a video; the size of its pictures can be a part of the name.
        vae: ComfyUI's.
        count: of the files.

    Raises:
        ValueError: no name, or one that no file can have. Names outside of the output folder are refused by the host.
    """
    factor = vae.spacial_compression_decode()
    height, width = (side * factor for side in latents.shape[-2:])
    folder, name, number, subfolder = save_path(prefix, folder_paths.get_output_directory(), FILM, (width, height))
    return [folder / f"{name}_{number + place:05}_.mp4" for place in range(count)], subfolder


def counted(parts: Iterator[Tensor], report: Any) -> Iterator[Tensor]:
    """The pictures of slices of frames one by one, as bytes; says after each slice how many there were so far."""
    done = 0
    for part in parts:
        for frame in part:
            yield to_bytes(frame)
        done += len(part)
        # Not beside the next slice in memory.
        del part, frame
        report(done)


def saved_metadata(hidden: Any) -> dict[str, str]:
    """The graph, as ComfyUI keeps it in what it saves; nothing where the user does not want that."""
    if args.disable_metadata or hidden is None:
        return {}
    values = {**(hidden.extra_pnginfo or {}), **({"prompt": hidden.prompt} if hidden.prompt is not None else {})}
    return {name: json.dumps(value) for name, value in values.items()}
