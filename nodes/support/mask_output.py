"""Masks as ComfyUI wants them, float32, without filling the memory with those of a long video."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

import folder_paths
import numpy as np
import torch
from torch import Tensor

from ...perception.mask_stack import MaskStack, reserve
from ...perception.tracks import Tracks

# Larger outputs lie in a file that the system reads and writes as needed.
LARGEST_IN_MEMORY = 512 * 1024**2
# Pictures beside a result, and those that were asked for: 81 frames of 832 x 480 are drawn half as large, or as they
# are.
PREVIEW_BYTES, DRAWN_FILM_BYTES = 128 * 1024**2, 512 * 1024**2
_LIMIT = "The pictures of a long or large video are smaller, so that all take at most {} MB."
PREVIEW_LIMIT, DRAWN_FILM_LIMIT = _LIMIT.format(128), _LIMIT.format(512)


def temporary_folder() -> Path:
    """ComfyUI's folder for files that need not last; made when it is missing."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_masks(frames: int, height: int, width: int) -> Tensor:
    """Float [T, H, W] of zeros; a large one lies in a file without a name, which vanishes with the tensor.

    Raises:
        OSError: when the disk has too little room.
    """
    shape = (frames, height, width)
    size = 4 * frames * height * width
    if size <= LARGEST_IN_MEMORY:
        return torch.zeros(shape)
    folder = temporary_folder()
    with TemporaryFile(dir=folder) as file:
        reserve(file.fileno(), size, folder)
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="r+", shape=shape))


def union_of(tracks: Tracks) -> Tensor:
    """All objects together, one MASK per frame: float [T, H, W], 0..1."""
    return _unpacked(tracks.masks)


def masks_of_object(tracks: Tracks, number: int) -> Tensor:
    """The object at a position, one MASK per frame: float [T, H, W], 0..1."""
    return _unpacked(tracks.masks.select([number]))


def _unpacked(stack: MaskStack) -> Tensor:
    masks = new_masks(stack.frames, stack.height, stack.width)
    for part in stack.chunks():
        torch.div(stack.union(part), 255, out=masks[part])
    return masks
