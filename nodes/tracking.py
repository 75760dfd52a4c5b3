"""Follow objects through a video."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..perception.boxes import as_detections
from ..perception.frames import Film
from ..perception.pictures.drawing import draw_masks
from ..perception.prompts import ObjectPrompt, next_identity
from ..perception.tracking.track_settings import TrackSettings
from .prompts import fitting_prompts, parse_points
from .support.cache_weight import weighed
from .support.flow_models import given_flow, optical_flow_input
from .support.host import load_helper, progress
from .support.inputs import decimal_input, film_input, keep_on_disk_input, masks_of, phrase_list
from .support.mask_output import PREVIEW_BYTES, PREVIEW_LIMIT, temporary_folder, union_of
from .support.object_inputs import boxes_input
from .support.types import (
    CATEGORY,
    HelperModel,
    Prompts,
    SegmenterType,
    Tracks,
)

logger = logging.getLogger(__name__)

# Of widgets that count frames.
WHOLE_FILM = -1


class TrackMasks(io.ComfyNode):
    """MGV_TrackMasks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_TrackMasks",
            display_name="Track Masks",
            category=f"{CATEGORY}/perception",
            description=(
                "Turns boxes, points, rough masks or words into one mask per object and frame, with numbers that stay "
                "the same through the video. There are always as many masks as frames; where an object is not visible, "
                "its mask is empty, and the report says so."
            ),
            inputs=[
                SegmenterType.Input("model", tooltip="From Load SAM."),
                film_input(),
                *_mark_inputs(),
                *_follow_inputs(),
                *_later_inputs(),
            ],
            outputs=[
                Tracks.Output(
                    display_name="tracks",
                    tooltip="Masks per object with number and label, for Refine Masks and Mask to Attention Bias.",
                ),
                io.Mask.Output(display_name="mask", tooltip="All objects together, one mask per frame."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The video with the objects tinted, outlined and numbered. " + PREVIEW_LIMIT,
                ),
                io.String.Output(display_name="report", tooltip="Per object: frames seen, mean score, frames missed."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HelperModel,
        image: Tensor,
        points: str,
        prompt_frame: int,
        max_gap: int,
        extend: int,
        minimum_seen: int,
        max_objects: int,
        soft: bool,
        boxes: Any = None,
        mask: Tensor | None = None,
        prompts: Sequence[ObjectPrompt] = (),
        phrases: str = "",
        direction: str = "both",
        duplicate_overlap: float = 0.75,
        find_every: int = 8,
        keep_on_disk: bool = False,
        optical_flow: Any = None,
    ) -> io.NodeOutput:
        film = Film(image)
        words = phrase_list(phrases)
        if boxes is None and mask is None and not points.strip() and not prompts and not words:
            raise ValueError(
                "there are no boxes, mask, points, prompts or phrases; connect or write one of them to say what to "
                "follow."
            )
        if words and not getattr(model.helper, "takes_text", False):
            raise ValueError(
                f"{model.name} does not understand words, but phrases is {phrases!r}; clear it and connect the boxes "
                "of Detect Objects, or load a SAM 3 model."
            )
        detections = None if boxes is None else as_detections(boxes, len(film))
        marked = [*prompts, *own_prompts(points, mask, prompt_frame, len(film), next_identity(prompts))]
        fitting, notes = fitting_prompts(marked, len(film), film.height, film.width)
        settings = TrackSettings(
            max_gap=None if max_gap == WHOLE_FILM else max_gap,
            extend=None if extend == WHOLE_FILM or marked else extend,
            minimum_seen=minimum_seen,
            max_objects=max_objects or None,
            soft=soft,
            duplicate_iou=duplicate_overlap,
            direction=direction,
            folder=temporary_folder() if keep_on_disk else None,
            find_every=find_every,
        )
        estimate = given_flow(optical_flow, film.height, film.width)
        tracker = load_helper(model, film.height, film.width)
        if optical_flow is not None:
            tracker = tracker.by_flow(estimate)
        tracks = tracker.track(film, detections, settings, progress(), prompts=fitting, phrases=words)
        report = "\n".join([tracks.report(), *notes])
        logger.info(report)
        preview = draw_masks(film, tracks, max_bytes=PREVIEW_BYTES, progress=progress())
        return io.NodeOutput(weighed(tracks), union_of(tracks), preview, report)


def _mark_inputs() -> list[io.Input]:
    """What says where the objects are."""
    return [
        boxes_input("From Detect Objects: one list per frame, or one for all."),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Rough masks of one object: one per frame (empty ones are ignored), or a single one for "
            "prompt_frame.",
        ),
        io.String.Input(
            "points",
            default="",
            tooltip='Points on one object in prompt_frame as JSON, pixels: [{"x": 20, "y": 30}]. "label": 0 marks a '
            "point off it. With a mask, both are about the same object.",
        ),
        io.Int.Input(
            "prompt_frame",
            default=0,
            min=0,
            max=100000,
            tooltip="Frame (from 0) that points and a single mask belong to.",
        ),
    ]


