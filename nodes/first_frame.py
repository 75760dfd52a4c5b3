"""A first frame that videos keep, noise that frames share, LAMP's sampler, colours of a reference."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..backbones.nested_latents import video_of
from ..host.sampling import shared_noise
from ..host.sampling.film_encoding import check_size
from ..host.sampling.first_frame_lock import lock_first_frame
from ..host.sampling.lamp_sampler import lamp_sampler
from ..host.sampling.shared_noise import SHARING_MODES
from ..perception.pictures.histogram_match import histogram_match
from ..video_models.sampling.latent_statistics import SWITCH
from ..video_models.sampling.trajectory_noise import SPATIAL_CUTOFF, TEMPORAL_CUTOFF
from .support.host import progress
from .support.inputs import decimal_input, film_input, float_pictures, frames_of, masks_of
from .support.object_inputs import given_objects, objects_input
from .support.types import CATEGORY

# Between two looks at whether the user cancels.
FRAMES_AT_ONCE = 16


class FirstFrameLock(io.ComfyNode):
    """MGV_FirstFrameLock."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_FirstFrameLock",
            display_name="First Frame Lock",
            category=f"{CATEGORY}/video",
            description=(
                "Gives a video its first frame: at every step the model sees it clean, and the result begins with it "
                "bit for bit. For text-to-video models with every sampler; image-to-video models have a way of their "
                "own and need no lock."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A text-to-video model, patched or not. The given one stays as it is.",
                ),
                io.Latent.Input(
                    "first_frame",
                    optional=True,
                    tooltip="Latents of one frame in the size of the video's, from VAE Encode or cut from another "
                    "video. With several videos at once: one for all, or one for each.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Instead of first_frame: one picture in the size of the video, encoded with vae.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="For image: the VAE of the model."),
                io.Boolean.Input(
                    "match_statistics",
                    default=False,
                    tooltip="On: mean and spread of every channel of the other frames are matched to the first one's, "
                    "in what samplers go on with at each step. Keeps colours and contrast, flattens changes of light. "
                    "Close to what LAMP Sampler does exactly: use one of the two.",
                ),
                decimal_input(
                    "switch",
                    SWITCH,
                    "match_statistics: from which part of the steps on the first frame is the measure; before it, "
                    "the second one. 0: nearly from the start, 1: only in the last step.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model that keeps the frame, for any sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        first_frame: dict[str, Any] | None = None,
        image: Tensor | None = None,
        vae: Any = None,
        match_statistics: bool = False,
        switch: float = SWITCH,
    ) -> io.NodeOutput:
        if (first_frame is None) == (image is None):
            given = "both" if image is not None else "neither"
            raise ValueError(f"{given} of first_frame and image is connected; connect exactly one of them.")
        latents = video_of(first_frame["samples"]) if first_frame is not None else encoded(image, vae)
        return io.NodeOutput(lock_first_frame(model, latents, match_statistics, switch))


def encoded(image: Tensor, vae: Any) -> Tensor:
    """Latents of one picture.

    Raises:
        ValueError: several pictures, one smaller than a latent cell, or no VAE.
    """
    if vae is None:
        raise ValueError("image is connected but vae is not; connect the VAE of the model.")
    frames = frames_of(image)
    if len(frames) != 1:
        raise ValueError(f"image holds {len(frames)} pictures; give one alone, for example with ImageFromBatch.")
    check_size(vae, *frames.shape[1:3])
    return vae.encode(frames)


class SharedNoise(io.ComfyNode):
    """MGV_SharedNoise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_SharedNoise",
            display_name="Shared Noise",
            category=f"{CATEGORY}/video",
            description=(
                "Makes the frames of a starting noise share something: the first frame's noise (LAMP), which calms the "
                "video, the first frame itself, or noise that moves along the objects' paths (FreeTraj), so that they "
                "come to be where the masks are."
            ),
            inputs=[
                io.Noise.Input("noise", tooltip="From Video Noise or core's RandomNoise."),
                io.Combo.Input(
                    "mode",
                    options=list(SHARING_MODES),
                    default="lamp",
                    tooltip="lamp: part of the first frame's noise and less noise in all (0.825 of its spread at 0.2). "
                    "variance_preserving: the same with full noise. first_frame: the noised first frame is shared by "
                    "lamp's weights. freetraj: low frequencies move with the objects.",
                ),
                decimal_input(
                    "amount",
                    0.2,
                    "How much the frames share, not for freetraj. 0: independent frames, 1: all alike (no motion).",
                ),
                decimal_input(
                    "spatial_cutoff",
                    SPATIAL_CUTOFF,
                    "freetraj: which frequencies over the picture move with the objects, as a part of the "
                    "highest. Higher: finer ones too, firmer places and less freedom.",
                    least=0.01,
                    most=2.0,
                ),
                decimal_input(
                    "temporal_cutoff",
                    TEMPORAL_CUTOFF,
                    "freetraj: the same over time. Higher: fast paths are followed more closely.",
                    least=0.01,
                    most=2.0,
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="first_frame: whose noise levels and scaling hold. freetraj: whose frames per latent frame "
                    "the masks are counted by; not connected: found by their number.",
                ),
                io.Latent.Input(
                    "first_frame",
                    optional=True,
                    tooltip="first_frame: latents of one frame in the size of the video's.",
                ),
                objects_input("tracks", "freetraj: the objects, each with a mask per frame.", optional=True),
                io.Mask.Input(
                    "mask", optional=True, tooltip="freetraj: instead of tracks, one object: one mask per frame."
                ),
                io.Boolean.Input(
                    "fit_to_grid",
                    default=False,
                    optional=True,
                    tooltip="freetraj: as many waves move with the objects as on the published grid, whatever the "
                    "latents' size; the two cut-offs above are not used.",
                ),
            ],
            outputs=[
                io.Noise.Output(
                    display_name="noise", tooltip="For Sample Video, Regenerate or core's SamplerCustomAdvanced."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        noise: Any,
        mode: str,
        amount: float,
        spatial_cutoff: float,
        temporal_cutoff: float,
        model: Any = None,
        first_frame: dict[str, Any] | None = None,
        tracks: Any = None,
        mask: Tensor | None = None,
        fit_to_grid: bool = False,
    ) -> io.NodeOutput:
        if tracks is not None and mask is not None:
            raise ValueError("both of tracks and mask are connected; connect one of them.")
        masks = None
        if mode == "freetraj" and tracks is not None:
            masks = given_objects(tracks).object_masks()
        elif mode == "freetraj" and mask is not None:
            masks = masks_of(mask)[None]
        latents = None if first_frame is None else video_of(first_frame["samples"])
        settings = (mode, amount, model, latents, masks, spatial_cutoff, temporal_cutoff, fit_to_grid)
        return io.NodeOutput(shared_noise.SharedNoise(noise, *settings))


class LampSampler(io.ComfyNode):
    """MGV_LampSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_LampSampler",
            display_name="LAMP Sampler",
            category=f"{CATEGORY}/video",
            description=(
                "DDIM (eta 0) whose frames take mean and spread of every latent channel from one another after every "
                "step: first from the second frame, later from the first, and all from the first at the end. Keeps "
                "colours steady after First Frame Lock."
            ),
            inputs=[
                decimal_input(
                    "switch",
                    SWITCH,
                    "From which part of the steps on the second frame takes the first one's statistics. 0.6: "
                    "LAMP, 30 of 50 steps; 0: nearly from the start; 1: only after the last step.",
                )
            ],
            outputs=[
                io.Sampler.Output(display_name="sampler", tooltip="For core's SamplerCustom and SamplerCustomAdvanced.")
            ],
        )

    @classmethod
    def execute(cls, switch: float) -> io.NodeOutput:
        return io.NodeOutput(lamp_sampler(switch))


