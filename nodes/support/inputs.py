"""Inputs that several nodes have, and checks of what arrives: every message names the value seen and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import torch
from comfy_api.latest import io
from torch import Tensor

from ...attention_patches.guidance.attention_share import MAX_SHARE, ShareGoal
from ...attention_patches.guidance.regions import TimePooling
from ...backbones.family import Family
from ...backbones.registry import FAMILIES, supported_models
from ...perception.phrases import split_phrases
from .object_inputs import objects_input
from .types import Guide


def decimal_input(
    name: str,
    default: float,
    tooltip: str,
    *,
    least: float = 0.0,
    most: float = 1.0,
    step: float = 0.01,
    optional: bool = False,
) -> io.Float.Input:
    """A number from ``least`` to ``most``, shown and rounded in steps of ``step``."""
    return io.Float.Input(
        name, default=default, min=least, max=most, step=step, round=step, tooltip=tooltip, optional=optional
    )


def video_model_input(kind: str = "A video model", families: Iterable[Family] = FAMILIES) -> io.Model.Input:
    """The model of a node that changes its attention.

    Args:
        kind: what the node works on, as the beginning of a sentence.
        families: those of them that there are.
    """
    names = supported_models(families)
    return io.Model.Input(
        "model", tooltip=f"{kind}: {names}, or the Toybox. SD1.5 and SDXL make videos with AnimateDiff."
    )


def film_input() -> io.Image.Input:
    """The video that a node reads."""
    return io.Image.Input("image", tooltip="The video, one picture per frame.")


def guide_input() -> io.Input:
    """Any guide."""
    return Guide.Input("guide", tooltip="From Mask to Attention Bias or Dynamic Mask Guidance.")


def blocks_input(default: str = "all", empty: str = "") -> io.String.Input:
    """Patterns of block names.

    Args:
        default: of the widget.
        empty: what an empty text means.
    """
    patterns = "mid,up or down.1.* in a U-Net, block.1* in most transformers, double.*,single.* in HunyuanVideo"
    return io.String.Input(
        "blocks",
        default=default,
        tooltip=f"Blocks of the model: all, or patterns separated by commas: {patterns}. A pattern that fits none is "
        f"an error that lists them. {empty}".strip(),
    )


def guided_region_inputs(tracks: str) -> list[io.Input]:
    """Regions of a guide: tracks or a mask.

    Args:
        tracks: what they are and where they come from.
    """
    return [
        objects_input("tracks", f"{tracks}. Those with the same label become one region.", optional=True),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Instead of tracks: one region, one mask per frame or one for all. White: inside.",
        ),
    ]


def phrases_of_prompt_input(use: str) -> io.String.Input:
    """Phrases of a guide.

    Args:
        use: which modes take them.
    """
    return io.String.Input(
        "phrases",
        default="",
        tooltip="Words of the prompt that name the objects, separated by commas: labels of the tracks, or one phrase "
        f"per object in order. Empty: the labels. {use}",
    )


def background_phrase_input(use: str = "") -> io.String.Input:
    """Words of the background.

    Args:
        use: which modes take them.
    """
    words = "Words of the prompt that name what is outside all objects, such as: grass. Empty: none."
    return io.String.Input("background_phrase", default="", tooltip=f"{words} {use}".strip())


def guide_strength_input(most: float) -> io.Float.Input:
    """Strength of a guide; all modes mean the same by it, and the help of Patch Attention says what."""
    return decimal_input(
        "strength",
        1.0,
        "Relative to the mode. 0: off, the video is bit for bit the unguided one; 1: the mode's own strength. More in "
        "the help of Patch Attention.",
        most=most,
    )


def share_input() -> io.Float.Input:
    """How strong a guide is, as a share of attention; see ``given_goal``."""
    return decimal_input(
        "share",
        0.0,
        "Automatic strength. 0: off, the mode's own. Above: the part of its attention that an object's place gives to "
        "the object's words (or, in modes about the video, to the object); each head finds the gain that takes, so "
        "that one number fits every model. 0.5 is a good start; strength then is a factor on what is found.",
        most=MAX_SHARE,
        optional=True,
    )


def given_goal(share: float) -> ShareGoal | None:
    """What ``share_input`` asks for."""
    return ShareGoal(share) if share else None


def size_inputs(tooltip: str) -> list[io.Input]:
    """Width and height of a video that a model makes or reads, in pixels; the Toybox's by default."""
    return [io.Int.Input(name, default=64, min=8, max=8192, step=4, tooltip=tooltip) for name in ("width", "height")]


