"""Videos between two stages of a recipe, on disk instead of in memory."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from ...perception.mask_stack import reserve


def stored_film(folder: Path, frames: int, height: int, width: int) -> Tensor:
    """A black video in a file without a name, which the system reads and writes as needed.

    Args:
        folder: where the file lies; it vanishes with the tensor.
        frames, height, width: of the video, at least 1 each.

    Returns:
        float32 [frames, height, width, 3].

    Raises:
        OSError: when the disk has too little room.
    """
    shape = (frames, height, width, 3)
    with TemporaryFile(dir=folder) as file:
        reserve(file.fileno(), 4 * frames * height * width * 3, folder, "its frames")
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="r+", shape=shape))
