"""Follow objects through a film and refine their masks."""

from __future__ import annotations

import json
import logging
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..perception.boxes import Box, Detections
from ..perception.tracks import Tracks as TrackedObjects
from .types import CATEGORY, BoundingBox, HelperModel, SegmenterType, Tracks

logger = logging.getLogger(__name__)

MAX_POINTS = 256


class TrackMasks(io.ComfyNode):
    """MGV_TrackMasks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_TrackMasks",
            display_name="Track Masks",
            category=f"{CATEGORY}/perception",
            description=(
                "Turns boxes, points or a rough mask into one mask per object and frame, with numbers that stay the "
                "same through the film. There are always as many masks as frames; where an object is not seen, its "
                "mask is filled from neighbouring frames or empty, and the report says so."
            ),
            inputs=[
                SegmenterType.Input("model", tooltip="From Load SAM."),
                io.Image.Input("image", tooltip="The film, one picture per frame."),
                BoundingBox.Input(
                    "boxes", optional=True, tooltip="From Detect Objects: one list per frame, or one for all."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Rough masks of one object: one per frame (empty ones are ignored), or a single one for "
                    "prompt_frame.",
                ),
                io.String.Input(
                    "points",
                    default="",
                    tooltip='Points on one object in prompt_frame as JSON, pixels: [{"x": 20, "y": 30}]. "label": 0 '
                    "marks a point off it.",
                ),
                io.Int.Input(
                    "prompt_frame",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Frame (from 0) that points and a single mask belong to.",
                ),
                io.Int.Input(
                    "max_gap",
                    default=8,
                    min=0,
                    max=1000,
                    tooltip="An object unseen for at most this many frames keeps its number and is filled in. 0: "
                    "every gap ends it.",
                ),
                io.Int.Input(
                    "extend",
                    default=2,
                    min=0,
                    max=1000,
                    tooltip="Frames an object is followed before its first and after its last sighting. 0: not at "
                    "all. Points and single masks are followed through the whole film.",
                ),
                io.Int.Input(
                    "minimum_seen",
                    default=2,
                    min=1,
                    max=1000,
                    tooltip="Objects seen in fewer frames are dropped as false alarms. 1 keeps all.",
                ),
                io.Int.Input(
                    "max_objects",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Keep the most often and most surely seen ones. 0: all.",
                ),
                io.Boolean.Input("soft", default=False, tooltip="On: soft edges. Off: masks are 0 or 1."),
            ],
            outputs=[
                Tracks.Output(
                    display_name="tracks",
                    tooltip="Masks per object with number and label, for Refine Masks and Mask to Attention Bias.",
                ),
                io.Mask.Output(display_name="mask", tooltip="All objects together, one mask per frame."),
                io.Image.Output(
                    display_name="preview", tooltip="The film with the objects tinted, outlined and numbered."
                ),
                io.String.Output(display_name="report", tooltip="Per object: frames seen, mean score, frames missed."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HelperModel,
        image: Tensor,
        points: str,
        prompt_frame: int,
        max_gap: int,
        extend: int,
        minimum_seen: int,
        max_objects: int,
        soft: bool,
        boxes: Any = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        from ..perception.boxes import as_detections
        from ..perception.drawing import draw_masks
        from ..perception.tracker import TrackSettings
        from .host import load_helper, progress
        from .inputs import frames_of

        frames = frames_of(image).cpu()
        count = len(frames)
        if boxes is None and mask is None and not points.strip():
            raise ValueError("there are no boxes, mask or points; connect or write one of them to say what to follow.")
        if prompt_frame >= count:
            raise ValueError(f"prompt_frame is {prompt_frame} but the film has {count} frames; use 0 to {count - 1}.")
        tracker = load_helper(model, count)
        detections = as_detections(boxes, count) if boxes is not None else [[] for _ in range(count)]
        hints = [[] for _ in range(count)]
        if mask is not None:
            hints = boxes_of_masks(mask, prompt_frame, frames)
        if points.strip():
            hints[prompt_frame] += box_at_points(tracker, frames[prompt_frame], points)
        if sum(map(len, hints)) == 1:
            # A prompt on one frame means: follow it through the film.
            extend, minimum_seen = count, 1
        detections = [[*found, *hint] for found, hint in zip(detections, hints, strict=True)]
        settings = TrackSettings(max_gap, extend, minimum_seen, max_objects or None, soft)
        tracks = tracker.track(frames, detections, settings, progress=progress())
        report = tracks.report()
        logger.info(report)
        return io.NodeOutput(tracks, tracks.union(), draw_masks(frames, tracks), report)


def boxes_of_masks(mask: Tensor, prompt_frame: int, frames: Tensor) -> Detections:
    """Boxes around rough masks: of every frame that has one, or of the prompt frame when there is a single mask.

    Raises:
        ValueError: if there are neither one nor T masks, or all of them are empty.
    """
    from ..perception.tracker import box_of_mask
    from .inputs import masks_for_frames, masks_of

    count, height, width = frames.shape[:3]
    single = len(masks_of(mask)) == 1 and count > 1
    masks = masks_for_frames(mask, count, height, width)
    hints: Detections = [[] for _ in range(count)]
    for frame in [prompt_frame] if single else range(count):
        box = box_of_mask(masks[frame])
        if box is not None:
            hints[frame].append(box)
    if not any(hints):
        raise ValueError("the mask is empty in every frame it speaks for; paint over the object, or disconnect it.")
    return hints


def box_at_points(tracker: Any, frame: Tensor, points: str) -> list[Box]:
    """The box of what points mark in one frame; none when the segmenter finds nothing there.

    Raises:
        ValueError: if the text is not JSON of points inside the frame.
    """
    from ..perception.tracker import box_of_mask

    places, inside = parse_points(points, frame.shape[1], frame.shape[0])
    box = box_of_mask(tracker.mask_at_points(frame, places, inside))
    return [] if box is None else [box]


def parse_points(text: str, width: int, height: int) -> tuple[list[tuple[float, float]], list[bool]]:
    """Read ``[{"x": 1, "y": 2, "label": 1}]``.

    Returns:
        (x, y) in pixels, and whether each lies on the object.

    Raises:
        ValueError: naming what is wrong with which point.
    """
    example = 'write for example [{"x": 20, "y": 30}]'
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"points is no JSON ({error}); {example}.") from error
    if not isinstance(values, list) or not 0 < len(values) <= MAX_POINTS:
        raise ValueError(f"points must be a list of 1 to {MAX_POINTS} points; {example}.")
    places, inside = [], []
    for value in values:
        numbers = [value.get("x"), value.get("y")] if isinstance(value, dict) else [None]
        if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
            raise ValueError(f"point {value!r} has no numbers x and y; {example}.")
        x, y = numbers
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"point {x}, {y} lies outside the picture of {width} x {height} pixels; move it inside.")
        places.append((float(x), float(y)))
        inside.append(bool(value.get("label", 1)))
    return places, inside


class RefineMasks(io.ComfyNode):
    """MGV_RefineMasks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_RefineMasks",
            display_name="Refine Masks",
            category=f"{CATEGORY}/perception",
            description=(
                "Steadies masks over time and changes their outline: fill gaps, median over frames, hysteresis, grow "
                "or shrink, feather. Frames in are frames out; works on tracks object by object, or on a MASK."
            ),
            inputs=[
                Tracks.Input("tracks", optional=True, tooltip="From Track Masks; comes back refined."),
                io.Mask.Input("mask", optional=True, tooltip="Instead of tracks: one mask per frame."),
                *refinement_inputs(),
            ],
            outputs=[
                Tracks.Output(display_name="tracks", tooltip="The refined tracks (a MASK becomes one track)."),
                io.Mask.Output(display_name="mask", tooltip="All objects together, one mask per frame."),
            ],
        )

    @classmethod
    def execute(cls, tracks: Any = None, mask: Tensor | None = None, **settings: Any) -> io.NodeOutput:
        from .inputs import masks_of

        if (tracks is None) == (mask is None):
            given = "both" if mask is not None else "neither"
            raise ValueError(f"{given} of tracks and mask is connected; connect exactly one of them.")
        if tracks is None:
            tracks = TrackedObjects.from_masks(masks_of(mask))
        refined = refine_tracks(tracks, settings)
        return io.NodeOutput(refined, refined.union())


