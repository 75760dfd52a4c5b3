"""The tracker at work: frame after frame through a video, forwards, and backwards where an object was not yet known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..boxes import Progress, iou
from ..frames import Film
from ..mask_shapes import box_of_mask, mask_iou
from ..prompts import ObjectPrompt, next_identity
from ..propagation import PropagationModel, Propagator, Sighting
from ..tracks import Tracks
from .appearance import colour_places, histogram
from .evidence import Evidence, box_of_prompt, joined
from .identities import (
    KnownObject,
    choose,
    find_lost,
    match_boxes,
    same_thing,
    says_nothing_new,
    share_pixels,
)
from .track_settings import TrackSettings
from .track_writer import TrackWriter

# A model with a memory gets a box only when its mask fits the box less than this.
DISAGREEMENT = 0.5
# With boxes in fewer frames than this nothing is dropped for having been found too rarely: where most frames have
# boxes, and where a detector looked at some frames only, so that it often sees an object once before something hides
# it.
FEW_FRAMES, FEW_LOOKS = 4, 8
# An object that is followed but was found in none of this many frames with boxes may have been mistaken for something.
STRAYED = 3


class FilmVisit:
    """One call of the tracker.

    Args:
        model: carries masks on.
        film: video to follow in.
        settings: of the call.
        progress: called after every visited frame.
    """

    def __init__(self, model: PropagationModel, film: Film, settings: TrackSettings, progress: Progress | None) -> None:
        self.model, self.film, self.settings = model, film, settings
        self.progress = progress
        self.done, self.total = 0, 0
        self.writer = TrackWriter(film, settings.soft, settings.folder)
        self.known: dict[int, KnownObject] = {}
        # Objects that the propagator still follows or looks for.
        self.followed: set[int] = set()
        # Frames in which a detector found anything.
        self.looked: list[int] = []

    def track(self, evidence: Evidence) -> Tracks:
        """Everything, in order: one sweep that finds, a choice of objects, one sweep back."""
        frames = evidence.frames()
        if not frames:
            return Tracks.empty(len(self.film), self.film.height, self.film.width)
        self.next_identity = next_identity(evidence.prompts)
        backward = self.settings.direction == "backward"
        order = self._order(frames, backward)
        self.total = len(order) + (self._reach(frames[0]) if self.settings.direction == "both" else 0)
        self._sweep(evidence, set(frames), order, backward)
        few = FEW_FRAMES if 2 * len(self.looked) > len(self.film) else FEW_LOOKS
        least = self.settings.minimum_seen if len(self.looked) >= few else 1
        kept = choose(list(self.known.values()), least, self.settings.max_objects)
        self._trim(kept)
        if self.settings.direction == "both":
            self._sweep_back(kept)
        self._report(self.total)
        return self.writer.tracks([item.identity for item in kept], [item.label for item in kept])

    def _order(self, frames: list[int], backward: bool) -> range:
        """Frames of the first sweep: from the first one with evidence on, as far as objects are followed."""
        extend = self.settings.extend
        if backward:
            last = 0 if extend is None else max(frames[0] - extend, 0)
            return range(frames[-1], last - 1, -1)
        last = len(self.film) - 1 if extend is None else min(frames[-1] + extend, len(self.film) - 1)
        return range(frames[0], last + 1)

    def _reach(self, frame: int) -> int:
        """How many frames before this one objects are followed back to."""
        return frame if self.settings.extend is None else min(frame, self.settings.extend)

    def _sweep(self, evidence: Evidence, informed: set[int], order: range, backward: bool) -> None:
        propagator = self.model.follow(self.film, reverse=backward)
        for frame in order:
            if self.followed or frame in informed:
                self._visit(propagator, frame, evidence if frame in informed else None)
            self._report(self.done + 1)

    def _visit(self, propagator: Propagator, frame: int, evidence: Evidence | None) -> None:
        """One frame of the first sweep."""
        sightings = propagator.step(frame) if self.followed else {}
        self._settle(frame, sightings)
        if evidence is not None:
            places = colour_places(self.film.picture(frame))
            self._apply_prompts(propagator, frame, sightings, evidence.prompts_of(frame), places)
            found = evidence.found_in(self.model, self.film, frame)
            self.looked += [frame] if found else []
            rest = self._correct(propagator, frame, sightings, found, places)
            self._add(propagator, frame, sightings, rest, places)
        self._write(frame, sightings)
        self._retire(propagator, frame)

    def _settle(self, frame: int, sightings: dict[int, Sighting]) -> None:
        """Take over what was propagated into this frame; pixels that two objects claim go to one."""
        if self.settings.duplicate_iou < 1 and len(sightings) > 1:
            shared = share_pixels(
                {identity: item.mask for identity, item in sightings.items()},
                {identity: item.score for identity, item in sightings.items()},
            )
            for identity, mask in shared.items():
                sightings[identity] = replace(sightings[identity], mask=mask)
        for identity, sighting in sightings.items():
            self._see(identity, frame, sighting, prompted=False)

    def _see(self, identity: int, frame: int, sighting: Sighting, prompted: bool, places: Tensor | None = None) -> None:
        """Note that an object is seen, or not seen, in this frame. ``prompted``: by a box or prompt."""
        item = self.known[identity]
        if not _visible(sighting):
            if item.lost is None:
                item.lost = frame
            return
        if item.lost is not None:
            # A model with a memory that finds an object itself has reported where it was before.
            if item.lost != frame and (prompted or self.model.corrected_by_boxes):
                item.gaps.append((item.lost, frame))
            item.lost = None
        item.look(frame, sighting.mask, places)

    def _visible(self) -> dict[int, KnownObject]:
        return {identity: self.known[identity] for identity in self.followed if self.known[identity].lost is None}

    def _apply_prompts(
        self,
        propagator: Propagator,
        frame: int,
        sightings: dict[int, Sighting],
        prompts: Iterable[ObjectPrompt],
        places: Tensor,
    ) -> None:
        """Follow the objects that user prompts name in this frame."""
        merged: dict[int, ObjectPrompt] = {}
        for prompt in prompts:
            identity = prompt.identity if prompt.identity is not None else self._new_identity()
            merged[identity] = joined(merged[identity], prompt) if identity in merged else prompt
        for identity, sighting in (propagator.prompt(frame, merged) if merged else {}).items():
            sightings[identity] = sighting
            if identity not in self.known:
                self._adopt(propagator, frame, identity, sighting, sightings)
            self.known[identity].named = True
            self.known[identity].note(frame, merged[identity].label, merged[identity].score)
            self.followed.add(identity)
            self._see(identity, frame, sighting, prompted=True, places=places)

    def _adopt(
        self, propagator: Propagator, frame: int, identity: int, sighting: Sighting, sightings: dict[int, Sighting]
    ) -> None:
        """Begin an object that a user prompt named; one that was already followed there goes on under this number."""
        for other, item in self._visible().items():
            if not item.named and mask_iou(item.mask, sighting.mask) > DISAGREEMENT:
                propagator.forget(other)
                self.followed.discard(other)
                sightings.pop(other, None)
                self.known[identity] = replace(self.known.pop(other), identity=identity)
                self.writer.rename(other, identity)
                return
        self._begin(frame, identity, sighting)

    def _begin(self, frame: int, identity: int, sighting: Sighting) -> None:
        self.known[identity] = KnownObject(identity, False, frame, sighting.mask, seen=frame)
        self.writer.add(identity)
        self.followed.add(identity)

    def _new_identity(self) -> int:
        self.next_identity += 1
        return self.next_identity - 1

    def _correct(
        self,
        propagator: Propagator,
        frame: int,
        sightings: dict[int, Sighting],
        found: list[ObjectPrompt],
        places: Tensor,
    ) -> list[ObjectPrompt]:
        """Match found things to the followed objects; return those that are left over."""
        boxes = [box_of_prompt(prompt) for prompt in found]
        visible = self._visible()
        matched = match_boxes(visible, boxes)
        corrections: dict[int, ObjectPrompt] = {}
        for identity, number in matched.items():
            prompt, item = found[number], self.known[identity]
            # A user prompt for this very frame stands.
            if not (item.named and frame in item.evidence):
                place = box_of_mask(item.mask)
                if self.model.corrected_by_boxes or place is None or iou(place, boxes[number]) < DISAGREEMENT:
                    corrections[identity] = prompt
            item.note(frame, boxes[number].label, prompt.score)
        fresh = propagator.prompt(frame, corrections) if corrections else {}
        sightings.update(fresh)
        for identity in matched:
            self._see(identity, frame, sightings[identity], prompted=True, places=places)
        rest = []
        for number, prompt in enumerate(found):
            if number in matched.values():
                continue
            same = says_nothing_new(boxes[number], visible) if self.settings.duplicate_iou < 1 else None
            if same is None:
                rest.append(prompt)
            else:
                self.known[same].note(frame, boxes[number].label, prompt.score)
        return rest

    def _add(
        self,
        propagator: Propagator,
        frame: int,
        sightings: dict[int, Sighting],
        rest: list[ObjectPrompt],
        places: Tensor,
    ) -> None:
        """Begin objects with the things that are left over, or go on with lost ones."""
        candidates = {self._new_identity(): prompt for prompt in rest}
        fresh = propagator.prompt(frame, candidates) if candidates else {}
        for identity, sighting in fresh.items():
            label, score = box_of_prompt(candidates[identity]).label, candidates[identity].score
            colours = histogram(places, sighting.mask > 127)
            same = same_thing(sighting.mask, label, colours, self._visible(), self.settings.duplicate_iou)
            lost = {number: self.known[number] for number in self.followed if self._may_be_elsewhere(number, frame)}
            again = find_lost(sighting.mask, label, colours, frame, lost)
            if same is None and again is None and _visible(sighting):
                self._begin(frame, identity, sighting)
                sightings[identity] = sighting
                self.known[identity].note(frame, label, score)
                self._see(identity, frame, sighting, prompted=True, places=places)
                continue
            propagator.forget(identity)
            if same is not None:
                self.known[same].note(frame, label, score)
            elif again is not None and _visible(sighting):
                # Prompted again under its number: the colours known of it keep the mask off its neighbours.
                sightings[again] = propagator.prompt(frame, {again: candidates[identity]})[again]
                self.known[again].note(frame, label, score)
                self._see(again, frame, sightings[again], prompted=True, places=places)

    def _may_be_elsewhere(self, identity: int, frame: int) -> bool:
        """Whether an object is out of sight, or is followed where nothing has been found for some time."""
        item = self.known[identity]
        if item.lost is not None:
            return True
        unconfirmed = [other for other in self.looked if max(item.evidence) < other <= frame]
        return len(unconfirmed) >= STRAYED and not item.named

    def _write(self, frame: int, sightings: dict[int, Sighting]) -> None:
        masks = {identity: item.mask for identity, item in sightings.items() if identity in self.followed}
        if self.settings.duplicate_iou < 1:
            masks = share_pixels(masks, {identity: sightings[identity].score for identity in masks})
        for identity, mask in masks.items():
            sighting = replace(sightings[identity], mask=mask)
            if _visible(sighting):
                item = self.known[identity]
                last = item.evidence[max(item.evidence)] if self.settings.direction != "backward" else 1.0
                self.writer.put(identity, frame, mask, min(sighting.score, item.evidence.get(frame, last)))

    def _retire(self, propagator: Propagator, frame: int) -> None:
        """Stop following objects that have been out of sight for too long to keep their number."""
        limit = self.settings.max_gap
        if limit is None:
            return
        for identity in list(self.followed):
            lost = self.known[identity].lost
            if lost is not None and abs(frame - lost) + 1 > limit:
                propagator.forget(identity)
                self.followed.discard(identity)

    def _trim(self, kept: list[KnownObject]) -> None:
        """Remove masks that lie further from where an object was found than it is to be followed."""
        extend = self.settings.extend
        if extend is None:
            return
        for item in kept:
            self.writer.clear_outside(item.identity, min(item.evidence) - extend, max(item.evidence) + extend)

    def _sweep_back(self, kept: list[KnownObject]) -> None:
        """Go backwards from first sightings and from where objects came back, over the frames before."""
        # Frame from which, down to which: the mask of the first is known.
        jobs = [(item.identity, item.first, item.first - self._reach(item.first)) for item in kept]
        jobs += [(item.identity, found, lost) for item in kept for lost, found in item.gaps]
        jobs = [job for job in jobs if job[1] > job[2]]
        frames = sorted({frame for _, start, stop in jobs for frame in range(stop, start)}, reverse=True)
        starts = sorted({start for _, start, _ in jobs}, reverse=True)
        self.total = self.done + len(frames)
        propagator = self.model.follow(self.film, reverse=True)
        ends: dict[int, int] = {}
        for frame in sorted({*frames, *starts}, reverse=True):
            if ends:
                self._visit_back(propagator, frame, ends, kept)
                for identity in [identity for identity, stop in ends.items() if frame <= stop]:
                    propagator.forget(identity)
                    del ends[identity]
                self._report(self.done + 1)
            begun = {identity: stop for identity, start, stop in jobs if start == frame}
            if begun:
                masks = {identity: self.writer.inside(identity, frame) for identity in begun}
                prompts = {
                    identity: ObjectPrompt(frame, identity, mask=mask) for identity, mask in masks.items() if mask.any()
                }
                if prompts:
                    propagator.prompt(frame, prompts)
                    ends.update({identity: begun[identity] for identity in prompts})

    def _visit_back(self, propagator: Propagator, frame: int, ends: dict[int, int], kept: list[KnownObject]) -> None:
        taken = torch.zeros(self.film.height, self.film.width, dtype=torch.bool)
        if self.settings.duplicate_iou < 1:
            for item in kept:
                if item.identity not in ends and self.writer.seen(item.identity, frame):
                    taken |= self.writer.inside(item.identity, frame)
        claim = getattr(propagator, "claim", None)
        if claim is not None:
            claim(frame, taken)
        for identity, sighting in propagator.step(frame).items():
            sighting = replace(sighting, mask=sighting.mask * ~taken)
            if _visible(sighting) and not self.writer.seen(identity, frame):
                self.writer.put(identity, frame, sighting.mask, sighting.score)

    def _report(self, done: int) -> None:
        self.done = done
        if self.progress is not None:
            self.progress(min(done, self.total), self.total)


def _visible(sighting: Sighting) -> bool:
    return sighting.score > 0 and bool((sighting.mask > 127).any())
