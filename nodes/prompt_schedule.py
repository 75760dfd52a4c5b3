"""Several prompts one after the other in one film."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .types import CATEGORY


class PromptSchedule(io.ComfyNode):
    """MGV_PromptSchedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_PromptSchedule",
            display_name="Prompt Schedule",
            category=f"{CATEGORY}/video",
            inputs=[],
            outputs=[],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        raise NotImplementedError("this node is being written.")


NODES = [PromptSchedule]
