"""Dense optical flow between two frames, and masks moved by it.

By DIS (Kroeger et al., arXiv 1603.03590) as OpenCV has it, which needs no weights, or by a network such as RAFT (Teed
and Deng, arXiv 2003.12039).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .answers import check_answer

# Flow is searched in pictures of about this many pixels along the longer side: smaller frames are enlarged, since the
# method looks at patches of eight pixels, and larger ones shrunk, since it takes longer and finds no more.
LEAST_SIDE, MOST_SIDE = 192, 640
# Where going there and back again ends further away than this share of the way, plus these pixels, something was
# hidden.
SLACK_SHARE, SLACK_PIXELS = 0.1, 1.0
# Networks see pictures whose sides are multiples of 8; RAFT needs 128, and its memory grows with the fourth power.
NETWORK_STEP, NETWORK_LEAST, NETWORK_MOST = 8, 128, 1024


@dataclass(frozen=True, eq=False)
class Flow:
    """Where each pixel of a frame was in another frame.

    Attributes:
        shift: float [H, W, 2], (x, y) in pixels to add to a place in this frame to get its place in the other.
        known: bool [H, W], False where the pixel cannot be found in the other frame: it was hidden there.
    """

    shift: Tensor
    known: Tensor

    def carry(self, masks: Tensor) -> Tensor:
        """Masks of the other frame as they are in this one.

        Args:
            masks: float [N, H, W].

        Returns:
            float [N, H, W], 0 where they would come from outside the picture.
        """
        height, width = masks.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        grid = torch.stack([(x + self.shift[..., 0]) / width, (y + self.shift[..., 1]) / height], dim=-1) * 2 - 1
        return functional.grid_sample(masks[None], grid[None], mode="bilinear", align_corners=False)[0]


class FlowEstimator(Protocol):
    """Says where each pixel of ``frame`` was in ``other``, both uint8 [H, W, 3]."""

    def __call__(self, other: np.ndarray, frame: np.ndarray) -> Flow: ...


class FlowNetwork:
    """A network as a :class:`FlowEstimator`.

    Args:
        model: takes two pictures, float [1, 3, h, w] in -1..1 with sides that are multiples of 8, and answers with a
            list whose last entry is [1, 2, h, w]: (x, y) in pixels from each place in the first picture to its place
            in the second. torchvision's RAFT is one. It runs where its parameters are.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @staticmethod
    def picture_size(height: int, width: int) -> tuple[int, int]:
        """Height and width at which a video of this size is seen."""
        scale = min(1.0, NETWORK_MOST / max(height, width))
        sides = (round(side * scale / NETWORK_STEP) * NETWORK_STEP for side in (height, width))
        tall, wide = (max(side, NETWORK_LEAST) for side in sides)
        return tall, wide

    @classmethod
    def working_memory(cls, height: int, width: int) -> int:
        """Bytes that RAFT takes at once: all pairs of cells of 8 x 8 pixels on four levels, twice."""
        tall, wide = cls.picture_size(height, width)
        return int((tall // 8 * (wide // 8)) ** 2 * 4 * 1.33 * 2)

    def __call__(self, other: np.ndarray, frame: np.ndarray) -> Flow:
        """Flow between two pictures, there and back.

        Raises:
            BrokenAnswerError: the network answers with numbers that are not finite.
        """
        size = self.picture_size(*frame.shape[:2])
        first, second = (self._prepared(picture, size) for picture in (other, frame))
        backward, forward = self._field(second, first), self._field(first, second)
        return _flow_of_fields(backward, forward, *frame.shape[:2])

    def _prepared(self, picture: np.ndarray, size: tuple[int, int]) -> Tensor:
        weights = next(iter(self.model.parameters()), torch.zeros(()))
        values = torch.from_numpy(picture).to(weights.device).movedim(-1, 0)[None].float() / 255
        if values.shape[2:] != size:
            values = functional.interpolate(values, size, mode="bilinear", antialias=True)
        return values * 2 - 1

    @torch.no_grad()
    def _field(self, first: Tensor, second: Tensor) -> np.ndarray:
        field = self.model(first, second)[-1][0].float().cpu()
        check_answer("optical flow model", field, way_out="check the frames, and load the model again")
        return field.movedim(0, -1).contiguous().numpy()


def flow_between(other: np.ndarray, frame: np.ndarray) -> Flow:
    """Where each pixel of ``frame`` was in ``other``.

    Args:
        other: uint8 [H, W, 3], the frame that is known.
        frame: uint8 [H, W, 3], the frame next to it.
    """
    import cv2

    height, width = frame.shape[:2]
    longer = max(height, width)
    side = min(max(longer, LEAST_SIDE), MOST_SIDE)
    # The method needs some pixels across as well, however narrow the picture.
    size = (max(round(width * side / longer), 32), max(round(height * side / longer), 32))
    first, second = _grey(other, frame, size)
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    backward = search.calc(second, first, None)
    forward = search.calc(first, second, None)
    return _flow_of_fields(backward, forward, height, width)


def _flow_of_fields(backward: np.ndarray, forward: np.ndarray, height: int, width: int) -> Flow:
    """Flow at the size of the frames, of the ways back and there: [h, w, 2] at a size of their own."""
    import cv2

    known = _agree(backward, forward)
    scale = np.array([width / backward.shape[1], height / backward.shape[0]], dtype=np.float32)
    shift = cv2.resize(backward, (width, height), interpolation=cv2.INTER_LINEAR) * scale
    known = cv2.resize(known.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    check_answer("optical flow", torch.from_numpy(shift), way_out="check the frames, and install OpenCV again")
    return Flow(torch.from_numpy(shift), torch.from_numpy(known).bool())


def _grey(first: np.ndarray, second: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both frames in one channel, along the direction in which their colours differ most: luma hides red on green."""
    import cv2

    method = cv2.INTER_AREA if size[0] < first.shape[1] else cv2.INTER_CUBIC
    pictures = [cv2.resize(picture, size, interpolation=method).astype(np.float32) for picture in (first, second)]
    colours = np.concatenate([picture.reshape(-1, 3)[::7] for picture in pictures])
    centred = colours - colours.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    values = [(picture - colours.mean(axis=0)) @ axes[:, -1] for picture in pictures]
    low, high = min(value.min() for value in values), max(value.max() for value in values)
    scale = 255 / max(high - low, 1e-3)
    return tuple(((value - low) * scale).round().astype(np.uint8) for value in values)


def _agree(backward: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Where the way back leads home again: bool [h, w]."""
    import cv2

    height, width = backward.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    there = x + backward[..., 0], y + backward[..., 1]
    home = cv2.remap(forward, *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = np.linalg.norm(backward + home, axis=-1)
    inside = (there[0] >= 0) & (there[0] <= width - 1) & (there[1] >= 0) & (there[1] <= height - 1)
    length = np.linalg.norm(backward, axis=-1) + np.linalg.norm(home, axis=-1)
    return inside & (error <= SLACK_PIXELS + SLACK_SHARE * length)
