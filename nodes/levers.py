"""Levers beside words: energy of attention, a crude film, and the sampler that begins with one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention_patches.attention_energy import AttentionShare
from ..attention_patches.checks import check_blocks
from ..attention_patches.guidance.guide import Guide as MaskGuide
from ..backbones.nested_latents import video_of
from ..backbones.registry import require_supported
from ..host.sampling.attention_energy import install_energy
from ..host.sampling.dual_clock_sampler import clock_mask, dual_clock_sampler
from ..perception.tracks import Tracks as TrackedObjects
from ..recipes.guided_clips import crude_film, levers
from ..video_models.sampling.levers import DescentSettings, DualClock, EnergyDescent
from .guidance import phrase_spans
from .support.inputs import blocks_input, decimal_input, film_input, frames_of, guide_input, masks_of, video_model_input
from .support.object_inputs import given_objects, objects_input
from .support.types import CATEGORY

DESCENT = DescentSettings()
CONSTANTS = levers.LeverConstants()


class AttentionEnergy(io.ComfyNode):
    """MGV_AttentionEnergy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_AttentionEnergy",
            display_name="Attention Energy",
            category=f"{CATEGORY}/guidance",
            description=(
                "Before the first sampling steps the latents take gradient steps until the words of each object are "
                "seen inside its mask. Works where gains on words do not, and costs a forward and a backward pass per "
                "gradient step: much memory on large models."
            ),
            search_aliases=["lvd", "layout guidance", "backward guidance", "attention loss"],
            inputs=[
                video_model_input(),
                guide_input(),
                io.Clip.Input("clip", tooltip="The text encoder of the positive prompt."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="Exactly the positive prompt, so that the guide's phrases can be found in it.",
                ),
                decimal_input(
                    "until",
                    DESCENT.until,
                    "Noise level (1: pure noise, 0: clean) down to which steps are preceded by gradient steps.",
                ),
                decimal_input(
                    "step",
                    DESCENT.step,
                    "Length of a gradient step, in spreads of the noise. 0: off. Steps too far are halved.",
                    most=2.0,
                ),
                io.Int.Input(
                    "iterations",
                    default=DESCENT.iterations,
                    min=0,
                    max=100,
                    tooltip="Gradient steps before each sampling step at most; fewer where the energy hardly falls. "
                    "0: off.",
                ),
                decimal_input("enough", DESCENT.enough, "Energy (0: all inside, 1: all outside) that is left alone."),
                blocks_input(),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Only when several positive prompts are combined: the conditioning of the prompt above.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler. Put it behind Patch Attention.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        guide: MaskGuide,
        clip: Any,
        prompt: str,
        until: float,
        step: float,
        iterations: int,
        enough: float,
        blocks: str,
        positive: Any = None,
    ) -> io.NodeOutput:
        family, network = require_supported(model)
        check_blocks(blocks, family.block_names(network))
        if not any(guide.phrases):
            raise ValueError("the guide has no phrases; write the objects' words in the node of the guide.")
        spans = phrase_spans(guide, family, clip, prompt, positive)
        if spans is None:
            raise ValueError(f"mode {guide.mode.name} uses no words, so none were found; take a guide of mode dmg.")
        settings = DescentSettings(until=until, step=step, iterations=iterations, enough=enough)
        return io.NodeOutput(install_energy(model, EnergyDescent(AttentionShare(guide.masks, spans, blocks), settings)))


class CrudeFilm(io.ComfyNode):
    """MGV_CrudeFilm."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_CrudeFilm",
            display_name="Crude Film",
            category=f"{CATEGORY}/video",
            description=(
                "Cuts the objects out of a first video and pastes them along other masks, with what was behind them "
                "filled in. Crude on purpose: Dual Clock Sampler makes a video of it."
            ),
            search_aliases=["time to move", "cut and drag", "cut and paste", "composite"],
            inputs=[
                film_input(),
                objects_input("tracks", "The objects in the video, from Track Masks."),
                objects_input("targets", "Where they are to be, one for each in the same order, such as Path Masks."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="One picture per target mask."),
                io.Mask.Output(display_name="mask", tooltip="All targets together, for Dual Clock Sampler."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, tracks: Any, targets: Any) -> io.NodeOutput:
        frames, found, wanted = frames_of(image), given_objects(tracks), given_objects(targets)
        masks, aims = _fitted(found, frames, "tracks"), wanted.object_masks()
        if len(masks) != len(aims):
            raise ValueError(f"there are {len(masks)} tracks and {len(aims)} targets; give one target per track.")
        if masks.shape[1] != len(frames):
            raise ValueError(f"there are {masks.shape[1]} masks for {len(frames)} pictures; give one per picture.")
        aims = levers.fitted_tracks(aims, aims.shape[1], *frames.shape[1:3])
        return io.NodeOutput(crude_film.crude_film(frames, masks, aims), aims.amax(dim=0))


def _fitted(objects: TrackedObjects, frames: Tensor, name: str) -> Tensor:
    """Masks [R, T, H, W] in the size of the frames."""
    masks = objects.object_masks()
    if not len(masks):
        raise ValueError(f"{name} holds no objects; find some first.")
    return levers.fitted_tracks(masks, len(frames), *frames.shape[1:3])


class DualClockSampler(io.ComfyNode):
    """MGV_DualClockSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_DualClockSampler",
            display_name="Dual Clock Sampler",
            category=f"{CATEGORY}/video",
            description=(
                "Begins with a crude video and holds to it inside a mask for longer than outside, so that objects go "
                "where it puts them and the model makes the rest (Time-to-Move). Euler steps, DDIM on older models."
            ),
            search_aliases=["time to move", "ttm", "cut and drag"],
            inputs=[
                io.Latent.Input("crude", tooltip="The crude video, encoded with the model's VAE; the video's size."),
                io.Mask.Input("mask", tooltip="White is held longer: one mask per frame, or one for all."),
                decimal_input(
                    "start",
                    CONSTANTS.start,
                    "Noise level (1: pure noise, 0: clean) at which sampling begins. Lower: nearer to the crude video "
                    "everywhere.",
                ),
                decimal_input(
                    "hold",
                    CONSTANTS.hold,
                    "Noise level down to which the mask is held to it; not above start. Lower: nearer to it inside.",
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="sampler", tooltip="For core's SamplerCustom and SamplerCustomAdvanced.")
            ],
        )

    @classmethod
    def execute(cls, crude: dict[str, Any], mask: Tensor, start: float, hold: float) -> io.NodeOutput:
        latents = video_of(crude["samples"])
        film = latents if latents.ndim == 5 else latents.transpose(0, 1)[None]
        return io.NodeOutput(
            dual_clock_sampler(DualClock(film, clock_mask(masks_of(mask), tuple(film.shape)), start, hold))
        )
