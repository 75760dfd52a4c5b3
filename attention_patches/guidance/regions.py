"""From pixel masks to regions of attention tokens: pooling in space and time, thin objects, overlaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate, pad

from ..errors import GuideError
from ..latent_time import LatentTime, latent_frame_groups

TimePooling = Literal["max", "mean", "min", "first", "last"]
MaskRule = Literal["area", "strided", "nearest", "bilinear_gt0", "maxpool"]

# A cell belongs to an object when the object covers at least this part of it.
FOREGROUND = 0.5


@dataclass(frozen=True, eq=False)
class Regions:
    """Objects on a token grid.

    Attributes:
        objects: [R, T, h, w] float in 0..1, the share of each cell that belongs to each object; the shares of a cell
            add up to at most 1, the rest is background. 0 or 1 when made with ``hard``.
        present: [R, T] bool, whether the object is in the frame at all. Frames without any object are not guided.
    """

    objects: Tensor
    present: Tensor

    @property
    def background(self) -> Tensor:
        """[T, h, w], the share of each cell that no object has."""
        return (1.0 - self.objects.sum(dim=0)).clamp(min=0.0)

    @property
    def guided(self) -> Tensor:
        """[T] bool, frames with at least one object."""
        return self.present.any(dim=0)

    def memberships(self) -> Tensor:
        """[R + 1, T, h, w]: the objects and then the background; adds up to 1 in every cell."""
        return torch.cat((self.objects, self.background[None]))

    def take(self, frames: Sequence[int]) -> Regions:
        """Return the frames of a context window.

        Raises:
            GuideError: a frame lies outside of the clip.
        """
        total = self.objects.shape[1]
        wrong = [frame for frame in frames if not 0 <= frame < total]
        if wrong:
            raise GuideError(
                f"frame {wrong[0]} is asked for but the clip has {total} frames; give masks for all of it."
            )
        index = torch.as_tensor(list(frames), dtype=torch.long)
        return Regions(self.objects[:, index], self.present[:, index])


def pool_time(
    masks: Tensor, clip_frames: int, pooling: TimePooling = "max", latent_time: LatentTime | None = None
) -> Tensor:
    """Bring masks [R, F, H, W] to the frames of the clip, [R, clip_frames, H, W].

    Args:
        masks: one track per object.
        clip_frames: frames of the whole clip as the model counts them.
        pooling: how the pixel frames of one latent frame become one: their ``max`` (union), ``mean``, ``min``,
            ``first`` or ``last``.
        latent_time: see ``latent_frame_groups``.

    Raises:
        GuideError: an unknown pooling, or frame counts that do not fit (see ``latent_frame_groups``).
    """
    return torch.cat(list(time_frames(masks, clip_frames, pooling, latent_time)), dim=1)


def time_frames(
    masks: Tensor, clip_frames: int, pooling: TimePooling = "max", latent_time: LatentTime | None = None
) -> Iterator[Tensor]:
    """As ``pool_time``, one frame [R, 1, H, W] of the clip after another: whole masks of a long clip are large."""
    if pooling not in get_args(TimePooling):
        raise GuideError(f"time pooling is {pooling!r}; choose one of {', '.join(get_args(TimePooling))}.")
    groups = latent_frame_groups(masks.shape[1], clip_frames, latent_time)
    for group in groups:
        # A part of neighbours needs no copy.
        frames = masks[:, group.start : group.stop] if isinstance(group, range) else masks[:, list(group)]
        if pooling == "first":
            yield frames[:, :1]
        elif pooling == "last":
            yield frames[:, -1:]
        elif pooling == "mean":
            yield frames.mean(dim=1, keepdim=True)
        else:
            yield frames.amax(dim=1, keepdim=True) if pooling == "max" else frames.amin(dim=1, keepdim=True)


def area_weights(source: int, target: int, extent: float | None = None) -> Tensor:
    """[target, source] matrix that averages ``source`` pixels into ``target`` cells by overlapping length.

    Exact for sizes that do not divide each other; with target > source it repeats pixels.

    Args:
        source, target: numbers of pixels and of cells.
        extent: how many cells the pixels fill, when the last one reaches over their edge (7.5 of 8): it is averaged
            over the part that is filled.
    """
    extent = float(target) if extent is None else extent
    edges = torch.arange(target + 1, dtype=torch.float64).clamp(max=extent) * source / extent
    pixels = torch.arange(source, dtype=torch.float64)
    upper = torch.minimum(edges[1:, None], pixels + 1)
    lower = torch.maximum(edges[:-1, None], pixels)
    filled = (edges[1:] - edges[:-1]).clamp(min=torch.finfo(torch.float64).tiny)
    return ((upper - lower).clamp(min=0.0) / filled[:, None]).float()


def pool_area(masks: Tensor, height: int, width: int, extent: tuple[float, float] | None = None) -> Tensor:
    """Area-average masks [..., H, W] to [..., height, width]; ``extent`` as in ``AttentionSite``."""
    extent = extent or (height, width)
    rows = area_weights(masks.shape[-2], height, extent[0])
    columns = area_weights(masks.shape[-1], width, extent[1])
    return (rows @ masks.float() @ columns.T).clamp(0.0, 1.0)


def pool_space(
    masks: Tensor,
    height: int,
    width: int,
    extent: tuple[float, float] | None = None,
    rule: MaskRule = "area",
    level: int = 0,
) -> Tensor:
    """Bring masks [R, T, H, W] to the cells of a token grid, [R, T, height, width].

    Args:
        masks: in pixels.
        height, width: of the grid.
        extent: see ``AttentionSite``.
        rule: ``area`` averages; ``strided`` averages to the cells of the finest grid, cuts at 0.5 and takes every
            2 ** level-th of them; ``nearest`` takes single pixels; ``bilinear_gt0`` takes every cell in which
            interpolation between pixels is above 0; ``maxpool`` takes every cell that the object touches.
        level: of the grid, 0 the finest.
    """
    if rule == "area":
        return pool_area(masks, height, width, extent)
    if rule == "strided":
        step = 2**level
        extent = None if extent is None else (extent[0] * step, extent[1] * step)
        finest = pool_area(masks, height * step, width * step, extent) >= FOREGROUND
        return finest[..., ::step, ::step].float()
    if extent is not None:
        # The last cells reach over the edge of the picture: it goes on as it ends there.
        spare = [
            round(size * cells / filled) - size
            for size, cells, filled in zip(masks.shape[-2:], (height, width), extent, strict=True)
        ]
        masks = pad(masks, (0, spare[1], 0, spare[0]), mode="replicate")
    if rule == "maxpool":
        return adaptive_max_pool2d(masks, (height, width))
    if rule == "nearest":
        return interpolate(masks, (height, width), mode="nearest")
    return (interpolate(masks, (height, width), mode="bilinear", align_corners=False) > 0.0).float()


def guard_thin_objects(pooled: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Keep objects that exist in pixels but cover no cell by half.

    An object is in a frame when some pixel of its mask is at least 0.5. If it is, but no cell of the pooled mask
    reaches 0.5, the frame's pooled values are divided by their maximum: the strongest cell becomes 1, cells at least
    half as strong stay foreground, and a thin line stays a line. If it is not, the frame's values become 0.

    Args:
        pooled: [R, T, h, w], the masks pooled to the token grid.
        masks: [R, T, H, W], the same frames in pixels.

    Returns:
        The guarded masks [R, T, h, w] and ``present`` [R, T] bool.
    """
    present = masks.flatten(2).amax(dim=2) >= FOREGROUND
    strongest = pooled.flatten(2).amax(dim=2)
    rescue = present & (strongest < FOREGROUND)
    scale = torch.where(rescue, strongest.clamp(min=torch.finfo(torch.float32).tiny), torch.ones_like(strongest))
    guarded = (pooled / scale[..., None, None]).clamp(max=1.0)
    return torch.where(present[..., None, None], guarded, torch.zeros_like(guarded)), present


