"""Clips longer than the model was trained on: FreeLong, alone and inside of context windows."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .types import CATEGORY


class FreeLong(io.ComfyNode):
    """MGV_FreeLong."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_FreeLong", display_name="FreeLong", category=f"{CATEGORY}/video", inputs=[], outputs=[]
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        raise NotImplementedError("this node is being written.")


class FreeLongWindows(io.ComfyNode):
    """MGV_FreeLongWindows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_FreeLongWindows",
            display_name="FreeLong in Context Windows",
            category=f"{CATEGORY}/video",
            inputs=[],
            outputs=[],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        raise NotImplementedError("this node is being written.")


NODES = [FreeLong, FreeLongWindows]
