"""Boxes and objects from and to the forms that other packs use: BBOX and SEGS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..perception.box_formats import (
    NESTINGS,
    SIDES,
    Segs,
    film_to_segs,
    from_bbox,
    from_segs,
    masks_of_segs,
    to_bbox,
    to_segs,
)
from ..perception.boxes import Box, Detections, as_detections
from ..perception.frames import Film
from ..perception.mask_shapes import box_of_mask
from ..perception.tracks import Tracks as TrackedObjects
from .support.inputs import decimal_input
from .support.mask_output import new_masks
from .support.object_inputs import boxes_input, given_objects, objects_input
from .support.types import CATEGORY, BoundingBox, PlainBoxes, Segments

WHOLE_FILM = -1
FORMAT_TOOLTIP = (
    "What the four numbers are. xywh: left, top, width, height (most of KJNodes). xyxy: left, top, right, bottom "
    "(segment-anything-2). Nothing is guessed."
)


class BoxesToBBOX(io.ComfyNode):
    """MGV_BoxesToBBOX."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_BoxesToBBOX",
            display_name="Boxes to BBOX",
            category=f"{CATEGORY}/converters",
            description="Turns bounding boxes with label and score into the plain numbers that other packs take.",
            inputs=[
                boxes_input("From Detect Objects or Split Tracks: one list per frame, or one.", optional=False),
                io.Combo.Input("format", options=list(SIDES), default="xywh", tooltip=FORMAT_TOOLTIP),
                io.Combo.Input(
                    "nesting",
                    options=list(NESTINGS),
                    default="one_per_frame",
                    tooltip="one_per_frame: the best box of each frame, zeros where there is none (KJNodes). "
                    "list_per_frame: a list of boxes for each frame (segment-anything-2). every_frame: the boxes of "
                    "one frame as a plain list.",
                ),
                io.Int.Input(
                    "frame", default=0, min=0, max=100000, tooltip="Which frame (from 0) when nesting is every_frame."
                ),
                io.Boolean.Input(
                    "whole_pixels",
                    default=True,
                    tooltip="On: boxes grow to whole pixels, as nodes that crop want them. Off: as exact as they are.",
                ),
            ],
            outputs=[PlainBoxes.Output(display_name="bbox", tooltip="Four numbers a box, nested as chosen.")],
        )

    @classmethod
    def execute(cls, boxes: Any, format: str, nesting: str, frame: int, whole_pixels: bool) -> io.NodeOutput:
        detections = nested_boxes(boxes)
        if nesting == "every_frame":
            detections = [boxes_in_frame(detections, frame)]
        if whole_pixels:
            detections = [[_grown_to_pixels(box) for box in found] for found in detections]
        return io.NodeOutput(to_bbox(detections, format, nesting))


