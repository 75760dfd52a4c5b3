"""Turn masks into attention guidance, look at it, and add it to a model."""

from __future__ import annotations

import logging
from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..attention_patches.checks import check_blocks
from ..attention_patches.guidance.guide import Guide as MaskGuide
from ..attention_patches.guidance.modes.registry import MODES, PLAIN, mode_at, mode_constants
from ..attention_patches.guidance.patch import GuidePatch, guide_patches
from ..attention_patches.guidance.share_book import BlockShare, shares_told
from ..attention_patches.guidance.text_spans import TextSpans, spans_of_named
from ..attention_patches.site import GuidedRows
from ..backbones.family import Family
from ..backbones.override_chain import patches_on
from ..backbones.registry import install_patches, require_supported
from ..host.prompts.joined_prompts import check_words
from ..host.prompts.prompt_tokens import token_spans
from ..host.sampling.comfy_sampling import checked_latents
from .support.cache_weight import weighed
from .support.curves import curve_notes, given_curve, strength_curve_input
from .support.guide_regions import guide_report, named_regions
from .support.inputs import (
    blocks_input,
    decimal_input,
    given_goal,
    guide_input,
    guide_strength_input,
    guided_region_inputs,
    phrases_of_prompt_input,
    share_input,
    time_pooling_input,
    video_model_input,
)
from .support.previews import guide_pictures, share_chart
from .support.types import CATEGORY, Guide

logger = logging.getLogger(__name__)

MAX_RELATIVE_STRENGTH = 10.0
NO_SHARES = "no share of attention was asked for in the last run of this model."


class MaskToAttentionBias(io.ComfyNode):
    """MGV_MaskToAttentionBias."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_MaskToAttentionBias",
            display_name="Mask to Attention Bias",
            category=f"{CATEGORY}/guidance",
            description=(
                "Says which regions of a video attention should keep to, how, how strongly and when. The guide is not "
                "yet bound to a model: Patch Attention does that."
            ),
            inputs=[
                *guided_region_inputs("Objects from Track Masks"),
                phrases_of_prompt_input("separate and cross_text use them."),
                *_rule_inputs(),
                *_place_inputs(),
                strength_curve_input(),
                share_input(),
            ],
            outputs=[
                Guide.Output(display_name="guide", tooltip="For Patch Attention and Preview Guide."),
                io.String.Output(
                    display_name="report", tooltip="Which regions the guide holds and in how many frames."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        phrases: str,
        mode: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        blocks: str,
        rows: str,
        hard: bool,
        time_pooling: str = "max",
        tracks: Any = None,
        mask: Tensor | None = None,
        strength_curve: Any = None,
        share: float = 0.0,
    ) -> io.NodeOutput:
        regions = named_regions(tracks, mask, phrases)
        goal = given_goal(share)
        rule, factor = mode_at(
            mode,
            # The widget is a factor on the mode's own strength, or on what is found in its place.
            None if goal is not None else strength * mode_constants(mode)[MODES[mode].strength_constant],
            start_percent=start_percent,
            end_percent=end_percent,
            blocks=blocks,
            rows=rows,
            hard=hard,
        )
        guide = MaskGuide(
            regions.masks,
            rule,
            regions.phrases,
            strength=factor if goal is None else strength,
            time_pooling=time_pooling,
            strength_curve=given_curve(strength_curve),
            goal=goal,
        )
        report = guide_report(guide, (*regions.notes, *curve_notes(guide)))
        logger.info(report)
        return io.NodeOutput(weighed(guide), report)


def _rule_inputs() -> list[io.Input]:
    """What is done, how strongly and when."""
    return [
        io.Combo.Input(
            "mode",
            options=list(PLAIN),
            default="focus_fg",
            tooltip="focus: everything looks more at the regions. focus_fg: only what lies inside does (keeps the "
            "background). separate: objects and background see only themselves, over time too. cross_text: the words "
            "of an object act inside its region.",
        ),
        guide_strength_input(MAX_RELATIVE_STRENGTH),
        decimal_input("start_percent", 0.0, "Where in the schedule guidance begins. 0: at the first step."),
        decimal_input(
            "end_percent",
            0.52,
            "Where it ends. 0.52: after the first half, which sets the layout; 1: with the last step.",
        ),
    ]


def _place_inputs() -> list[io.Input]:
    """Where in the model, and with which masks."""
    return [
        blocks_input(),
        io.Combo.Input(
            "rows",
            options=list(get_args(GuidedRows)),
            default="both",
            tooltip="conditional: guide only the prompted half of classifier-free guidance. both: also the unprompted "
            "one.",
        ),
        io.Boolean.Input(
            "hard",
            default=False,
            tooltip="On: masks are cut at one half and sides are fully apart. Off: soft borders.",
        ),
        # Graphs from before there was this widget still run.
        time_pooling_input(optional=True),
    ]


class PatchAttention(io.ComfyNode):
    """MGV_PatchAttention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_PatchAttention",
            display_name="Patch Attention",
            category=f"{CATEGORY}/guidance",
            description=(
                "Adds a guide to a model: its attention then follows the regions. The model that comes in is not "
                "changed; several of these nodes can follow each other. Strength 0 or an empty guide gives exactly "
                "the unpatched video."
            ),
            inputs=[
                video_model_input(),
                guide_input(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the positive prompt. Modes that steer words need it (cross_text, "
                    "direct_a_video, motionbooth ...); with it, separate, dmg and others also keep an object's words "
                    "inside the object.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="Exactly the positive prompt, so that phrases can be found in it; connect the same String "
                    "node.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Only when several positive prompts are combined, or come from Prompt Schedule: the "
                    "conditioning of the prompt above. The words of the others are then left alone.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The guided model, for any sampler.")],
        )

    @classmethod
    def execute(
        cls, model: Any, guide: MaskGuide, prompt: str, clip: Any = None, positive: Any = None
    ) -> io.NodeOutput:
        family, network = require_supported(model)
        names = family.block_names(network)
        guide = guide.on_blocks(names)
        check_blocks(guide.mode.blocks, names)
        if not guide.is_active:
            logger.warning(guide_report(guide))
            return io.NodeOutput(install_patches(model, []))
        spans = phrase_spans(guide, family, clip, prompt, positive)
        patched = install_patches(model, guide_patches(guide, spans))
        check_words(patched)
        return io.NodeOutput(patched)


