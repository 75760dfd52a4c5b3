"""Clean masks over space and time."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..perception.masks.mask_refinement import RefinementSettings, refine_tracks
from .object_masks import track_of_mask
from .support.cache_weight import weighed
from .support.flow_models import given_flow, optical_flow_input
from .support.host import progress
from .support.inputs import decimal_input, keep_on_disk_input
from .support.mask_output import temporary_folder, union_of
from .support.object_inputs import given_objects, objects_input
from .support.types import CATEGORY, Tracks


class RefineMasks(io.ComfyNode):
    """MGV_RefineMasks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_RefineMasks",
            display_name="Refine Masks",
            category=f"{CATEGORY}/perception",
            description=(
                "Steadies masks over time and changes their outline: fill gaps, median over frames, hysteresis, "
                "largest part, holes, grow or shrink, box, feather. Frames in are frames out; works on tracks object "
                "by object, or on a MASK."
            ),
            inputs=[
                objects_input("tracks", "From Track Masks; comes back refined.", optional=True),
                io.Mask.Input("mask", optional=True, tooltip="Instead of tracks: one mask per frame."),
                *_time_and_outline_inputs(),
                *_later_inputs(),
            ],
            outputs=[
                Tracks.Output(display_name="tracks", tooltip="The refined tracks (a MASK becomes one track)."),
                io.Mask.Output(display_name="mask", tooltip="All objects together, one mask per frame."),
            ],
        )

    @classmethod
    def execute(
        cls,
        tracks: Any = None,
        mask: Tensor | None = None,
        image: Tensor | None = None,
        keep_on_disk: bool = False,
        optical_flow: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        if (tracks is None) == (mask is None):
            given = "both" if mask is not None else "neither"
            raise ValueError(f"{given} of tracks and mask is connected; connect exactly one of them.")
        wanted = RefinementSettings(**settings)
        tracks = track_of_mask(mask) if tracks is None else given_objects(tracks)
        folder = temporary_folder() if keep_on_disk else None
        if optical_flow is not None and wanted.fill_gaps and image is None:
            raise ValueError(
                "optical_flow is connected but the video is not, so there is no motion to see; connect the video to "
                "image, or disconnect optical_flow."
            )
        # Motion is looked for at the size of the masks.
        estimate = given_flow(optical_flow if wanted.fill_gaps else None, *tracks.size)
        refined = refine_tracks(tracks, wanted, image, folder, progress(), estimate)
        return io.NodeOutput(weighed(refined), union_of(refined))


def _time_and_outline_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "fill_gaps",
            default=0,
            min=0,
            max=1000,
            tooltip="Empty frames in a row, at most this many, that are filled from the frames around them; with image "
            "by the motion in the video. 0: none.",
        ),
        io.Int.Input(
            "median_frames",
            default=1,
            min=1,
            max=99,
            step=2,
            tooltip="Median over this many frames (odd): removes flicker. 1: off; too many frames blur the motion.",
        ),
        decimal_input(
            "hysteresis_low",
            0.0,
            "With hysteresis_high: pixels above it stay when they touch, in space or time, pixels above the "
            "high one. At most hysteresis_high.",
        ),
        decimal_input(
            "hysteresis_high",
            0.0,
            "Pixels above it are surely inside. 0: no hysteresis; 0.5 with low 0.2 cleans soft masks.",
        ),
        io.Int.Input(
            "grow",
            default=0,
            min=-512,
            max=512,
            tooltip="Pixels to grow the outline by; negative shrinks. 0: as it is.",
        ),
        decimal_input("feather", 0.0, "Pixels over which the edge fades. 0: a hard edge.", most=256.0, step=0.5),
    ]


def _later_inputs() -> list[io.Input]:
    """Optional, so that graphs from before there were these inputs still run."""
    return [
        io.Image.Input(
            "image",
            optional=True,
            tooltip="The video, for fill_gaps: masks are carried into a gap by the motion of the picture.",
        ),
        decimal_input(
            "component_share",
            0.0,
            "In each frame a connected part stays when its area is at least this share of the largest part's. "
            "0: every part, 1: the largest alone.",
            optional=True,
        ),
        io.Int.Input(
            "fill_holes",
            default=0,
            min=-1,
            max=16777216,
            optional=True,
            tooltip="Holes of at most this many pixels, enclosed by the mask, are filled. 0: none, -1: all.",
        ),
        io.Boolean.Input(
            "box", default=False, optional=True, tooltip="On: every mask becomes the box around it. Off: its shape."
        ),
        io.Int.Input(
            "box_padding",
            default=0,
            min=0,
            max=4096,
            optional=True,
            tooltip="Pixels by which that box is wider on every side. 0: tight.",
        ),
        keep_on_disk_input("Feathered masks of a long video take a byte a pixel."),
        optical_flow_input("For fill_gaps with image: how masks are carried into a gap."),
    ]
