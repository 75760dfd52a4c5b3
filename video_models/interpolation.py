"""LaVie's second stage by itself: three new frames between every two of a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..attention_patches.patch import Patch
from .frame_coding import check_frames
from .model_parts import ModelParts
from .sampling.denoising import Conditions, SampleCallback, check_settings, sample_latents
from .sampling.noise import plain_noise

# Frames of the result per step from one given frame to the next.
FACTOR = 4
# What LaVie's script adds to every prompt of this stage, and what it sets against it.
PROMPT_SUFFIX = ", 4k."
NEGATIVE_PROMPT = "None"


def interpolated_frames(frames: int) -> int:
    """How many frames a video of ``frames`` becomes: 16 give 61."""
    return FACTOR * (frames - 1) + 1


def source_indices(frames: int) -> Tensor:
    """Which given frame each frame of the result is made from: floor((i + 1) / 4), int64 [4 * (frames - 1) + 1].

    Every given frame is repeated four times, then the first and the last two are dropped, so that given frame k stands
    at 4 k among its repeats.
    """
    return (torch.arange(interpolated_frames(frames)) + 1) // FACTOR


class Interpolator(ModelParts):
    """The recipes' ``Interpolator`` on LaVie's interpolation model.

    A video that is longer than what the model was trained on (16 frames to 61) is worked on in windows of that length
    that share frames and are averaged at every step. Seeing a longer video at once would cost quality: this model's
    attention over time has no positions, so that more frames only blur what belongs together, and its attention
    within a frame also looks at the first frame of what it sees, which should not be long ago.
    """

    factor = FACTOR

    def interpolate(self, frames: Tensor, prompt: str, **options: object) -> Tensor:
        """As ``interpolate_parts``, all frames [4 * (T - 1) + 1, H, W, 3] at once."""
        return torch.cat(list(self.interpolate_parts(frames, prompt, **options)))

    def interpolate_parts(
        self,
        frames: Tensor,
        prompt: str,
        *,
        negative_prompt: str = NEGATIVE_PROMPT,
        steps: int = 50,
        cfg: float = 4.0,
        seed: int = 0,
        window: int | None = None,
        overlap: int | None = None,
        prompt_suffix: str = PROMPT_SUFFIX,
        patches: Sequence[Patch] = (),
        callback: SampleCallback | None = None,
    ) -> Iterator[Tensor]:
        """A video with the frames in between.

        Args:
            frames: [T, H, W, 3] in 0..1, T of 2 or more, any size.
            prompt: what the video shows.
            negative_prompt: what to keep away from; LaVie was trained with the word ``None`` for nothing.
            steps: sampling steps, 1..1000.
            cfg: classifier-free guidance; at 1 the negative prompt is not computed.
            seed: of the noise.
            window: given frames that the model sees at once; None is the model's native length (16), 0 the whole video,
                which FreeLong patches want.
            overlap: given frames that neighbouring windows share, 1 or more; None is a quarter of the window.
            prompt_suffix: words behind the prompt.
            patches: attention patches, outermost first.
            callback: called after every step with (step, total, denoised latents); may raise to cancel.

        Returns:
            Frames [n, H, W, 3] in 0..1, a few at a time, 4 * (T - 1) + 1 in all; frame 4 k stands where given frame k
            stood. The sampling is done when this returns; only decoding is left to the iterator.

        Raises:
            ValueError: a video of one frame or none, or settings out of range; before any work.
        """
        check_frames(frames, least=2)
        check_settings(self.unet.config, steps, cfg)
        length, shared = self._windows(len(frames), window, overlap)
        height, width = frames.shape[1:3]
        sources = self.coder.encode(frames, self.device)
        channels = sources[:, :, source_indices(len(frames)).to(sources.device)]
        noise = plain_noise(tuple(channels.shape), torch.Generator().manual_seed(seed))
        conditions = Conditions(
            self.text.encode(prompt + prompt_suffix, self.device),
            self.text.encode(negative_prompt, self.device),
            cfg,
            patches,
            channels=channels,
            window=length,
            overlap=shared,
        )
        latents = sample_latents(self.unet, noise, conditions, self.device, steps=steps, callback=callback)
        return self.coder.decode_parts(latents, self.device, (height, width))

    def _windows(self, frames: int, window: int | None, overlap: int | None) -> tuple[int, int]:
        """Length and overlap of windows in frames of the result; every window begins at a given frame."""
        if window is None:
            window = (self.unet.config.native_frames - 1) // FACTOR + 1
        if window == 0 or frames <= window:
            return 0, 0
        if overlap is None:
            overlap = max(1, window // 4)
        if window < 2 or not 1 <= overlap < window:
            raise ValueError(
                f"window is {window} and overlap {overlap} given frames; choose a window of 2 or more (0: the "
                "whole video) and an overlap of 1 to one less than it."
            )
        return interpolated_frames(window), interpolated_frames(overlap)
