"""Clips longer than the model was trained on: FreeLong, alone and inside of context windows."""

from __future__ import annotations

import logging
from typing import Any, get_args

from comfy.context_windows import ContextFuseMethods, ContextSchedules
from comfy_api.latest import io

from ..attention_patches.free_long import OCTAVES, LargestLevel
from ..attention_patches.free_long import FreeLong as FreeLongSettings
from ..backbones.family import Family
from ..backbones.registry import require_supported
from ..host.sampling.host_windows import ContextWindows, install_context_windows
from ..host.sampling.long_clips import install_free_long
from .guidance import check_blocks
from .support.inputs import blocks_input, decimal_input, video_model_input
from .support.types import CATEGORY

logger = logging.getLogger(__name__)

FREE_LONG, FREE_LONG_BANDS = "FreeLong", "FreeLong++"
MAX_FRAMES = 4096
MAX_CUTOFF = 10.0
MAX_NATIVE_LENGTHS = 64.0


class FreeLong(io.ComfyNode):
    """MGV_FreeLong."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_FreeLong",
            display_name="FreeLong",
            category=f"{CATEGORY}/video",
            description=(
                "Lets a model make clips longer than it was trained on. Attention over time sees the frames around "
                "each frame, for detail and motion, and the whole clip, for one look from beginning to end; the low "
                "frequencies come from the whole clip and the others from the window. Clips no longer than the window, "
                "and strength 0, come out bit for bit as without this node. Use it with FreeNoise of Video Noise."
            ),
            inputs=[video_model_input(), *free_long_inputs()],
            outputs=[_model_output()],
        )

    @classmethod
    def execute(cls, model: Any, **settings: Any) -> io.NodeOutput:
        family, network = require_supported(model)
        return io.NodeOutput(install_free_long(model, checked_settings(family, network, **settings)))


class FreeLongWindows(io.ComfyNode):
    """MGV_FreeLongWindows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_FreeLongWindows",
            display_name="FreeLong in Context Windows",
            category=f"{CATEGORY}/video",
            description=(
                "For clips of any length in the memory of a shorter one: sets ComfyUI's context windows, each some "
                "native lengths long, and FreeLong inside of each. Fewer, longer windows than plain context windows "
                "have, so the clip changes its look less often. Takes the place of context windows set before."
            ),
            inputs=[
                video_model_input(),
                decimal_input(
                    "context_length",
                    2.0,
                    "Length of a context window in native lengths of the model (in windows, when window is "
                    "set). 1: plain context windows, where FreeLong has nothing to do; 2 to 4: a good place to start. "
                    "Longer takes more memory.",
                    least=1.0,
                    most=MAX_NATIVE_LENGTHS,
                    step=0.25,
                ),
                decimal_input(
                    "context_overlap",
                    0.5,
                    "What neighbouring context windows share, in native lengths. 0: seams are seen; half a "
                    "native length and more: smooth, but slower. Must be less than context_length.",
                    most=MAX_NATIVE_LENGTHS,
                    step=0.05,
                ),
                io.Combo.Input(
                    "context_schedule",
                    options=[
                        ContextSchedules.STATIC_STANDARD,
                        ContextSchedules.UNIFORM_STANDARD,
                        ContextSchedules.UNIFORM_LOOPED,
                        ContextSchedules.BATCHED,
                    ],
                    default=ContextSchedules.STATIC_STANDARD,
                    tooltip="Where the windows lie, as in core's Context Windows. standard_static: the same in every "
                    "step; standard_uniform: shifted from step to step; looped_uniform: also from the end to the "
                    "beginning; batched: side by side, without overlap.",
                ),
                io.Combo.Input(
                    "fuse_method",
                    options=list(ContextFuseMethods.LIST_STATIC),
                    default=ContextFuseMethods.PYRAMID,
                    tooltip="How results are joined where windows overlap, as in core's Context Windows. pyramid: the "
                    "middle of a window counts most; flat: all alike; overlap-linear: a cross-fade; relative: by the "
                    "distance to the middle, for standard_static.",
                ),
                *free_long_inputs(),
            ],
            outputs=[_model_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        context_length: float,
        context_overlap: float,
        context_schedule: str,
        fuse_method: str,
        **settings: Any,
    ) -> io.NodeOutput:
        family, network = require_supported(model)
        checked = checked_settings(family, network, **settings)
        windows = ContextWindows.in_native_lengths(
            checked.window, context_length, context_overlap, context_schedule, fuse_method
        )
        return io.NodeOutput(install_context_windows(install_free_long(model, checked), family.frame_axis, windows))


