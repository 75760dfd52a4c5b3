"""The recipes' ``VideoModel`` over a ComfyUI MODEL, CLIP and VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...attention_patches.guidance.text_spans import TextSpans
from ...attention_patches.patch import Patch
from ...backbones.host_hooks import schedule_progress
from ...backbones.registry import install_patches, require_supported
from ...video_models.lavie.files import require_stage
from ...video_models.sampling.background_lock import BackgroundLock
from ...video_models.sampling.first_frame import FirstFrame
from ...video_models.sampling.levers import SamplingLevers
from ...video_models.sampling.noise import plain_noise
from ...video_models.video_model import VideoGeometry
from ..prompts.prompt_tokens import token_spans
from .film_decoding import decode_parts
from .first_frame_lock import install_first_frame_lock
from .lamp_sampler import match_statistics
from .stepwise_sampler import Step, StepChange, stepwise_sampler

SampleCallback = Callable[[int, int, Tensor], None]
# Names of the samplers of the protocol, in ComfyUI.
SAMPLERS = {"ddim": "ddim", "euler": "euler"}


@dataclass(frozen=True, eq=False)
class ComfyPrompt:
    """An encoded prompt.

    Attributes:
        prompt: in words.
        conditioning: ComfyUI's CONDITIONING.
    """

    prompt: str
    conditioning: list[Any]

    @property
    def embedding(self) -> Tensor:
        """[1, L, C]."""
        return self.conditioning[0][0]


class ComfyVideoModel:
    """A text-to-video model whose parts belong to ComfyUI: memory, devices and sampling are the host's.

    Latents are scaled as the U-Net sees them, as everywhere in the protocol; ComfyUI's own are raw.

    Args:
        model: ``ModelPatcher``.
        clip: CLIP.
        vae: VAE.
        width, height: native size of videos in pixels.

    Attributes:
        preview: where given, it takes what each step of sampling makes of the video, as ComfyUI's previewers read it.

    Raises:
        ValueError: if the model's attention sites are not known, or it is LaVie's interpolation model or upscaler,
            which make no video of a prompt alone.
    """

    def __init__(self, model: Any, clip: Any, vae: Any, width: int = 64, height: int = 64) -> None:
        family, network = require_supported(model)
        require_stage(getattr(network.config, "stage", "base"), "base", "this model")
        self.family = family
        self.model = model
        self.clip = clip
        self.vae = vae
        self.block_names = family.block_names(network)
        self.preview: Callable[[Tensor], None] | None = None
        self.geometry = VideoGeometry(
            spatial_factor=vae.spacial_compression_encode(),
            temporal_factor=vae.temporal_compression_decode() or 1,
            channels=vae.latent_channels,
            native_frames=network.config.native_frames,
            width=width,
            height=height,
        )

    def step_progress(self, steps: int, sampler: str = "ddim", start_percent: float = 0.0) -> list[float]:
        """Where in the schedule the steps of such a run lie, 0 (noise) to 1, as attention patches see it.

        Every sampler takes the same steps.
        """
        sampling = self.model.get_model_object("model_sampling")
        return [schedule_progress(sampling, float(sigma)) for sigma in _sigmas(sampling, steps, start_percent)[:-1]]

    def encode_prompt(self, prompt: str) -> ComfyPrompt:
        """Encode a prompt, which may be empty."""
        return ComfyPrompt(prompt, self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt)))

    def token_spans(self, prompt: str, phrases: Sequence[str], background_phrase: str = "") -> TextSpans:
        """Where each phrase stands in the prompt's tokens, and the background's words; ValueError if one does not."""
        return token_spans(self.clip, prompt, phrases, self.family, background_phrase=background_phrase)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [T, H, W, 3] to latents [1, C, T, h, w]."""
        return self.model.model.process_latent_in(self.vae.encode(frames[..., :3]))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] to frames [T, H, W, 3]."""
        return torch.cat(list(self.decode_parts(latents)))

    def decode_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """As ``decode``, a few frames [n, H, W, 3] at a time, so that a long video need not be in memory.

        Raises:
            ValueError: more than one clip, or values that are not finite.
        """
        return decode_parts(self.vae, self.model.model.process_latent_out(latents))

    def noise(self, frames: int, height: int, width: int, seed: int, batch: int = 1) -> Tensor:
        """Unit starting noise [B, C, T, h, w], as ComfyUI's samplers draw it; arguments and errors as stand-alone."""
        size = self.geometry.latent_size(frames, height, width, batch)
        return plain_noise(size, torch.Generator("cpu").manual_seed(seed))

    def sample(
        self,
        noise: Tensor,
        positive: ComfyPrompt,
        negative: ComfyPrompt,
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
        """Denoise to clean latents; arguments as in ``recipes.protocols.VideoModel``.

        The model itself is not touched: patches live in a clone.

        Raises:
            ValueError: an unknown sampler, or a later start without latents.
        """
        import comfy.sample
        import comfy.samplers

        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
        if levers is not None:
            raise ValueError(
                "levers are not there for ComfyUI's models in this recipe; use the nodes Attention Energy and Dual "
                "Clock Sampler, or cli.py guide."
            )
        if start_percent > 0.0 and latents is None:
            raise ValueError(f"start_percent is {start_percent} but there are no latents to start from; give them.")
        model = install_patches(self.model, patches)
        changes: list[StepChange] = []
        if first_frame is not None:
            first_frame.check_film(noise.shape)
            # The statistics are matched between the steps, as stand-alone, and not in the predictions.
            model = install_first_frame_lock(model, replace(first_frame, match_statistics=False))
            if first_frame.match_statistics:
                changes.append(match_statistics(first_frame.switch))
        if background_lock is not None:
            changes.append(_keep_background(background_lock, noise))
        sigmas = _sigmas(model.get_model_object("model_sampling"), steps, start_percent)
        host_sampler = stepwise_sampler(changes) if changes else comfy.samplers.sampler_object(SAMPLERS[sampler])
        start = torch.zeros_like(noise) if latents is None else model.model.process_latent_out(latents.expand_as(noise))

        def report(step: int, denoised: Tensor, _: Tensor, total: int) -> None:
            if self.preview is not None:
                self.preview(denoised)
            if callback is not None:
                callback(step + 1, total, denoised)

        raw = comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            host_sampler,
            sigmas,
            positive.conditioning,
            negative.conditioning,
            start,
            callback=report,
            disable_pbar=True,
            seed=seed,
        )
        film = model.model.process_latent_in(raw)
        return film if first_frame is None else first_frame.placed(film)


def _sigmas(sampling: Any, steps: int, start_percent: float) -> Tensor:
    """Noise levels of a run that begins at a progress; at least its last step."""
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)
    if start_percent == 0.0:
        return sigmas
    progress = 1.0 - sampling.timestep(sigmas[:-1]).float() / (sampling.num_timesteps - 1)
    kept = (progress >= start_percent).nonzero().flatten()
    first = int(kept[0]) if len(kept) else len(sigmas) - 2
    return sigmas[first:]


def _keep_background(lock: BackgroundLock, noise: Tensor) -> StepChange:
    """Put the surroundings back after every step, at the noise level that it reached."""

    def change(x: Tensor, step: Step) -> Tensor:
        return lock.blend(x, step.sampling.noise_scaling(step.sigma, noise.to(x), lock.latents.to(x).expand_as(x)))

    return change
