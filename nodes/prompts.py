"""Say what to follow: points, a box or a rough mask in one frame."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..perception.boxes import Box, as_detections
from ..perception.prompts import ObjectPrompt, Point, fit_prompt, next_identity
from .support.cache_weight import weighed
from .support.inputs import masks_of
from .support.object_inputs import boxes_input
from .support.prompt_pictures import draw_prompts, picture_of_frame
from .support.types import CATEGORY, Prompts

MAX_POINTS = 256
MAX_CHARACTERS = 65536
MAX_OBJECTS = 64


class TrackPrompt(io.ComfyNode):
    """MGV_TrackPrompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_TrackPrompt",
            display_name="Track Prompt",
            category=f"{CATEGORY}/perception",
            description=(
                "Marks one object in one frame by points, a box or a rough mask, for Track Masks. Chain several of "
                "them for several objects, or to correct one object in another frame."
            ),
            inputs=[
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The video, to check the prompt and to draw it; one picture alone counts as that frame.",
                ),
                io.Int.Input(
                    "frame", default=0, min=0, max=100000, tooltip="Frame (from 0) in which the object is marked."
                ),
                io.Int.Input(
                    "object",
                    default=0,
                    min=0,
                    max=MAX_OBJECTS,
                    tooltip="0: a new object. A number: prompts with the same number are about one object.",
                ),
                io.String.Input(
                    "label", default="", tooltip="What the object is called, such as: red ball. May be empty."
                ),
                io.String.Input(
                    "points",
                    default="",
                    tooltip='Points on the object as JSON, pixels: [{"x": 20, "y": 30}], as KJNodes\' Points Editor '
                    'gives them. "label": 0 marks a point off it.',
                ),
                io.String.Input(
                    "negative_points",
                    default="",
                    tooltip="Points that are not on the object, in the same form. Empty: none.",
                ),
                boxes_input("A box around the object in that frame; of several the one with the best score."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A rough mask of the object in that frame: a single one, or one per frame.",
                ),
                Prompts.Input(
                    "prompts", optional=True, tooltip="From another Track Prompt; this one is added to them."
                ),
            ],
            outputs=[
                Prompts.Output(display_name="prompts", tooltip="For Track Masks, or for another Track Prompt."),
                io.Image.Output(display_name="preview", tooltip="The frame with all that is marked in it."),
            ],
        )

    @classmethod
    def execute(
        cls,
        frame: int,
        object: int,
        label: str,
        points: str,
        negative_points: str,
        image: Tensor | None = None,
        boxes: Any = None,
        mask: Tensor | None = None,
        prompts: Sequence[ObjectPrompt] = (),
    ) -> io.NodeOutput:
        picture = None if image is None else picture_of_frame(image, frame)
        marked = [*parse_points(points, "points"), *parse_points(negative_points, "negative_points", inside=False)]
        box = None if boxes is None else best_box_in_frame(boxes, frame)
        rough = None if mask is None else mask_in_frame(mask, frame)
        if box is None and rough is None and not any(point.inside for point in marked):
            raise ValueError(
                f"frame {frame} has no point on the object, no box and no mask; write points, or connect one of the "
                "others."
            )
        identity = object or next_identity(prompts)
        prompt = ObjectPrompt(frame, identity, box, tuple(marked), rough, " ".join(label.split()))
        if picture is not None and fit_prompt(prompt, frame + 1, *picture.shape[:2]) is None:
            raise ValueError(
                f"the prompt for frame {frame} is empty or outside the picture of {picture.shape[1]} x "
                f"{picture.shape[0]} pixels; mark the object inside it."
            )
        together = join_prompts(prompts, prompt)
        shown = [item for item in together if item.frame == frame]
        return io.NodeOutput(tuple(map(weighed, together)), draw_prompts(picture, shown))


