"""Levers beside words: what else moves an object to its masks, each by itself or together, and the choice among them.

``energy``: before the first steps the latents go down the energy of attention (``attention_energy.py``). ``noise``: low
frequencies of the starting noise move along the masks (FreeTraj), with cut-offs that fit the grid. ``crude_film``:
sampling begins with a crude film, the object of a first film cut out and pasted along the masks (Time-to-Move). All go
together with the mode of mask guidance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ...attention_patches.attention_energy import AttentionShare, ShareRecord
from ...attention_patches.guidance.regions import FOREGROUND, pool_area
from ...attention_patches.guidance.text_spans import TextSpans
from ...video_models.sampling.levers import DescentSettings, DualClock, EnergyDescent, Look, SamplingLevers
from ...video_models.sampling.trajectory_noise import fitted_cutoffs, trajectory_noise
from ..protocols import VideoModel
from .crude_film import ObjectNotFound, crude_film, find_by_words

logger = logging.getLogger(__name__)

LeverName = Literal["energy", "noise", "crude_film"]
Levers = tuple[str, ...]
LEVERS: Levers = get_args(LeverName)
# What ``auto`` tries, one after the other: the mode alone first, and what costs most last.
LADDER: tuple[Levers, ...] = ((), ("crude_film",), ("energy", "crude_film"))


@dataclass(frozen=True)
class LeverConstants:
    """Constants of the levers; found on the Toybox, see ``docs/levers.md``.

    Attributes:
        descent: of ``energy``.
        start, hold: noise levels of ``crude_film``, see ``DualClock``.
        look: noise level 0..1 at which ``auto`` looks at what was reached.
        enough: overlap 0..1 of the predicted object with its masks at which ``auto`` stays with what it has.
    """

    descent: DescentSettings = DescentSettings()
    start: float = 0.7
    hold: float = 0.5
    look: float = 0.4
    enough: float = 0.7

    def __post_init__(self) -> None:
        for name, value in (("look", self.look), ("enough", self.enough)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}; choose 0 to 1.")


@dataclass(frozen=True)
class Attempt:
    """What one combination of levers reached at the look.

    Attributes:
        levers: names; empty is the mode alone.
        share: of the words' attention inside the masks, 0..1.
        overlap: of the object in the predicted clean film with the masks, intersection over union.
        taken: whether the film is this one's.
    """

    levers: Levers
    share: float
    overlap: float
    taken: bool = False


class NotReached(Exception):
    """The object is not under its masks, and there is something else to try."""


# Samples the clip from noise with levers, or without any.
Sample = Callable[[Tensor, "SamplingLevers | None"], Tensor]


@dataclass(frozen=True, eq=False)
class LeverClip:
    """A clip that is to be sampled with levers.

    Attributes:
        model: whose clip it is.
        sample: samples it, with the mode of mask guidance.
        plain: samples it without guidance by masks, for the first film that a crude one is made of.
        noise: its starting noise, [1, C, T, h, w].
        masks: [R, F, H, W] in 0..1, in the size of the video.
        spans: positions of the words of its objects.
        seed: of the moving noise.
        constants: of the levers.
    """

    model: VideoModel
    sample: Sample
    plain: Sample
    noise: Tensor
    masks: Tensor
    spans: TextSpans
    seed: int = 0
    constants: LeverConstants = field(default_factory=LeverConstants)

    def with_levers(self, levers: Levers, least: float = 0.0) -> tuple[Tensor, Attempt]:
        """Sample with a combination of levers.

        Args:
            levers: names of ``LEVERS``, in any order.
            least: overlap that is to be reached at the look.

        Returns:
            Latents, and what was seen at the look.

        Raises:
            NotReached: it is not; holds the attempt.
        """
        check_levers(levers)
        share = AttentionShare(self.masks, self.spans)
        seen: list[Attempt] = []

        def judge(record: ShareRecord, denoised: Tensor) -> None:
            attempt = Attempt(levers, float(record.share().mean()), self._overlap(record, denoised))
            seen.append(attempt)
            if attempt.overlap < least:
                raise NotReached(attempt)

        noise, constants = self.noise, self.constants
        if "noise" in levers:
            spatial, temporal = fitted_cutoffs(noise.shape[2:])
            generator = torch.Generator().manual_seed(self.seed)
            noise = trajectory_noise(noise, self.masks, generator, spatial_cutoff=spatial, temporal_cutoff=temporal)
        acting = SamplingLevers(
            energy=EnergyDescent(share, constants.descent) if "energy" in levers else None,
            dual_clock=self._clock() if "crude_film" in levers else None,
            look=Look(share, constants.look, judge, maps=True) if share.has_objects else None,
        )
        latents = self.sample(noise, acting)
        return latents, seen[0] if seen else Attempt(levers, 0.0, 0.0)

    def choose(self, ladder: Sequence[Levers] = LADDER) -> tuple[Tensor, tuple[Attempt, ...]]:
        """Try combinations in order until the object is under its masks; where none does it, take the best.

        Returns:
            Latents, and all attempts in order, of which one is taken.

        Raises:
            ValueError: nothing to try.
        """
        if not ladder:
            raise ValueError("there are no levers to choose from; give at least one combination.")
        attempts: list[Attempt] = []
        for levers in ladder:
            try:
                latents, attempt = self.with_levers(levers, self.constants.enough)
            except NotReached as missed:
                attempts.append(missed.args[0])
                continue
            except ObjectNotFound as missing:
                logger.warning("%s", missing)
                attempts.append(Attempt(levers, 0.0, 0.0))
                continue
            return latents, (*attempts, _taken(attempt))
        # The first of equals: the mode alone can always be sampled.
        best = max(range(len(attempts)), key=lambda at: attempts[at].overlap)
        latents, attempt = self.with_levers(attempts[best].levers)
        return latents, tuple(_taken(attempt) if at == best else tried for at, tried in enumerate(attempts))

    def _overlap(self, record: ShareRecord, denoised: Tensor) -> float:
        """Of objects in a predicted clean film with their masks, mean over objects that have words and a mask."""
        frames = self.model.decode(denoised)
        found = self._found(frames, record)
        masks = fitted_tracks(self.masks, *frames.shape[:3]) >= FOREGROUND
        values = []
        for mask, seen, places in zip(masks, found, self.spans.positions, strict=True):
            if places and bool(mask.any()):
                both, either = (mask & (seen >= FOREGROUND)).sum(), (mask | (seen >= FOREGROUND)).sum()
                values.append(float(both / either))
        return sum(values) / len(values) if values else 0.0

    def _found(self, frames: Tensor, record: ShareRecord) -> Tensor:
        """Masks [R, T, H, W] of the objects in frames; of all frames of the clip, also where latents are fewer."""
        maps = record.word_map(*frames.shape[1:3])[0]
        if maps.shape[1] != len(frames):
            index = (torch.arange(len(frames)) * maps.shape[1] / len(frames)).long()
            maps = maps[:, index]
        return torch.stack([find_by_words(frames, seen) for seen in maps])

    def _clock(self) -> DualClock:
        """The crude film of a first film, as latents with the mask of its objects."""
        records: list[ShareRecord] = []
        share, constants = AttentionShare(self.masks, self.spans), self.constants
        look = Look(share, 0.4, lambda record, _: records.append(record), maps=True)
        frames = self.model.decode(self.plain(self.noise, SamplingLevers(look=look)))
        tracks = fitted_tracks(self.masks, *frames.shape[:3])
        crude = self.model.encode(crude_film(frames, self._found(frames, records[0]), tracks))
        mask = pool_area(tracks.amax(dim=0), *crude.shape[-2:])
        step = mask.shape[0] / crude.shape[2]
        if step != 1.0:
            index = (torch.arange(crude.shape[2]) * step).long()
            mask = mask[index]
        return DualClock(crude, (mask >= FOREGROUND).float()[None, None], constants.start, constants.hold)


def check_levers(levers: Sequence[str]) -> None:
    """Refuse names that are no levers, or one given twice.

    Raises:
        ValueError: naming it.
    """
    unknown = [name for name in levers if name not in LEVERS]
    if unknown:
        raise ValueError(f"there is no lever {unknown[0]!r}; choose of {', '.join(LEVERS)}.")
    if len(set(levers)) != len(levers):
        raise ValueError(f"levers are {', '.join(levers)}; give each once.")


def fitted_tracks(masks: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Masks [R, F, H, W] at the size of frames [R, frames, height, width]; one mask serves all frames."""
    if masks.shape[1] == 1:
        masks = masks.expand(-1, frames, -1, -1)
    if tuple(masks.shape[2:]) == (height, width):
        return masks
    return functional.interpolate(masks.float(), (height, width), mode="bilinear", antialias=True, align_corners=False)


def attempts_summary(attempts: Sequence[Attempt], auto: bool) -> str:
    """What was tried and taken, in a sentence."""
    told = [
        f"{' + '.join(attempt.levers) or 'the mode alone'} (overlap {attempt.overlap:.2f}, words inside "
        f"{attempt.share:.2f})"
        for attempt in attempts
    ]
    taken = next(place for place, attempt in enumerate(attempts) if attempt.taken)
    if not auto:
        return f"levers: {told[taken]}."
    if len(told) == 1:
        return f"auto took {told[0]}."
    return f"auto tried {', '.join(told)} and took {' + '.join(attempts[taken].levers) or 'the mode alone'}."


def _taken(attempt: Attempt) -> Attempt:
    return Attempt(attempt.levers, attempt.share, attempt.overlap, taken=True)
