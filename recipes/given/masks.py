"""Guide masks that a user brings instead of detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...attention_patches.checks import check_shape
from ...attention_patches.guidance.regions import pool_area
from ...perception.phrases import named_objects
from ...perception.tracks import Tracks
from ..films.decoding import FILM_SUFFIXES
from .mask_files import PICTURE_SUFFIXES, array_masks, film_masks, masks_in_folder, picture_masks

# Files that masks are read from, beside folders of pictures.
MASK_SUFFIXES = (".npy", *PICTURE_SUFFIXES, *FILM_SUFFIXES)


def read_masks(path: Path) -> Tensor:
    """Read masks from a file or a folder; see ``mask_files`` for what the object is in each kind.

    Args:
        path: a NumPy ``.npy`` file ([H, W], [T, H, W] or [N, T, H, W]; bool, 0..1 or whole numbers), a picture (one
            mask for all frames; an animated one has one per frame), a video (one object), or a folder of pictures (a
            mask per frame in the order of the numbers in their names).

    Returns:
        float [T, H, W], or [N, T, H, W] where several objects are kept apart, 0..1.

    Raises:
        ValueError: a missing file, a wrong kind of file, an array of wrong rank, a folder without pictures or with some
            of different sizes, values out of range, or what could be read in two ways.
    """
    if path.is_dir():
        return picture_masks(masks_in_folder(path))
    if not path.is_file():
        raise ValueError(f"there is no mask file {str(path)!r}; check the path.")
    suffix = path.suffix.lower()
    if suffix in FILM_SUFFIXES:
        return film_masks(path)
    if suffix in PICTURE_SUFFIXES:
        return picture_masks([path])
    if suffix != ".npy":
        known = ", ".join(MASK_SUFFIXES)
        raise ValueError(f"the mask file {str(path)!r} is of the kind {suffix or 'without suffix'!r}; give {known}.")
    return array_masks(path)


def objects_of(masks: Tensor) -> int:
    """How many objects masks [H, W], [T, H, W] or [N, T, H, W] are of."""
    return masks.shape[0] if masks.ndim == 4 else 1


def fit_masks(
    masks: Tensor, phrases: Sequence[str], frames: int, height: int, width: int, names: Sequence[str] = ()
) -> Tracks:
    """Bring given masks to a video's length and size, and give them their phrases.

    Args:
        masks: [H, W], [T, H, W] or [N, T, H, W] in 0..1; T is 1 (for all frames) or the video's length. Another height
            and width is resized by area.
        phrases: which objects are wanted, see ``bind_phrases``: one per object where those have no names. None at all
            keeps every object with its name.
        frames: of the video.
        height: of the video, pixels.
        width: of the video, pixels.
        names: of the objects, empty for one without; none at all is the same.

    Returns:
        The objects in the order of the phrases, labelled with them.

    Raises:
        ValueError: another number of objects or frames (both numbers are named), values not finite or not in 0..1, a
            phrase that names no object, or masks of quite another shape than the video.
    """
    masks = checked_masks(masks)
    named = named_objects(phrases, names or ("",) * len(masks), "masks")
    check_shape("the masks are", masks.shape[2:], (height, width))
    places = [place for place, _ in named]
    # The same objects in their order need no copy.
    masks = masks if places == list(range(len(masks))) else masks[places]
    if masks.shape[1] not in (1, frames):
        raise ValueError(
            f"there are {masks.shape[1]} masks and the video has {frames} frames; "
            "give one mask per frame, or a single one."
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
    if not bool(masks.isfinite().all()):
        raise ValueError("masks hold NaN or infinite values; redraw them so that all lie in 0..1.")
    if float(masks.min()) < 0.0 or float(masks.max()) > 1.0:
        raise ValueError(
            f"mask values reach from {float(masks.min()):g} to {float(masks.max()):g}; scale them to 0..1."
        )
    return masks
