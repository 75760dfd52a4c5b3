"""A given first frame of a clip: clean at every call of the model, and in the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .latent_statistics import SWITCH, match_after_step


@dataclass(frozen=True, eq=False)
class FirstFrame:
    """A first frame that sampling keeps.

    Whatever the noise level, the model is given these latents as its first frame, in the conditional and in the
    unconditional rows, and only the frames after it are denoised.

    Attributes:
        latents: clean and scaled as the model sees them, [1 or B, C, 1, h, w].
        match_statistics: whether the other frames take mean and spread of the first one in between, see
            ``latent_statistics.match_after_step``.
        switch: from which part of the steps on (0..1) they do; before it, they only take those of the second frame.

    Raises:
        ValueError: another shape, more than one frame, values that are not finite, or a switch outside of 0..1.

    Source: LAMP (arXiv 2310.10769), first-frame conditioning.
    """

    latents: Tensor
    match_statistics: bool = False
    switch: float = SWITCH

    def __post_init__(self) -> None:
        if self.latents.ndim != 5 or self.latents.shape[2] != 1:
            raise ValueError(
                f"the first frame has latents of shape {tuple(self.latents.shape)}; give one frame, "
                "[1 or B, C, 1, h, w]."
            )
        if not bool(torch.isfinite(self.latents).all()):
            raise ValueError("the first frame has NaN or infinite values; make it again.")
        if not 0.0 <= self.switch <= 1.0:
            raise ValueError(f"the first frame's switch is {self.switch}; choose 0 to 1.")

    def check_film(self, size: Sequence[int]) -> None:
        """Compare with the size [B, C, T, h, w] of the latents of a clip.

        Raises:
            ValueError: another size or batch.
        """
        batch, *frame = (size[0], size[1], *size[3:])
        given_batch, *given = (self.latents.shape[0], self.latents.shape[1], *self.latents.shape[3:])
        if given != frame:
            raise ValueError(
                f"the first frame has latents of {_words(given)} but the video of {_words(frame)}; "
                "make both of the same size, with the same VAE."
            )
        if given_batch not in (1, batch):
            raise ValueError(
                f"there are {given_batch} first frames for {batch} videos; give one for all of them, or one for each."
            )

    def placed(self, film: Tensor) -> Tensor:
        """A copy of latents [B, C, T, h, w] with this as their first frame."""
        placed = film.clone()
        placed[:, :, :1] = self.latents.to(film)
        return placed

    def matched(self, film: Tensor, step: int, steps: int) -> Tensor:
        """Latents after a step with statistics matched, or as they are without ``match_statistics``.

        Args:
            film, step, steps: see ``latent_statistics.match_after_step``.
        """
        if not self.match_statistics:
            return film
        return match_after_step(film, self.latents.to(film), step, steps, self.switch)


def _words(size: Sequence[int]) -> str:
    channels, height, width = size
    return f"{channels} channels and {width} x {height} cells"
