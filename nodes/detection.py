"""Find objects in a video by text."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..perception.detection.detector import looked_at
from ..perception.open_models import open_detector
from ..perception.phrases import phrase_key
from ..perception.pictures.drawing import draw_boxes
from ..perception.tracks import frame_ranges
from .model_files.folders import bert_folders, model_names
from .model_files.loading import check_model, loading_inputs, model_path
from .support.host import load_helper, progress, weight_dtype, wrap_helper
from .support.inputs import decimal_input, film_input, frames_of, phrase_list
from .support.mask_output import PREVIEW_BYTES, PREVIEW_LIMIT
from .support.types import CATEGORY, BoundingBox, DetectorType, HelperModel

logger = logging.getLogger(__name__)

MODEL_FOLDERS = ("grounding-dino",)
TOGETHER = "together"
ASK = ("one by one", TOGETHER)


class LoadGroundingDINO(io.ComfyNode):
    """MGV_LoadGroundingDINO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_LoadGroundingDINO",
            display_name="Load GroundingDINO",
            category=f"{CATEGORY}/perception",
            description=(
                "Loads an open-vocabulary detector: GroundingDINO or MM-GroundingDINO as a folder in the transformers "
                "layout, or an original groundingdino_*.pth file. Toybox is the tiny one that comes with the pack and "
                "knows only the Toybox world."
            ),
            inputs=loading_inputs(
                model_names(*MODEL_FOLDERS),
                "models/grounding-dino (files and folders)",
                "fp32, as boxes and scores need it; original files stay in fp32 whatever is chosen",
            ),
            outputs=[DetectorType.Output(display_name="model", tooltip="The detector, for Detect Objects.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None, download: bool | None = False) -> bool | str:
        return check_model(model_name, download, *MODEL_FOLDERS)

    @classmethod
    def execute(cls, model_name: str, precision: str = "auto", download: bool = False) -> io.NodeOutput:
        path = model_path(model_name, download, "detector", *MODEL_FOLDERS)
        bert_folder = next(iter(bert_folders()), None)
        detector = open_detector(path, weight_dtype(precision, half_is_safe=False), bert_folder)
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
                "Finds what the phrases name in every frame of a video. A frame, or a whole video, without a hit is a "
                "normal answer: the boxes are then empty, the report says so and the graph goes on."
            ),
            inputs=[
                DetectorType.Input("model", tooltip="From Load GroundingDINO."),
                film_input(),
                *_search_inputs(),
                *_later_inputs(),
            ],
            outputs=[
                BoundingBox.Output(
                    display_name="boxes",
                    tooltip="One list of boxes per frame (x, y, width, height in pixels, label, score).",
                ),
                io.Image.Output(display_name="preview", tooltip="The video with boxes drawn on it. " + PREVIEW_LIMIT),
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
        ask: str = ASK[0],
        nms_per_phrase: bool = False,
        max_boxes: int = 0,
        detect_every: int = 1,
    ) -> io.NodeOutput:
        frames = frames_of(image)
        wanted = phrase_list(phrases)
        if not wanted:
            raise ValueError(f"phrases is {phrases!r}; write at least one thing to find, such as: red ball.")
        detector = load_helper(model, *frames.shape[1:3])
        found = detector.detect(
            frames,
            wanted,
            box_threshold,
            text_threshold,
            nms_threshold,
            joint=ask == TOGETHER,
            per_class=nms_per_phrase,
            max_per_phrase=max_objects,
            max_boxes=max_boxes or None,
            every=detect_every,
            progress=progress(),
        )
        report = detection_report(found, wanted, looked_at(len(frames), detect_every))
        logger.info(report)
        boxes = [[box.to_dict() for box in row] for row in found]
        preview = draw_boxes(frames, found, max_bytes=PREVIEW_BYTES, progress=progress())
        return io.NodeOutput(boxes, preview, report)


def _search_inputs() -> list[io.Input]:
    """What to find, and what counts as found."""
    return [
        io.String.Input(
            "phrases",
            default="red ball",
            tooltip="What to find, separated by commas, full stops or new lines: red ball, blue square.",
        ),
        decimal_input(
            "box_threshold",
            0.35,
            "A box needs a better score than this. 0 keeps everything, 1 nothing; lower it when an object is missed.",
        ),
        decimal_input(
            "text_threshold",
            0.25,
            "A word counts as found above this score. 0: every word, 1: none; raise it when phrases mix.",
        ),
        decimal_input(
            "nms_threshold",
            0.7,
            "Of boxes that overlap more than this, the best stays. 1 keeps all, 0 keeps no two that touch.",
        ),
        io.Int.Input(
            "max_objects", default=1, min=1, max=64, tooltip="Boxes of each phrase to keep per frame, best first."
        ),
    ]


def _later_inputs() -> list[io.Input]:
    """Optional, so that graphs from before there were these inputs still run."""
    return [
        io.Combo.Input(
            "ask",
            options=list(ASK),
            default=ASK[0],
            optional=True,
            tooltip="one by one: each phrase by itself, most exact. together: as many phrases at once as the detector "
            "reads, faster, but they influence each other.",
        ),
        io.Boolean.Input(
            "nms_per_phrase",
            default=False,
            optional=True,
            tooltip="On: only boxes of the same phrase compete, so one thing may be found under two phrases. Off: each "
            "thing is found once.",
        ),
        io.Int.Input(
            "max_boxes",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="Boxes of all phrases together to keep per frame, best first. 0: no limit.",
        ),
        io.Int.Input(
            "detect_every",
            default=1,
            min=1,
            max=1000,
            optional=True,
            tooltip="Look at every n-th frame and the last one; Track Masks follows through the others. 8 is eight "
            "times faster than 1.",
        ),
    ]


def detection_report(detections: list[list[Any]], phrases: list[str], looked: list[int]) -> str:
    """One line per phrase: in how many of the frames that were looked at it was found, and which ones lack it."""
    count = len(looked)
    lines = []
    if count < len(detections):
        lines.append(f"Looked at {count} of {len(detections)} frames.")
    for phrase in phrases:
        label = phrase_key(phrase)
        missing = [frame for frame in looked if all(phrase_key(box.label) != label for box in detections[frame])]
        hits = count - len(missing)
        if not hits:
            lines.append(f"{phrase}: not found in any of {count} frames; what follows goes on unguided.")
        elif missing:
            lines.append(f"{phrase}: found in {hits} of {count} frames, missing in {frame_ranges(missing)}.")
        else:
            lines.append(f"{phrase}: found in all {hits} frames.")
    return "\n".join(lines)
