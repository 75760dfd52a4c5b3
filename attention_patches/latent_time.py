"""How video models count time: which frames of a video each frame of the model stands for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .errors import GuideError

# Pixel frames per latent frame of the causal video autoencoders in use; the first frame stands alone.
CAUSAL_FACTORS = (2, 4, 6, 8, 16)


@dataclass(frozen=True)
class LatentTime:
    """How many frames of a video each latent frame of a model covers.

    Attributes:
        lead: pixel frames of the first latent frames.
        cycle: pixel frames of the latent frames after them, over and over.
        span: latent frames that one token covers; the tokens of a video begin with every ``span``-th latent frame.
        torn: tokens of a call that cover other latent frames than ``span`` neighbours, as context windows make them:
            for each its latent frames, as indices in the whole clip, the one that gives the token its number first.
    """

    lead: tuple[int, ...] = ()
    cycle: tuple[int, ...] = (1,)
    span: int = 1
    torn: tuple[tuple[int, ...], ...] = ()

    def covered(self, latent_frames: int) -> list[int]:
        """Pixel frames of each of a clip's latent frames."""
        return list(itertools.islice(itertools.chain(self.lead, itertools.cycle(self.cycle)), latent_frames))

    def pixel_frames(self, latent_frames: int) -> int:
        """Frames of the video that a clip of so many latent frames makes."""
        return sum(self.covered(latent_frames))

    def token_frames(self, latent_frames: int) -> int:
        """How many frames of tokens a clip of so many latent frames has; a last one may be filled up."""
        return -(-latent_frames // self.span)

    def of_call(self, frames: Sequence[int], clip_frames: int) -> LatentTime:
        """This time for one call of a model.

        Args:
            frames: where the latent frames of the call stand in the whole clip.
            clip_frames: latent frames of the whole clip.
        """
        tokens = [tuple(frames[first : first + self.span]) for first in range(0, len(frames), self.span)]
        torn = [token for token in tokens if token != tuple(range(token[0], clip_frames))[: self.span]]
        return replace(self, torn=tuple(torn)) if torn else self

    def token(self, first: int, clip_frames: int) -> tuple[int, ...]:
        """Latent frames of the token that bears the number of a latent frame."""
        torn = {token[0]: token for token in self.torn}
        return torn.get(first, tuple(range(first, min(first + self.span, clip_frames))))

    @property
    def compresses(self) -> bool:
        """Whether a latent frame may cover several frames of the video."""
        return max((*self.lead, *self.cycle)) > 1

    def rule(self, latent_frames: int) -> str:
        """Which numbers of frames videos have, for messages: ``4 * n + 1``."""
        step = sum(self.cycle)
        return f"{step} * n + {self.pixel_frames(latent_frames) % step}"


def causal(factor: int, span: int = 1) -> LatentTime:
    """The time of a causal autoencoder: latent frame 0 covers pixel frame 0, each later one ``factor`` of them."""
    return LatentTime((1,), (factor,), span)


# Every picture is a latent frame.
PICTURES = LatentTime()
# MiniMax H3's autoencoder: 17 frames at a time, the first of each alone.
CHUNKS_OF_17 = LatentTime((), (1, 4, 4, 4, 4))


def latent_frame_groups(mask_frames: int, clip_frames: int, time: LatentTime | None = None) -> list[Sequence[int]]:
    """Say which mask frames each frame of the clip covers.

    A single mask serves every frame. As many masks as the clip has frames match one to one. Otherwise the masks are
    the pixel frames of the clip. Where a token covers several latent frames, each frame of the clip is given the masks
    of all that a token covers which bears its number.

    Args:
        mask_frames: number of masks.
        clip_frames: number of (latent) frames of the whole clip.
        time: of the model in use; None tries the causal autoencoders that are in use.

    Raises:
        GuideError: the counts fit in none of these ways; the message names those that do.
    """
    if mask_frames == 1:
        return [range(1)] * clip_frames
    times = [causal(factor) for factor in CAUSAL_FACTORS] if time is None else [time]
    if mask_frames == clip_frames:
        return _groups([1] * clip_frames, times[0])
    for candidate in times:
        covered = candidate.covered(clip_frames)
        if mask_frames == sum(covered):
            return _groups(covered, candidate)
    raise GuideError(f"{mask_frames} mask frames do not fit {_counts_that_fit(clip_frames, time)}")


def _counts_that_fit(clip_frames: int, time: LatentTime | None) -> str:
    """A clip and the numbers of masks that fit it, for a message."""
    if time is None:
        fitting = ", ".join(str(causal(factor).pixel_frames(clip_frames)) for factor in CAUSAL_FACTORS[1:4])
        return (
            f"a clip of {clip_frames} frames; give 1 or {clip_frames} masks, or as many as the pixel frames of a "
            f"causal video autoencoder ({fitting} at factors 4, 6, 8)."
        )
    pixels = time.pixel_frames(clip_frames)
    valid = " or ".join(str(count) for count in sorted({1, clip_frames, pixels}))
    counts = f"a clip of {clip_frames} frames"
    if time.compresses:
        counts = f"a clip of {clip_frames} latent frames ({pixels} frames of film, always {time.rule(clip_frames)})"
    return f"{counts}; give {valid} masks."


def _groups(covered: Sequence[int], time: LatentTime) -> list[Sequence[int]]:
    """For each latent frame the frames that a token of its number covers, where it covers so many of them itself."""
    borders = [0, *itertools.accumulate(covered)]
    frames = [range(*borders[at : at + 2]) for at in range(len(covered))]
    if time.span == 1:
        return list(frames)
    tokens = (time.token(first, len(covered)) for first in range(len(covered)))
    return [[frame for part in token for frame in frames[part]] for token in tokens]