def time_pooling_input(optional: bool = False) -> io.Combo.Input:
    """How masks of frames become masks of latent frames."""
    return io.Combo.Input(
        "time_pooling",
        options=list(get_args(TimePooling)),
        default="max",
        optional=optional,
        tooltip="How the masks of the frames in one latent frame become one. max: wherever the object is in any of "
        "them; mean: soft; min: only where it is in all; first, last: one of them.",
    )


def keep_on_disk_input(tooltip: str) -> io.Boolean.Input:
    """Whether new masks are kept on disk; what they take is for the tooltip."""
    return io.Boolean.Input(
        "keep_on_disk",
        default=False,
        optional=True,
        tooltip=f"On: masks are kept in ComfyUI's temporary folder instead of in memory. {tooltip}",
    )


def frames_of(image: Tensor, minimum: int = 1) -> Tensor:
    """An IMAGE batch as frames: a view, not a copy, where it holds floats.

    Args:
        image: [T, H, W, 3 or 4], as ``float_pictures`` takes it.
        minimum: how many frames are needed.

    Returns:
        Float [T, H, W, 3].

    Raises:
        ValueError: wrong shape or type, no pixel, too few frames, or values that are not finite.
    """
    if image.ndim != 4 or image.shape[-1] < 3 or 0 in image.shape[1:3]:
        raise ValueError(f"image has shape {tuple(image.shape)}; connect an IMAGE batch [frames, height, width, 3].")
    if image.shape[0] < minimum:
        raise ValueError(f"the video has {image.shape[0]} frames; at least {minimum} are needed, connect a longer one.")
    frames = float_pictures(image[..., :3])
    check_finite(frames, "the video", "check the VAE (try --fp32-vae) or the node before")
    return frames


def float_pictures(pictures: Tensor) -> Tensor:
    """Pictures as ComfyUI's IMAGE has them, float 0..1; of uint8 0..255 and bool a copy, of floats the same tensor.

    Raises:
        ValueError: another type.
    """
    if pictures.dtype == torch.uint8:
        return pictures.float() / 255.0
    if pictures.dtype == torch.bool:
        return pictures.float()
    if not pictures.is_floating_point():
        raise ValueError(f"image holds {pictures.dtype}; connect an IMAGE of floats in 0..1.")
    return pictures


def check_finite(values: Tensor, name: str, way_out: str) -> None:
    """Check frame after frame, which takes no memory of the video's size.

    Raises:
        ValueError: naming the first frame that holds NaN or infinity.
    """
    for frame, picture in enumerate(values):
        if not bool(torch.isfinite(picture).all()):
            raise ValueError(f"{name} holds NaN or infinite values in frame {frame}; {way_out}.")


def masks_of(mask: Tensor) -> Tensor:
    """A MASK as [T, H, W] in 0..1; accepts [H, W] and [T, 1, H, W].

    Raises:
        ValueError: wrong shape, no frames, or values that are not finite.
    """
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; connect a MASK [frames, height, width].")
    check_finite(mask, "the mask", "redraw it or refine it so that all are in 0..1")
    return mask.float().clamp(0.0, 1.0)


def phrase_list(text: str) -> list[str]:
    """Phrases of a widget, as ``perception.phrases`` reads them; none where it is empty.

    Raises:
        ValueError: there is text that names nothing.
    """
    phrases = split_phrases(text)
    if text.strip() and not phrases:
        raise ValueError(f"phrases is {text!r}, which names nothing; write what is meant, such as: red ball.")
    return phrases
