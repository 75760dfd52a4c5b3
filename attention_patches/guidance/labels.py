"""What rules that change logits or probabilities know of each token: its region, its box, its strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .call import ModeCall
from .edits import EditPart
from .tables import fold, fold_keys, place_tokens

# Edges of boxes are fractions in single precision: what lies this little before a cell's edge lies on it.
EDGE_TOLERANCE = 1e-4
# Standard deviation of the Gaussian in a box, in parts of the box.
GAUSSIAN_WIDTH = 1.0 / 3.0


def of_queries(call: ModeCall, values: Tensor) -> Tensor:
    """Lay values [c, T of the queries, h, w] on the query sequence: [groups, Lq, c] on the call's device, else 0."""
    folded = fold(values, call.site.rows.folded)
    return place_tokens(folded, call.video_queries, call.lengths[0]).to(call.device)


def of_keys(call: ModeCall, values: Tensor) -> Tensor:
    """Lay values [c, T of the keys, h, w] on the key sequence: [groups, Lk, c] on the call's device, else 0."""
    folded = fold_keys(values, call.site)
    # Among words there are no video keys.
    return place_tokens(folded[:, : len(call.video_keys)], call.video_keys, call.lengths[1]).to(call.device)


def query_strength(call: ModeCall) -> Tensor:
    """[1, T of the queries, h, w], the strength of each frame; 0 in frames without any object."""
    strength = call.frame_strength.float() * call.query_regions.guided.float()
    return strength[None, :, None, None].expand(1, -1, *call.query_regions.objects.shape[2:])


def groups_with(values: Tensor) -> tuple[int, ...]:
    """The groups of [groups, ...] in which anything is not 0."""
    return tuple(values.flatten(1).any(dim=1).nonzero()[:, 0].tolist())


def word_table(positions: Sequence[Sequence[int]], length: int, device: torch.device) -> Tensor:
    """[lists, length] float with 1 at the positions of each list."""
    table = torch.zeros(len(positions), length)
    for row, found in enumerate(positions):
        table[row, list(found)] = 1.0
    return table.to(device)


# --- regions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RegionLabels:
    """The region of each video token: 1 .. R for objects, R + 1 for the background, 0 for tokens that are not video.

    Attributes:
        queries: [groups, Lq] int16.
        keys: [groups, Lk] int16.
        strength: [groups, Lq] float, 0 for queries that are left alone.
    """

    queries: Tensor
    keys: Tensor
    strength: Tensor

    @classmethod
    def of(cls, call: ModeCall) -> RegionLabels:
        """Read the labels of a call off its hard regions."""

        def labels(members: Tensor) -> Tensor:
            return members.argmax(dim=0, keepdim=True).to(torch.int16) + 1

        return cls(
            of_queries(call, labels(call.query_regions.memberships()))[..., 0],
            of_keys(call, labels(call.regions.memberships()))[..., 0],
            of_queries(call, query_strength(call))[..., 0],
        )

    def same(self, part: EditPart, keys: slice = slice(None)) -> Tensor:
        """[rows, 1, queries, keys] bool, whether query and key are of the same region."""
        queries = self.queries[part.groups, part.queries]
        return (queries[:, :, None] == self.keys[part.groups, None, keys])[:, None]

    def guided(self) -> tuple[int, ...]:
        """The groups in which some query that is not left alone has keys of another region."""
        video = self.keys > 0
        least = self.keys.masked_fill(~video, torch.iinfo(torch.int16).max).amin(dim=1, keepdim=True)
        most = self.keys.amax(dim=1, keepdim=True)
        other = (self.queries != least) | (self.queries != most)
        return groups_with(other & (self.strength > 0.0))

    def key_shares(self, regions: int) -> Tensor:
        """[groups, Lq], the share of the video keys that are of the region of each query, of so many regions."""
        counts = torch.stack([(self.keys == label).sum(dim=1) for label in range(1, regions + 1)], dim=1).float()
        shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)
        return shares.gather(1, (self.queries.long() - 1).clamp(min=0))


# --- boxes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CellBoxes:
    """The boxes of objects on the cells of a grid.

    Attributes:
        inside: [R, T, h, w] float, 1 in the box of the object.
        bump: [R, T, h, w] float, a Gaussian in each box with a peak of 1 and a standard deviation of a third of the box
            along either axis; 0 outside.
        area: [R, T] float, share of the picture that the box takes; 0 where the object is not in the frame.
    """

    inside: Tensor
    bump: Tensor
    area: Tensor

    @classmethod
    def of(cls, call: ModeCall, boxes: Tensor, margin: float = 0.0) -> CellBoxes:
        """Scale boxes to the cells of a call and cast them to whole ones, at least one each.

        Args:
            call: the call.
            boxes: its ``boxes`` or ``query_boxes``.
            margin: part of the picture by which each box is smaller on either side.
        """
        height, width = call.site.grid[1:]
        filled = call.site.extent or (height, width)
        present = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        rows, of_rows = _axis(boxes[..., 1], boxes[..., 3], height, filled[0], margin)
        columns, of_columns = _axis(boxes[..., 0], boxes[..., 2], width, filled[1], margin)
        here = present[..., None, None].float()
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        return cls(
            rows[..., :, None] * columns[..., None, :] * here,
            of_rows[..., :, None] * of_columns[..., None, :] * here,
            area * present.float(),
        )

    @property
    def present(self) -> Tensor:
        """[R, T, 1, 1] float, 1 where the object is in the frame."""
        return (self.area > 0.0).float()[..., None, None]


def _axis(first: Tensor, last: Tensor, cells: int, filled: float, margin: float) -> tuple[Tensor, Tensor]:
    """Say which cells of an axis lie between two edges [R, T], [R, T, cells], and the Gaussian on them."""
    start = ((first + margin) * filled + EDGE_TOLERANCE).floor().clamp(0, cells - 1)
    stop = torch.maximum(((last - margin) * filled + EDGE_TOLERANCE).floor().clamp(max=cells), start + 1)
    place = torch.arange(cells, dtype=torch.float32)
    inside = (place >= start[..., None]) & (place < stop[..., None])
    length = stop - start
    offset = (place - (start + (length - 1.0) / 2.0)[..., None]) / (GAUSSIAN_WIDTH * length)[..., None]
    bump = torch.exp(-0.5 * offset**2) * inside
    return inside.float(), bump / bump.amax(dim=2, keepdim=True)
