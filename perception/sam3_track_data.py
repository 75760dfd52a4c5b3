"""ComfyUI's SAM 3 track data, read as tracks and written from them.

The form is that of ComfyUI core (``comfy_extras/nodes_sam3.py``, ``comfy/ldm/sam3/tracker.py``): a dictionary with
``packed_masks`` (uint8 [T, N, h, w / 8], bit b of byte i is the pixel in column 8 * i + b; None where nothing was
found), ``n_frames``, ``scores`` (one number per object) and ``orig_size`` (height and width of the video). Masks have
the size of the tracker, mostly square, and are stretched to the video's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .boxes import as_number, shown
from .mask_stack import MaskStack
from .tracks import Tracks

KEYS = ("packed_masks", "orig_size")
# Pixels that are unpacked and stretched at once.
PIXELS_AT_ONCE = 16 * 1024 * 1024


def tracks_of_track_data(data: Any) -> Tracks:
    """Read SAM 3 track data.

    A mask is stretched to the size of the video as core does it (bilinear) and cut at one half.

    Args:
        data: the dictionary. Without ``scores`` all are 1; objects beyond the end of the list have 1, too. No object
            at all is a normal answer: nothing was found.

    Returns:
        Hard masks at ``orig_size``, numbers from 1 in the order of the objects, no labels. An object counts as seen
        where its mask is not empty, with its one score.

    Raises:
        ValueError: a key is missing, or has a value of another form; the message names both.
    """
    if not isinstance(data, Mapping) or any(key not in data for key in KEYS):
        keys = ", ".join(sorted(map(str, data))) if isinstance(data, Mapping) else ""
        given = f"has the keys {keys}" if isinstance(data, Mapping) else f"is {shown(data)}"
        raise ValueError(
            f"SAM3 track data needs packed_masks and orig_size, but this {given}; connect the track_data of core's "
            "SAM3 Video Track."
        )
    height, width = _size(data["orig_size"])
    packed = data["packed_masks"]
    if packed is None:
        return Tracks.empty(_frames(data.get("n_frames")), height, width)
    _check_packed(packed, data.get("n_frames"))
    frames, objects = packed.shape[:2]
    scores = _scores(data.get("scores"), objects)
    stack = MaskStack(frames, height, width)
    step = max(1, PIXELS_AT_ONCE // max(height * width, packed.shape[2] * packed.shape[3] * 8))
    for number in range(objects):
        stack.add_object()
        for start in range(0, frames, step):
            films = _unpacked(packed[start : start + step, number], height, width)
            for frame, mask in enumerate(films, start):
                stack.write(number, frame, mask)
    seen = torch.tensor([[stack.any(number, frame) for frame in range(frames)] for number in range(objects)])
    seen = seen.reshape(objects, frames).bool()
    values = torch.tensor(scores).reshape(objects, 1) * seen
    return Tracks(stack, tuple(range(1, objects + 1)), ("",) * objects, values, ~seen)


def track_data_of(tracks: Tracks) -> dict[str, Any]:
    """Write tracks as SAM 3 track data; labels and numbers are lost, because it has no field for them.

    Soft masks are cut at one half. Core stretches masks from a width that is a multiple of 8: where the video's is
    not, every pixel is written 2, 4 or 8 times, so that core's stretching gives the masks bit for bit.

    Args:
        tracks: of any size, may hold no object.

    Returns:
        The dictionary; an object's score is the mean over the frames in which it was seen, 0 where in none.
    """
    height, width = tracks.size
    data: dict[str, Any] = {"n_frames": tracks.frames, "orig_size": (height, width)}
    if not tracks.ids:
        return {"packed_masks": None, "scores": [], **data}
    times = 8 // math.gcd(width, 8)
    packed = torch.zeros(tracks.frames, len(tracks.ids), height, width * times // 8, dtype=torch.uint8)
    for number in range(len(tracks.ids)):
        for frame in range(tracks.frames):
            if tracks.masks.any(number, frame):
                inside = (tracks.masks[number, frame] > 127).repeat_interleave(times, dim=-1)
                packed[frame, number] = torch.from_numpy(np.packbits(inside.numpy(), axis=-1, bitorder="little"))
    seen = ~tracks.misses
    means = (tracks.scores * seen).sum(1) / seen.sum(1).clamp(min=1)
    return {"packed_masks": packed, "scores": means.tolist(), **data}


def _unpacked(packed: Tensor, height: int, width: int) -> Tensor:
    """Masks bool [t, height, width] of bits [t, h, w / 8]."""
    bits = np.unpackbits(packed.detach().cpu().contiguous().numpy(), axis=-1, bitorder="little")
    masks = torch.from_numpy(bits)
    if masks.shape[1:] == (height, width):
        return masks.bool()
    if not bool(masks.any()):
        return torch.zeros(len(masks), height, width, dtype=torch.bool)
    return interpolate(masks[:, None].float(), (height, width), mode="bilinear", align_corners=False)[:, 0] >= 0.5


def _size(value: Any) -> tuple[int, int]:
    sides = list(value) if isinstance(value, Sequence | Tensor) and not isinstance(value, str) else []
    if len(sides) != 2 or not all(as_number(side, "orig_size of SAM3 track data") >= 1 for side in sides):
        raise ValueError(f"orig_size of SAM3 track data is {shown(value)}; give height and width in pixels.")
    return int(sides[0]), int(sides[1])


def _frames(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"n_frames of SAM3 track data is {shown(value)}; give the number of frames, at least 1.")
    return value


def _check_packed(packed: Any, frames: Any) -> None:
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or packed.ndim != 4:
        form = f"{packed.dtype} {list(packed.shape)}" if isinstance(packed, Tensor) else shown(packed)
        raise ValueError(
            f"packed_masks of SAM3 track data are {form}; give uint8 [frames, objects, height, width / 8], or None."
        )
    if 0 in (packed.shape[0], *packed.shape[2:]):
        raise ValueError(f"packed_masks of SAM3 track data have shape {list(packed.shape)}; give at least one frame.")
    if frames is not None and frames != len(packed):
        raise ValueError(
            f"SAM3 track data says n_frames {shown(frames)} but has masks for {len(packed)} frames; track the video "
            "again."
        )


def _scores(values: Any, objects: int) -> list[float]:
    given = [] if values is None else values
    if isinstance(given, str) or not isinstance(given, Sequence | Tensor) or len(given) > objects:
        count = f"{len(given)} for {objects} objects" if isinstance(given, Sequence | Tensor) else shown(given)
        raise ValueError(f"scores of SAM3 track data are {count}; give one number per object.")
    scores = [as_number(value, "score in SAM3 track data") for value in given]
    for score in scores:
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"a score of SAM3 track data is {score:g}; give numbers in 0..1.")
    return scores + [1.0] * (objects - len(scores))
