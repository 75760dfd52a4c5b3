"""Find objects in a film by text."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .types import CATEGORY, TOYBOX, BoundingBox, DetectorType, HelperModel, display_range

logger = logging.getLogger(__name__)

MODEL_FOLDERS = ("grounding-dino",)


class LoadGroundingDINO(io.ComfyNode):
    """MGV_LoadGroundingDINO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .host import model_folders

        return io.Schema(
            node_id="MGV_LoadGroundingDINO",
            display_name="Load GroundingDINO",
            category=f"{CATEGORY}/perception",
            description=(
                "Loads an open-vocabulary detector (GroundingDINO in the transformers layout). Toybox is the tiny one "
                "that comes with the pack and knows only the Toybox world."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_folders(*MODEL_FOLDERS),
                    default=TOYBOX,
                    tooltip="Toybox (bundled toy), or a folder in models/grounding-dino with config.json, "
                    "model.safetensors, tokenizer and preprocessor files.",
                ),
            ],
            outputs=[DetectorType.Output(display_name="model", tooltip="The detector, for Detect Objects.")],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        from ..perception.detector import load_grounding_dino
        from .host import model_file_or_folder, toybox_folder, wrap_helper

        folder = toybox_folder("detector") if model_name == TOYBOX else model_file_or_folder(model_name, *MODEL_FOLDERS)
        detector = load_grounding_dino(folder)
        return io.NodeOutput(wrap_helper(detector, detector.model, model_name))


class DetectObjects(io.ComfyNode):
    """MGV_DetectObjects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_DetectObjects",
            display_name="Detect Objects",
            category=f"{CATEGORY}/perception",
            description=(
                "Finds what the phrases name in every frame of a film. A frame, or a whole film, without a hit is a "
                "normal answer: the boxes are then empty, the report says so and the graph goes on."
            ),
            inputs=[
                DetectorType.Input("model", tooltip="From Load GroundingDINO."),
                io.Image.Input("image", tooltip="The film, one picture per frame."),
                io.String.Input(
                    "phrases",
                    default="red ball",
                    tooltip="What to find, separated by commas: red ball, blue square. Each phrase is asked for by "
                    "itself.",
                ),
                io.Float.Input(
                    "box_threshold",
                    default=0.35,
                    min=0.0,
                    max=1.0,
                    tooltip="A box needs a better score than this. 0 keeps everything, 1 nothing; lower it when an "
                    "object is missed.",
                    **display_range(0.01),
                ),
                io.Float.Input(
                    "text_threshold",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    tooltip="A word counts as found above this score. 0: every word, 1: none; raise it when phrases "
                    "mix.",
                    **display_range(0.01),
                ),
                io.Float.Input(
                    "nms_threshold",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    tooltip="Of boxes that overlap more than this, the best stays. 1 keeps all, 0 keeps no two that "
                    "touch.",
                    **display_range(0.01),
                ),
                io.Int.Input(
                    "max_objects",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many boxes of each phrase to keep per frame, best first.",
                ),
            ],
            outputs=[
                BoundingBox.Output(
                    display_name="boxes",
                    tooltip="One list of boxes per frame (x, y, width, height in pixels, label, score).",
                ),
                io.Image.Output(display_name="preview", tooltip="The film with boxes drawn on it."),
                io.String.Output(
                    display_name="report", tooltip="In how many frames each phrase was found, and where it was missed."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HelperModel,
        image: Tensor,
        phrases: str,
        box_threshold: float,
        text_threshold: float,
        nms_threshold: float,
        max_objects: int,
    ) -> io.NodeOutput:
        from ..perception.drawing import draw_boxes
        from .host import load_helper, progress
        from .inputs import frames_of, phrase_list

        frames = frames_of(image)
        wanted = phrase_list(phrases)
        if not wanted:
            raise ValueError(f"phrases is {phrases!r}; write at least one thing to find, such as: red ball.")
        detector = load_helper(model, len(frames))
        found = detector.detect(frames.cpu(), wanted, box_threshold, text_threshold, nms_threshold, progress=progress())
        kept = [_best_of_each(boxes, max_objects) for boxes in found]
        report = detection_report(kept, wanted)
        logger.info(report)
        return io.NodeOutput(
            [[box.to_dict() for box in boxes] for boxes in kept], draw_boxes(frames.cpu(), kept), report
        )


def _best_of_each(boxes: list[Any], count: int) -> list[Any]:
    """The ``count`` best boxes of every label, best first."""
    kept: list[Any] = []
    for box in sorted(boxes, key=lambda item: -item.score):
        if sum(other.label == box.label for other in kept) < count:
            kept.append(box)
    return kept


def detection_report(detections: list[list[Any]], phrases: list[str]) -> str:
    """One line per phrase: in how many frames it was found, and which ones lack it."""
    lines = []
    for phrase in phrases:
        missing = [frame for frame, boxes in enumerate(detections) if all(box.label != phrase.lower() for box in boxes)]
        hits = len(detections) - len(missing)
        if not hits:
            lines.append(f"{phrase}: not found in any of {len(detections)} frames; what follows goes on unguided.")
        elif missing:
            lines.append(f"{phrase}: found in {hits} of {len(detections)} frames, missing in {_ranges(missing)}.")
        else:
            lines.append(f"{phrase}: found in all {hits} frames.")
    return "\n".join(lines)


def _ranges(frames: list[int]) -> str:
    """``0, 3-5`` for [0, 3, 4, 5]."""
    parts: list[list[int]] = []
    for frame in frames:
        if parts and parts[-1][-1] == frame - 1:
            parts[-1] = [parts[-1][0], frame]
        else:
            parts.append([frame, frame])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


NODES = [LoadGroundingDINO, DetectObjects]
