"""Between RGB and the luma and chroma of video: which matrix a video has, and conversion that rounds to nearest.

The constants are those of ITU-T H.273 (matrix coefficients) and ITU-R BT.601, BT.709 and BT.2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# From this size on players take videos that name no matrix for BT.709, below for BT.601.
LARGE_HEIGHT, LARGE_WIDTH = 720, 1280


@dataclass(frozen=True)
class YuvMatrix:
    """Matrix coefficients.

    Attributes:
        name: as FFmpeg's options have it.
        red, blue: shares of the two colours in luma, K_R and K_B.
    """

    name: str
    red: float
    blue: float

    @property
    def rows(self) -> Tensor:
        """RGB in 0..1 to Y in 0..1 and both chromas in -0.5..0.5: float64 [3, 3]."""
        luma = torch.tensor([self.red, 1.0 - self.red - self.blue, self.blue], dtype=torch.float64)
        red, _, blue = torch.eye(3, dtype=torch.float64)
        return torch.stack([luma, (blue - luma) / (2 - 2 * self.blue), (red - luma) / (2 - 2 * self.red)])


BT601 = YuvMatrix("smpte170m", 0.299, 0.114)
BT709 = YuvMatrix("bt709", 0.2126, 0.0722)
# By the number that a video's tag has; others are left to FFmpeg.
MATRICES = {
    1: BT709,
    4: YuvMatrix("fcc", 0.30, 0.11),
    5: BT601,
    6: BT601,
    7: YuvMatrix("smpte240m", 0.212, 0.087),
    9: YuvMatrix("bt2020nc", 0.2627, 0.0593),
}


def matrix_of_tag(tag: int) -> YuvMatrix | None:
    """The matrix that a number of H.273 stands for; None for one that is not linear, or unknown."""
    return MATRICES.get(tag)


def guessed_matrix(height: int, width: int) -> YuvMatrix:
    """The matrix that players take for a video of this size that names none."""
    return BT709 if height >= LARGE_HEIGHT or width >= LARGE_WIDTH else BT601


def planes_of(picture: Tensor, matrix: YuvMatrix) -> np.ndarray:
    """Luma and chroma of a picture in the limited range of video.

    Args:
        picture: uint8 [H, W, 3].
        matrix: to use.

    Returns:
        uint8 [3, H, W], Y in 16..235 and both chromas in 16..240, rounded to nearest.
    """
    rows = matrix.rows * torch.tensor([[219.0], [224.0], [224.0]]) / 255.0
    offset = torch.tensor([16.0, 128.0, 128.0])
    planes = torch.empty(3, *picture.shape[:2], dtype=torch.uint8)
    _mix(picture.movedim(-1, 0).float(), rows, offset, planes)
    return planes.numpy()


def halved_chroma(planes: np.ndarray) -> np.ndarray:
    """Luma and chroma with one chroma for each square of four pixels, their mean, one below the other.

    Args:
        planes: uint8 [3, H, W], both sides even.

    Returns:
        uint8 [1.5 H, W], the layout ``yuv420p``.
    """
    chroma = torch.from_numpy(planes[1:]).float()
    halved = torch.nn.functional.avg_pool2d(chroma, 2).add_(0.5).to(torch.uint8)
    return np.concatenate([planes[0].ravel(), halved.numpy().ravel()]).reshape(-1, planes.shape[2])


def rgb_of(planes: np.ndarray, matrix: YuvMatrix, full: bool = False) -> np.ndarray:
    """The picture of luma and chroma.

    Args:
        planes: uint8 [3, H, W].
        matrix: that they were made with.
        full: luma and chroma reach from 0 to 255.

    Returns:
        uint8 [H, W, 3], rounded to nearest.
    """
    scale = torch.tensor([255.0, 255.0, 255.0] if full else [219.0, 224.0, 224.0], dtype=torch.float64)
    rows = torch.linalg.inv(matrix.rows) * (255.0 / scale)
    zero = torch.tensor([0.0 if full else 16.0, 128.0, 128.0], dtype=torch.float64)
    picture = torch.empty(*planes.shape[1:], 3, dtype=torch.uint8)
    _mix(torch.from_numpy(planes).float(), rows, -rows @ zero, picture.movedim(-1, 0))
    return picture.numpy()


def _mix(channels: Tensor, rows: Tensor, offset: Tensor, into: Tensor) -> None:
    """``rows`` [3, 3] times float ``channels`` [3, H, W], plus ``offset`` [3], rounded into uint8 [3, H, W]."""
    for target, row, start in zip(into, rows.tolist(), offset.tolist(), strict=True):
        value = channels[0] * row[0]
        value.add_(channels[1], alpha=row[1]).add_(channels[2], alpha=row[2])
        # What is converted to whole numbers is cut off.
        target.copy_(value.add_(start + 0.5).clamp_(0.0, 255.0))
