"""Load a model that makes masks."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, TOYBOX, SegmenterType

MODEL_FOLDERS = ("sams", "sam2", "sam3")


class LoadSAM(io.ComfyNode):
    """MGV_LoadSAM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .host import folders_and_files

        return io.Schema(
            node_id="MGV_LoadSAM",
            display_name="Load SAM",
            category=f"{CATEGORY}/perception",
            description=(
                "Loads a Segment Anything model: a folder in the transformers layout or an original sam_vit_*.pth "
                "file. Toybox is the tiny one that comes with the pack."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folders_and_files(*MODEL_FOLDERS),
                    default=TOYBOX,
                    tooltip="Toybox (bundled toy), or a file or folder in models/sams.",
                ),
            ],
            outputs=[SegmenterType.Output(display_name="model", tooltip="The segmenter, for Track Masks.")],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        from ..perception.tracker import load_sam
        from .host import model_file_or_folder, toybox_folder, wrap_helper

        path = toybox_folder("segmenter") if model_name == TOYBOX else model_file_or_folder(model_name, *MODEL_FOLDERS)
        tracker = load_sam(path)
        return io.NodeOutput(wrap_helper(tracker, tracker.model, model_name))


NODES = [LoadSAM]
