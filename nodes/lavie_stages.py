"""LaVie's second and third stage: frames in between, and four times the size."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
import node_helpers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..host.models.lavie_conditions import FRAMES_KEY, LATENTS_KEY, NOISE_LEVEL_KEY, STAGE_KEY, require_lavie
from ..host.sampling.film_encoding import encode_frames
from ..host.sampling.host_windows import ContextWindows, install_context_windows
from ..video_models.interpolation import interpolated_frames, source_indices
from .support.inputs import frames_of
from .support.types import CATEGORY

MAX_WINDOW = 1024


class InterpolateVideo(io.ComfyNode):
    """MGV_InterpolateVideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_InterpolateVideo",
            display_name="Interpolate Video",
            category=f"{CATEGORY}/video",
            description=(
                "Three new frames between every two of a video, with LaVie's interpolation model: 16 frames become 61. "
                "Gives the sampler what it needs; works with KSampler, Sample Video and every other sampler. Longer "
                "videos are worked on in overlapping windows."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="LaVie's interpolation model (lavie_interpolation.pt), patched or not."
                ),
                io.Conditioning.Input(
                    "positive", tooltip="What the video shows; LaVie's own runs end the prompt with ', 4k.'."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="What to keep away from; LaVie was trained with the word None for nothing."
                ),
                io.Vae.Input("vae", tooltip="VAE of a Stable Diffusion 1.x checkpoint, as Load Video Model gives it."),
                io.Image.Input(
                    "image",
                    tooltip="The video, 2 frames or more; of T frames come 4 x (T - 1) + 1. Borders are cut to a "
                    "multiple of 8 pixels.",
                ),
                io.Int.Input(
                    "window",
                    default=16,
                    min=0,
                    max=MAX_WINDOW,
                    tooltip="Frames of the given video that the model sees at once. 16: as it was trained. Fewer: less "
                    "memory, less aware of what comes. 0: all of the video, or the context windows that the model has.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=1,
                    max=MAX_WINDOW,
                    tooltip="Frames of the given video that neighbouring windows share, less than window. More: "
                    "smoother where windows meet, and slower.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, with windows where the video needs them."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the video, for the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="The same for the negative prompt."),
                io.Latent.Output(display_name="latent", tooltip="Empty latents of 4 x (T - 1) + 1 frames."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, vae: Any, image: Tensor, window: int, overlap: int
    ) -> io.NodeOutput:
        require_lavie(model, "interpolation")
        frames = frames_of(image, minimum=2)
        if window == 1 or 0 < window <= overlap:
            raise ValueError(
                f"window is {window} and overlap {overlap}; choose a window of 2 or more (0: all of the video) and an "
                "overlap below it."
            )
        if 0 < window < len(frames):
            model = _windowed(model, interpolated_frames(window), interpolated_frames(overlap))
        latents = encode_frames(vae, frames)[:, :, source_indices(len(frames))]
        return _sampler_inputs(model, positive, negative, "interpolation", {LATENTS_KEY: latents}, latents.shape)


class UpscaleVideo(io.ComfyNode):
    """MGV_UpscaleVideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_UpscaleVideo",
            display_name="Upscale Video",
            category=f"{CATEGORY}/video",
            description=(
                "Four times the width and height of a video, with LaVie's upscaler, which invents fine detail and "
                "keeps it steady over time. Gives the sampler what it needs; works with KSampler, Sample Video and "
                "every other sampler. The model sees 8 frames at once; overlapping windows hide where they meet."
            ),
            inputs=[
                io.Model.Input("model", tooltip="LaVie's upscaler (lavie_vsr.pt), patched or not."),
                io.Conditioning.Input("positive", tooltip="What the video shows; may be an empty prompt."),
                io.Conditioning.Input(
                    "negative", tooltip="What to keep away from; LaVie's own runs say 'blur, worst quality'."
                ),
                io.Image.Input(
                    "image", tooltip="The small video, of any size and length. 512 x 320 becomes 2048 x 1280."
                ),
                io.Int.Input(
                    "noise_level",
                    default=50,
                    min=0,
                    max=350,
                    tooltip="Noise that covers the small video's flaws before it is enlarged, as a step of the "
                    "schedule. 0: keeps everything; 50: LaVie's own; higher: invents more and keeps less.",
                ),
                io.Int.Input(
                    "window",
                    default=8,
                    min=0,
                    max=MAX_WINDOW,
                    tooltip="Frames that the model sees at once. 8: as it was trained. Fewer: less memory, less "
                    "steady. 0: all of the video, or the context windows that the model has.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=0,
                    max=MAX_WINDOW,
                    tooltip="Frames that neighbouring windows share, less than window. 0: seams every window; more: "
                    "smoother, and slower.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, with windows where the video needs them."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the video, for the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="The same for the negative prompt."),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Empty latents, one cell per pixel of the small video. Decode with the VAE of Stable "
                    "Diffusion's x4 upscaler, as Load Video Model gives it; Save Long Video takes little memory.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, image: Tensor, noise_level: int, window: int, overlap: int
    ) -> io.NodeOutput:
        config = require_lavie(model, "upscaling")
        frames = frames_of(image)
        if noise_level > config.max_noise_level:
            raise ValueError(f"noise_level is {noise_level}; this model knows 0 to {config.max_noise_level}.")
        if 0 < window < len(frames):
            model = _windowed(model, window, overlap)
        size = (1, config.out_channels, *frames.shape[:3])
        values = {FRAMES_KEY: frames, NOISE_LEVEL_KEY: noise_level}
        return _sampler_inputs(model, positive, negative, "upscaling", values, size)


def _windowed(model: Any, length: int, overlap: int) -> Any:
    """A clone that works on windows of this many latent frames."""
    return install_context_windows(model, 2, ContextWindows(length, overlap))


def _sampler_inputs(
    model: Any, positive: Any, negative: Any, stage: str, values: dict[str, Any], size: tuple[int, ...]
) -> io.NodeOutput:
    """Model, both prompts with a stage's conditions, and empty latents of a size."""
    prompts = [
        node_helpers.conditioning_set_values(prompt, {STAGE_KEY: stage, **values}) for prompt in (positive, negative)
    ]
    samples = torch.zeros(size, device=management.intermediate_device())
    return io.NodeOutput(model, *prompts, {"samples": samples})
