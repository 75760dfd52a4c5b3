"""Choose among followed objects, and look at them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..perception.frames import Film
from ..perception.phrases import listed_parts
from ..perception.pictures.drawing import draw_masks
from ..perception.pictures.film_strip import strip_over_time
from ..perception.tracks import Tracks as TrackedObjects
from .support.cache_weight import weighed
from .support.host import progress
from .support.inputs import decimal_input, film_input
from .support.mask_output import DRAWN_FILM_BYTES, DRAWN_FILM_LIMIT, union_of
from .support.object_inputs import given_objects, objects_input
from .support.types import CATEGORY, Tracks

logger = logging.getLogger(__name__)

ORDERS = ("all", "largest", "longest", "surest")
MAX_OBJECTS = 64
MAX_PICTURES = 64


class SelectObjects(io.ComfyNode):
    """MGV_SelectObjects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_SelectObjects",
            display_name="Select Objects",
            category=f"{CATEGORY}/perception",
            description=(
                "Keeps some of the followed objects: by label, number, size, score or how long they are seen. All "
                "conditions must hold. When no object fits, the masks are empty and the report says so."
            ),
            inputs=[
                objects_input("tracks", "From Track Masks or Refine Masks."),
                io.String.Input(
                    "labels",
                    default="",
                    tooltip="Labels to keep, separated by commas: red ball, blue *. A star stands for any letters. "
                    "Empty: every label.",
                ),
                io.String.Input("ids", default="", tooltip="Numbers to keep, such as 1,3-5. Empty: every number."),
                io.Combo.Input(
                    "keep",
                    options=list(ORDERS),
                    default="all",
                    tooltip="Of the objects that fit, keep count: the largest (mean area), the longest seen, or the "
                    "surest (mean score). all: every one that fits.",
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=MAX_OBJECTS,
                    tooltip="How many to keep when keep is not all.",
                ),
                decimal_input("minimum_score", 0.0, "Mean score over the frames in which it is seen. 0: any."),
                decimal_input(
                    "minimum_area",
                    0.0,
                    "Mean area in percent of the picture, over the frames in which there is a mask. 0: any.",
                    most=100.0,
                    step=0.1,
                ),
                io.Int.Input(
                    "minimum_frames", default=0, min=0, max=100000, tooltip="Frames in which it is seen. 0: any."
                ),
                io.Boolean.Input("invert", default=False, tooltip="On: keep all the others instead."),
            ],
            outputs=[
                Tracks.Output(display_name="tracks", tooltip="The objects that were kept, with their numbers."),
                io.Mask.Output(display_name="mask", tooltip="These objects together, one mask per frame."),
                io.String.Output(display_name="report", tooltip="What was kept, and what was left out and why."),
            ],
        )

    @classmethod
    def execute(
        cls,
        tracks: Any,
        labels: str,
        ids: str,
        keep: str,
        count: int,
        minimum_score: float,
        minimum_area: float,
        minimum_frames: int,
        invert: bool,
    ) -> io.NodeOutput:
        tracks = given_objects(tracks)
        choice = Choice(
            tuple(label.lower() for label in listed_parts(labels)),
            parse_numbers(ids),
            keep,
            count,
            minimum_score,
            minimum_area,
            minimum_frames,
            invert,
        )
        kept, report = choose(tracks, choice)
        logger.info(report)
        chosen = tracks.select(kept)
        return io.NodeOutput(weighed(chosen), union_of(chosen), report)


