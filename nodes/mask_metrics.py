"""Measure whether the objects of a video went where their masks are."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..attention_patches.checks import check_shape
from ..perception.frames import Film
from ..perception.masks.mask_sequences import SequenceSettings, make_sequence
from ..perception.phrases import named_objects
from ..perception.pictures.drawing import draw_masks
from ..perception.tracks import Tracks as TrackedObjects
from ..recipes.mask_metrics.clip import load_clip
from ..recipes.mask_metrics.peekaboo_report import (
    PROTOCOLS,
    peekaboo_of_boxes,
    peekaboo_of_tracks,
    peekaboo_report,
    peekaboo_summary,
)
from ..recipes.mask_metrics.recipe import FilmScorer, Finding, find_objects
from ..recipes.mask_metrics.report import film_report, metrics_summary
from ..recipes.report import rounded
from .model_files.folders import find_model, installed_models
from .object_masks import track_of_mask
from .support.host import load_helper, progress, wrap_helper
from .support.inputs import decimal_input, phrase_list
from .support.mask_output import PREVIEW_BYTES, PREVIEW_LIMIT
from .support.object_inputs import given_objects, objects_input
from .support.types import CATEGORY, DetectorType, HelperModel, SegmenterType

logger = logging.getLogger(__name__)

CLIP_FOLDER = "clip_vision"
NO_MODEL = "none"
NO_PROTOCOL = "none"
# White among the colours of objects.
WANTED_COLOUR = 10


class MaskMetrics(io.ComfyNode):
    """MGV_MaskMetrics."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_MaskMetrics",
            display_name="Mask Metrics",
            category=f"{CATEGORY}/masks",
            description=(
                "Measures whether the objects of a video are where the guide's masks are: overlap and distance per "
                "object, by a detector and tracker or by tracks; with a CLIP model also how the video fits its prompt "
                "and its frames each other, with a reference video how much the background changed."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The video to measure, one picture per frame."),
                *_object_inputs(),
                *_measure_inputs(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="iou",
                    tooltip="Overlap of wanted and found masks, 0 (none) to 1 (equal): mean over frames and objects.",
                ),
                io.String.Output(
                    display_name="report", tooltip="What was measured, in words; look at it with Preview Any."
                ),
                io.String.Output(display_name="json", tooltip="All numbers, per object and frame."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The video with found objects tinted and wanted masks as dashed outlines. " + PREVIEW_LIMIT,
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        phrases: str,
        prompt: str,
        clip_model: str,
        box_threshold: float,
        tracks: Any = None,
        mask: Tensor | None = None,
        found: Any = None,
        detector: HelperModel | None = None,
        segmenter: HelperModel | None = None,
        reference: Tensor | None = None,
        protocol: str = NO_PROTOCOL,
    ) -> io.NodeOutput:
        film = Film(image)
        wanted = wanted_tracks(tracks, mask, phrase_list(phrases))
        # Before anything is looked for.
        check_shape("the wanted masks are", wanted.size, (film.height, film.width))
        before = None if reference is None else Film(reference)
        looking = found is None
        if looking:
            found = looked_for(film, wanted, detector, segmenter, box_threshold)
            known = None if before is None else looked_for(before, wanted, detector, segmenter, box_threshold)
        else:
            known, found = None, given_objects(found)
        scorer = None if clip_model == NO_MODEL else load_scorer(clip_model)
        values = rounded(film_report(film, wanted, found, prompt, scorer, before, known, progress()))
        if values["iou"] is None:
            raise ValueError(
                "there is no mask to compare with: the wanted masks are empty in every frame, and nothing was found; "
                "connect the masks that guided the video."
            )
        words = metrics_summary(values)
        if protocol != NO_PROTOCOL:
            judge = detector if looking else None
            values["peekaboo"] = rounded(by_peekaboo(film, wanted, found, judge, box_threshold))
            words += "\n" + peekaboo_summary(values["peekaboo"])
        logger.info(words)
        return io.NodeOutput(
            values["iou"], words, json.dumps(values), compared(film, wanted, found), ui=ui.PreviewText(words)
        )


def _object_inputs() -> list[io.Input]:
    """Where the objects should be, and where they are."""
    return [
        objects_input(
            "tracks", "Where the objects should be: the tracks that guided the video. Any size.", optional=True
        ),
        io.Mask.Input(
            "mask", optional=True, tooltip="Instead of tracks: one object, one mask per frame or one for all."
        ),
        objects_input(
            "found",
            "Where the objects are, from Track Masks on this video. Otherwise connect detector and segmenter, "
            "which look for them.",
            optional=True,
        ),
        DetectorType.Input(
            "detector", optional=True, tooltip="From Load GroundingDINO: finds the objects by their phrases."
        ),
        SegmenterType.Input("segmenter", optional=True, tooltip="From Load SAM: follows what was found."),
        io.String.Input(
            "phrases",
            default="",
            tooltip="What the masks are of, separated by commas: labels of the tracks that are measured, or one phrase "
            "per object. Empty: the labels of all.",
        ),
    ]


def _measure_inputs() -> list[io.Input]:
    """What else is measured."""
    return [
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            tooltip="Of the video, for text alignment; empty measures none. Needs clip_model.",
        ),
        io.Combo.Input(
            "clip_model",
            options=[NO_MODEL, *clip_folders()],
            default=NO_MODEL,
            tooltip="A CLIP model with both halves, for text alignment and frame consistency: a folder in the "
            "transformers layout in models/clip_vision. none: neither is measured.",
        ),
        io.Image.Input(
            "reference",
            optional=True,
            tooltip="A video of the same length and size, such as the same seed without guidance: how much the "
            "background differs, away from the objects of both.",
        ),
        decimal_input(
            "box_threshold", 0.35, "Of the detector: a box needs a better score. Lower it when objects are missed."
        ),
        io.Combo.Input(
            "protocol",
            options=[NO_PROTOCOL, *PROTOCOLS],
            default=NO_PROTOCOL,
            optional=True,
            tooltip="peekaboo: also volume IoU, coverage, centroid distance and AP50 of Peekaboo's evaluation, as "
            "published and corrected, by the detector's best box in each frame, or by found.",
        ),
    ]