def _follow_inputs() -> list[io.Input]:
    """Which objects stay, and for how long."""
    return [
        io.Int.Input(
            "max_gap",
            default=WHOLE_FILM,
            min=WHOLE_FILM,
            max=1000,
            tooltip="An object found again after at most this many frames keeps its number. 0: no gap; -1: any gap.",
        ),
        io.Int.Input(
            "extend",
            default=WHOLE_FILM,
            min=WHOLE_FILM,
            max=1000,
            tooltip="Frames that an object is followed before it was first and after it was last found. 0: none; -1: "
            "to the ends of the video, as always for what is marked by points, mask or prompts.",
        ),
        io.Int.Input(
            "minimum_seen",
            default=2,
            min=1,
            max=1000,
            tooltip="Objects found in fewer frames are dropped as false alarms; marked ones never are. 1 keeps all.",
        ),
        io.Int.Input(
            "max_objects",
            default=0,
            min=0,
            max=64,
            tooltip="Keep the most often and most surely seen ones. 0: all.",
        ),
        io.Boolean.Input("soft", default=False, tooltip="On: soft edges. Off: masks are 0 or 1."),
    ]


def _later_inputs() -> list[io.Input]:
    """Optional, so that graphs from before there were these inputs still run."""
    return [
        Prompts.Input(
            "prompts", optional=True, tooltip="From Track Prompt: any number of objects, marked in any frame."
        ),
        io.String.Input(
            "phrases",
            default="",
            optional=True,
            tooltip="What to find and follow, separated by commas, for models that understand words (SAM 3); for the "
            "others use Detect Objects. Empty: nothing by words.",
        ),
        io.Combo.Input(
            "direction",
            options=["both", "forward", "backward"],
            default="both",
            optional=True,
            tooltip="Where to follow objects from the frame they are marked or found in: both ways, only forward in "
            "time, or only backward. Masks on the other side stay empty.",
        ),
        decimal_input(
            "duplicate_overlap",
            0.75,
            "What overlaps a followed object by more than this is that object, and masks of two objects never overlap. "
            "1: everything that is found stays, and masks may overlap.",
            optional=True,
        ),
        io.Int.Input(
            "find_every",
            default=8,
            min=1,
            max=1000,
            optional=True,
            tooltip="Look for phrases in every n-th frame. 1: in every one.",
        ),
        keep_on_disk_input("For long videos with many objects: a mask takes a bit a pixel, with soft a byte."),
        optical_flow_input("How masks are carried to the next frame, for SAM and SAM-HQ, which have no memory."),
    ]


def own_prompts(points: str, mask: Tensor | None, prompt_frame: int, frames: int, identity: int) -> list[ObjectPrompt]:
    """What the points widget and the mask input say: prompts for one object.

    Args:
        points: JSON, may be empty.
        mask: one per frame, or a single one for the prompt frame; None without.
        prompt_frame: of the points and a single mask.
        frames: of the video.
        identity: of the object.

    Raises:
        ValueError: for a frame that does not exist, another number of masks, masks that are all empty, or points
            that are none.
    """
    if prompt_frame >= frames and (points.strip() or mask is not None):
        raise ValueError(f"prompt_frame is {prompt_frame} but the video has {frames} frames; use 0 to {frames - 1}.")
    marked = parse_points(points, "points")
    masks: dict[int, Tensor] = {}
    if mask is not None:
        batch = mask[None] if mask.ndim == 2 else mask
        if len(batch) not in (1, frames):
            raise ValueError(
                f"there are {len(batch)} masks for {frames} frames; give one mask per frame, or one for prompt_frame."
            )
        for frame in [prompt_frame] if len(batch) == 1 else range(frames):
            # One at a time: the masks of a long video are not copied as a whole.
            rough = masks_of(batch[0 if len(batch) == 1 else frame])[0] > 0.5
            if bool(rough.any()):
                masks[frame] = rough.cpu()
        if not masks:
            raise ValueError("the mask is empty in every frame it speaks for; paint over the object, or disconnect it.")
    if points.strip() and prompt_frame not in masks and not any(point.inside for point in marked):
        raise ValueError("points has no point on the object; write at least one without label 0.")
    prompts = [ObjectPrompt(frame, identity, mask=rough) for frame, rough in masks.items() if frame != prompt_frame]
    if marked or prompt_frame in masks:
        prompts.append(ObjectPrompt(prompt_frame, identity, points=tuple(marked), mask=masks.get(prompt_frame)))
    return sorted(prompts, key=lambda prompt: prompt.frame)
