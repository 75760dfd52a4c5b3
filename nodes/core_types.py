"""Followed objects in the forms that core's own nodes take."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..perception.masks.point_tracks import MAX_POINTS, points_of_tracks
from ..perception.sam3_track_data import track_data_of
from .object_masks import boxes_of_tracks
from .support.object_inputs import given_objects, objects_input
from .support.types import CATEGORY, BoundingBox, PointTracks, TrackData


class TracksToCore(io.ComfyNode):
    """MGV_TracksToCore."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_TracksToCore",
            display_name="Tracks to Core",
            category=f"{CATEGORY}/converters",
            search_aliases=["sam3 track data", "wanmove tracks", "ati tracks", "point tracks", "trajectory"],
            description=(
                "Gives followed objects to core's own nodes: as SAM3 track data (SAM3 Track Preview, SAM3 Track to "
                "Mask, SCAIL-2), as points over time (WanMove, ATI) and as bounding boxes."
            ),
            inputs=[
                objects_input("tracks", "From Track Masks, Path Masks or any other node of tracks."),
                io.Int.Input(
                    "points_per_object",
                    default=1,
                    min=1,
                    max=MAX_POINTS,
                    tooltip="1: the middle of the mask. More: spread over the mask, moving and growing with the box "
                    "around it.",
                ),
            ],
            outputs=[
                TrackData.Output(
                    display_name="track_data",
                    tooltip="For core's SAM3 nodes; object 1 is number 0 there. Soft masks are cut at one half.",
                ),
                PointTracks.Output(
                    display_name="points",
                    tooltip="For WanMove Track To Video and the like; not visible where the mask is empty.",
                ),
                io.Int.Output(display_name="track_length", tooltip="Frames of the points."),
                BoundingBox.Output(
                    display_name="boxes",
                    tooltip="One list per frame of the boxes around all objects, with label and score.",
                ),
            ],
        )

    @classmethod
    def execute(cls, tracks: Any, points_per_object: int) -> io.NodeOutput:
        objects = given_objects(tracks)
        points = points_of_tracks(objects, points_per_object)
        boxes = [[box.to_dict() for box in found] for found in boxes_of_tracks(objects)]
        return io.NodeOutput(track_data_of(objects), points.to_core(), points.frames, boxes)
