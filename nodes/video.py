"""Load a video model, make its starting noise, sample it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import folder_paths
import torch
from comfy.sample import prepare_noise
from comfy.samplers import KSampler
from comfy_api.latest import io

from ..backbones.nested_latents import is_nested, with_video
from ..host.models.loading import load_lavie_file, load_native_joint_toybox, load_native_toybox
from ..host.sampling.comfy_sampling import SamplerSettings, sample_film
from ..perception.mask_stack import too_large
from ..video_models.sampling.noise import NOISE_MODES, is_rescheduled, mark_rescheduled, video_noise
from .model_files.diffusers_folders import WHOLE, diffusers_folders
from .model_files.folders import find_weight_file, weight_files
from .support.inputs import decimal_input, size_inputs
from .support.types import CATEGORY, SEED_RANGE, TOYBOX

MODEL_FOLDERS = ("diffusion_models", "checkpoints")
NO_CHECKPOINT = "none"
# The bundled model in which text and video are one sequence.
TOYBOX_JOINT = f"{TOYBOX} joint"


@dataclass(frozen=True)
class SeededVideoNoise:
    """A NOISE: ComfyUI's samplers call ``generate_noise`` with the latent they start from."""

    seed: int
    mode: str
    window: int
    stride: int
    shared: float

    def generate_noise(self, input_latent: dict[str, Any]) -> Any:
        """Noise of the latent's size, on the CPU. ``batch_index`` picks samples of a larger batch."""
        samples = input_latent["samples"]
        size = tuple(samples.shape)
        indices = input_latent.get("batch_index")
        if indices is not None:
            size = (max(indices) + 1, *size[1:])
        noise = video_noise(size, self.seed, self.mode, window=self.window, stride=self.stride, shared=self.shared)
        if indices is not None:
            noise = mark_rescheduled(noise[list(indices)], is_rescheduled(noise))
        if not is_nested(samples):
            return noise
        # Sound is drawn as core draws it: on from where the video's noise ended.
        return mark_rescheduled(with_video(prepare_noise(samples, self.seed, indices), noise), is_rescheduled(noise))


class LoadVideoModel(io.ComfyNode):
    """MGV_LoadVideoModel."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_LoadVideoModel",
            display_name="Load Video Model",
            category=f"{CATEGORY}/video",
            description=(
                "Loads one of LaVie's models (text to video, interpolation, upscaler) as native MODEL, CLIP and VAE, "
                "so that every core sampler, text encoder and VAE node works on it. Stable Diffusion 1.x too, as a "
                "model of clips that learns motion from a few videos (LAMP). Toybox is a tiny demo model that comes "
                "with the pack: it knows coloured balls, squares and triangles, 64 x 64 pixels, 8 frames."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=[*weight_files(*MODEL_FOLDERS), *diffusers_folders(WHOLE), TOYBOX_JOINT],
                    default=TOYBOX,
                    tooltip="Toybox (bundled, a toy for trying the pack) or Toybox joint (the same world with text and "
                    "video in one attention, for trying words there), or lavie_base.pt (text to video), "
                    "lavie_interpolation.pt (for Interpolate Video) or lavie_vsr.pt (for Upscale Video) from "
                    "models/diffusion_models or models/checkpoints; safetensors too, under any name. Or a Stable "
                    "Diffusion 1.x checkpoint, or a folder of models/diffusers, for motion files of LAMP's kind.",
                ),
                io.Combo.Input(
                    "sd_checkpoint",
                    options=[NO_CHECKPOINT, *folder_paths.get_filename_list("checkpoints"), *diffusers_folders()],
                    default=NO_CHECKPOINT,
                    optional=True,
                    tooltip="For LaVie files only: what their text encoder and VAE come from. A Stable Diffusion 1.x "
                    "checkpoint for text to video and interpolation, Stable Diffusion's x4 upscaler for the upscaler; "
                    "or a folder of models/diffusers. none: the model alone. Toybox and whole checkpoints bring their "
                    "own.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The video model; works with KSampler and Sample Video, the interpolation model and the "
                    "upscaler through Interpolate Video and Upscale Video.",
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Its text encoder, for CLIP Text Encode (nothing for a LaVie file without SD checkpoint).",
                ),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="Its VAE: decodes latents to T frames, encodes a video to T latents (nothing for a LaVie "
                    "file without SD checkpoint).",
                ),
            ],
        )

    @classmethod
    def execute(cls, model_name: str, sd_checkpoint: str = NO_CHECKPOINT) -> io.NodeOutput:
        if model_name == TOYBOX:
            return io.NodeOutput(*load_native_toybox())
        if model_name == TOYBOX_JOINT:
            return io.NodeOutput(*load_native_joint_toybox())
        folders, parts = diffusers_folders(), None
        path = folders.get(model_name) or find_weight_file(model_name, *MODEL_FOLDERS)
        if sd_checkpoint != NO_CHECKPOINT:
            parts = folders.get(sd_checkpoint) or find_weight_file(sd_checkpoint, "checkpoints")
        return io.NodeOutput(*load_lavie_file(path, parts, folder_paths.get_folder_paths("embeddings")))


class VideoNoise(io.ComfyNode):
    """MGV_VideoNoise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_VideoNoise",
            display_name="Video Noise",
            category=f"{CATEGORY}/video",
            description=(
                "Seeded starting noise for a clip, and the empty latent it belongs to. plain is what core samplers "
                "draw for the same seed; freenoise and specmix hold clips together that are longer than the model's "
                "own length; shared calms the motion."
            ),
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    control_after_generate=True,
                    tooltip="Same seed, same noise, on every machine.",
                    **SEED_RANGE,
                ),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=1,
                    max=1024,
                    tooltip="Length of the video in frames. Toybox's own is 8, LaVie's 16.",
                ),
                *size_inputs("Pixels; a multiple of the VAE's factor. Toybox's own is 64."),
                *_noise_inputs(),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many videos at once."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Gives pixels per latent cell, channels and frames per latent frame. Not connected: 8 "
                    "pixels, 4 channels, every frame (LaVie with Stable Diffusion's VAE).",
                ),
            ],
            outputs=[
                io.Noise.Output(
                    display_name="noise", tooltip="For Sample Video, Regenerate or core's SamplerCustomAdvanced."
                ),
                io.Latent.Output(
                    display_name="latent", tooltip="Empty video latents [batch, channels, frames, height, width]."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        seed: int,
        frames: int,
        width: int,
        height: int,
        mode: str,
        window: int,
        stride: int,
        shared: float,
        batch_size: int,
        vae: Any = None,
    ) -> io.NodeOutput:
        size = latent_size(vae, frames, height, width)
        noise = SeededVideoNoise(seed, mode, window, stride, shared)
        if mode in ("freenoise", "specmix") and stride > window:
            raise ValueError(f"stride {stride} is larger than window {window}; make it {window} or less.")
        try:
            samples = torch.zeros((batch_size, *size), device=management.intermediate_device())
        except torch.cuda.OutOfMemoryError:
            # The host frees its models then.
            raise
        except RuntimeError as error:
            numbers = {"batch_size": batch_size, "frames": frames, "width": width, "height": height}
            raise MemoryError(too_large("empty latents", 4 * batch_size * math.prod(size), **numbers)) from error
        return io.NodeOutput(noise, {"samples": samples})


def _noise_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mode",
            options=list(NOISE_MODES),
            default="plain",
            tooltip="plain: every frame its own. freenoise: frames after the first window reuse earlier ones, "
            "shuffled. specmix: freenoise in the middle of the clip, fresh at its ends. shared: every frame holds a "
            "part of the first frame's noise. Do not shuffle twice: see the help on freenoise in core's Context "
            "Windows.",
        ),
        io.Int.Input(
            "window",
            default=16,
            min=1,
            max=1024,
            tooltip="freenoise and specmix: the model's own length in latent frames (Toybox 8, LaVie 16). Clips up to "
            "this length are as plain.",
        ),
        io.Int.Input(
            "stride",
            default=4,
            min=1,
            max=1024,
            tooltip="freenoise and specmix: frames in a group that is shuffled, at most window. 1: no shuffling.",
        ),
        decimal_input(
            "shared",
            0.2,
            "shared: how much of the first frame's noise the others hold. 0: independent frames, 1: all alike (no "
            "motion).",
        ),
    ]


