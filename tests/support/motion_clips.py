"""Two clips with masks in folders, and the arguments of ``train-motion`` on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mask_guided_video.recipes.films.files import write_film


def write_clips(folder: Path) -> Path:
    """``videos`` and ``masks`` of two clips of 4 frames of 16 x 16 pixels; returns the folder."""
    for name in ("videos", "masks"):
        (folder / name).mkdir()
    for number in range(2):
        pictures = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(number))
        write_film(folder / "videos" / f"{number}.mp4", pictures)
        drawn = np.zeros((4, 16, 16), dtype=bool)
        drawn[:, 4:12, 4:12] = True
        np.save(folder / "masks" / f"{number}.npy", drawn)
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    """Four steps on these clips."""
    return [
        *("--videos", str(folder / "videos"), "--masks", str(folder / "masks")),
        *("--out", str(folder / "out.safetensors"), "--run", str(folder / "run")),
        *("--prompt", "a red ball moves left on grass", "--phrase", "red ball", "--background", "grass"),
        *("--steps", "4", "--batch", "2", "--rank", "2", "--checkpoint-every", "2"),
        *("--learning-rate", "0.01", "--constant", "blocks=all", "--constant", "beta=3", *more),
    ]
