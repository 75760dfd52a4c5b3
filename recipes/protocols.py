"""What the recipes need from a video model, an interpolator, an upscaler, a detector and a tracker.

Frames are float [T, H, W, 3] in 0..1 on the CPU, masks [T, H, W] in 0..1 with an object axis in front where objects are
apart, latents [B, C, T, h, w] scaled as the model wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from ..attention_patches.guidance.text_spans import TextSpans
    from ..attention_patches.patch import Patch
    from ..perception.boxes import Box
    from ..perception.frames import Film
    from ..perception.tracking.track_settings import TrackSettings
    from ..perception.tracks import Tracks
    from ..video_models.sampling.background_lock import BackgroundLock
    from ..video_models.sampling.first_frame import FirstFrame
    from ..video_models.sampling.levers import SamplingLevers

SamplerName = Literal["ddim", "euler"]

# (done, total); may raise to cancel.
Progress = Callable[[int, int], None]
# (step, total steps, denoised latents); may raise to cancel.
SampleCallback = Callable[[int, int, Tensor], None]


class Geometry(Protocol):
    """Sizes of a video model."""

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell, along height and width."""

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; 1 for image VAEs, else the first frame stands alone."""

    @property
    def native_frames(self) -> int:
        """Length of the clips that the model was trained on, in frames."""

    @property
    def width(self) -> int:
        """Native width in pixels."""

    @property
    def height(self) -> int:
        """Native height in pixels."""


class PromptEmbedding(Protocol):
    """An encoded prompt; opaque to the recipes."""

    @property
    def embedding(self) -> Tensor:
        """[1, L, C]."""


class VideoModel(Protocol):
    """A text-to-video model with its text encoder and VAE."""

    @property
    def geometry(self) -> Geometry:
        """Sizes of the model."""

    @property
    def block_names(self) -> Sequence[str]:
        """Names of the blocks whose attention can be patched, in the order of the forward pass."""

    def step_progress(self, steps: int, sampler: SamplerName = "ddim", start_percent: float = 0.0) -> list[float]:
        """Where the steps of such a run lie in the schedule, 0 (noise) to 1, as attention patches see it."""

    def encode_prompt(self, prompt: str) -> PromptEmbedding:
        """Encode a prompt, which may be empty."""

    def token_spans(self, prompt: str, phrases: Sequence[str], background_phrase: str = "") -> TextSpans:
        """Where each phrase stands in the prompt's tokens, and the words that name the background (or none).

        Raises:
            ValueError: a phrase does not occur in the prompt.
        """

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [T, H, W, 3] to latents [1, C, T, h, w]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] to frames [T, H, W, 3]."""

    def decode_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """As ``decode``, a few frames [n, H, W, 3] at a time, so that a long video need not be in memory."""

    def noise(self, frames: int, height: int, width: int, seed: int, batch: int = 1) -> Tensor:
        """Unit starting noise [B, C, T, h, w] of a clip of that many pixel frames, height and width in pixels."""

    def sample(
        self,
        noise: Tensor,
        positive: PromptEmbedding,
        negative: PromptEmbedding,
        *,
        steps: int = 25,
        cfg: float = 4.0,
        seed: int = 0,
        patches: Sequence[Patch] = (),
        start_percent: float = 0.0,
        latents: Tensor | None = None,
        sampler: SamplerName = "ddim",
        background_lock: BackgroundLock | None = None,
        first_frame: FirstFrame | None = None,
        callback: SampleCallback | None = None,
        levers: SamplingLevers | None = None,
    ) -> Tensor:
        """Denoise to clean latents [B, C, T, h, w].

        ``start_percent`` above 0 starts from ``latents`` noised to that part of the schedule. ``first_frame`` is given
        clean to every call of the model, and comes back bit for bit as the first frame of the result. ``levers`` act on
        the latents between steps.
        """


class Interpolator(Protocol):
    """Fills frames in between."""

    @property
    def factor(self) -> int:
        """Of T frames it makes ``factor`` * (T - 1) + 1."""

    def interpolate_parts(
        self,
        frames: Tensor,
        prompt: str,
        *,
        negative_prompt: str = "None",
        steps: int = 50,
        cfg: float = 4.0,
        seed: int = 0,
        patches: Sequence[Patch] = (),
        callback: SampleCallback | None = None,
    ) -> Iterator[Tensor]:
        """A video [T, H, W, 3] of at least two frames with those in between, a few frames [n, H, W, 3] at a time.

        It is sampled when this returns, and decoded as the frames are taken.

        Raises:
            ValueError: a video or settings that the model cannot work on.
        """


class Upscaler(Protocol):
    """Enlarges videos."""

    @property
    def factor(self) -> int:
        """Pixels of the result per pixel of the video, along height and width."""

    def upscale_parts(
        self,
        frames: Tensor,
        prompt: str = "",
        *,
        negative_prompt: str = "blur, worst quality",
        noise_level: int = 50,
        steps: int = 50,
        cfg: float = 5.0,
        seed: int = 0,
        window: int = 8,
        overlap: int = 4,
        patches: Sequence[Patch] = (),
        callback: SampleCallback | None = None,
    ) -> Iterator[Tensor]:
        """A video [T, H, W, 3] enlarged, a few frames [n, H * factor, W * factor, 3] at a time.

        It is sampled when this returns, and decoded as the frames are taken.

        Raises:
            ValueError: a video or settings that the model cannot work on.
        """


class Detector(Protocol):
    """Finds objects by text."""

    def detect(
        self,
        frames: Tensor | Film,
        phrases: Sequence[str],
        box_threshold: float = 0.35,
        text_threshold: float = 0.25,
        nms_threshold: float = 0.7,
        *,
        every: int = 1,
        progress: Progress | None = None,
    ) -> list[list[Box]]:
        """Boxes per frame, best first; a frame without any, or not looked at, is an empty list."""


class Tracker(Protocol):
    """Follows detected objects through a clip."""

    def track(
        self,
        frames: Tensor | Film,
        detections: list[list[Box]],
        settings: TrackSettings | None = None,
        progress: Progress | None = None,
    ) -> Tracks:
        """Masks with stable identities; as many frames as given."""


@runtime_checkable
class Releasable(Protocol):
    """A model that can leave the compute device between stages and comes back automatically at its next use."""

    def release(self) -> Any:
        """Free the device's memory."""
