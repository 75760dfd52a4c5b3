"""Decode long films slice by slice, straight into a file."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .types import CATEGORY


class SaveLongVideo(io.ComfyNode):
    """MGV_SaveLongVideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_SaveLongVideo",
            display_name="Save Long Video",
            category=f"{CATEGORY}/video",
            inputs=[],
            outputs=[],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        raise NotImplementedError("this node is being written.")


NODES = [SaveLongVideo]
