"""Types on the wires and helpers for schemas that several node modules share."""

from __future__ import annotations

from typing import Any, NamedTuple

from comfy_api.latest import io

CATEGORY = "Mask-Guided Video"
TOYBOX = "Toybox"
# The choice of a widget that leaves a value to the mask mode.
OWN = "mode's own"


def link_type(name: str) -> Any:
    """A type that comes by link only.

    The frontend gives some types an editor of its own, others with every release, and an input with an editor sends a
    value that nobody gave.
    """
    kind: Any = io.Custom(name)

    class LinkInput(kind.Input):
        def as_dict(self) -> dict[str, Any]:
            return {**super().as_dict(), "forceInput": True}

    kind.Input = LinkInput
    return kind


# Core's dict form of boxes, one list per frame.
BoundingBox = link_type("BOUNDING_BOX")
# And that of its canvas: a flat list, with a description of each box.
BoundingBoxes = link_type("BOUNDING_BOXES")
Tracks = link_type("MGV_TRACKS")
# What core's SAM 3 tracker gives.
TrackData = link_type("SAM3_TRACK_DATA")
# Core's points over time: track_path [frames, points, 2] and track_visibility.
PointTracks = link_type("TRACKS")
# Core's curve (``comfy_api.input.CurveInput``).
Curve = link_type("CURVE")
# A ``ModelPatcher`` around torchvision's RAFT, from core's loader.
OpticalFlow = link_type("OPTICAL_FLOW")
# A tuple of ObjectPrompt.
Prompts = link_type("MGV_PROMPTS")
# Tuples of four numbers, xywh or xyxy as the pack that makes them likes; converted at the border, never guessed.
PlainBoxes = link_type("BBOX")
# ((height, width), [SEG, ...]) as Impact Pack has it.
Segments = link_type("SEGS")
Guide = link_type("MGV_GUIDE")
DetectorType = link_type("MGV_DETECTOR")
SegmenterType = link_type("MGV_SEGMENTER")

SEED_RANGE = {"min": 0, "max": 0xFFFFFFFFFFFFFFFF}


class HelperModel(NamedTuple):
    """A detector or segmenter under ComfyUI's memory management; a tuple, since its cache finds models in tuples only.

    Attributes:
        patcher: ``comfy.model_patcher.ModelPatcher`` around the torch module.
        helper: the object with ``detect`` or ``track``; it reads the device from its module.
        name: for messages.
    """

    patcher: Any
    helper: Any
    name: str