def _model_output() -> io.Output:
    return io.Model.Output(display_name="model", tooltip="The patched model, for any sampler.")


def free_long_inputs() -> list[io.Input]:
    """FreeLong's settings, as all nodes that have them show them."""
    return [*_window_inputs(), *_band_inputs()]


def _window_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "variant",
            options=[FREE_LONG, FREE_LONG_BANDS],
            default=FREE_LONG,
            tooltip="FreeLong: one window and the whole clip. FreeLong++: windows of several lengths, each giving its "
            "own band of frequencies; better motion, more work.",
        ),
        io.Int.Input(
            "window",
            default=0,
            min=0,
            max=MAX_FRAMES,
            tooltip="Latent frames that each frame sees locally. 0: the model's own length, which the help lists. "
            "Clips up to this length are left alone. Shorter: livelier, less detail over time.",
        ),
        decimal_input("strength", 1.0, "0: off, nothing is patched; 1: FreeLong; between: a mix with plain attention."),
        decimal_input(
            "end_percent",
            0.5,
            "Where in the schedule the whole clip stops giving the low frequencies; from there on each frame sees its "
            "window alone. 0.5: the paper; 1: its code; 0: windows only.",
        ),
    ]


def _band_inputs() -> list[io.Input]:
    return [
        decimal_input(
            "temporal_cutoff",
            0.25,
            "Which frequencies over time count as low, as a part of the highest. Higher: more of the whole clip, "
            "steadier and less lively; lower: more of the window.",
            least=0.01,
            most=MAX_CUTOFF,
        ),
        decimal_input(
            "spatial_cutoff",
            0.25,
            "The same over height and width. Higher: finer structures are held over the whole clip; lower: only large "
            "ones.",
            least=0.01,
            most=MAX_CUTOFF,
        ),
        io.Combo.Input(
            "largest_level",
            options=list(get_args(LargestLevel)),
            default="local",
            tooltip="U-Nets at their finest grid. local: windows only, as the paper's code; blend: as at the others. "
            "Transformers always blend.",
        ),
        io.String.Input(
            "bands",
            default=", ".join(str(scale) for scale in OCTAVES),
            tooltip="FreeLong++ only: lengths of its windows in native lengths, ascending from 1. Those beyond the "
            "first one that covers the clip are left out.",
        ),
        io.Int.Input(
            "key_stride",
            default=1,
            min=1,
            max=64,
            tooltip="For the whole clip, every n-th frame is looked at. 2: half the cost of that part, slightly less "
            "consistent.",
        ),
        blocks_input(),
    ]


def checked_settings(
    family: Family, network: Any, *, variant: str, window: int, bands: str, blocks: str, **others: Any
) -> FreeLongSettings:
    """Make FreeLong's settings of the widgets' values.

    Args:
        family: of the model.
        network: its diffusion model.
        variant, window, bands, blocks: as in ``free_long_inputs``.
        others: further values of ``FreeLong``, by their names.

    Raises:
        ValueError: a value makes no sense, or a pattern fits no block.
    """
    check_blocks(blocks, family.block_names(network))
    native = window or family.native_frames(network)
    scales = parsed_bands(bands) if variant == FREE_LONG_BANDS else ()
    settings = FreeLongSettings(window=native, bands=scales, blocks=blocks, **others)
    pixel_frames = family.latent_time.pixel_frames(native * family.latent_time.span)
    logger.info("%s: windows of %d latent frames (%d frames of %s).", variant, native, pixel_frames, family.name)
    return settings


def parsed_bands(text: str) -> tuple[int, ...]:
    """Read window lengths from a comma list.

    Raises:
        ValueError: an entry is not a whole number, or there is none at all.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not entries or not all(entry.isascii() and entry.isdigit() for entry in entries):
        raise ValueError(f"bands is {text!r}; write whole numbers that ascend from 1, such as 1, 2, 4.")
    return tuple(int(entry) for entry in entries)
