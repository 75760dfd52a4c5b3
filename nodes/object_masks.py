"""Followed objects as masks and boxes for other nodes, and masks as followed objects."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..perception.boxes import Box
from ..perception.mask_shapes import box_of_mask
from ..perception.mask_stack import MaskStack
from ..perception.tracks import Tracks as TrackedObjects
from .support.cache_weight import weighed
from .support.mask_output import masks_of_object, union_of
from .support.object_inputs import given_objects, objects_input
from .support.types import CATEGORY, BoundingBox, Tracks


class SplitTracks(io.ComfyNode):
    """MGV_SplitTracks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_SplitTracks",
            display_name="Split Tracks",
            category=f"{CATEGORY}/converters",
            description=(
                "Takes followed objects apart: a MASK batch for every object, and the boxes around them in every "
                "frame. Nodes that follow run once for every object."
            ),
            inputs=[objects_input("tracks", "From Track Masks, Refine Masks or Select Objects.")],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="For every object one mask per frame. Without objects: one batch of black masks.",
                ),
                io.String.Output(display_name="labels", is_output_list=True, tooltip="The label of every object."),
                io.Int.Output(
                    display_name="ids", is_output_list=True, tooltip="The number of every object; 0 for none."
                ),
                BoundingBox.Output(
                    display_name="boxes",
                    tooltip="One list per frame of the boxes around all objects, with label and score; none where the "
                    "mask is empty.",
                ),
            ],
        )

    @classmethod
    def execute(cls, tracks: Any) -> io.NodeOutput:
        tracks = given_objects(tracks)
        boxes = [[box.to_dict() for box in found] for found in boxes_of_tracks(tracks)]
        if not tracks.ids:
            return io.NodeOutput([union_of(tracks)], [""], [0], boxes)
        masks = [masks_of_object(tracks, number) for number in range(len(tracks.ids))]
        return io.NodeOutput(masks, list(tracks.labels), list(tracks.ids), boxes)


def boxes_of_tracks(tracks: TrackedObjects) -> list[list[Box]]:
    """The tight box around every object in every frame where its mask is not empty, best score first."""
    found: list[list[Box]] = [[] for _ in range(tracks.frames)]
    for number, label in enumerate(tracks.labels):
        for frame in range(tracks.frames):
            if tracks.masks.any(number, frame):
                box = box_of_mask(tracks.masks[number, frame], label)
                if box is not None:
                    score = float(tracks.scores[number, frame])
                    found[frame].append(Box(box.x, box.y, box.width, box.height, label, score))
    return [sorted(boxes, key=lambda box: -box.score) for boxes in found]


class MaskToTracks(io.ComfyNode):
    """MGV_MaskToTracks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_MaskToTracks",
            display_name="Mask to Tracks",
            category=f"{CATEGORY}/converters",
            description=(
                "Makes a followed object of masks that come from elsewhere, so that it can be refined, shown and "
                "guide attention beside others. Chain several for several objects."
            ),
            inputs=[
                io.Mask.Input("mask", tooltip="One object: one mask per frame."),
                io.String.Input(
                    "label", default="", tooltip="What the object is called, such as: red ball. May be empty."
                ),
                objects_input("tracks", "Objects to which this one is added; same frames and size.", optional=True),
            ],
            outputs=[Tracks.Output(display_name="tracks", tooltip="All objects; this one is the last.")],
        )

    @classmethod
    def execute(cls, mask: Tensor, label: str, tracks: Any = None) -> io.NodeOutput:
        added = track_of_mask(mask, " ".join(label.split()))
        return io.NodeOutput(weighed(added if tracks is None else joined_tracks(given_objects(tracks), added)))


def track_of_mask(mask: Tensor, label: str = "") -> TrackedObjects:
    """A MASK as one object; it is packed frame by frame, not copied.

    Args:
        mask: [T, H, W], [H, W] or [T, 1, H, W], 0..1.
        label: what it is called.

    Raises:
        ValueError: wrong shape, no frames, or values that are not finite.
    """
    shape = tuple(mask.shape)
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"mask has shape {shape}; connect a MASK [frames, height, width].")
    return TrackedObjects.from_masks(mask, (label,))


def joined_tracks(tracks: TrackedObjects, added: TrackedObjects) -> TrackedObjects:
    """Objects with others after them; those get new numbers.

    Raises:
        ValueError: when frames or sizes differ.
    """
    if (added.frames, *added.size) != (tracks.frames, *tracks.size):
        (height, width), (other_height, other_width) = tracks.size, added.size
        raise ValueError(
            f"the mask has {added.frames} frames of {other_width} x {other_height} pixels and the tracks "
            f"{tracks.frames} of {width} x {height}; give masks of the same video."
        )
    soft = "byte" in (tracks.masks.depth, added.masks.depth)
    stack = MaskStack(tracks.frames, *tracks.size, "byte" if soft else "bit", tracks.masks.folder)
    for source in (tracks, added):
        for number in range(len(source.ids)):
            place = stack.add_object()
            for frame in range(source.frames):
                stack.write(place, frame, source.masks[number, frame])
    first = max(tracks.ids, default=0) + 1
    return TrackedObjects(
        stack,
        (*tracks.ids, *range(first, first + len(added.ids))),
        (*tracks.labels, *added.labels),
        torch.cat([tracks.scores, added.scores]),
        torch.cat([tracks.misses, added.misses]),
    )
