"""Types on the wires and helpers for schemas that several node modules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

CATEGORY = "Mask-Guided Video"
TOYBOX = "Toybox"
# The choice of a widget that leaves a value to the mask mode.
OWN = "mode's own"

# Core's dict form of boxes, one list per frame.
BoundingBox = io.Custom("BOUNDING_BOX")
Tracks = io.Custom("MGV_TRACKS")
# A tuple of ObjectPrompt.
Prompts = io.Custom("MGV_PROMPTS")
# Tuples of four numbers, xywh or xyxy as the pack that makes them likes; converted at the border, never guessed.
PlainBoxes = io.Custom("BBOX")
# ((height, width), [SEG, ...]) as Impact Pack has it.
Segments = io.Custom("SEGS")
Guide = io.Custom("MGV_GUIDE")
DetectorType = io.Custom("MGV_DETECTOR")
SegmenterType = io.Custom("MGV_SEGMENTER")

SEED_RANGE = {"min": 0, "max": 0xFFFFFFFFFFFFFFFF}


@dataclass(frozen=True)
class HelperModel:
    """A detector or segmenter under ComfyUI's memory management.

    Attributes:
        patcher: ``comfy.model_patcher.ModelPatcher`` around the torch module.
        helper: the object with ``detect`` or ``track``; it reads the device from its module.
        name: for messages.
    """

    patcher: Any
    helper: Any
    name: str


def display_range(step: float) -> dict[str, Any]:
    """Step and rounding of a float widget."""
    return {"step": step, "round": step}
