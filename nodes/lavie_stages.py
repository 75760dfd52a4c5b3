"""LaVie's second and third stage: frames in between, and four times the size."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .types import CATEGORY


class InterpolateVideo(io.ComfyNode):
    """MGV_InterpolateVideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_InterpolateVideo",
            display_name="Interpolate Video",
            category=f"{CATEGORY}/video",
            inputs=[],
            outputs=[],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        raise NotImplementedError("this node is being written.")


class UpscaleVideo(io.ComfyNode):
    """MGV_UpscaleVideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_UpscaleVideo",
            display_name="Upscale Video",
            category=f"{CATEGORY}/video",
            inputs=[],
            outputs=[],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        raise NotImplementedError("this node is being written.")


NODES = [InterpolateVideo, UpscaleVideo]
