"""Following objects with a model for single pictures: optical flow carries masks on, colours and the model mend them.

In each frame a pixel is an object's when what flow brought there and how well its colour fits support it together;
the segmentation model draws the outline anew around that, and its drawing is taken where the two agree. An object that
is covered shrinks to nothing. One that was lost is looked for by its colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..boxes import Box
from ..frames import Film
from ..mask_shapes import box_of_mask, mask_iou
from ..optical_flow import FlowEstimator, flow_between
from ..prompts import ObjectPrompt
from ..propagation import SegmentedFilm, Segmenter, Sighting
from .appearance import colour_places, histogram, likeness
from .mask_areas import first_largest, grown, inside_box, large_patches, smoothed, window_around

# How far flow is trusted: colours that are this much more likely (0.2: four times) overrule it.
DOUBT = 0.2
# The model's drawing is taken when it overlaps what was carried on at least this much.
AGREEMENT = 0.6
# Share of an object's full size below which it counts as hidden, and above which it counts as found again.
GONE, BACK = 0.04, 0.15
# A mask whose colours have become this unlike the object's is of something else.
STRANGE, FAMILIAR = 0.35, 0.75
# How fast an object's colours may change per frame, and how alike the new ones must be.
LEARNING, STEADY = 0.05, 0.9
# Pixels around a carried mask that may become the object's, as a share of its diameter, and what it may grow to.
MARGIN, GROWTH = 0.2, 1.2
# The model may redraw the edge of a carried mask by this share of its diameter.
EDGE = 0.06
# Confidence of a mask that was carried on without the model's consent.
CARRIED_SCORE = 0.5
# A colour is a lost object's when it is this many times more likely there than around it.
TELLING = 4.0


class FlowModel:
    """A segmentation model for single pictures that follows objects.

    Args:
        segmenter: makes masks in single frames.
        estimate: makes the flow that carries them on.
    """

    corrected_by_boxes = True

    def __init__(self, segmenter: Segmenter, estimate: FlowEstimator = flow_between) -> None:
        self.segmenter = segmenter
        self.estimate = estimate

    @property
    def model(self) -> nn.Module:
        """The torch module."""
        return self.segmenter.model

    def follow(self, film: Film, reverse: bool = False) -> FlowPropagator:
        """Start following in a video; both directions are alike."""
        return FlowPropagator(film, self.segmenter.open(film), self.estimate)


@dataclass
class _Followed:
    """What is known of an object in the frame visited last.

    Attributes:
        mask: uint8 [H, W].
        colours: histogram of the object.
        around: histogram of the picture around it when it was last seen.
        telling: whether its colours alone are enough to find it.
        full: pixels that it has when nothing hides it.
        centre: (x, y) in pixels where it was last seen.
        speed: (x, y) in pixels a frame.
        unseen: frames since then.
    """

    mask: Tensor
    colours: Tensor | None = None
    around: Tensor | None = None
    telling: bool = False
    full: float = 0.0
    centre: tuple[float, float] = (0.0, 0.0)
    speed: tuple[float, float] = (0.0, 0.0)
    unseen: int = 0


class FlowPropagator:
    """See :class:`~.propagation.Propagator`.

    Args:
        film: video to follow in.
        pictures: the same video as the segmenter encodes it.
        estimate: makes the flow.
    """

    def __init__(self, film: Film, pictures: SegmentedFilm, estimate: FlowEstimator = flow_between) -> None:
        self.film, self.pictures, self.estimate = film, pictures, estimate
        self._objects: dict[int, _Followed] = {}
        self._frame: int | None = None
        self._picture: np.ndarray | None = None
        self._places: Tensor | None = None
        self._taken: Tensor | None = None

    def claim(self, frame: int, taken: Tensor) -> None:
        """Say which pixels of the coming frame belong to objects that are not followed here: bool [H, W]."""
        self._taken = taken

    def step(self, frame: int) -> dict[int, Sighting]:
        """Every followed object in this frame, by identity, from what was seen in the frame visited before."""
        before, picture_before = self._places, self._picture
        self._look(frame)
        seen = [identity for identity, item in self._objects.items() if item.mask.any()]
        found: dict[int, Sighting] = {}
        if seen:
            flow = self.estimate(picture_before, self._picture)
            carried = flow.carry(torch.stack([self._objects[identity].mask for identity in seen]).float() / 255)
            shares = self._share(seen, carried, flow.known, before)
            found.update(self._outline(frame, seen, shares))
        for identity in seen:
            self._settle(identity, found[identity], firm=False)
        for identity in [identity for identity in self._objects if identity not in found]:
            found[identity] = self._search(frame, identity)
            self._settle(identity, found[identity], firm=False)
        self._taken = None
        return found

    def prompt(self, frame: int, prompts: dict[int, ObjectPrompt]) -> dict[int, Sighting]:
        """Take masks as they are; make masks of boxes and points, but doubt those that look like something else."""
        self._look(frame)
        to_draw = {key: value for key, value in prompts.items() if value.mask is None or value.box or value.points}
        found = dict(zip(to_draw, self._draw(frame, list(to_draw.values())), strict=True))
        for identity, value in prompts.items():
            if identity not in to_draw:
                found[identity] = Sighting(value.mask.to(torch.uint8) * 255, value.score)
                self._objects[identity] = self._objects.get(identity) or _Followed(found[identity].mask)
        claims = {key: item.mask > 127 for key, item in self._objects.items() if key not in to_draw}
        for identity in to_draw:
            found[identity] = self._check(identity, to_draw[identity], found[identity], claims)
            claims[identity] = found[identity].mask > 127
        for identity in prompts:
            self._objects.setdefault(identity, _Followed(found[identity].mask))
            self._settle(identity, found[identity], firm=True)
        return found

    def forget(self, identity: int) -> None:
        """Stop following an object."""
        self._objects.pop(identity, None)

    def _draw(self, frame: int, prompts: Sequence[ObjectPrompt]) -> list[Sighting]:
        """Masks by the model, without what lies outside of their boxes and without crumbs."""
        drawn = []
        for prompt, sighting in zip(prompts, self.pictures.segment(frame, prompts), strict=True):
            mask = sighting.mask
            if prompt.box is not None:
                mask = mask * inside_box(prompt.box, mask.shape)
            mask = mask * large_patches(mask > 127)
            drawn.append(Sighting(mask, sighting.score if (mask > 127).any() else 0.0))
        return drawn

    def _look(self, frame: int) -> None:
        if frame != self._frame:
            self._frame, self._picture = frame, self.film.picture(frame)
            self._places = colour_places(self._picture)

    def _share(self, seen: Sequence[int], carried: Tensor, known: Tensor, before: Tensor) -> list[Tensor]:
        """Give every pixel to one object or to none: bool [H, W] each, by Bayes' rule from flow and colours.

        Args:
            seen: identities.
            carried: float [N, H, W], what flow says.
            known: bool [H, W], where flow is to be trusted.
            before: places of the colours of the frame before.
        """
        occupied = torch.stack([self._objects[identity].mask > 127 for identity in seen]).any(0)
        # What comes out from behind an object was carried there as a part of it; a lost one is known by its colours.
        hidden = [item.colours for item in self._objects.values() if not item.mask.any() and item.colours is not None]
        strangers = [_lookup(colours, self._places) * DOUBT for colours in hidden]
        chances = []
        for identity, share in zip(seen, carried, strict=True):
            item = self._objects[identity]
            margin = max(2, round(MARGIN * item.full**0.5))
            near = grown(share > 0.5, margin)
            window = window_around(item.mask > 127, 3 * margin)
            rest = histogram(before, window & ~occupied)
            inside = _lookup(item.colours, self._places)
            outside = _lookup(rest, self._places)
            trust = share.clamp(DOUBT, 1 - DOUBT)
            # Where the flow is lost colours decide alone, inside as well as at the edge.
            trust = torch.where(known | (share > 0.5), trust, 0.5 * (trust + 0.5))
            chance, against = inside * trust, outside * (1 - trust)
            for stranger in strangers:
                against = torch.maximum(against, stranger)
            chances.append(torch.where(near & (chance > against), chance, 0.0))
        values = torch.stack(chances)
        if self._taken is not None:
            values[:, self._taken] = 0.0
        best = first_largest(values)
        shares = []
        for place, (identity, share) in enumerate(zip(seen, carried, strict=True)):
            mine = smoothed((best == place) & (values[place] > 0))
            limit = GROWTH * self._objects[identity].full
            if mine.sum() > max(limit, 1.1 * float((share > 0.5).sum())):
                # Another thing of the same colours has come near: its pixels are not the object's.
                mine = mine & (share > 0.5)
            shares.append(mine)
        return shares

    def _outline(self, frame: int, seen: Sequence[int], shares: Sequence[Tensor]) -> dict[int, Sighting]:
        """Draw the shared out pixels anew by the model where it agrees."""
        found: dict[int, Sighting] = {}
        boxes: dict[int, Box] = {}
        for identity, share in zip(seen, shares, strict=True):
            item = self._objects[identity]
            there = share.sum() >= max(4.0, GONE * item.full)
            alike = likeness(histogram(self._places, share), item.colours) if there else 0.0
            if alike < STRANGE:
                found[identity] = Sighting(torch.zeros_like(item.mask), 0.0)
            else:
                boxes[identity] = box_of_mask(share.float())
        drawn = self._draw(frame, [ObjectPrompt(frame, box=box) for box in boxes.values()])
        for identity, sighting in zip(boxes, drawn, strict=True):
            place = seen.index(identity)
            others = [share for other, share in enumerate(shares) if other != place]
            mask = _without(sighting.mask, others + ([] if self._taken is None else [self._taken]))
            share = shares[place].to(torch.uint8) * 255
            agreement = mask_iou(mask, share)
            if agreement >= AGREEMENT:
                edge = max(1, round(EDGE * self._objects[identity].full ** 0.5))
                mask = torch.where(grown(shares[place], edge), mask, 0)
                mask = torch.where(grown(~shares[place], edge), mask, 255)
                found[identity] = Sighting(mask, max(sighting.score * agreement, CARRIED_SCORE))
            else:
                found[identity] = Sighting(share, CARRIED_SCORE)
        return found

    def _check(self, identity: int, prompt: ObjectPrompt, fresh: Sighting, claims: dict[int, Tensor]) -> Sighting:
        """A fresh mask, or the carried one when that looks more like the object; pixels of others stay theirs."""
        item = self._objects.get(identity)
        if item is None or item.colours is None:
            return fresh
        others = [claim for other, claim in claims.items() if other != identity]
        mask = _without(fresh.mask, others)
        if prompt.points:
            return replace(fresh, mask=mask)
        mask = mask * ~self._foreign(item, mask > 127, others)
        mask = mask * large_patches(mask > 127)
        if not item.mask.any() or mask_iou(mask, item.mask) >= AGREEMENT:
            return replace(fresh, mask=mask)
        new, old = (likeness(histogram(self._places, value > 127), item.colours) for value in (mask, item.mask))
        return replace(fresh, mask=mask) if new >= old else Sighting(item.mask, CARRIED_SCORE)

    def _foreign(self, item: _Followed, fresh: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Pixels of a fresh mask whose colours belong to something around it: bool [H, W]."""
        before = item.mask > 127
        if before.any():
            margin = max(2, round(MARGIN * item.full**0.5))
            around = window_around(before | fresh, margin) & ~grown(before, 1)
            for other in others:
                around &= ~other
            rest = _lookup(histogram(self._places, around), self._places)
        else:
            rest = _lookup(item.around, self._places)
        return fresh & ~before & (rest * DOUBT > _lookup(item.colours, self._places) * (1 - DOUBT))

    def _search(self, frame: int, identity: int) -> Sighting:
        """Look for a lost object by its colours, in reach of where it was last seen or along the border."""
        item = self._objects[identity]
        nothing = Sighting(torch.zeros_like(item.mask), 0.0)
        if not item.telling:
            return nothing
        taken = torch.zeros_like(item.mask, dtype=torch.bool) if self._taken is None else self._taken.clone()
        for other, known in self._objects.items():
            if other != identity:
                taken |= known.mask > 127
        ratio = _lookup(item.colours, self._places) / _lookup(item.around, self._places)
        patch = _best_patch((ratio > TELLING) & ~grown(taken, 1), item)
        if patch is None:
            return nothing
        box = box_of_mask(patch.float())
        sighting = self._draw(frame, [ObjectPrompt(frame, box=box)])[0]
        mask = _without(sighting.mask, [taken])
        if mask_iou(mask, patch.to(torch.uint8) * 255) < AGREEMENT:
            return nothing
        if likeness(histogram(self._places, mask > 127), item.colours) < FAMILIAR:
            return nothing
        return Sighting(mask, sighting.score)

    def _settle(self, identity: int, sighting: Sighting, firm: bool) -> None:
        """Remember an object as it is now; ``firm`` when a prompt placed it, not flow alone."""
        item = self._objects[identity]
        inside = sighting.mask > 127
        area = float(inside.sum())
        if area == 0:
            item.mask = torch.zeros_like(sighting.mask)
            item.unseen += 1
            return
        rows, columns = inside.nonzero().float().add(0.5).mean(0).tolist()
        if item.colours is not None:
            frames = item.unseen + 1
            move = ((columns - item.centre[0]) / frames, (rows - item.centre[1]) / frames)
            item.speed = tuple(0.5 * old + 0.5 * new for old, new in zip(item.speed, move, strict=True))
        item.mask, item.centre, item.unseen = sighting.mask, (columns, rows), 0
        if item.colours is None or (firm and area >= item.full):
            item.full = area
        else:
            item.full = min(max(area, 0.97 * item.full), 1.03 * item.full)
        self._remember_colours(item, inside)

    def _remember_colours(self, item: _Followed, inside: Tensor) -> None:
        colours = histogram(self._places, inside)
        whole = float(inside.sum()) >= 0.5 * item.full
        if item.colours is None:
            item.colours = colours
        elif whole and likeness(colours, item.colours) > STEADY:
            item.colours = (1 - LEARNING) * item.colours + LEARNING * colours
        occupied = inside.clone()
        for other in self._objects.values():
            occupied |= other.mask > 127
        # A mask that is too small leaves some of the object outside.
        margin = max(2, round(MARGIN * item.full**0.5))
        around = histogram(self._places, ~grown(occupied, margin))
        if around is not None and (whole or item.around is None):
            item.around = around
            ratio = _lookup(item.colours, self._places) / _lookup(around, self._places)
            alike = (ratio > TELLING) & ~grown(occupied, margin)
            share = (ratio > TELLING)[inside].float().mean()
            item.telling = bool(share > 0.6 and alike.sum() < 0.3 * inside.sum())