def split_overlaps(objects: Tensor, hard: bool) -> Tensor:
    """Make the shares of each cell add up to at most 1.

    Args:
        objects: [R, T, h, w] in 0..1.
        hard: cut at 0.5 and let the later object win; otherwise objects that together claim more than a cell share it
            by weight.
    """
    if not hard:
        return objects / objects.sum(dim=0, keepdim=True).clamp(min=1.0)
    claimed = objects >= FOREGROUND
    # An object keeps a cell unless one of the later ones claims it too.
    later = torch.flip(torch.cumsum(torch.flip(claimed.int(), (0,)), dim=0), (0,)) - claimed.int()
    return (claimed & (later == 0)).float()


class MaskPyramid:
    """The masks of a clip on every token grid that the model asks for, each made once.

    Args:
        masks: [R, F, H, W] float in 0..1, CPU.
        hard: see ``split_overlaps``.
        time_pooling: see ``pool_time``.
        rule: see ``pool_space``.
        apart: the shares of a cell add up to at most 1; otherwise objects may overlap.
    """

    def __init__(
        self,
        masks: Tensor,
        hard: bool = False,
        time_pooling: TimePooling = "max",
        rule: MaskRule = "area",
        apart: bool = True,
    ) -> None:
        self.masks = masks
        self.hard = hard
        self.time_pooling = time_pooling
        self.rule = rule
        self.apart = apart
        self._levels: dict[tuple[object, ...], Regions] = {}

    def regions(
        self,
        height: int,
        width: int,
        clip_frames: int,
        extent: tuple[float, float] | None = None,
        latent_time: LatentTime | None = None,
        level: int = 0,
    ) -> Regions:
        """Return the regions of the whole clip on a grid of ``height`` x ``width`` cells.

        Args:
            height, width: of the grid.
            clip_frames: frames of the whole clip as the model counts them.
            extent, latent_time, level: see ``AttentionSite``.

        Raises:
            GuideError: the masks' frames do not fit the clip (see ``latent_frame_groups``).
        """
        key = (height, width, clip_frames, extent, latent_time, level)
        found = self._levels.get(key)
        if found is None:
            parts = [
                guard_thin_objects(self._pool(frame, height, width, extent, level), frame)
                for frame in time_frames(self.masks, clip_frames, self.time_pooling, latent_time)
            ]
            pooled, present = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
            objects = split_overlaps(pooled, self.hard) if self.apart else self._overlapping(pooled)
            # An object that later ones cover completely is in the frame no more.
            present = present & (objects.flatten(2).amax(dim=2) > 0.0)
            found = self._levels[key] = Regions(objects, present)
        return found

    def _pool(self, masks: Tensor, height: int, width: int, extent: tuple[float, float] | None, level: int) -> Tensor:
        pooled = pool_space(masks, height, width, extent, self.rule, level)
        if self.rule == "area":
            return pooled
        # The other rules may step over an object that is smaller than a cell.
        missed = pooled.flatten(2).amax(dim=2)[..., None, None] < FOREGROUND
        return torch.where(missed, pool_area(masks, height, width, extent), pooled)

    def _overlapping(self, pooled: Tensor) -> Tensor:
        return (pooled >= FOREGROUND).float() if self.hard else pooled
