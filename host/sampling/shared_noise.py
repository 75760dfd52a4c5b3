"""A NOISE whose frames share something: LAMP's noise, the noised first frame, or FreeTraj's paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...attention_patches.checks import check_shape
from ...backbones.nested_latents import video_of, with_video
from ...backbones.registry import latent_time_of
from ...video_models.sampling.first_frame import FirstFrame
from ...video_models.sampling.noise import is_rescheduled, mark_rescheduled, plain_noise, share_first_frame
from ...video_models.sampling.trajectory_noise import (
    SPATIAL_CUTOFF,
    TEMPORAL_CUTOFF,
    fitted_cutoffs,
    trajectory_noise,
)
from .first_frame_lock import as_film, like_latents, raw_frame

NoiseSharing = Literal["lamp", "variance_preserving", "first_frame", "freetraj"]
SHARING_MODES: tuple[str, ...] = get_args(NoiseSharing)


@dataclass(frozen=True, eq=False)
class SharedNoise:
    """A NOISE made of another.

    Attributes:
        noise: NOISE (``seed`` and ``generate_noise``).
        mode: ``lamp`` and ``variance_preserving`` share the first frame's noise by the weights a, 1 - a or their square
            roots; ``first_frame`` shares the first frame, noised as far as the model's schedule goes, by LAMP's
            weights; ``freetraj`` moves the low frequencies along the objects.
        amount: a, 0..1; not for ``freetraj``.
        model: ComfyUI ``ModelPatcher``; for ``first_frame``, and to know how many frames a latent frame stands for.
        first_frame: raw latents of one frame, as a LATENT holds them; for ``first_frame``.
        masks: [R, F, H, W] in 0..1; for ``freetraj``.
        spatial_cutoff, temporal_cutoff: see ``trajectory_noise``.
        fit_to_grid: take the cut-offs of ``fitted_cutoffs`` in their place.

    Raises:
        ValueError: an unknown mode, or one whose input is missing.
    """

    noise: Any
    mode: str = "lamp"
    amount: float = 0.2
    model: Any = None
    first_frame: Tensor | None = None
    masks: Tensor | None = None
    spatial_cutoff: float = SPATIAL_CUTOFF
    temporal_cutoff: float = TEMPORAL_CUTOFF
    fit_to_grid: bool = False

    def __post_init__(self) -> None:
        if self.mode not in SHARING_MODES:
            raise ValueError(f"mode is {self.mode!r}; choose one of {', '.join(SHARING_MODES)}.")
        if self.mode == "first_frame" and (self.model is None or self.first_frame is None):
            raise ValueError("first_frame shares the noised first frame; connect the model and first_frame.")
        if self.mode == "freetraj" and self.masks is None:
            raise ValueError("freetraj moves noise along the objects; connect tracks or mask.")

    @property
    def seed(self) -> int:
        """Of the noise that this one is made of."""
        return self.noise.seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Any:
        """Noise of the latent's size, on the CPU; sound beside a video keeps its own.

        Args:
            input_latent: LATENT with [B, C, T, h, w] or, where the batch is the video, [T, C, h, w].

        Raises:
            ValueError: masks that do not fit the video, in length or in shape.
        """
        given = self.noise.generate_noise(input_latent)
        video = video_of(given)
        shared = like_latents(self._shared(as_film(video)), video)
        return mark_rescheduled(with_video(given, shared), is_rescheduled(given))

    def _shared(self, film: Tensor) -> Tensor:
        if self.mode == "freetraj":
            return self._along_paths(film)
        source = self._noised_first_frame(film[:, :, :1]) if self.mode == "first_frame" else None
        return share_first_frame(film, self.amount, self.mode == "variance_preserving", source)

    def _along_paths(self, film: Tensor) -> Tensor:
        check_shape("the masks are", self.masks.shape[-2:], film.shape[-2:], "video's latents")
        generator = torch.Generator("cpu").manual_seed(self.seed)
        # The same seed has most likely drawn the video's noise: go on where that ended.
        plain_noise(tuple(film.shape), generator)
        cutoffs = fitted_cutoffs(film.shape[2:]) if self.fit_to_grid else (self.spatial_cutoff, self.temporal_cutoff)
        return trajectory_noise(
            film,
            self.masks,
            generator,
            spatial_cutoff=cutoffs[0],
            temporal_cutoff=cutoffs[1],
            latent_time=None if self.model is None else latent_time_of(self.model),
        )

    def _noised_first_frame(self, noise: Tensor) -> Tensor:
        """sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise at the highest noise level of the model.

        The host adds noise in a scaling of its own and scales the sum to unit variance as it calls the network. Models
        of flow matching start from noise alone.
        """
        clean = self.model.get_model_object("latent_format").process_in(raw_frame(self.model, self.first_frame))
        FirstFrame(clean).check_film(noise.shape)
        sampling = self.model.get_model_object("model_sampling")
        highest = torch.as_tensor(sampling.sigma_max).to(noise)
        noised = sampling.noise_scaling(highest, noise.clone(), clean.to(noise))
        return noised * sampling.calculate_input(highest, noise.new_ones(()))
