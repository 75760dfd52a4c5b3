"""Turn masks into attention guidance, look at it, and hang it into a model."""

from __future__ import annotations

import logging
from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..attention_patches.checks import check_blocks
from ..attention_patches.guidance.guide import Guide as MaskGuide
from ..attention_patches.guidance.modes.registry import MODES, PLAIN, mode_at, mode_constants
from ..attention_patches.guidance.patch import guide_patches
from ..attention_patches.guidance.regions import TimePooling
from ..attention_patches.guidance.text_spans import TextSpans, spans_of_named
from ..attention_patches.site import GuidedRows
from ..backbones.family import Family
from .support.cache_weight import weighed
from .support.guide_regions import guide_report, named_regions
from .support.types import CATEGORY, Guide, Tracks, display_range

logger = logging.getLogger(__name__)

MAX_RELATIVE_STRENGTH = 10.0


class MaskToAttentionBias(io.ComfyNode):
    """MGV_MaskToAttentionBias."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_MaskToAttentionBias",
            display_name="Mask to Attention Bias",
            category=f"{CATEGORY}/guidance",
            description=(
                "Says which regions of a film attention shall keep to, how, how strongly and when. The guide is not "
                "yet bound to a model: Patch Attention does that."
            ),
            inputs=[
                Tracks.Input(
                    "tracks",
                    optional=True,
                    tooltip="Objects from Track Masks; objects with the same label become one region.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Instead of tracks: one region, one mask per frame or one for all. White: inside.",
                ),
                io.String.Input(
                    "phrases",
                    default="",
                    tooltip="Words of the prompt that name the objects, separated by commas: labels of the tracks, or one "
                    "phrase per object in their order. Empty: the labels. separate and cross_text use them.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(PLAIN),
                    default="focus_fg",
                    tooltip="focus: everything looks more at the regions. focus_fg: only what lies inside does (keeps "
                    "the background). separate: objects and background see only themselves, over time too. "
                    "cross_text: the words of an object act inside its region.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=MAX_RELATIVE_STRENGTH,
                    tooltip="Relative to the mode's own strength. 0: no guidance at all, the film is bit by bit as "
                    "without; 1: the mode's own; 10: nearly hard.",
                    **display_range(0.01),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    tooltip="Where in the schedule guidance begins. 0: at the first step.",
                    **display_range(0.01),
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.52,
                    min=0.0,
                    max=1.0,
                    tooltip="Where it ends. 0.52: the first half, which sets the layout; 1: to the last step.",
                    **display_range(0.01),
                ),
                io.String.Input(
                    "blocks",
                    default="all",
                    tooltip="Which blocks of the model: all, or a comma list of patterns: mid,up or down.1.* in a "
                    "U-Net, block.1* or block.[0-9] in a transformer, double.*,single.* in HunyuanVideo. A pattern that fits "
                    "none is an error that names them.",
                ),
                io.Combo.Input(
                    "rows",
                    options=list(get_args(GuidedRows)),
                    default="both",
                    tooltip="conditional: guide only the prompted half of classifier-free guidance. both: also the "
                    "unprompted one.",
                ),
                io.Boolean.Input(
                    "hard",
                    default=False,
                    tooltip="On: masks are cut at one half and sides are fully apart. Off: soft borders.",
                ),
                io.Combo.Input(
                    "time_pooling",
                    options=list(get_args(TimePooling)),
                    default="max",
                    # Graphs from before there was this widget still run.
                    optional=True,
                    tooltip="How the masks of the frames that one latent frame stands for (4 in Wan, 8 in LTX) become "
                    "one. max: wherever the object is in any of them; mean: soft; min: only where it is in all; first, "
                    "last: one of them. The first frame of a film stands alone.",
                ),
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
    ) -> io.NodeOutput:
        regions = named_regions(tracks, mask, phrases)
        rule, factor = mode_at(
            mode,
            # The widget is a factor on the mode's own strength.
            strength * mode_constants(mode)[MODES[mode].strength_constant],
            start_percent=start_percent,
            end_percent=end_percent,
            blocks=blocks,
            rows=rows,
            hard=hard,
        )
        guide = MaskGuide(regions.masks, rule, regions.phrases, strength=factor, time_pooling=time_pooling)
        report = guide_report(guide, regions.notes)
        logger.info(report)
        return io.NodeOutput(weighed(guide), report)


class PatchAttention(io.ComfyNode):
    """MGV_PatchAttention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGV_PatchAttention",
            display_name="Patch Attention",
            category=f"{CATEGORY}/guidance",
            description=(
                "Hangs a guide into a model: its attention then follows the regions. The model that comes in is not "
                "changed; several of these nodes can follow each other. Strength 0 or an empty guide gives exactly "
                "the unpatched film."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A video model: Wan, LTX, HunyuanVideo, Mochi, Cosmos, CogVideoX, Stable Video Diffusion, "
                    "SD1.5 or SDXL (with AnimateDiff), or one from Load Video Model.",
                ),
                Guide.Input("guide", tooltip="From Mask to Attention Bias or Dynamic Mask Guidance."),
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
        from ..backbones.registry import install_patches, require_supported
        from ..host.prompts.joined_prompts import check_words

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
        Where its phrases stand; None where words are left alone: the guide has no phrases or there is no CLIP.

    Raises:
        ValueError: if a mode that needs them lacks phrases or CLIP, the prompt is empty, or a phrase is not in it.
    """
    from ..host.prompts.prompt_tokens import token_spans

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
            f"prompt is empty, so {', '.join(filter(None, guide.phrases))} cannot be found in it; connect the positive prompt's text."
        )
    return spans_of_named(
        lambda phrases: token_spans(clip, prompt, phrases, family, positive, guide.background_phrase), guide.phrases
    )


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
                "picture per latent frame, finest grid on the left. Regions have colours, background is dark."
            ),
            inputs=[
                Guide.Input("guide", tooltip="From Mask to Attention Bias or Dynamic Mask Guidance."),
                io.Model.Input("model", tooltip="Tells which grids there are, and how frames become latent frames."),
                io.Latent.Input(
                    "latent",
                    tooltip="Tells frames and size: the latent that goes into the sampler.",
                ),
                io.Int.Input(
                    "size", default=256, min=16, max=2048, step=16, tooltip="Height of the pictures in pixels."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="One picture per latent frame, all levels side by side.")
            ],
        )

    @classmethod
    def execute(cls, guide: MaskGuide, model: Any, latent: dict[str, Any], size: int) -> io.NodeOutput:
        from ..backbones.registry import require_supported
        from ..host.sampling.comfy_sampling import checked_latents
        from .support.previews import guide_pictures

        family, network = require_supported(model)
        samples = checked_latents(latent, dimensions=4 if family.frame_axis == 0 else 5)
        grids = family.grids(network, samples.shape, {})
        return io.NodeOutput(guide_pictures(guide, grids, family.time_factor, size))


NODES = [MaskToAttentionBias, PatchAttention, PreviewGuide]
