"""Inputs for points over time, as core passes them, that say where objects are."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...perception.masks.mask_paths import ObjectPath
from ...perception.masks.point_tracks import GROUPINGS, PointTracks, paths_of_points
from ...perception.phrases import listed_parts
from .inputs import decimal_input
from .types import PointTracks as PointTracksType

MAX_SIZE = 16384.0


def point_inputs(use: str) -> list[io.Input]:
    """Points, and how they are objects; all optional, since they came later.

    Args:
        use: what the points do in this node, as a sentence.
    """
    return [
        PointTracksType.Input(
            "points",
            optional=True,
            tooltip=f"{use} TRACKS of core, such as Generate Video Tracks or WanMove Tracks From Coords: points in "
            "pixels of the video, one place per frame.",
        ),
        io.Combo.Input(
            "point_objects",
            options=list(GROUPINGS),
            default="one_object",
            optional=True,
            tooltip="one_object: all points are on one object, whose box holds the visible ones. object_per_point: "
            "each point is the middle of an object of its own.",
        ),
        decimal_input(
            "point_size",
            0.0,
            "Pixels by which the box is wider and higher than the points in it; the size of an object of one point.",
            most=MAX_SIZE,
            step=1.0,
            optional=True,
        ),
    ]


def point_paths(
    points: Any,
    frames: int,
    height: int,
    width: int,
    grouping: str,
    size: float,
    labels: str = "",
    shape: str = "box",
) -> tuple[ObjectPath, ...]:
    """Paths of the objects that points say; none without points.

    Args:
        points: what came through the input, or None.
        frames, height, width: of the masks.
        grouping, size: of the widgets.
        labels: separated by commas, may be empty.
        shape: of the objects.

    Raises:
        ValueError: points that are none, or do not fit the masks.
    """
    if points is None:
        return ()
    read = PointTracks.of_core(points)
    return paths_of_points(read, frames, height, width, grouping, size, listed_parts(labels), shape)