def latent_size(vae: Any, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Channels, frames, rows and columns of the latents of a video.

    Args:
        vae: ComfyUI VAE, or None for Stable Diffusion 1's numbers.
        frames, height, width: of the video in pixels.

    Raises:
        ValueError: if the VAE cannot make such a video.
    """
    factor, channels, latent_frames = 8, 4, frames
    if vae is not None:
        factor, channels = vae.spacial_compression_encode(), vae.latent_channels
        if isinstance(vae.downscale_ratio, tuple):
            latent_frames = vae.downscale_ratio[0](frames)
            kept = vae.upscale_ratio[0](latent_frames)
            if kept != frames:
                raise ValueError(f"this VAE makes no video of {frames} frames; the nearest shorter length is {kept}.")
    for name, value in (("width", width), ("height", height)):
        if value % factor:
            low = value // factor * factor
            raise ValueError(f"{name} is {value}, not a multiple of {factor}; use {low} or {low + factor}.")
    return channels, latent_frames, height // factor, width // factor


class SampleVideo(io.ComfyNode):
    """MGV_SampleVideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_SampleVideo",
            display_name="Sample Video",
            category=f"{CATEGORY}/video",
            description=(
                "Samples a video from noise, with previews, progress and cancel. Like KSampler, but it takes a NOISE, "
                "so that two runs can share one."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The video model, patched or not."),
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show; an empty prompt is usual."),
                io.Noise.Input("noise", tooltip="From Video Noise or core's RandomNoise."),
                io.Latent.Input("latent", tooltip="Empty video latents, or a video's latents with denoise below 1."),
                *sampling_inputs(),
                decimal_input(
                    "denoise",
                    1.0,
                    "1: the video comes from noise alone. Lower keeps that much more of the latents; 0 returns them.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The video's latents, for VAE Decode or Regenerate.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        noise: Any,
        latent: dict[str, Any],
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
    ) -> io.NodeOutput:
        settings = SamplerSettings(steps, cfg, sampler_name, scheduler, denoise)
        return io.NodeOutput(sample_film(model, positive, negative, noise, latent, settings))


def sampling_inputs() -> list[io.Input]:
    """Steps, guidance scale, sampler and scheduler, as every sampling node of the pack shows them."""
    return [
        io.Int.Input(
            "steps", default=25, min=1, max=1000, tooltip="Denoising steps. More: finer and slower; below 10 coarse."
        ),
        decimal_input(
            "cfg",
            4.0,
            "Classifier-free guidance. 1: the prompt alone, half the work. Toybox 4, LaVie 7.5; too high "
            "burns colours.",
            most=100.0,
            step=0.1,
        ),
        io.Combo.Input(
            "sampler_name",
            options=list(KSampler.SAMPLERS),
            default="ddim",
            tooltip="Sampling method; ddim is LaVie's own.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(KSampler.SCHEDULERS),
            default="ddim_uniform",
            tooltip="How noise levels are spaced; ddim_uniform is what stand-alone runs of this pack use.",
        ),
    ]
