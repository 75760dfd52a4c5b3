"""Guide masks that a user brings instead of detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..attention_patches.guide_checks import check_shape
from ..attention_patches.regions import pool_area
from ..perception.phrases import named_objects
from ..perception.tracks import Tracks
from .films import read_film, read_picture

FILM_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".gif")


def read_masks(path: Path) -> Tensor:
    """Read masks from a file or a folder: white or 1 is the object.

    Args:
        path: a NumPy ``.npy`` file ([H, W], [T, H, W] or [N, T, H, W]; bool, 0..1 or uint8), a PNG (one mask for all
            frames), a film (one object), or a folder of PNGs (one object, a mask per frame in the order of their names).

    Returns:
        float [T, H, W] or [N, T, H, W], 0..1.

    Raises:
        ValueError: no such file, another kind of file, an array of another rank, or a folder without PNGs or with some
            of different sizes.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ValueError(f"there is no mask file {str(path)!r}; check the path.")
    suffix = path.suffix.lower()
    if suffix in FILM_SUFFIXES:
        return read_film(path).mean(-1)
    if suffix == ".png":
        return read_picture(path, "L")[None]
    if suffix != ".npy":
        known = ", ".join((".npy", ".png", *FILM_SUFFIXES))
        raise ValueError(f"the mask file {str(path)!r} is of the kind {suffix or 'without suffix'!r}; give {known}.")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a NumPy array ({error}); save it with numpy.save."
        ) from error
    if values.ndim not in (2, 3, 4) or not (values.dtype == bool or np.issubdtype(values.dtype, np.number)):
        raise ValueError(
            f"{str(path)!r} holds {values.dtype} {list(values.shape)}; give numbers [frames, height, width] or "
            "[objects, frames, height, width]."
        )
    masks = torch.from_numpy(np.ascontiguousarray(values))
    masks = masks.float() / 255.0 if masks.dtype == torch.uint8 and int(masks.max()) > 1 else masks.float()
    return masks[None] if masks.ndim == 2 else masks


def objects_of(masks: Tensor) -> int:
    """How many objects masks [H, W], [T, H, W] or [N, T, H, W] are of."""
    return masks.shape[0] if masks.ndim == 4 else 1


def fit_masks(
    masks: Tensor, phrases: Sequence[str], frames: int, height: int, width: int, names: Sequence[str] = ()
) -> Tracks:
    """Bring given masks to a film's length and size, and give them their phrases.

    Args:
        masks: [H, W], [T, H, W] or [N, T, H, W] in 0..1; T is 1 (for all frames) or the film's length. Another height and
            width is resized by area.
        phrases: which objects are wanted, see ``bind_phrases``: one per object where those have no names. None at all
            keeps every object with its name.
        frames: of the film.
        height: of the film, pixels.
        width: of the film, pixels.
        names: of the objects, empty for one without; none at all is the same.

    Returns:
        The objects in the order of the phrases, labelled with them.

    Raises:
        ValueError: another number of objects or frames (both numbers are named), values not finite or not in 0..1, a
            phrase that names no object, or masks of quite another shape than the film.
    """
    masks = checked_masks(masks)
    named = named_objects(phrases, names or ("",) * len(masks), "masks")
    check_shape("the masks are", masks.shape[2:], (height, width))
    places = [place for place, _ in named]
    # The same objects in their order need no copy.
    masks = masks if places == list(range(len(masks))) else masks[places]
    if masks.shape[1] not in (1, frames):
        raise ValueError(
            f"there are {masks.shape[1]} masks and the film has {frames} frames; give one mask per frame, or a single one."
        )
    if tuple(masks.shape[2:]) != (height, width):
        masks = pool_area(masks, height, width).clamp(0.0, 1.0)
    return Tracks.from_masks(masks.expand(-1, frames, -1, -1), tuple(label for _, label in named))


def checked_masks(masks: Tensor) -> Tensor:
    """Masks with their object axis: float [N, T, H, W] on the CPU.

    Args:
        masks: [H, W], [T, H, W] or [N, T, H, W].

    Raises:
        ValueError: another shape, values not finite or not in 0..1.
    """
    masks = masks.detach().cpu().float()
    masks = masks[None] if masks.ndim == 2 else masks
    masks = masks[None] if masks.ndim == 3 else masks
    if masks.ndim != 4 or 0 in masks.shape:
        raise ValueError(
            f"masks have shape {tuple(masks.shape)}; give [objects, frames, height, width], none of them 0."
        )
    if not bool(torch.isfinite(masks).all()):
        raise ValueError("masks hold NaN or infinite values; redraw them so that all lie in 0..1.")
    if float(masks.min()) < 0.0 or float(masks.max()) > 1.0:
        raise ValueError(
            f"mask values reach from {float(masks.min()):g} to {float(masks.max()):g}; scale them to 0..1."
        )
    return masks


def _read_folder(folder: Path) -> Tensor:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
    if not paths:
        raise ValueError(f"the mask folder {str(folder)!r} holds no .png files; put one mask per frame into it.")
    masks = [read_picture(path, "L") for path in paths]
    other = next((place for place, mask in enumerate(masks) if mask.shape != masks[0].shape), None)
    if other is not None:
        raise ValueError(
            f"the masks {paths[0].name} and {paths[other].name} in {str(folder)!r} are {list(masks[0].shape)} and "
            f"{list(masks[other].shape)} pixels high and wide; give one size."
        )
    return torch.stack(masks)
