"""Between the pixels of a frame and the small mask grid of SAM-like models: results out, rough masks in.

Such a model sees the frame resized so that its longer side fills a square, the rest of the square empty, and answers
with logits on a coarser grid over that square. Resizing is linear and works on rows and columns apart, so each way is
one matrix per axis, and only the part that holds an object has to be worked out (at 720p 1 instead of 4 to 12 ms for
an object of a tenth of the frame).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as functional
from torch import Tensor

# Below this logit a pixel rounds to 0 of 255. Interpolation never exceeds its neighbours, so what is outside on the
# grid is outside in the frame.
SILENT_LOGIT = math.log(0.5 / 254.5)
# Logits of a rough mask inside and outside; those of SAM's results are of this order.
GUESS_LOGIT = 8.0
# Parts of the frame up to this share are worked out by matrices; for larger ones the library's resizing is quicker.
SMALL_SHARE = 0.4

# Along one axis: where results go, and what they are made of.
_Reach = tuple[slice, slice]


@dataclass(frozen=True)
class PictureFit:
    """How a frame lies in a model's square input.

    Attributes:
        original: (height, width) of the frame in pixels.
        reshaped: (height, width) of the frame inside the square, in model pixels.
        padded: side of the square in model pixels.
        grid: side of the mask grid over the square, in cells.
    """

    original: tuple[int, int]
    reshaped: tuple[int, int]
    padded: int
    grid: int

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) factors from frame pixels to model pixels."""
        return self.reshaped[1] / self.original[1], self.reshaped[0] / self.original[0]

    @cached_property
    def _outwards(self) -> tuple[Tensor, Tensor]:
        """Rows [H, grid] and columns [W, grid]: from grid to frame by SAM's two steps."""
        rows, columns = (_resizing(self.grid, self.padded)[:inside] for inside in self.reshaped)
        return (
            _resizing(self.reshaped[0], self.original[0]) @ rows,
            _resizing(self.reshaped[1], self.original[1]) @ columns,
        )

    @cached_property
    def _inwards(self) -> tuple[Tensor, Tensor]:
        """Rows [grid, H] and columns [grid, W]: from frame to grid, as means over the cells."""
        cells = []
        for inside, original in zip(self.reshaped, self.original, strict=True):
            filled = functional.pad(_resizing(original, inside), (0, 0, 0, self.padded - inside))
            cells.append(filled.unflatten(0, (self.grid, -1)).mean(1))
        return cells[0], cells[1]

    def enlarge(self, logits: Tensor) -> Tensor:
        """Masks of frame size, the same as SAM's two bilinear steps and a sigmoid.

        Args:
            logits: float [N, grid, grid].

        Returns:
            uint8 [N, H, W], 0..255, on the CPU.
        """
        logits = logits.float().cpu()
        masks = torch.zeros(len(logits), *self.original, dtype=torch.uint8)
        for mask, values in zip(masks, logits, strict=True):
            spans = _spans(values, SILENT_LOGIT, self._outwards)
            if spans is None:
                continue
            (rows, _), (columns, _) = spans
            part = mask[rows, columns]
            small = part.numel() < SMALL_SHARE * mask.numel()
            enlarged = _transform(values, spans, self._outwards) if small else self._whole(values)[rows, columns]
            part.copy_(enlarged.sigmoid_().mul_(255).add_(0.5))
        return masks

    def _whole(self, values: Tensor) -> Tensor:
        """SAM's two steps for the whole frame, without the empty part of the square: from [grid, grid] to [H, W]."""
        factor = self.padded // self.grid
        # One more row and column, since cells reach into the next.
        rows, columns = (-(-inside // factor) + 1 for inside in self.reshaped)
        square = functional.interpolate(values[None, None, :rows, :columns], scale_factor=factor, mode="bilinear")
        cut = square[..., : self.reshaped[0], : self.reshaped[1]]
        return functional.interpolate(cut, self.original, mode="bilinear")[0, 0]

    def shrink(self, masks: Sequence[Tensor]) -> Tensor:
        """Rough masks as the logits that SAM takes for a hint, empty where the frame does not reach.

        Args:
            masks: [H, W] each, bool, uint8 0..255 or float 0..1.

        Returns:
            float [N, 1, grid, grid], ``-GUESS_LOGIT`` to ``GUESS_LOGIT``, on the CPU.

        Raises:
            ValueError: for a mask of another size.
        """
        shares = torch.zeros(len(masks), 1, self.grid, self.grid)
        for share, mask in zip(shares, masks, strict=True):
            if tuple(mask.shape) != self.original:
                raise ValueError(f"a rough mask has shape {list(mask.shape)}; give {list(self.original)}.")
            values = mask.detach().cpu()
            scale = 255 if values.dtype == torch.uint8 else 1
            values = values.view(torch.uint8) if values.dtype == torch.bool else values
            spans = _spans(values, 0, self._inwards)
            if spans is not None:
                (rows, _), (columns, _) = spans
                share[0, rows, columns] = _transform(values, spans, self._inwards) / scale
        edge = 1 / (1 + math.exp(GUESS_LOGIT))
        return torch.logit(shares, eps=edge)


def _resizing(size: int, wanted: int) -> Tensor:
    """Weights [wanted, size] of bilinear resizing along one axis, without blur where it shrinks."""
    identity = torch.eye(size)[None]
    return functional.interpolate(identity, wanted, mode="linear", align_corners=False)[0].T.contiguous()


def _spans(values: Tensor, floor: float, weights: tuple[Tensor, Tensor]) -> tuple[_Reach, _Reach] | None:
    """What depends on the pixels above a floor, in rows and in columns; None for nothing."""
    rows, columns = (_reached(values.amax(1 - axis) > floor, weights[axis]) for axis in (0, 1))
    return None if rows is None or columns is None else (rows, columns)


def _transform(values: Tensor, spans: tuple[_Reach, _Reach], weights: tuple[Tensor, Tensor]) -> Tensor:
    """Resize the part of a picture that the spans give."""
    (rows, source_rows), (columns, source_columns) = spans
    part = values[source_rows, source_columns].float()
    return weights[0][rows, source_rows] @ part @ weights[1][columns, source_columns].T


def _reached(inside: Tensor, weights: Tensor) -> _Reach | None:
    """Along one axis: results that depend on inputs inside, and all the inputs that those depend on."""
    results = _span(weights[:, _span(inside)].any(1)) if inside.any() else None
    if results is None or results.stop == 0:
        return None
    return results, _span(weights[results].any(0))


def _span(flags: Tensor) -> slice:
    """From the first to the last that is true."""
    places = flags.nonzero().flatten()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
