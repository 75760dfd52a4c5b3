"""Measurements of a video on its pixels; nothing here knows a model or a world.

Masks are float [T, H, W], inside from 0.5 on. A measure that has nothing to look at (no pixel inside, no frame) is None
and never a number that looks like a result.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional

from .films.files import check_frames, to_bytes

# Euclidean distance in RGB (0..1 each) within which two pixels count as the same colour.
SAME_COLOUR = 0.2
# Pixels on each side of a mask's outline that belong to its edge, and that a change outside is kept away from.
EDGE_PIXELS = 2


def frames_sha256(frames: Tensor) -> str:
    """Fingerprint of a video's 8-bit pixels and its shape: two videos have the same one when all pixels agree."""
    digest = hashlib.sha256(str(tuple(frames.shape)).encode("ascii"))
    digest.update(to_bytes(frames).contiguous().numpy().tobytes())
    return digest.hexdigest()


def mask_iou(first: Tensor, second: Tensor) -> float | None:
    """Intersection over union per frame, averaged over the frames in which at least one mask has a pixel.

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"masks have shapes {tuple(first.shape)} and {tuple(second.shape)}; compare equal shapes.")
    inside_first, inside_second = first > 0.5, second > 0.5
    union = (inside_first | inside_second).sum((1, 2))
    overlap = (inside_first & inside_second).sum((1, 2))
    seen = union > 0
    return (overlap[seen] / union[seen]).mean().item() if bool(seen.any()) else None


def colour_purity(frames: Tensor, masks: Tensor) -> float | None:
    """Share of the pixels inside whose colour is that of the object, i.e. near the median colour inside.

    1 is an object of one colour that fills its mask; background showing through or a second colour lowers it. The
    median is taken per frame, the share over frames with at least one pixel inside.
    """
    _check_masks(frames, masks)
    shares = []
    for picture, mask in zip(frames.float(), masks > 0.5, strict=True):
        pixels = picture[mask]
        if len(pixels):
            distance = (pixels - pixels.median(dim=0).values).norm(dim=-1)
            shares.append((distance <= SAME_COLOUR).float().mean())
    return torch.stack(shares).mean().item() if shares else None


def edge_sharpness(frames: Tensor, masks: Tensor) -> float | None:
    """Mean colour gradient (RGB distance per pixel) within two pixels of the masks' outline.

    A crisp outline where the mask says it is scores high; a blurred or a displaced one scores low.
    """
    _check_masks(frames, masks)
    pictures = frames.float().permute(0, 3, 1, 2)
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    horizontal = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    vertical = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    gradient = (horizontal.square() + vertical.square()).sum(1).sqrt()
    inside = (masks > 0.5).float()[:, None]
    band = (_grown(inside) > 0.5) & (_grown(1 - inside) > 0.5)
    return gradient[band[:, 0]].mean().item() if bool(band.any()) else None


def change_outside(first: Tensor, second: Tensor, masks: Tensor) -> float | None:
    """Mean absolute difference (0..1, over RGB) of two videos away from the masks and from their edges."""
    _check_masks(first, masks)
    _check_masks(second, masks)
    outside = _grown((masks > 0.5).float()[:, None])[:, 0] < 0.5
    return (first.float() - second.float()).abs().mean(-1)[outside].mean().item() if bool(outside.any()) else None


def measure_film(frames: Tensor, masks: Tensor) -> dict[str, float | None]:
    """Colour purity and edge sharpness of one video under a mask track."""
    return {"colour_purity": colour_purity(frames, masks), "edge_sharpness": edge_sharpness(frames, masks)}


def _grown(inside: Tensor) -> Tensor:
    return functional.max_pool2d(inside, 2 * EDGE_PIXELS + 1, stride=1, padding=EDGE_PIXELS)


def _check_masks(frames: Tensor, masks: Tensor) -> None:
    check_frames(frames)
    if tuple(masks.shape) != tuple(frames.shape[:3]):
        raise ValueError(
            f"masks have shape {tuple(masks.shape)} and the video {tuple(frames.shape)}; give one mask per frame "
            "of the video's size."
        )
