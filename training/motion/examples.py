"""What the tuning loop learns from at a step: one clip, its noise, and the attention patches of its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ...attention_patches.checks import check_blocks
from ...attention_patches.frame_keys import FirstFrameKeys, FirstFrameKeysPatch
from ...attention_patches.guidance.guide import Guide
from ...attention_patches.guidance.modes.registry import make_mode
from ...attention_patches.guidance.patch import guide_patches
from ...attention_patches.guidance.text_spans import TextSpans
from ...attention_patches.kernels.torch_attention import OVERRIDE_KEY
from ...attention_patches.patch import Patch
from ...attention_patches.site import CONDITIONAL, UNCONDITIONAL
from ...attention_patches.stack import PatchStack
from ...video_models.sampling.noise_schedule import NoiseSchedule, add_noise, alphas_cumprod, velocity
from .data import ClipWords, TrainingClip, clip_sizes
from .masks import augmented_masks
from .settings import MotionSettings


class PromptModel(Protocol):
    """The part of a video model that examples need; see ``recipes.protocols.VideoModel``."""

    @property
    def geometry(self) -> Any:
        """Sizes."""

    @property
    def block_names(self) -> Sequence[str]:
        """Names of the blocks whose attention can be patched."""

    def encode_prompt(self, prompt: str) -> Any:
        """With ``embedding`` [1, L, C]."""

    def token_spans(self, prompt: str, phrases: Sequence[str], background_phrase: str = "") -> TextSpans:
        """Where the phrases stand."""


@dataclass(frozen=True, eq=False)
class Example:
    """One clip at one noise level.

    Attributes:
        latents: clean, [1, C, T, h, w].
        noise: of the same shape.
        timestep: 0 .. num_train_timesteps - 1.
        context: of the prompt, [1, L, C'].
        has_prompt: whether it is the clip's prompt, or the empty one.
        patches: of its masks, outermost first.
        is_locked: whether the first frame is given clean and left out of the loss.
    """

    latents: Tensor
    noise: Tensor
    timestep: int
    context: Tensor
    has_prompt: bool
    patches: tuple[Patch, ...]
    is_locked: bool


@dataclass(frozen=True, eq=False)
class _Words:
    """A prompt as the model reads it; spans are None without phrases."""

    context: Tensor
    spans: TextSpans | None


class ExampleMaker:
    """Makes the examples of every step; all randomness comes from the seed and the step's number.

    Args:
        model: reads the prompts.
        clips: to learn from, all of the settings' size or longer.
        settings: of the run.

    Raises:
        ValueError: a phrase that is not in its prompt, an unknown mask mode, a constant that it does not have or a
            block that the model does not have.
    """

    def __init__(self, model: PromptModel, clips: Sequence[TrainingClip], settings: MotionSettings) -> None:
        self.clips = clips
        self.settings = settings
        self.frames = clip_sizes(settings, model.geometry)[0]
        self.cell = model.geometry.spatial_factor
        self.mode = make_mode(settings.mode, **settings.constants)
        check_blocks(self.mode.blocks, model.block_names)
        self.empty = _embedding(model, "")
        self.words = {clip.words: _read(model, clip.words) for clip in clips}

    def examples(self, step: int, train_timesteps: int) -> list[Example]:
        """The examples of a step, ``settings.batch`` of them, with noise levels spread evenly over the schedule.

        Args:
            step: from 0.
            train_timesteps: length of the noise schedule.
        """
        settings = self.settings
        generator = np.random.default_rng([settings.seed, step])
        made = []
        for place in range(settings.batch):
            clip = self.clips[int(generator.integers(len(self.clips)))]
            is_mirrored = bool(generator.random() < settings.flip)
            start = int(generator.integers(clip.latents.shape[2] - self.frames + 1))
            window = slice(start, start + self.frames)
            latents = clip.latents[int(is_mirrored), None, :, window]
            level = (place + generator.random()) / settings.batch
            has_prompt = bool(generator.random() >= settings.prompt_dropout)
            masks = None
            if clip.masks is not None:
                masks = augmented_masks(clip.masks[:, window], settings.augmentation, self.cell, generator)
            is_locked = bool(generator.random() < settings.first_frame)
            made.append(
                Example(
                    latents=latents,
                    noise=torch.from_numpy(generator.standard_normal(tuple(latents.shape), dtype=np.float32)),
                    timestep=int(level * train_timesteps),
                    context=self.words[clip.words].context if has_prompt else self.empty,
                    has_prompt=has_prompt,
                    patches=self.patches(clip.words, masks, is_mirrored),
                    is_locked=is_locked,
                )
            )
        return made

    def patches(self, words: ClipWords, masks: Tensor | None, is_mirrored: bool = False) -> tuple[Patch, ...]:
        """The patches that sampling with these masks would have.

        Args:
            words: of the clip.
            masks: [N, T, H, W] in 0..1, or None for no guidance; keys of other frames that the settings name stay.
            is_mirrored: whether the clip is seen mirrored, so that the masks must be too.
        """
        source = self.settings.key_source
        if masks is None:
            return (FirstFrameKeysPatch(FirstFrameKeys(source)),) if source not in ("", "self") else ()
        guide = Guide(
            masks.flip(-1) if is_mirrored else masks,
            phrases=words.phrases,
            background_phrase=words.background,
            mode=self.mode,
            key_source=source or None,
        )
        return guide_patches(guide, self.words[words].spans)


def motion_loss(unet: nn.Module, example: Example, config: NoiseSchedule, device: torch.device) -> Tensor:
    """Squared error of the U-Net's prediction, the clean first frame left out.

    The first frame is given clean at every noise level and the error is that of the other frames (LAMP, arXiv
    2310.10769, equation 4; the same in arXiv 2503.18386). All frames count of an example that is not locked.

    Args:
        unet: that is tuned.
        example: one clip at one noise level.
        config: its schedule and what it predicts.
        device: where to compute.

    Returns:
        A scalar.
    """
    latents, noise = example.latents.to(device), example.noise.to(device)
    alpha_bar = alphas_cumprod(config)[example.timestep].float().to(device)
    noisy = add_noise(latents, noise, alpha_bar)
    first = 0
    if example.is_locked:
        noisy[:, :, :1], first = latents[:, :, :1], 1
    target = noise if config.prediction_type == "epsilon" else velocity(latents, noise, alpha_bar)
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    # Without its prompt a clip is what the unconditional rows are in sampling: their words are not guided.
    row = CONDITIONAL if example.has_prompt else UNCONDITIONAL
    options: dict[str, Any] = {"cond_or_uncond": [row], "sigmas": sigma[None]}
    if example.patches:
        options[OVERRIDE_KEY] = PatchStack(example.patches).override
    timesteps = torch.full((1,), float(example.timestep), device=device)
    context = example.context.to(device, unet.dtype)
    predicted = unet(noisy.to(unet.dtype), timesteps, context, transformer_options=options).float()
    return (predicted - target)[:, :, first:].square().mean()


def _read(model: PromptModel, words: ClipWords) -> _Words:
    spans = model.token_spans(words.prompt, words.phrases, words.background) if words.phrases else None
    return _Words(_embedding(model, words.prompt), spans)


def _embedding(model: PromptModel, prompt: str) -> Tensor:
    with torch.no_grad():
        # A copy, since what is made in inference mode cannot be learned through.
        return model.encode_prompt(prompt).embedding.detach().clone()
