"""The blocks of a U-Net as ComfyUI has them: where they stand, and the size of their grids.

Source: Comfy-Org/ComfyUI, comfy/ldm/modules/diffusionmodules/openaimodel.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .family import TokenGrid

HostBlock = tuple[str, int]


@dataclass(frozen=True, eq=False)
class UNetBlock:
    """A block of the network.

    Attributes:
        host: ComfyUI's name of it, ``("input", 4)``.
        place: ours of its neighbourhood: ``down.`` and the level, ``mid``, or ``up.`` and the number of upsamplings
            before it.
        level: 0 at the finest grid.
        layers: of the block, in their order.
    """

    host: HostBlock
    place: str
    level: int
    layers: tuple[Any, ...]


def unet_blocks(network: Any) -> list[UNetBlock]:
    """All blocks in the order of the forward pass."""
    found: list[UNetBlock] = []
    level = 0
    for index, block in enumerate(network.input_blocks):
        found.append(UNetBlock(("input", index), f"down.{level}", level, tuple(block)))
        level += _has_layer(block, "Downsample")
    found.append(UNetBlock(("middle", 0), "mid", level, tuple(network.middle_block)))
    coarsest = level
    for index, block in enumerate(network.output_blocks):
        found.append(UNetBlock(("output", index), f"up.{coarsest - level}", level, tuple(block)))
        level -= _has_layer(block, "Upsample")
    return found


def _has_layer(block: Any, name: str) -> bool:
    return any(name in type(layer).__name__ for layer in block)


def unet_grid(level: int, frames: int, height: int, width: int) -> TokenGrid:
    """Grid of a level of a U-Net that halves its size, rounding up, from level to level."""
    extent = (height / 2**level, width / 2**level)
    for _ in range(level):
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return TokenGrid(level, frames, height, width, extent)