@dataclass(frozen=True)
class Choice:
    """Which objects to keep; as the node's widgets, ``ids`` as ranges of first and last number."""

    labels: tuple[str, ...] = ()
    ids: tuple[tuple[int, int], ...] = ()
    keep: str = "all"
    count: int = 1
    minimum_score: float = 0.0
    minimum_area: float = 0.0
    minimum_frames: int = 0
    invert: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known of one object: ``area`` in percent of the picture, ``score`` 0..1, ``seen`` in frames."""

    identity: int
    label: str
    area: float
    score: float
    seen: int

    @property
    def name(self) -> str:
        """Number and label."""
        return f"{self.identity} {self.label}".strip()


def facts_of(tracks: TrackedObjects) -> list[Facts]:
    """Facts of every object, in order."""
    pixels = tracks.masks.height * tracks.masks.width
    facts = []
    for number, (identity, label) in enumerate(zip(tracks.ids, tracks.labels, strict=True)):
        areas = torch.cat([(tracks.masks[number, part] > 127).flatten(1).sum(1) for part in tracks.masks.chunks()])
        there, seen = areas > 0, ~tracks.misses[number]
        area = 100 * areas[there].double().mean().item() / pixels if bool(there.any()) else 0.0
        score = tracks.scores[number][seen].double().mean().item() if bool(seen.any()) else 0.0
        facts.append(Facts(identity, label, area, score, int(seen.sum())))
    return facts


def choose(tracks: TrackedObjects, choice: Choice) -> tuple[list[int], str]:
    """Positions of the objects to keep, in their order, and a report."""
    facts = facts_of(tracks)
    reasons = {number: reason for number, fact in enumerate(facts) if (reason := _reason_against(fact, choice))}
    fitting = [number for number in range(len(facts)) if number not in reasons]
    if choice.keep != "all":
        value = {"largest": "area", "longest": "seen", "surest": "score"}[choice.keep]
        best = sorted(fitting, key=lambda number: -getattr(facts[number], value))[: choice.count]
        reasons |= {number: f"not among the {choice.count} {choice.keep}" for number in set(fitting) - set(best)}
        fitting = sorted(best)
    if choice.invert:
        rest = [number for number in range(len(facts)) if number in reasons]
        reasons, fitting = dict.fromkeys(fitting, "it fits, and invert is on"), rest
    return fitting, _report(facts, fitting, reasons)


def _reason_against(fact: Facts, choice: Choice) -> str:
    if choice.labels and not any(fnmatchcase(fact.label.lower(), label) for label in choice.labels):
        return "another label"
    if choice.ids and not any(first <= fact.identity <= last for first, last in choice.ids):
        return "another number"
    if fact.score < choice.minimum_score:
        return f"mean score {fact.score:.2f}"
    if fact.area < choice.minimum_area:
        return f"mean area {fact.area:.2g} %"
    if fact.seen < choice.minimum_frames:
        return f"seen in {fact.seen} frames"
    return ""


def _report(facts: Sequence[Facts], kept: Sequence[int], reasons: dict[int, str]) -> str:
    if not facts:
        return "There is no object to choose from; the masks are empty."
    lines = [f"Kept {len(kept)} of {len(facts)} objects{'.' if kept else '; the masks are empty.'}"]
    for number in kept:
        fact = facts[number]
        lines.append(
            f"{fact.name}: seen in {fact.seen} frames, mean score {fact.score:.2f}, mean area {fact.area:.2g} %"
        )
    lines += [f"left out {facts[number].name}: {reasons[number]}" for number in sorted(reasons)]
    return "\n".join(lines)


def parse_numbers(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``1,3-5`` as ranges of first and last number; empty text gives none.

    Raises:
        ValueError: naming the part that is not a number.
    """
    ranges = []
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        match = re.fullmatch(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", part, re.ASCII)
        if match is None:
            raise ValueError(f"ids has {part[:40]!r}, which is neither a number nor a range; write for example 1,3-5.")
        first, last = int(match[1]), int(match[2] or match[1])
        ranges.append((min(first, last), max(first, last)))
    return tuple(ranges)


class PreviewTracks(io.ComfyNode):
    """MGV_PreviewTracks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_PreviewTracks",
            display_name="Preview Tracks",
            category=f"{CATEGORY}/perception",
            description=(
                "Draws followed objects on the video with number, label and score, and shows a strip of pictures over "
                "time under the node."
            ),
            inputs=[
                film_input(),
                objects_input("tracks", "From Track Masks, Refine Masks or Select Objects."),
                decimal_input("opacity", 0.3, "Of the tint. 0: outlines only; 1: flat colour.", step=0.05),
                io.Boolean.Input("outline", default=True, tooltip="Draw the edge of every mask."),
                io.Boolean.Input(
                    "labels",
                    default=True,
                    tooltip="Write number, label and score beside every object; filled where it was not seen.",
                ),
                io.Int.Input(
                    "count", default=8, min=1, max=MAX_PICTURES, tooltip="Pictures in the strip, spread over the video."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="film",
                    tooltip="The video with the objects drawn on it. " + DRAWN_FILM_LIMIT,
                ),
                io.Image.Output(
                    display_name="strip", tooltip="One picture: frames over time, and when objects are seen."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, image: Tensor, tracks: Any, opacity: float, outline: bool, labels: bool, count: int
    ) -> io.NodeOutput:
        film, tracks = Film(image), given_objects(tracks)
        if tracks.frames != len(film):
            raise ValueError(
                f"the tracks have {tracks.frames} frames and the video {len(film)}; connect the video that was tracked."
            )
        drawn = draw_masks(film, tracks, outline, opacity, labels, max_bytes=DRAWN_FILM_BYTES, progress=progress())
        strip = strip_over_time(film, tracks, count)
        return io.NodeOutput(drawn, strip, ui=ui.PreviewImage(strip, cls=cls))
