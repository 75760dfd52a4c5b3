"""Sequences of masks: drawn as paths, and brought to another length and size."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..perception.boxes import as_detections
from ..perception.masks.keyframes import CURVES
from ..perception.masks.mask_paths import SHAPES, parse_paths, path_tracks, paths_of_boxes
from ..perception.masks.mask_sequences import PLACINGS, TIMINGS, SequenceSettings, make_sequence
from ..perception.pictures.path_picture import path_picture
from ..perception.tracks import Tracks as TrackedObjects
from ..perception.tracks import frame_ranges
from .object_masks import track_of_mask
from .support.cache_weight import weighed
from .support.host import progress
from .support.inputs import decimal_input
from .support.mask_output import union_of
from .support.object_inputs import boxes_input, given_objects, objects_input
from .support.point_inputs import point_inputs, point_paths
from .support.types import CATEGORY, Tracks

logger = logging.getLogger(__name__)

MAX_FRAMES = 4096
MAX_SIDE = 16384
EXAMPLE = [
    {
        "label": "red ball",
        "shape": "ellipse",
        "curve": "spline",
        "keyframes": [
            {"frame": 0, "x": 0.25, "y": 0.7, "width": 0.35, "height": 0.35},
            {"frame": 4, "x": 0.5, "y": 0.3},
            {"frame": 7, "x": 0.75, "y": 0.7},
        ],
    }
]
PATH_FORMAT = (
    "JSON: a list of objects, each with keyframes; x and y are the object's middle, all in fractions of the picture (x "
    "0 left, 1 right; y 0 top, 1 bottom). A size holds until another is given."
)


def example_text() -> str:
    """The example, a keyframe a line."""
    return json.dumps(EXAMPLE).replace(' "keyframes": [', '\n "keyframes": [').replace('{"frame"', '\n  {"frame"')


class PathMasks(io.ComfyNode):
    """MGV_PathMasks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_PathMasks",
            display_name="Path Masks",
            category=f"{CATEGORY}/masks",
            description=(
                "Draws masks along paths: each object is a box or an ellipse with a place and size at some frames, and "
                "moves between them along lines or smooth curves. The path is shown under the node. Objects may come "
                "into the picture, leave it or be hidden."
            ),
            inputs=[
                io.String.Input(
                    "paths",
                    default=example_text(),
                    multiline=True,
                    tooltip=PATH_FORMAT + ' Per object: "label", "shape" (box, ellipse), "curve" (linear, spline, '
                    'hold), "hidden" ([[first, last]] frames), "keyframes". Empty: boxes and points alone.',
                ),
                *_film_inputs(),
                *_box_inputs(),
                *point_inputs("More objects."),
                io.String.Input(
                    "point_labels",
                    default="",
                    optional=True,
                    tooltip="What the objects of the points are called, separated by commas: one for each, or one for "
                    "all. Empty: no label.",
                ),
            ],
            outputs=[
                Tracks.Output(
                    display_name="tracks",
                    tooltip="One mask per object and frame with its label, for guidance by words.",
                ),
                io.Mask.Output(display_name="mask", tooltip="All objects together, one mask per frame."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="One picture of all paths: a dot per frame, outlines and frame numbers at the keyframes.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Per object: frames in which it is visible, and share of the picture.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        paths: str,
        frames: int,
        width: int,
        height: int,
        boxes: Any = None,
        box_shape: str = "box",
        box_curve: str = "linear",
        image: Tensor | None = None,
        points: Any = None,
        point_objects: str = "one_object",
        point_size: float = 0.0,
        point_labels: str = "",
    ) -> io.NodeOutput:
        drawn = parse_paths(paths)
        if boxes is not None:
            drawn += paths_of_boxes(as_detections(boxes, frames), height, width, box_shape, box_curve)
        drawn += point_paths(points, frames, height, width, point_objects, point_size, point_labels, box_shape)
        tracks = path_tracks(drawn, frames, height, width)
        report = sequence_report(tracks)
        logger.info(report)
        preview = path_picture(drawn, frames, height, width, image)
        return io.NodeOutput(weighed(tracks), union_of(tracks), preview, report, ui=ui.PreviewImage(preview, cls=cls))


def _film_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "frames",
            default=8,
            min=1,
            max=MAX_FRAMES,
            tooltip="Length of the video in frames: as many masks come out for each object.",
        ),
        io.Int.Input("width", default=64, min=1, max=MAX_SIDE, tooltip="Of the masks in pixels: that of the video."),
        io.Int.Input("height", default=64, min=1, max=MAX_SIDE, tooltip="Of the masks in pixels: that of the video."),
    ]


def _box_inputs() -> list[io.Input]:
    return [
        boxes_input(
            "More objects: a list of boxes per frame, in pixels of width and height. Boxes of one label are one "
            "object, which moves through the frames that have none; boxes without a label that are drawn once for all "
            "frames are an object each."
        ),
        io.Combo.Input(
            "box_shape",
            options=list(SHAPES),
            default="box",
            optional=True,
            tooltip="What the objects of boxes and points are: the whole box, or the ellipse in it.",
        ),
        io.Combo.Input(
            "box_curve",
            options=list(CURVES),
            default="linear",
            optional=True,
            tooltip="How they move between frames that have a box: along lines, along a smooth curve, or they jump "
            "(hold).",
        ),
        io.Image.Input(
            "image",
            optional=True,
            tooltip="Its first frame is shown behind the path in the preview, darkened; nothing else. Any size.",
        ),
    ]