def wanted_tracks(tracks: Any, mask: Tensor | None, phrases: list[str]) -> TrackedObjects:
    """The masks of the guide that the phrases name, with these as labels; all of them where there are none.

    Raises:
        ValueError: both or neither of tracks and mask, or phrases that do not fit the objects.
    """
    if (tracks is None) == (mask is None):
        given = "both" if mask is not None else "neither"
        raise ValueError(f"{given} of tracks and mask is connected; connect exactly one of them.")
    wanted = track_of_mask(mask) if tracks is None else given_objects(tracks)
    if not phrases:
        return wanted
    if len(phrases) > len(wanted.ids):
        raise ValueError(
            f"there are {len(phrases)} phrases ({', '.join(phrases)}) and {len(wanted.ids)} objects; give one for "
            "each, or none."
        )
    named = named_objects(phrases, wanted.labels, "masks")
    return replace(wanted.select([place for place, _ in named]), labels=tuple(phrase for _, phrase in named))


def looked_for(
    film: Film, wanted: TrackedObjects, detector: HelperModel | None, segmenter: HelperModel | None, threshold: float
) -> TrackedObjects:
    """What the detector finds of the wanted objects' phrases, and the segmenter follows.

    Raises:
        ValueError: one of the two is missing, or an object has no phrase.
    """
    if detector is None or segmenter is None:
        raise ValueError(
            "nothing says where the objects are; connect found (from Track Masks), or detector and segmenter."
        )
    if not all(wanted.labels):
        raise ValueError("an object has no label to look for; write phrases, one for each object.")
    bar = progress()
    return find_objects(
        film,
        wanted.labels,
        load_helper(detector, film.height, film.width),
        load_helper(segmenter, film.height, film.width),
        Finding(threshold),
        lambda stage, done, total: bar(done, total),
    )


def by_peekaboo(
    film: Film, wanted: TrackedObjects, found: TrackedObjects, detector: HelperModel | None, threshold: float
) -> dict[str, Any]:
    """Peekaboo's evaluation by the boxes of a detector, or without one by what is found."""
    if detector is None:
        return peekaboo_report(peekaboo_of_tracks(film, wanted, found))
    helper = load_helper(detector, film.height, film.width)
    return peekaboo_report(peekaboo_of_boxes(film, wanted, helper, Finding(threshold), progress()))


def compared(film: Film, wanted: TrackedObjects, found: TrackedObjects) -> Tensor:
    """The video with found objects tinted and wanted masks as dashed outlines."""
    wanted, found = (make_sequence(tracks, SequenceSettings(frames=len(film))) for tracks in (wanted, found))
    drawn = draw_masks(film, found, labels=False, max_bytes=PREVIEW_BYTES)
    # Drawn as not seen, an outline is dashed; the numbers are those of colours that the found ones do not have yet.
    numbers = tuple(range(WANTED_COLOUR, WANTED_COLOUR + len(wanted.ids)))
    hollow = replace(wanted, ids=numbers, misses=torch.ones_like(wanted.misses))
    return draw_masks(drawn, hollow, opacity=0.0, labels=False, enlarge=1)


def clip_folders() -> list[str]:
    """Folders in the transformers layout among ComfyUI's CLIP vision models."""
    return [model.name for model in installed_models(CLIP_FOLDER) if model.is_folder]


def load_scorer(name: str) -> FilmScorer:
    """A CLIP model under ComfyUI's memory management.

    Raises:
        ValueError: it is not a complete CLIP model.
        FileNotFoundError: it is not there.
    """
    scorer = load_clip(find_model(name, CLIP_FOLDER))
    return load_helper(wrap_helper(scorer, scorer.model, name))