def _lookup(colours: Tensor | None, places: Tensor) -> Tensor:
    """How likely each pixel's colour is: float [H, W]; all the same when nothing is known."""
    return torch.ones(places.shape) if colours is None else colours[places]


def _without(mask: Tensor, others: Sequence[Tensor]) -> Tensor:
    """A mask (uint8) without the pixels of others (bool)."""
    for other in others:
        mask = mask * ~other
    return mask


def _best_patch(candidates: Tensor, item: _Followed) -> Tensor | None:
    """The connected patch of pixels that is most likely the lost object: bool [H, W]."""
    import cv2

    height, width = candidates.shape
    _, labels, statistics, centres = cv2.connectedComponentsWithStats(
        smoothed(candidates).numpy().astype(np.uint8), connectivity=4
    )
    size = max(item.full**0.5, 4.0)
    best, patch = 0.0, None
    for number in range(1, len(statistics)):
        left, top, across, down, area = statistics[number].tolist()
        if not max(8.0, BACK * item.full) <= area <= 1.5 * item.full:
            continue
        expected = [
            min(max(old + speed * item.unseen, 0.0), float(limit))
            for old, speed, limit in zip(item.centre, item.speed, (width, height), strict=True)
        ]
        distance = float(np.hypot(*(centres[number] - expected)))
        nearest = min(distance, float(np.hypot(*(centres[number] - item.centre))))
        reach = size * (1 + 0.25 * item.unseen)
        border = left == 0 or top == 0 or left + across == width or top + down == height
        if nearest > reach and not border:
            continue
        value = area / item.full * float(np.exp(-nearest / (2 * reach)))
        if value > best:
            best, patch = value, number
    return None if patch is None else torch.from_numpy(labels == patch)