def phrase_spans(guide: MaskGuide, family: Family, clip: Any, prompt: str, positive: Any = None) -> TextSpans | None:
    """Find the guide's phrases in the prompt, for the modes that use them.

    Args:
        guide: with or without phrases.
        family: of the model.
        clip: ComfyUI CLIP or None.
        prompt: the positive prompt.
        positive: CONDITIONING of this prompt, or None when there is no other.

    Returns:
        Where its phrases are in the text; None where words are not guided: no phrases in the guide, or no CLIP.

    Raises:
        ValueError: if a mode that needs them lacks phrases or CLIP, the prompt is empty, or a phrase is not in it.
    """
    if guide.mode.only_words and not guide.phrases:
        raise ValueError(f"mode {guide.mode.name} has no phrases; write the object's words in the node of the guide.")
    if not guide.mode.uses_words or not guide.phrases:
        return None
    if clip is None:
        if guide.mode.only_words:
            raise ValueError(
                f"mode {guide.mode.name} needs the text encoder, but clip is not connected; connect the CLIP."
            )
        return None
    if not prompt.strip():
        raise ValueError(
            f"prompt is empty, so {', '.join(filter(None, guide.phrases))} cannot be found in it; connect the positive "
            "prompt's text."
        )
    return spans_of_named(
        lambda phrases: token_spans(clip, prompt, phrases, family, positive, guide.background_phrase), guide.phrases
    )


def _same_masks(one: MaskGuide, other: MaskGuide) -> bool:
    return one.masks.shape == other.masks.shape and bool((one.masks == other.masks).all())


class PreviewGuide(io.ComfyNode):
    """MGV_PreviewGuide."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_PreviewGuide",
            display_name="Preview Guide",
            category=f"{CATEGORY}/guidance",
            description=(
                "Shows what the model will see: the guide's regions pooled to every token grid of the model, one "
                "picture per latent frame, finest grid on the left. Regions have colours, background is dark. After a "
                "run with a share of attention it shows what each block had and has."
            ),
            inputs=[
                guide_input(),
                io.Model.Input(
                    "model",
                    tooltip="Tells which grids there are, and how frames become latent frames. For shares of "
                    "attention: the model that comes from Patch Attention.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="Tells frames and size: the latent that goes into the sampler. For shares of attention: "
                    "the one that comes out of it.",
                ),
                io.Int.Input(
                    "size", default=256, min=16, max=2048, step=16, tooltip="Height of the pictures in pixels."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="One picture per latent frame, all levels side by side."),
                io.Image.Output(
                    display_name="shares",
                    tooltip="Of each block and region the share of attention on what is wanted: dark before, bright "
                    "with guidance, a line where it was wanted. Empty where the model's last run asked for no share.",
                ),
                io.String.Output(display_name="report", tooltip="The same in words, a line per region."),
            ],
        )

    @classmethod
    def execute(cls, guide: MaskGuide, model: Any, latent: dict[str, Any], size: int) -> io.NodeOutput:
        family, network = require_supported(model)
        samples = checked_latents(latent, dimensions=4 if family.frame_axis == 0 else 5)
        grids = family.grids(network, samples.shape, {})
        frames = family.film_frames(network, samples.shape, {})
        names = guide.phrases or ("",) * len(guide.masks)
        shares = last_shares(model, guide)
        report = "\n".join(shares_told(shares, names)) or NO_SHARES
        pictures = guide_pictures(guide, grids, family.latent_time, frames, size)
        return io.NodeOutput(pictures, share_chart(shares, names), report)


def last_shares(model: Any, guide: MaskGuide) -> tuple[BlockShare, ...]:
    """What a guide found of shares of attention in the last run of a model; nothing where it is not on the model."""
    found: list[BlockShare] = []
    for patch in patches_on(model):
        if isinstance(patch, GuidePatch) and patch.guide.goal == guide.goal and _same_masks(patch.guide, guide):
            found += patch.shares
    return tuple(found)