class MaskSequence(io.ComfyNode):
    """MGV_MaskSequence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_MaskSequence",
            display_name="Mask Sequence",
            category=f"{CATEGORY}/masks",
            description=(
                "Brings masks to any number of frames and any size: shapes move and blend in between, are held, or "
                "begin again. Also places them on a drawn path, widens and softens them. With the defaults they come "
                "out as they are."
            ),
            inputs=[
                *_sequence_inputs(),
                *_outline_inputs(),
                *_placing_inputs(),
                *point_inputs("Instead of paths: masks are placed where the points are."),
            ],
            outputs=[
                Tracks.Output(display_name="tracks", tooltip="The same objects with the new masks."),
                io.Mask.Output(display_name="mask", tooltip="All objects together, one mask per frame."),
                io.String.Output(
                    display_name="report",
                    tooltip="Per object: frames in which it is visible, and share of the picture.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        paths: str,
        tracks: Any = None,
        mask: Tensor | None = None,
        points: Any = None,
        point_objects: str = "one_object",
        point_size: float = 0.0,
        **settings: Any,
    ) -> io.NodeOutput:
        if (tracks is None) == (mask is None):
            given = "both" if mask is not None else "neither"
            raise ValueError(f"{given} of tracks and mask is connected; connect exactly one of them.")
        given = track_of_mask(mask) if tracks is None else given_objects(tracks)
        wanted = SequenceSettings(paths=parse_paths(paths), **settings)
        if points is not None:
            wanted = _on_points(wanted, given, points, point_objects, point_size)
        made = make_sequence(given, wanted, progress())
        report = sequence_report(made)
        logger.info(report)
        return io.NodeOutput(weighed(made), union_of(made), report)


def _on_points(
    wanted: SequenceSettings, given: TrackedObjects, points: Any, point_objects: str, point_size: float
) -> SequenceSettings:
    """Settings whose paths are those of points.

    Raises:
        ValueError: there are paths too, masks would be fitted into points of no size, or points that do not fit.
    """
    if wanted.paths:
        raise ValueError("both paths and points say where the masks go; clear paths, or disconnect points.")
    if wanted.placing != "keep" and point_size == 0.0:
        raise ValueError(
            f"placing is {wanted.placing} but point_size is 0, so masks would shrink to the points; choose placing "
            "keep, or give point_size."
        )
    frames = wanted.frames or max(1, given.frames - wanted.start)
    height, width = wanted.height or given.size[0], wanted.width or given.size[1]
    return replace(wanted, paths=point_paths(points, frames, height, width, point_objects, point_size))


def _sequence_inputs() -> list[io.Input]:
    return [
        objects_input("tracks", "Objects with masks; they stay apart.", optional=True),
        io.Mask.Input(
            "mask", optional=True, tooltip="Instead of tracks: one object, one mask per frame or a single one."
        ),
        io.Int.Input(
            "frames",
            default=0,
            min=0,
            max=MAX_FRAMES,
            tooltip="Length of the result in frames. 0: as many as there are, less start.",
        ),
        io.Combo.Input(
            "timing",
            options=list(TIMINGS),
            default="interpolate",
            tooltip="How the length is reached. interpolate: spread over the video, shapes move and blend in between. "
            "hold: each mask for equally many frames. extend: at their own speed, the last one stays. repeat: at their "
            "own speed, then again from the first. exact: another length is an error.",
        ),
        io.Int.Input(
            "start",
            default=0,
            min=0,
            max=MAX_FRAMES,
            tooltip="Masks at the beginning that are left out: 8 begins with the ninth.",
        ),
    ]


def _outline_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "dilate",
            default=0,
            min=-512,
            max=512,
            tooltip="Pixels of the result by which masks grow, with a round outline; below 0 they shrink.",
        ),
        decimal_input(
            "feather", 0.0, "Pixels of the result over which the edge fades. 0: a hard edge.", most=256.0, step=0.5
        ),
        io.Int.Input("width", default=0, min=0, max=MAX_SIDE, tooltip="Of the result in pixels. 0: as it is."),
        io.Int.Input("height", default=0, min=0, max=MAX_SIDE, tooltip="Of the result in pixels. 0: as it is."),
    ]


def _placing_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "paths",
            default="",
            multiline=True,
            tooltip="Empty: masks stay where they are. Otherwise each mask is placed in its object's box of that "
            "frame, one path for each object or one for all; written as in Path Masks. " + PATH_FORMAT,
        ),
        io.Combo.Input(
            "placing",
            options=list(PLACINGS),
            default="fit",
            tooltip="How a mask is placed in its box: stretch fills it, fit keeps its proportions, keep its size too "
            "(only the box's middle counts).",
        ),
    ]


def sequence_report(tracks: TrackedObjects) -> str:
    """Length and size, and a line for each object."""
    height, width = tracks.size
    lines = [f"{tracks.frames} frames, {width} x {height} pixels, {len(tracks.ids)} objects."]
    for number, (identity, label) in enumerate(zip(tracks.ids, tracks.labels, strict=True)):
        name = f"{identity} {label}".strip()
        there = [frame for frame in range(tracks.frames) if tracks.masks.any(number, frame)]
        area = sum(float((tracks.masks[number, frame] > 127).float().mean()) for frame in there) / max(1, len(there))
        line = f"{name}: in {len(there)} of {tracks.frames} frames, {100 * area:.1f} % of the picture"
        gone = sorted(set(range(tracks.frames)) - set(there))
        lines.append(line + (f", not in {frame_ranges(gone)}." if gone else "."))
    return "\n".join(lines)