def join_prompts(prompts: Sequence[ObjectPrompt], added: ObjectPrompt) -> tuple[ObjectPrompt, ...]:
    """Prompts with one more: what is said of the same object in the same frame becomes one prompt."""
    joined = []
    for prompt in prompts:
        if (prompt.frame, prompt.identity) == (added.frame, added.identity):
            added = replace(
                added,
                box=added.box or prompt.box,
                points=(*prompt.points, *added.points),
                mask=prompt.mask if added.mask is None else added.mask,
                label=added.label or prompt.label,
            )
        else:
            joined.append(prompt)
    return (*joined, added)


def parse_points(text: str, name: str, inside: bool = True) -> list[Point]:
    """Read ``[{"x": 1, "y": 2, "label": 1}]``; empty text gives no points.

    Args:
        text: of the widget.
        name: of the widget, for messages.
        inside: what a point is without a label.

    Raises:
        ValueError: naming what is wrong with which point.
    """
    if not text.strip():
        return []
    example = 'write for example [{"x": 20, "y": 30}]'
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{name} has {len(text)} characters; write at most {MAX_CHARACTERS}.")
    try:
        # Integers of any length become inf instead of an overflow.
        values = json.loads(text, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error}); {example}.") from error
    if not isinstance(values, list) or len(values) > MAX_POINTS:
        raise ValueError(f"{name} must be a list of at most {MAX_POINTS} points; {example}.")
    return [_point(value, name, inside, example) for value in values]


def _point(value: Any, name: str, inside: bool, example: str) -> Point:
    numbers = [value.get("x"), value.get("y")] if isinstance(value, dict) else [None]
    if any(isinstance(number, bool) or not isinstance(number, float) for number in numbers):
        raise ValueError(f"{str(value)[:80]} in {name} has no numbers x and y; {example}.")
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"point {numbers[0]:g}, {numbers[1]:g} in {name} lies outside every picture; give pixels.")
    label = value.get("label", inside)
    if label not in (0, 1):
        raise ValueError(f"a point in {name} has the label {str(label)[:80]!r}; write 1 (on the object) or 0 (off it).")
    return Point(numbers[0], numbers[1], inside and bool(label))


def best_box_in_frame(boxes: Any, frame: int) -> Box | None:
    """The box with the best score that a BOUNDING_BOX wire has for a frame, None when it has none.

    Raises:
        ValueError: when there is no list for that frame, or an entry is not a box.
    """
    nested = isinstance(boxes, Sequence) and any(isinstance(item, Sequence) for item in boxes)
    count = len(boxes) if nested else 1
    found = as_detections(boxes, count)
    if count > 1 and frame >= count:
        raise ValueError(f"there are boxes for {count} frames and frame is {frame}; use 0 to {count - 1}.")
    return max(found[frame if count > 1 else 0], key=lambda box: box.score, default=None)


def mask_in_frame(mask: Tensor, frame: int) -> Tensor:
    """The mask of a frame, [H, W] in 0..1: of a batch that frame's, or the only one.

    Raises:
        ValueError: when there is no mask for that frame, or it is not a mask.
    """
    batch = mask[None] if mask.ndim == 2 else mask
    if not len(batch):
        raise ValueError(f"mask has shape {tuple(mask.shape)}; connect a MASK [frames, height, width].")
    if len(batch) > 1 and frame >= len(batch):
        raise ValueError(f"there are {len(batch)} masks and frame is {frame}; use 0 to {len(batch) - 1}, or one mask.")
    return masks_of(batch[frame if len(batch) > 1 else 0])[0].detach().cpu()


def fitting_prompts(
    prompts: Sequence[ObjectPrompt], frames: int, height: int, width: int
) -> tuple[list[ObjectPrompt], list[str]]:
    """Prompts that say something about a video, and a sentence for each that does not.

    Raises:
        ValueError: when the video has no such frame, or a point lies outside the picture.
    """
    kept, notes = [], []
    for prompt in prompts:
        fitted = fit_prompt(prompt, frames, height, width)
        if fitted is None:
            named = " ".join(f"{prompt.identity or ''} {prompt.label}".split()) or "an object"
            notes.append(f"The prompt for {named} in frame {prompt.frame} is empty or outside the picture: left out.")
        else:
            kept.append(fitted)
    return kept, notes
