"""A text-to-video model that runs by itself: U-Net, diffusers VAE and schedulers, transformers text encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention_patches.attention import OVERRIDE_KEY
from ..attention_patches.site import CONDITIONAL, UNCONDITIONAL
from ..attention_patches.stack import Patch, PatchStack
from ..attention_patches.text_spans import NOT_OF_PROMPT, TextSpans, locate_phrases
from .background_lock import BackgroundLock
from .lavie_unet import LaVieUNet
from .noise import plain_noise
from .schedulers import make_scheduler, noise_levels
from .text_encoding import encode_tokens

# Frames that the VAE takes at once.
VAE_CHUNK = 8

SampleCallback = Callable[[int, int, Tensor], None]


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
        """Size [batch, C, T, h, w] of the latents of a clip of so many frames, height and width in pixels.

        Raises:
            ValueError: fewer than one frame, or a size that the VAE cannot make.
        """
        factor = self.spatial_factor
        if frames < 1:
            raise ValueError(f"frames is {frames}; ask for at least 1.")
        for name, value in (("height", height), ("width", width)):
            if value < factor or value % factor:
                nearest = max(factor, round(value / factor) * factor)
                raise ValueError(f"{name} is {value}; it must be a multiple of {factor}, for example {nearest}.")
        return (batch, self.channels, frames, height // factor, width // factor)


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """An encoded prompt: ``embedding`` [1, L, C]."""

    prompt: str
    embedding: Tensor


class StandaloneVideoModel:
    """The recipes' ``VideoModel`` on our own U-Net, without ComfyUI.

    Args:
        unet: the denoiser.
        vae: diffusers ``AutoencoderKL`` of single frames.
        text_encoder: transformers encoder with bidirectional attention.
        tokenizer: its tokenizer; ``model_max_length`` is the length of every text sequence.
        geometry: sizes.
        device: where to compute; the CPU when left out.
    """

    def __init__(
        self,
        unet: LaVieUNet,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        geometry: VideoGeometry,
        device: torch.device | str | None = None,
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.device = torch.device(device or "cpu")

    def release(self) -> None:
        """Move the weights off the device; the next call brings back what it needs."""
        for module in (self.unet, self.vae, self.text_encoder):
            module.to("cpu")

    def encode_prompt(self, prompt: str) -> TextEmbedding:
        """Encode a prompt, which may be empty."""
        tokens = torch.tensor([self._tokens(prompt)], device=self.device)
        encoder = self.text_encoder.to(self.device)
        with torch.inference_mode():
            return TextEmbedding(prompt, encode_tokens(encoder, tokens, self.tokenizer.pad_token_id))

    def token_spans(self, prompt: str, phrases: Sequence[str]) -> TextSpans:
        """Where each phrase stands in the prompt's tokens.

        Raises:
            ValueError: the prompt or a phrase is empty, a phrase does not occur in the prompt, or it stands after the
                words that the text encoder reads.
        """
        special = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id}
        ids = [NOT_OF_PROMPT if token in special else token for token in self._tokens(prompt)]
        options = {"add_special_tokens": False, "truncation": True, "max_length": self.tokenizer.model_max_length}

        def tokenize(text: str) -> list[int]:
            return self.tokenizer(text, **options)["input_ids"]

        return locate_phrases(ids, [prompt], [tokenize], phrases)

    def noise(self, frames: int, height: int, width: int, seed: int, batch: int = 1) -> Tensor:
        """Unit starting noise [batch, C, T, h, w] of a clip of so many frames, height and width in pixels.

        Raises:
            ValueError: fewer than one frame, or a size that the VAE cannot make.
        """
        size = self.geometry.latent_size(frames, height, width, batch)
        return plain_noise(size, torch.Generator().manual_seed(seed))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [T, H, W, 3] in 0..1 to latents [1, C, T, h, w] as the U-Net sees them."""
        vae, config = self.vae.to(self.device), self.vae.config
        pictures = frames.movedim(-1, 1) * 2 - 1
        with torch.inference_mode():
            parts = [vae.encode(part.to(self.device)).latent_dist.mode() for part in pictures.split(VAE_CHUNK)]
        latents = (torch.cat(parts) - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents.transpose(0, 1)[None]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] to frames [T, H, W, 3] in 0..1 on the CPU.

        Raises:
            ValueError: more than one clip, or values that are not finite.
        """
        return torch.cat(list(self.decode_parts(latents)))

    def decode_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """As ``decode``, a few frames [n, H, W, 3] at a time, so that a long film need not be in memory."""
        if latents.shape[0] != 1:
            raise ValueError(f"latents hold {latents.shape[0]} clips; decode them one by one.")
        if not bool(latents.isfinite().all()):
            raise ValueError("the latents hold NaN or infinite values; lower cfg or the guidance strength.")
        vae, config = self.vae.to(self.device), self.vae.config
        raw = latents[0].transpose(0, 1).to(self.device) / config.scaling_factor + (config.shift_factor or 0.0)
        for part in raw.split(VAE_CHUNK):
            with torch.inference_mode():
                pictures = vae.decode(part).sample.float().cpu()
            yield (pictures / 2 + 0.5).clamp(0, 1).movedim(1, -1)

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
        callback: SampleCallback | None = None,
    ) -> Tensor:
        """Denoise to clean latents.

        Args:
            noise: unit noise [B, C, T, h, w].
            positive, negative: prompts, of batch 1 or B.
            steps: of the whole schedule, 1 or more.
            cfg: classifier-free guidance; at 1 the negative prompt is not computed.
            seed: unused by the deterministic samplers; part of the protocol.
            patches: attention patches, outermost first.
            start_percent: 0..1; above 0 the part of the schedule before it is skipped and ``latents`` are noised.
            latents: clean latents to start from; needed for a later start.
            sampler: ``ddim`` (eta 0) or ``euler``.
            background_lock: keeps the surroundings as they were, after every step.
            callback: called after every step with (step, total, denoised latents); may raise to cancel.

        Returns:
            float32 [B, C, T, h, w].

        Raises:
            ValueError: settings out of range.
        """
        self._check(noise, steps, cfg, start_percent, latents)
        scheduler = make_scheduler(sampler, self.unet.config, steps)
        # At least the last step is taken.
        later = [n for n, timestep in enumerate(scheduler.timesteps) if self._progress(timestep) >= start_percent]
        first = later[0] if later else steps - 1
        timesteps = scheduler.timesteps[first:]
        if sampler == "euler":
            scheduler.set_begin_index(first)
        noise = noise.to(self.device, torch.float32)
        clean = torch.zeros_like(noise) if latents is None else latents.to(noise).expand_as(noise)
        levels = noise_levels(sampler, scheduler, first, self.unet.config)
        sample = levels.noised(clean, noise, 0)
        denoiser = _Denoiser(self, positive, negative, noise.shape[0], cfg, patches)
        try:
            with torch.inference_mode():
                for number, timestep in enumerate(timesteps):
                    prediction = denoiser(scheduler.scale_model_input(sample, timestep), timestep, levels.sigma(number))
                    result = scheduler.step(prediction, timestep, sample)
                    sample = result.prev_sample
                    if background_lock is not None:
                        kept = background_lock.latents.to(noise).expand_as(noise)
                        sample = background_lock.blend(sample, levels.noised(kept, noise, number + 1))
                    if callback is not None:
                        callback(number + 1, len(timesteps), result.pred_original_sample)
        finally:
            denoiser.stack.release()
        return sample

    def _progress(self, timestep: Tensor | float) -> float:
        return 1.0 - float(timestep) / (self.unet.config.num_train_timesteps - 1)

    def _tokens(self, text: str) -> list[int]:
        options = {"padding": "max_length", "truncation": True, "max_length": self.tokenizer.model_max_length}
        return self.tokenizer(text, **options)["input_ids"]

    def _check(self, noise: Tensor, steps: int, cfg: float, start_percent: float, latents: Tensor | None) -> None:
        if noise.ndim != 5 or noise.shape[1] != self.geometry.channels:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; give [B, {self.geometry.channels}, T, h, w].")
        if not 1 <= steps <= self.unet.config.num_train_timesteps:
            raise ValueError(f"steps is {steps}; choose 1 to {self.unet.config.num_train_timesteps}.")
        if not math.isfinite(cfg) or cfg < 0:
            raise ValueError(f"cfg is {cfg}; choose 0 or more (1 = no guidance by the prompt).")
        if not 0.0 <= start_percent < 1.0:
            raise ValueError(f"start_percent is {start_percent}; choose 0 to less than 1.")
        if start_percent > 0.0 and latents is None:
            raise ValueError(f"start_percent is {start_percent} but there are no latents to start from; give them.")
        if latents is not None and latents.shape[1:] != noise.shape[1:]:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)} and noise {tuple(noise.shape)}; make both the same."
            )


def same_lengths(embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Repeat text sequences [1, L, C] up to their least common length, which attention does not notice."""
    common = math.lcm(*(text.shape[1] for text in embeddings))
    return [text.repeat(1, common // text.shape[1], 1) for text in embeddings]


class _Denoiser:
    """The U-Net with prompts, classifier-free guidance and patches; one call a step."""

    def __init__(
        self,
        model: StandaloneVideoModel,
        positive: TextEmbedding,
        negative: TextEmbedding,
        batch: int,
        cfg: float,
        patches: Sequence[Patch],
    ) -> None:
        self.unet = model.unet.to(model.device)
        self.cfg = cfg
        self.chunks = (CONDITIONAL,) if cfg == 1.0 else (CONDITIONAL, UNCONDITIONAL)
        prompts = [positive] if cfg == 1.0 else [positive, negative]
        embeddings = same_lengths([prompt.embedding.to(model.device) for prompt in prompts])
        self.context = torch.cat([text.expand(batch, -1, -1) for text in embeddings]).to(model.unet.dtype)
        self.options: dict[str, Any] = {"cond_or_uncond": list(self.chunks)}
        self.stack = PatchStack(patches)
        if patches:
            self.options[OVERRIDE_KEY] = self.stack.override

    def __call__(self, sample: Tensor, timestep: Tensor, sigma: float) -> Tensor:
        options = {**self.options, "sigmas": torch.tensor([sigma])}
        batch = torch.cat([sample] * len(self.chunks)).to(self.unet.dtype)
        timesteps = timestep.to(batch.device).float().expand(len(batch))
        predictions = self.unet(batch, timesteps, self.context, transformer_options=options).float()
        if len(self.chunks) == 1:
            return predictions
        conditional, unconditional = predictions.chunk(2)
        return unconditional + self.cfg * (conditional - unconditional)