def refinement_inputs() -> list[io.Input]:
    """Widgets of the refinement, in the order in which it is done."""
    return [
        io.Int.Input(
            "fill_gaps",
            default=0,
            min=0,
            max=1000,
            tooltip="Empty frames in a row, at most this many, that are filled from the frames around them. 0: none.",
        ),
        io.Int.Input(
            "median_frames",
            default=1,
            min=1,
            max=99,
            step=2,
            tooltip="Median over this many frames (odd): removes flicker. 1: off; too many frames blur the motion.",
        ),
        io.Float.Input(
            "hysteresis_low",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.01,
            tooltip="With hysteresis_high: pixels above it stay when they touch, in space or time, pixels above the "
            "high one. At most hysteresis_high.",
        ),
        io.Float.Input(
            "hysteresis_high",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.01,
            tooltip="Pixels above it are surely inside. 0: no hysteresis; 0.5 with low 0.2 cleans soft masks.",
        ),
        io.Int.Input(
            "grow",
            default=0,
            min=-512,
            max=512,
            tooltip="Pixels to grow the outline by; negative shrinks. 0: as it is.",
        ),
        io.Float.Input(
            "feather",
            default=0.0,
            min=0.0,
            max=256.0,
            step=0.5,
            round=0.5,
            tooltip="Pixels over which the edge fades. 0: a hard edge.",
        ),
    ]


def refine_tracks(tracks: TrackedObjects, settings: dict[str, Any]) -> TrackedObjects:
    """Refine the masks of every object; an empty set of tracks comes back as it is."""
    from ..perception.mask_refinement import refine_masks

    if not tracks.ids:
        return tracks
    return tracks.with_masks(refine_masks(tracks.object_masks(), **settings))


NODES = [TrackMasks, RefineMasks]
