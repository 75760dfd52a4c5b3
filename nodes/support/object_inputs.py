"""Inputs for followed objects, in this pack's form or in core's, and what comes through them in one form."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...perception.sam3_track_data import tracks_of_track_data
from ...perception.tracks import Tracks as TrackedObjects
from .mask_output import union_of
from .types import BoundingBox, BoundingBoxes, TrackData, Tracks


def objects_input(name: str, tooltip: str, optional: bool = False) -> io.Input:
    """Followed objects, ours or of core's SAM 3 tracker; ``given_objects`` reads what comes.

    Args:
        name: of the input.
        tooltip: what they are and where they come from.
        optional: whether it may be left open.
    """
    told = f"{tooltip} Also track_data of core's SAM3 Video Track."
    return io.MultiType.Input(
        name, [Tracks, TrackData], optional=optional, tooltip=told, extra_dict={"forceInput": True}
    )


def mask_or_objects_input(name: str, tooltip: str) -> io.Input:
    """An optional MASK, or followed objects that are one mask together; ``given_mask`` reads what comes."""
    told = f"{tooltip} Also tracks, or track_data of core's SAM3 Video Track: all objects together."
    return io.MultiType.Input(
        name, [io.Mask, Tracks, TrackData], optional=True, tooltip=told, extra_dict={"forceInput": True}
    )


def boxes_input(tooltip: str, optional: bool = True) -> io.Input:
    """Bounding boxes, of a detector or drawn on core's canvas; ``perception.boxes`` reads both."""
    return io.MultiType.Input(
        "boxes", [BoundingBox, BoundingBoxes], optional=optional, tooltip=tooltip, extra_dict={"forceInput": True}
    )


def given_objects(value: Any) -> TrackedObjects:
    """What came through ``objects_input``.

    Raises:
        ValueError: it is neither.
    """
    return value if isinstance(value, TrackedObjects) else tracks_of_track_data(value)


def given_mask(value: Any) -> Tensor | None:
    """What came through ``mask_or_objects_input`` as a MASK; None where nothing is connected.

    Raises:
        ValueError: it is none of what the input takes.
    """
    if value is None or isinstance(value, torch.Tensor):
        return value
    return union_of(given_objects(value))
