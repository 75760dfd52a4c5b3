"""Guides in the published modes of mask guidance, and where the words of a prompt stand."""

from __future__ import annotations

import logging
from typing import Any, get_args

from comfy_api.latest import io, ui
from torch import Tensor

from ..attention_patches.frame_keys import KeySource
from ..attention_patches.guidance.guide import Guide as MaskGuide
from ..attention_patches.guidance.modes.mode import MAX_STRENGTH
from ..attention_patches.guidance.modes.registry import MODES, make_mode, mode_constants
from ..attention_patches.site import GuidedRows
from ..backbones.registry import require_supported
from ..host.prompts.prompt_tokens import token_spans
from ..perception.masks.keyframes import parse_values
from ..recipes.given.constants import read_constants
from .support.cache_weight import weighed
from .support.curves import curve_notes, frame_curve_input, frame_values, given_curve, strength_curve_input
from .support.guide_regions import guide_report, named_regions
from .support.inputs import (
    background_phrase_input,
    blocks_input,
    decimal_input,
    given_goal,
    guide_strength_input,
    guided_region_inputs,
    phrase_list,
    phrases_of_prompt_input,
    share_input,
    time_pooling_input,
)
from .support.types import CATEGORY, OWN, Guide

logger = logging.getLogger(__name__)

# What widgets say to leave a value to the mode.
OWN_PERCENT = -1.0


