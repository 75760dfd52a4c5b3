"""A text-to-video model that runs by itself: U-Net, diffusers VAE and schedulers, transformers text encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention_patches.guidance.text_spans import TextSpans
from ..attention_patches.patch import Patch
from .frame_coding import FrameCoder
from .lavie.sites import transformer_places
from .lavie.unet import LaVieUNet
from .model_parts import ModelParts
from .sampling.background_lock import BackgroundLock
from .sampling.denoising import Conditions, SampleCallback, sample_latents, step_progress
from .sampling.first_frame import FirstFrame
from .sampling.levers import SamplingLevers
from .sampling.noise import plain_noise
from .text_encoding import PromptEncoder, TextEmbedding


@dataclass(frozen=True)
class VideoGeometry:
    """Sizes of a video model.

    Attributes:
        spatial_factor: pixels per latent cell, along height and width.
        temporal_factor: frames per latent frame.
        patch: latent cells per token along (time, height, width) at the finest level.
        channels: of the latents.
        native_frames: length of the clips it was trained on.
        width, height: native size in pixels.
    """

    spatial_factor: int = 8
    temporal_factor: int = 1
    patch: tuple[int, int, int] = (1, 1, 1)
    channels: int = 4
    native_frames: int = 16
    width: int = 512
    height: int = 320

    def latent_size(self, frames: int, height: int, width: int, batch: int = 1) -> tuple[int, int, int, int, int]:
        """Size [batch, C, T, h, w] of the latents of a clip of that many frames, height and width in pixels.

        Raises:
            ValueError: fewer than one frame, or a size that the VAE cannot make.
        """
        factor = self.spatial_factor
        if frames < 1:
            raise ValueError(f"frames is {frames}; give at least 1.")
        for name, value in (("height", height), ("width", width)):
            if value < factor or value % factor:
                nearest = max(factor, round(value / factor) * factor)
                raise ValueError(f"{name} is {value}; it must be a multiple of {factor}, for example {nearest}.")
        return (batch, self.channels, frames, height // factor, width // factor)


class StandaloneVideoModel(ModelParts):
    """The recipes' ``VideoModel`` on this pack's U-Net, without ComfyUI.

    Args:
        unet: the denoiser.
        vae: diffusers ``AutoencoderKL`` of single frames.
        text_encoder: transformers encoder.
        tokenizer: its tokenizer; ``model_max_length`` is the length of every text sequence.
        geometry: sizes.
        device: where to compute; the CPU when left out.
        padding_is_read: see ``PromptEncoder``.
    """

    def __init__(
        self,
        unet: LaVieUNet,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        geometry: VideoGeometry,
        device: torch.device | str | None = None,
        padding_is_read: bool = False,
    ) -> None:
        super().__init__(unet, PromptEncoder(text_encoder, tokenizer, padding_is_read), FrameCoder(vae), device)
        self.geometry = geometry

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks whose attention can be patched, in the order of the forward pass."""
        return [place.name for place in transformer_places(self.unet.config)]

    def step_progress(self, steps: int, sampler: str = "ddim", start_percent: float = 0.0) -> list[float]:
        """Where in the schedule the steps of such a run lie, 0 (noise) to 1, as attention patches see it.

        Raises:
            ValueError: an unknown sampler, or steps beyond the schedule.
        """
        return step_progress(self.unet.config, steps, sampler, start_percent)

    def encode_prompt(self, prompt: str) -> TextEmbedding:
        """Encode a prompt, which may be empty."""
        return self.text.encode(prompt, self.device)

    def token_spans(self, prompt: str, phrases: Sequence[str], background_phrase: str = "") -> TextSpans:
        """Where each phrase stands in the prompt's tokens, and the words that name the background (or none).

        Raises:
            ValueError: the prompt or a phrase is empty, a phrase does not occur in the prompt, or it stands after the
                words that the text encoder reads.
        """
        return self.text.spans(prompt, phrases, background_phrase)

    def noise(self, frames: int, height: int, width: int, seed: int, batch: int = 1) -> Tensor:
        """Unit starting noise [batch, C, T, h, w] of a clip of that many frames, height and width in pixels.

        Raises:
            ValueError: fewer than one frame, or a size that the VAE cannot make.
        """
        size = self.geometry.latent_size(frames, height, width, batch)
        return plain_noise(size, torch.Generator().manual_seed(seed))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [T, H, W, 3] in 0..1 to latents [1, C, T, h, w] as the U-Net sees them."""
        return self.coder.encode(frames, self.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] to frames [T, H, W, 3] in 0..1 on the CPU.

        Raises:
            ValueError: more than one clip, or values that are not finite.
        """
        return torch.cat(list(self.decode_parts(latents)))

    def decode_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """As ``decode``, a few frames [n, H, W, 3] at a time, so that a long video need not be in memory."""
        return self.coder.decode_parts(latents, self.device)

    def sample(
        self,
        noise: Tensor,
        positive: TextEmbedding,
        negative: TextEmbedding,
        *,
        steps: int = 25,
        cfg: float = 4.0,
        seed: int = 0,
        patches: Sequence[Patch] = (),
        start_percent: float = 0.0,
        latents: Tensor | None = None,
        sampler: str = "ddim",
        background_lock: BackgroundLock | None = None,
        first_frame: FirstFrame | None = None,
        callback: SampleCallback | None = None,
        levers: SamplingLevers | None = None,
    ) -> Tensor:
        """Denoise to clean latents.

        Args:
            noise: unit noise [B, C, T, h, w].
            positive, negative: prompts, of batch 1 or B.
            cfg: classifier-free guidance; at 1 the negative prompt is not computed.
            seed: unused by the deterministic samplers; part of the protocol.
            patches: attention patches, outermost first.
            steps, start_percent, latents, sampler, background_lock, first_frame, callback, levers: as in
                ``sample_latents``.

        Returns:
            float32 [B, C, T, h, w].

        Raises:
            ValueError: settings out of range.
        """
        return sample_latents(
            self.unet,
            noise,
            Conditions(positive, negative, cfg, patches),
            self.device,
            steps=steps,
            sampler=sampler,
            start_percent=start_percent,
            latents=latents,
            background_lock=background_lock,
            first_frame=first_frame,
            callback=callback,
            levers=levers,
        )
