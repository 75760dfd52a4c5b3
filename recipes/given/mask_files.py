"""Masks out of pictures, videos and arrays, whatever marks the object in them.

What a value means is decided for a whole file or folder, never for a single frame:

- brightness: white is the object, black is not, grey is in between;
- labels: whole numbers that nowhere reach half of their range, and the entries of a palette in colour (DAVIS, SAM 2,
  Grounded-SAM 2). 0 is the background, each other number is an object, in their order;
- alpha: where it is used and what is opaque is of one colour, the opaque is the object.

What could be read in two ways is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..films.decoding import decoded_film, decoded_pictures

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# More distinct values than this are shades, not labels.
MOST_LABELS = 32
# Channels may differ so much in what counts as grey, and opaque pixels in what counts as one colour (lossy formats).
SHADE = 32
# Share of the pixels that are not black from which on a picture counts as one in colour.
COLOURED_SHARE = 0.05
# Value of pixels to leave out, where labels are bytes.
IGNORED = 255
# Arrays with one of these lengths along the last axis, and at least this length before it, have channels there.
CHANNELS, LEAST_SIDE = (1, 3, 4), 8
WAY_OUT = "save the mask white on black, without transparency"


@dataclass(frozen=True, eq=False)
class _Raster:
    """One frame of a mask.

    Attributes:
        values: [H, W]: brightness of 0 to ``full``, or labels.
        full: what stands for white; None where the values are labels.
        alpha: uint8 [H, W], or None.
        colours: uint8 [H, W, 3] of pictures that have them, or None.
    """

    values: np.ndarray
    full: int | None
    alpha: np.ndarray | None = None
    colours: np.ndarray | None = None


def picture_masks(paths: Sequence[Path]) -> Tensor:
    """Read masks from picture files, a frame each; animated pictures and pages of a file are frames too.

    Args:
        paths: at least one, in the order of the frames.

    Returns:
        float [T, H, W], or [N, T, H, W] of labels of several objects, 0..1.

    Raises:
        ValueError: one that cannot be read or has another size, or what could be read in two ways.
    """
    rasters: list[_Raster] = []
    for path in paths:
        for page in decoded_pictures(path):
            rasters.append(_raster_of_picture(page, path))
            if rasters[-1].values.shape != rasters[0].values.shape:
                sizes = " and ".join(str(list(raster.values.shape)) for raster in (rasters[0], rasters[-1]))
                raise ValueError(
                    f"the masks {paths[0].name} and {path.name} in {str(path.parent)!r} are {sizes} pixels "
                    "high and wide; give one size."
                )
    name = repr(str(paths[0] if len(paths) == 1 else paths[0].parent))
    return _masks_of(rasters, name)


def film_masks(path: Path) -> Tensor:
    """Read the masks of one object from a video: brightness, or the alpha of videos that have one.

    Returns:
        float [T, H, W], 0..1.

    Raises:
        ValueError: it cannot be read, or could be read in two ways.
    """
    rasters = [_raster_of_colours(picture) for picture in decoded_film(path, with_alpha=True)]
    name = repr(str(path))
    if any(_uses_alpha(raster) for raster in rasters):
        return _of_alpha(rasters, name)
    _refuse_colours(rasters, name)
    values = np.stack([raster.values for raster in rasters])
    brightest = int(values.max())
    # Coding adds noise, so that small numbers in a video mean nothing.
    if 0 < brightest < 128:
        raise ValueError(
            f"the mask video {name} is nowhere brighter than {brightest} of 255, so that nothing in it is an object; "
            "make it white where the object is."
        )
    return torch.from_numpy(values).float() / 255.0


def array_masks(path: Path) -> Tensor:
    """Read masks from a NumPy file.

    Args:
        path: of [H, W], [T, H, W] or [N, T, H, W]; bool, float 0..1, or whole numbers: brightness or labels.

    Returns:
        float [T, H, W] or [N, T, H, W], 0..1; N may be 0.

    Raises:
        ValueError: not an array, a wrong shape or type, or values out of range.
    """
    name = repr(str(path))
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError, TypeError, TokenError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read as a NumPy array ({reason}); save it with numpy.save.") from error
    is_array = isinstance(values, np.ndarray) and values.ndim in (2, 3, 4)
    # Numbers wider than 8 bytes differ from machine to machine.
    if not is_array or values.dtype.kind not in "buif" or values.dtype.itemsize > 8:
        kind = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else "several arrays"
        raise ValueError(
            f"{name} holds {kind}; give numbers [frames, height, width] or [objects, frames, height, width]."
        )
    if 0 in values.shape[-3:] and not (values.ndim == 4 and values.shape[0] == 0):
        raise ValueError(
            f"{name} holds an empty array {list(values.shape)}; give masks of at least one frame and pixel."
        )
    if values.shape[-1] in CHANNELS and values.shape[-2] >= LEAST_SIDE:
        raise ValueError(
            f"{name} holds {list(values.shape)}, with {values.shape[-1]} channels as it seems; give numbers [frames, "
            "height, width] or [objects, frames, height, width], without channels."
        )
    values = values[None] if values.ndim == 2 else values
    if values.dtype.kind == "f":
        # Numbers too large for the type become infinite, which is refused.
        with np.errstate(over="ignore"):
            return _checked(values.astype(np.float32), name)
    if values.size == 0:
        return torch.zeros(values.shape)
    if values.dtype.kind == "i" and int(values.min()) < 0:
        raise ValueError(f"{name} holds {int(values.min())}; give masks of 0 and more.")
    return _of_numbers(values, _full_of(values), name)


def _raster_of_picture(picture: Image.Image, path: Path) -> _Raster:
    if picture.mode == "P":
        return _raster_of_palette(picture, path)
    if picture.mode in ("1", "L"):
        return _with_transparency(picture) or _raster_of_values(np.asarray(picture))
    if picture.mode == "F":
        return _Raster(np.asarray(picture), 1)
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        # Older versions of the library widen the 16 bits of a PNG.
        return _Raster(values, 65535 if path.suffix.lower() == ".png" else _full_of(values))
    has_alpha = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info
    return _raster_of_colours(np.asarray(picture.convert("RGBA" if has_alpha else "RGB")))


def _raster_of_palette(picture: Image.Image, path: Path) -> _Raster:
    """Entries of a palette in colour are labels; those of a palette of greys are a way to write brightness."""
    palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    transparent = picture.info.get("transparency")
    if transparent is not None and transparent != 0:
        return _raster_of_colours(np.asarray(picture.convert("RGBA")))
    if (palette == palette[:, :1]).all():
        return _with_transparency(picture) or _raster_of_values(np.asarray(picture.convert("L")))
    values = np.asarray(picture)
    if transparent is None and palette[0].any():
        raise ValueError(
            f"the first colour in the palette of {str(path)!r} is {tuple(palette[0].tolist())} instead of black, "
            f"so that it does not say what the background is; {WAY_OUT}."
        )
    return _Raster(values, None)


def _with_transparency(picture: Image.Image) -> _Raster | None:
    if "transparency" not in picture.info:
        return None
    return _raster_of_colours(np.asarray(picture.convert("RGBA")))


def _raster_of_values(values: np.ndarray) -> _Raster:
    return _Raster(values, 1 if values.dtype == bool else 255)


def _raster_of_colours(pixels: np.ndarray) -> _Raster:
    """Of RGB or RGBA, uint8 [H, W, 3 or 4]."""
    colours = pixels[..., :3]
    grey = (colours.astype(np.uint16).sum(-1) + 1) // 3
    alpha = pixels[..., 3] if pixels.shape[-1] == 4 else None
    keeps = alpha is not None or bool(np.ptp(colours, axis=-1).any())
    return _Raster(grey.astype(np.uint8), 255, alpha, colours if keeps else None)


def _masks_of(rasters: Sequence[_Raster], name: str) -> Tensor:
    if any(_uses_alpha(raster) for raster in rasters):
        return _of_alpha(rasters, name)
    _refuse_colours(rasters, name)
    # Pictures without an object are often saved in another format than the rest.
    drawn = [raster for raster in rasters if raster.values.any()] or list(rasters[:1])
    kinds = {raster.full for raster in drawn}
    if len(kinds) > 1:
        if None in kinds:
            raise ValueError(
                f"some pictures in {name} are coloured by a palette and others are not; save all in one format."
            )
        parts = [_checked(raster.values.astype(np.float32) / raster.full, name) for raster in rasters]
        masks = torch.stack(parts)
        if float(masks.max()) < 0.5:
            raise ValueError(f"the masks in {name} are nowhere brighter than half of white; make the object white.")
        return masks
    full = next(iter(kinds))
    stack = np.stack([raster.values if raster.values.any() else np.zeros_like(drawn[0].values) for raster in rasters])
    if full is None:
        return _of_labels(stack, name)
    return _checked(stack, name) if stack.dtype.kind == "f" else _of_numbers(stack, full, name)


def _of_numbers(values: np.ndarray, full: int | None, name: str) -> Tensor:
    """Whole numbers [T, H, W] or [N, T, H, W] as brightness, or as labels where they are too dim for that."""
    top = int(values.max())
    if full is None or 0 < 2 * top < full:
        if values.ndim == 3:
            return _of_labels(values, name)
        # Apart already: each object may be written in its own number.
        return torch.stack([_of_labels(film, name, single=True) for film in values])
    if full == IGNORED and top == IGNORED:
        _refuse_ignored(values, name)
    return torch.from_numpy((values.astype(np.float32) / full).clip(0.0, 1.0))


def _of_labels(values: np.ndarray, name: str, single: bool = False) -> Tensor:
    """Labels [T, H, W] as hard masks: [T, H, W] of one object, [N, T, H, W] of several."""
    labels = [label for label in np.unique(values).tolist() if label]
    if len(labels) > MOST_LABELS or (single and len(labels) > 1):
        raise ValueError(
            f"the masks in {name} hold {len(labels)} values from {labels[0]} to {labels[-1]}, which are too many "
            "for labels and too dim for masks; make the object white (255, or 65535 of 16 bits)."
        )
    if len(labels) <= 1:
        return torch.from_numpy(values != 0).float()
    return torch.stack([torch.from_numpy(values == label).float() for label in labels])


def _of_alpha(rasters: Sequence[_Raster], name: str) -> Tensor:
    """Masks of alpha [T, H, W], where it is the alpha that says what the object is."""
    if any(raster.alpha is None for raster in rasters):
        raise ValueError(f"some pictures in {name} have transparency and others have none; save all in one format.")
    opaque = [raster.colours[raster.alpha >= 128] for raster in rasters]
    found = [colours for colours in opaque if len(colours)]
    low = np.min([colours.min(0) for colours in found], axis=0) if found else np.zeros(3)
    high = np.max([colours.max(0) for colours in found], axis=0) if found else np.zeros(3)
    hidden = [raster.values[raster.alpha < 128] for raster in rasters]
    brightest = max((int(values.max()) for values in hidden if len(values)), default=0)
    if (high.astype(int) - low > SHADE).any() or (brightest >= 128 and float(np.mean(high)) < 128):
        raise ValueError(
            f"{name} is transparent in parts and has a picture in its colours, so that either part may be the object; "
            f"{WAY_OUT}."
        )
    return torch.from_numpy(np.stack([raster.alpha for raster in rasters])).float() / 255.0


def _uses_alpha(raster: _Raster) -> bool:
    return raster.alpha is not None and int(raster.alpha.min()) < 255


def _refuse_colours(rasters: Sequence[_Raster], name: str) -> None:
    coloured = drawn = 0
    for raster in rasters:
        if raster.colours is not None:
            coloured += int((np.ptp(raster.colours, axis=-1) > SHADE).sum())
        drawn += int((raster.values > SHADE // 3).sum()) if raster.full == 255 else 0
    if coloured > COLOURED_SHARE * drawn:
        raise ValueError(
            f"{name} is a picture in colour, which does not say what the object is; {WAY_OUT}, or as an indexed PNG "
            "whose first colour is the background."
        )


def _refuse_ignored(values: np.ndarray, name: str) -> None:
    """Labels beside a border that is to be left out (255) would be black beside white."""
    counts = np.bincount(values.astype(np.uint8).ravel(), minlength=256)
    labels, others = counts[1 : MOST_LABELS + 1].sum(), counts[MOST_LABELS + 1 : IGNORED].sum()
    if not others and labels > counts[IGNORED]:
        raise ValueError(
            f"the masks in {name} hold labels up to {int(np.flatnonzero(counts[:IGNORED])[-1])} beside {IGNORED}, "
            f"which stands for pixels to leave out; set those to 0, or {WAY_OUT}."
        )


def _full_of(values: np.ndarray) -> int | None:
    """The number that stands for white in a type of whole numbers; None beyond 16 bits."""
    if values.dtype == bool:
        return 1
    top = int(values.max())
    if values.dtype.itemsize <= 2 and values.dtype.kind == "u":
        return 255 if values.dtype.itemsize == 1 else 65535
    return next((full for full in (255, 65535) if top <= full), None)


def _checked(values: np.ndarray, name: str) -> Tensor:
    """Numbers that already are a mask.

    Raises:
        ValueError: some are not finite or not in 0..1.
    """
    if values.size and not bool(np.isfinite(values).all()):
        raise ValueError(f"the masks in {name} hold NaN or infinite values; redraw them so that all lie in 0..1.")
    if values.size and not (float(values.min()) >= 0.0 and float(values.max()) <= 1.0):
        raise ValueError(
            f"the mask values in {name} reach from {float(values.min()):g} to {float(values.max()):g}; "
            "scale them to 0..1."
        )
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def masks_in_folder(folder: Path) -> list[Path]:
    """Pictures of a folder in the order of the numbers in their names: PNGs, or where there are none others of one
    kind.

    Raises:
        ValueError: none, or several kinds beside each other.
    """
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        suffix = path.suffix.lower()
        # Some systems leave a hidden companion beside every file.
        if suffix in PICTURE_SUFFIXES and not path.name.startswith("."):
            found.setdefault(suffix, []).append(path)
    kinds = [".png"] if ".png" in found else sorted(found)
    if not kinds:
        raise ValueError(f"the mask folder {str(folder)!r} holds no .png files; put one mask per frame into it.")
    if len(kinds) > 1:
        raise ValueError(f"the mask folder {str(folder)!r} holds {' and '.join(kinds)} files; keep one kind.")
    return sorted(found[kinds[0]], key=_by_numbers)


def _by_numbers(path: Path) -> list[Any]:
    """A key by which ``2.png`` comes before ``10.png``."""
    parts: list[str] = [""]
    for character in path.name:
        if character.isdecimal() != parts[-1][-1:].isdecimal():
            parts.append("")
        parts[-1] += character
    # Texts and numbers alternate, so that equal places hold what can be compared.
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
