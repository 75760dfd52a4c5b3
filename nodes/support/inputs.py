"""Check and normalise what arrives on the wires; every message names the value seen and the way out."""

from __future__ import annotations

import torch
from torch import Tensor

from ...perception.phrases import split_phrases


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
        raise ValueError(f"the film has {image.shape[0]} frames; at least {minimum} are needed, connect a longer one.")
    frames = float_pictures(image[..., :3])
    check_finite(frames, "the film", "check the VAE (try --fp32-vae) or the node before")
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
    """Check frame after frame, which takes no memory of the film's size.

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
    check_finite(mask, "the mask", "redraw it or refine it so that all lie in 0..1")
    return mask.float().clamp(0.0, 1.0)


def masks_for_frames(mask: Tensor, frames: int, height: int, width: int) -> Tensor:
    """A MASK made to fit a film: one mask serves all frames, another size is scaled (bilinear, antialiased).

    Returns:
        [frames, height, width] in 0..1.

    Raises:
        ValueError: if there are neither one nor ``frames`` masks.
    """
    masks = masks_of(mask)
    if masks.shape[0] == 1:
        masks = masks.expand(frames, -1, -1)
    if masks.shape[0] != frames:
        raise ValueError(
            f"there are {masks.shape[0]} masks for {frames} frames; give one mask per frame, or one for all of them."
        )
    if tuple(masks.shape[1:]) != (height, width):
        masks = torch.nn.functional.interpolate(masks[:, None], (height, width), mode="bilinear", antialias=True)[
            :, 0
        ].clamp(0.0, 1.0)
    return masks


def phrase_list(text: str) -> list[str]:
    """Phrases of a widget, as ``perception.phrases`` reads them; none where it is empty.

    Raises:
        ValueError: there is text that names nothing.
    """
    phrases = split_phrases(text)
    if text.strip() and not phrases:
        raise ValueError(f"phrases is {text!r}, which names nothing; write what is meant, such as: red ball.")
    return phrases