class HistogramMatch(io.ComfyNode):
    """MGV_HistogramMatch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_HistogramMatch",
            display_name="Histogram Match",
            category=f"{CATEGORY}/video",
            description=(
                "Gives every frame the colours of a reference: each channel's levels are spread as the reference's "
                "are. Takes away slow drift of colour and light; large new objects tint the rest."
            ),
            inputs=[
                film_input(),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="One picture of any size whose colours the video should have. Not connected: the video's "
                    "first frame.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="As many pictures of the same size, in steps of 1/255 per channel."
                )
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, reference: Tensor | None = None) -> io.NodeOutput:
        frames = frames_of(image)
        wanted = frames[:1] if reference is None else frames_of(reference)
        if len(wanted) != 1:
            raise ValueError(
                f"reference holds {len(wanted)} pictures; give one alone, for example with ImageFromBatch."
            )
        # A fourth channel, which some loaders give, stays as it is.
        matched = float_pictures(image).clone()
        report = progress()
        for start in range(0, len(frames), FRAMES_AT_ONCE):
            part = slice(start, start + FRAMES_AT_ONCE)
            matched[part, ..., :3] = histogram_match(frames[part], wanted[0])
            report(min(part.stop, len(frames)), len(frames))
        return io.NodeOutput(matched)
