"""Load a model that makes masks."""

from __future__ import annotations

from comfy_api.latest import io

from ..perception.open_models import open_tracker
from .model_files.folders import model_names
from .model_files.loading import check_model, loading_inputs, model_path
from .support.host import weight_dtype, wrap_helper
from .support.types import CATEGORY, SegmenterType

MODEL_FOLDERS = ("sams", "sam2", "sam3")


class LoadSAM(io.ComfyNode):
    """MGV_LoadSAM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_LoadSAM",
            display_name="Load SAM",
            category=f"{CATEGORY}/perception",
            description=(
                "Loads a Segment Anything model: SAM, SAM-HQ, SAM 2 or 2.1, SAM 3 or EdgeTAM, as a folder in the "
                "transformers layout or as one file in the original one. Toybox is the tiny SAM that comes with the "
                "pack."
            ),
            inputs=loading_inputs(
                model_names(*MODEL_FOLDERS),
                "models/sams, models/sam2 and models/sam3 (files and folders)",
                "bf16 where the device is made for it, else fp32",
            ),
            outputs=[SegmenterType.Output(display_name="model", tooltip="The segmenter, for Track Masks.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None, download: bool | None = False) -> bool | str:
        return check_model(model_name, download, *MODEL_FOLDERS)

    @classmethod
    def execute(cls, model_name: str, precision: str = "auto", download: bool = False) -> io.NodeOutput:
        path = model_path(model_name, download, "segmenter", *MODEL_FOLDERS)
        tracker = open_tracker(path, weight_dtype(precision, half_is_safe=True))
        return io.NodeOutput(wrap_helper(tracker, tracker.model, model_name))