class BBOXToBoxes(io.ComfyNode):
    """MGV_BBOXToBoxes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_BBOXToBoxes",
            display_name="BBOX to Boxes",
            category=f"{CATEGORY}/converters",
            description="Turns the plain numbers that other packs pass as BBOX into bounding boxes.",
            inputs=[
                PlainBoxes.Input("bbox", tooltip="Four numbers a box, from another pack."),
                io.Combo.Input("format", options=list(SIDES), default="xywh", tooltip=FORMAT_TOOLTIP),
                io.Combo.Input(
                    "nesting",
                    options=list(NESTINGS),
                    default="one_per_frame",
                    tooltip="one_per_frame: a list with one box for each frame (KJNodes). list_per_frame: a list of "
                    "boxes for each frame (segment-anything-2). every_frame: all boxes of one picture, for every frame "
                    "alike.",
                ),
                io.String.Input(
                    "label", default="", tooltip="What the boxes are called, such as: red ball. May be empty."
                ),
            ],
            outputs=[
                BoundingBox.Output(
                    display_name="boxes", tooltip="One list per frame, or with every_frame one list for all frames."
                )
            ],
        )

    @classmethod
    def execute(cls, bbox: Any, format: str, nesting: str, label: str) -> io.NodeOutput:
        frames = 1 if nesting == "every_frame" else max(1, _length(bbox))
        detections = from_bbox(bbox, frames, format, nesting, " ".join(label.split()))
        boxes = [[box.to_dict() for box in found] for found in detections]
        return io.NodeOutput(boxes[0] if nesting == "every_frame" else boxes)


class ToSEGS(io.ComfyNode):
    """MGV_ToSEGS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_ToSEGS",
            display_name="To SEGS",
            category=f"{CATEGORY}/converters",
            description="Turns objects or boxes into SEGS, which Impact Pack's detailers and filters work on.",
            inputs=[
                objects_input("tracks", "Objects with their masks.", optional=True),
                boxes_input("Instead of tracks; the boxes are then the masks."),
                io.Image.Input(
                    "image", optional=True, tooltip="The video; its crops go along. Boxes need it for their size."
                ),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=WHOLE_FILM,
                    max=100000,
                    tooltip="Frame (from 0) that the segments are of. -1: the whole video, each object with a mask for "
                    "every frame, as Impact Pack's nodes for videos take it (tracks only).",
                ),
                decimal_input(
                    "crop_factor",
                    3.0,
                    "How many times as large as the box the region is that a detailer sees. 1: the box alone.",
                    least=1.0,
                    most=100.0,
                    step=0.1,
                ),
            ],
            outputs=[Segments.Output(display_name="segs", tooltip="One segment for every object; may be empty.")],
        )

    @classmethod
    def execute(
        cls,
        frame: int,
        crop_factor: float,
        tracks: Any = None,
        boxes: Any = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        if (tracks is None) == (boxes is None):
            given = "both" if tracks is not None else "neither"
            raise ValueError(f"{given} of tracks and boxes is connected; connect exactly one of them.")
        film = None if image is None else Film(image)
        if boxes is not None:
            return io.NodeOutput(_segs_of_boxes(boxes, film, frame, crop_factor))
        return io.NodeOutput(_segs_of_tracks(given_objects(tracks), film, frame, crop_factor))


class FromSEGS(io.ComfyNode):
    """MGV_FromSEGS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_FromSEGS",
            display_name="From SEGS",
            category=f"{CATEGORY}/converters",
            description="Turns SEGS of Impact Pack into bounding boxes and a mask.",
            inputs=[
                Segments.Input("segs", tooltip="Of one picture, or of a video with a mask for every frame."),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Frame (from 0) of the video that segments of one picture are about.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The video that the boxes and masks should fit. Without: one picture of the segments' "
                    "size.",
                ),
            ],
            outputs=[
                BoundingBox.Output(display_name="boxes", tooltip="One list per frame, with label and score."),
                io.Mask.Output(display_name="mask", tooltip="All segments together, one mask per frame."),
            ],
        )

    @classmethod
    def execute(cls, segs: Any, frame: int, image: Tensor | None = None) -> io.NodeOutput:
        masks = masks_of_segs(segs)
        if image is None:
            frames, height, width, frame = *masks.shape[1:], 0
            if 0 in (height, width):
                raise ValueError(
                    f"SEGS of {width} x {height} pixels say nothing of the picture's size; connect the video to image."
                )
        else:
            film = Film(image)
            frames, height, width = len(film), film.height, film.width
        boxes = [[box.to_dict() for box in found] for found in from_segs(segs, frames, height, width, frame)]
        together = new_masks(frames, height, width)
        for place in range(masks.shape[1]) if len(masks) else ():
            target = place if masks.shape[1] > 1 else frame
            together[target] = _fitted(masks[:, place].amax(0), height, width)
        return io.NodeOutput(boxes, together)


def nested_boxes(boxes: Any) -> Detections:
    """What a BOUNDING_BOX wire carries as one list per frame; a box or a flat list is one frame.

    Raises:
        ValueError: when an entry is not a box.
    """
    nested = isinstance(boxes, Sequence) and any(isinstance(item, Sequence) for item in boxes)
    return as_detections(boxes, len(boxes) if nested else 1)


def boxes_in_frame(detections: Detections, frame: int) -> list[Box]:
    """The boxes of a frame; a single list is for every frame.

    Raises:
        ValueError: when there is no such frame.
    """
    if len(detections) == 1:
        return detections[0]
    if not 0 <= frame < len(detections):
        raise ValueError(f"frame is {frame} but there are boxes for {len(detections)}; use 0 to {len(detections) - 1}.")
    return detections[frame]


def _segs_of_boxes(boxes: Any, film: Film | None, frame: int, crop_factor: float) -> Segs:
    if film is None:
        raise ValueError("boxes say nothing of the size of the picture; connect the video to image, too.")
    if frame == WHOLE_FILM:
        raise ValueError("frame is -1, the whole video, which boxes cannot be; choose a frame, or connect tracks.")
    _check_frame(frame, len(film))
    found = boxes_in_frame(nested_boxes(boxes), frame)
    return to_segs(found, None, film.height, film.width, crop_factor, film.read([frame])[0])


def _segs_of_tracks(tracks: TrackedObjects, film: Film | None, frame: int, crop_factor: float) -> Segs:
    height, width = tracks.size
    if film is not None and (len(film), film.height, film.width) != (tracks.frames, height, width):
        raise ValueError(
            f"the tracks have {tracks.frames} frames of {width} x {height} pixels and the video {len(film)} of "
            f"{film.width} x {film.height}; connect the video that was tracked."
        )
    if frame == WHOLE_FILM:
        seen = (~tracks.misses).sum(1).clamp(min=1)
        scores = (tracks.scores.sum(1) / seen).tolist()
        return film_to_segs(tracks.masks.tensor(), tracks.labels, scores, height, width, crop_factor)
    _check_frame(frame, tracks.frames)
    boxes, masks = [], []
    for number, label in enumerate(tracks.labels):
        mask = tracks.masks[number, frame]
        box = box_of_mask(mask, label)
        if box is not None:
            boxes.append(Box(box.x, box.y, box.width, box.height, label, float(tracks.scores[number, frame])))
            masks.append(mask)
    together = torch.stack(masks) if masks else None
    return to_segs(boxes, together, height, width, crop_factor, None if film is None else film.read([frame])[0])


def _check_frame(frame: int, frames: int) -> None:
    if frame >= frames:
        raise ValueError(f"frame is {frame} but the video has {frames} frames; use 0 to {frames - 1}.")


def _grown_to_pixels(box: Box) -> Box:
    x0, y0, x1, y1 = box.corners
    corners = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
    return Box.from_corners(*corners, box.label, box.score)


def _length(bbox: Any) -> int:
    """Entries of a nested BBOX; a single box is one."""
    if isinstance(bbox, Tensor) or hasattr(bbox, "tolist"):
        bbox = bbox.tolist()
    if not isinstance(bbox, Sequence) or all(isinstance(item, int | float) for item in bbox):
        return 1
    return len(bbox)


def _fitted(mask: Tensor, height: int, width: int) -> Tensor:
    if tuple(mask.shape) == (height, width):
        return mask
    return torch.nn.functional.interpolate(mask[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