class DynamicMaskGuidance(io.ComfyNode):
    """MGV_DynamicMaskGuidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_DynamicMaskGuidance",
            display_name="Dynamic Mask Guidance",
            category=f"{CATEGORY}/guidance",
            description=(
                "Objects go where their masks go, by one of eight rules, each with its published constants. dmg is a "
                "reconstruction: the paper's formulas are not public. The guide is not yet bound to a model: Patch "
                "Attention does that."
            ),
            inputs=[*_what(), *_how(), *_when(), strength_curve_input(), frame_curve_input(), share_input()],
            outputs=[
                Guide.Output(display_name="guide", tooltip="For Patch Attention and Preview Guide."),
                io.String.Output(
                    display_name="report",
                    tooltip="Which regions the guide holds and in how many frames, and all constants of the mode.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        phrases: str,
        background_phrase: str,
        mode: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        key_source: str,
        blocks: str,
        rows: str,
        frame_strength: str,
        time_pooling: str,
        constants: str,
        tracks: Any = None,
        mask: Tensor | None = None,
        strength_curve: Any = None,
        frame_curve: Any = None,
        share: float = 0.0,
    ) -> io.NodeOutput:
        regions = named_regions(tracks, mask, phrases)
        chosen = {
            **_overrides(start_percent, end_percent, blocks, rows),
            **read_constants(mode, constants),
        }
        frames = regions.masks.shape[1]
        guide = MaskGuide(
            masks=regions.masks,
            phrases=regions.phrases,
            # An empty mask has no region, and so no words.
            background_phrase=background_phrase if len(regions.masks) else "",
            mode=make_mode(mode, **chosen),
            strength=strength,
            frame_strength=frame_values(given_curve(frame_curve), parse_values(frame_strength, frames), frames),
            key_source=None if key_source == OWN else key_source,
            time_pooling=time_pooling,
            strength_curve=given_curve(strength_curve),
            goal=given_goal(share),
        )
        report = f"{guide_report(guide, (*regions.notes, *curve_notes(guide)))}\n{constants_report(guide)}"
        logger.info(report)
        return io.NodeOutput(weighed(guide), report)


def _what() -> list[Any]:
    return [
        *guided_region_inputs("Objects from Path Masks, Mask Sequence or Track Masks"),
        phrases_of_prompt_input(
            "direct_a_video, motionbooth and trailblazer need them; the others steer no words without."
        ),
        background_phrase_input("Matters much in dmg; direct_a_video and motionbooth are made for it."),
    ]


def _how() -> list[Any]:
    return [
        io.Combo.Input("mode", options=list(MODES), default="dmg", tooltip=_modes_told()),
        guide_strength_input(MAX_STRENGTH),
        decimal_input(
            "start_percent",
            OWN_PERCENT,
            "Where in the schedule the mode begins, 0 to 1. -1: the mode's own.",
            least=OWN_PERCENT,
        ),
        decimal_input(
            "end_percent",
            OWN_PERCENT,
            "Where it ends, 0 to 1. -1: the mode's own. Published ones end early (peekaboo at 0.04, the first 2 of "
            "50 steps): with few steps give a later end, or not one step is guided.",
            least=OWN_PERCENT,
        ),
        io.Combo.Input(
            "key_source",
            options=[OWN, *get_args(KeySource)],
            default=OWN,
            tooltip="Which frames self-attention looks at, which keeps the object's looks over time: the frame itself "
            "(self), the first one, the one before (prev). A mode's own choice acts only in models that attend frame "
            "by frame (U-Nets); transformers lose motion by one that you name.",
        ),
    ]


def _when() -> list[Any]:
    return [
        blocks_input("", "Empty: the mode's own, or all where a model has none of them."),
        io.Combo.Input(
            "rows",
            options=[OWN, *get_args(GuidedRows)],
            default=OWN,
            tooltip="conditional: guide only the prompted half of classifier-free guidance. both: also the unprompted "
            "one, its words too.",
        ),
        io.String.Input(
            "frame_strength",
            default="",
            tooltip="Factor on strength over time, 0 to 10: a number, or frame: number pairs such as 0: 1, 8: 0.5, "
            "counted in frames of the masks. 0 leaves a frame alone. Empty: 1 everywhere.",
        ),
        time_pooling_input(),
        io.String.Input(
            "constants",
            default="",
            multiline=True,
            tooltip="Replaces published constants of the mode, and wins over the widgets: name=value pairs, separated "
            "by commas or new lines, such as gamma_cross=20, beta=3. The report lists all of them.",
        ),
    ]


def _modes_told() -> str:
    return " ".join(f"{name}: {mode.summary}." for name, mode in MODES.items())


def _overrides(start_percent: float, end_percent: float, blocks: str, rows: str) -> dict[str, Any]:
    """Constants that widgets replace."""
    found: dict[str, Any] = {}
    if start_percent >= 0.0:
        found["start_percent"] = start_percent
    if end_percent >= 0.0:
        found["end_percent"] = end_percent
    if blocks.strip():
        found["blocks"] = blocks
    if rows != OWN:
        found |= {"rows": rows, "cross_rows": rows}
    return found


def constants_report(guide: MaskGuide) -> str:
    """One line with the mode and all its constants, as ``constants`` takes them."""
    values = ", ".join(f"{name}={getattr(guide.mode, name)}" for name in mode_constants(guide.mode.name))
    return f"mode {guide.mode.name}, keys of {guide.keys}: {values}"


class ObjectWords(io.ComfyNode):
    """MGV_ObjectWords."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_ObjectWords",
            display_name="Object Words",
            category=f"{CATEGORY}/guidance",
            description=(
                "Says where phrases stand among the tokens of a prompt, as this model reads it: a check before "
                "guidance of words."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Tells how its text is read."),
                io.Clip.Input("clip", tooltip="The text encoder of the prompt."),
                io.String.Input("prompt", default="", multiline=True, tooltip="Exactly the positive prompt."),
                io.String.Input(
                    "phrases",
                    default="",
                    tooltip="Words of the prompt that name the objects, separated by commas; one region each.",
                ),
                background_phrase_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="Token numbers of each phrase, of the background and of all other words, counted from 0 "
                    "with the begin of the text.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, prompt: str, phrases: str, background_phrase: str) -> io.NodeOutput:
        family, _ = require_supported(model)
        wanted = phrase_list(phrases)
        spans = token_spans(clip, prompt, wanted, family, background_phrase=background_phrase.strip())
        lines = [f"{phrase}: tokens {_numbers(found)}" for phrase, found in zip(wanted, spans.positions, strict=True)]
        if spans.background:
            lines.append(f"background, {background_phrase.strip()}: tokens {_numbers(spans.background)}")
        named = {position for positions in (*spans.positions, spans.background) for position in positions}
        others = [position for position in spans.ordinary if position not in named]
        lines.append(f"other words: {'tokens ' + _numbers(others) if others else 'none'}")
        lines.append(f"{len(spans.ordinary)} of {spans.length} tokens are words of the prompt ({family.name}).")
        report = "\n".join(lines)
        return io.NodeOutput(report, ui=ui.PreviewText(report))


def _numbers(positions: Any) -> str:
    return ", ".join(str(position) for position in positions)
