"""Several prompts in turn in one video."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..backbones.registry import FAMILIES
from ..host.prompts.joined_prompts import schedule_prompts
from ..recipes.long_video.schedule import parse_schedule
from .support.inputs import video_model_input
from .support.types import CATEGORY

logger = logging.getLogger(__name__)

MAX_FRAMES = 4096
# Those that read text, and apart from the video; ``check_family`` says so of a model.
SCHEDULED_FAMILIES = tuple(
    family for family in FAMILIES if family.encoders and not family.joint_text and not family.mixes_text
)


class PromptSchedule(io.ComfyNode):
    """MGV_PromptSchedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_PromptSchedule",
            display_name="Prompt Schedule",
            category=f"{CATEGORY}/video",
            description=(
                "Several prompts in turn in one video: each frame is conditioned by its own prompt, and one "
                "prompt fades into the next. Sample the model that comes out with the conditioning that comes out."
            ),
            inputs=[
                video_model_input("A video model whose cross-attention reads the text", SCHEDULED_FAMILIES),
                io.Clip.Input("clip", tooltip="The text encoder of the model; it encodes each prompt by itself."),
                io.String.Input(
                    "schedule",
                    default="0: a red ball moves right on sand\n16: a blue ball moves right on sand",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="A line for each prompt: the frame of the video with which it begins (counted from 0, in "
                    "frames of the finished video), a colon, the prompt. A line that begins with a space goes on with "
                    "the prompt before it.",
                ),
                io.Int.Input(
                    "overlap",
                    default=8,
                    min=0,
                    max=MAX_FRAMES,
                    tooltip="Frames over which a prompt fades into the next one, half of them before its start. 0: it "
                    "changes from one frame to the next.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the schedule, for any sampler."),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="All prompts in one conditioning: the positive prompt of that model, and of no other.",
                ),
                io.String.Output(display_name="report", tooltip="Which prompt holds in which frames."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, schedule: str, overlap: int) -> io.NodeOutput:
        prompts = parse_schedule(schedule)
        starts, texts = [prompt.start for prompt in prompts], [prompt.text for prompt in prompts]
        patched, positive = schedule_prompts(model, clip, starts, texts, overlap, schedule)
        report = schedule_report(starts, texts, overlap)
        logger.info(report)
        return io.NodeOutput(patched, positive, report)


def schedule_report(starts: list[int], texts: list[str], overlap: int) -> str:
    """One line per prompt, and one for the fades."""
    ends = [f"to {start - 1}" for start in starts[1:]] + ["to the end"]
    lines = [f"frames {start} {end}: {text}" for start, end, text in zip(starts, ends, texts, strict=True)]
    if len(starts) > 1:
        fades = f"each fades into the next over {overlap} frames" if overlap > 1 else "each changes at once"
        lines.append(f"{fades}.")
    return "\n".join(lines)
