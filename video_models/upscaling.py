"""LaVie's third stage by itself: videos enlarged four times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..attention_patches.patch import Patch
from .frame_coding import check_frames
from .lavie.config import UpscalerConfig
from .model_parts import ModelParts
from .sampling.denoising import Conditions, SampleCallback, check_settings, sample_latents
from .sampling.noise import plain_noise
from .sampling.noise_schedule import add_noise, square_root_alphas_cumprod

NEGATIVE_PROMPT = "blur, worst quality"
# The noise in the small pictures must not be that of the latents, which have the same height and width.
_PICTURE_SEED_STEP = 1


def noised_pictures(frames: Tensor, noise_level: int, seed: int, config: UpscalerConfig) -> Tensor:
    """The small video as the upscaler gets it: with noise that covers its flaws.

    The noise follows Stable Diffusion's schedule (square roots of the betas linear), though LaVie denoises the
    latents on another: this is how its x4 upscaler was trained.

    Args:
        frames: [T, H, W, 3] in 0..1.
        noise_level: step of the schedule, 0 (hardly any) to ``config.max_noise_level``.
        seed: of the noise.
        config: of the upscaler.

    Returns:
        float32 [1, 3, T, H, W] around -1..1.

    Raises:
        ValueError: a noise level out of range.
    """
    if not 0 <= noise_level <= config.max_noise_level:
        raise ValueError(f"noise_level is {noise_level}; choose 0 to {config.max_noise_level}.")
    pictures = frames.movedim(-1, 0)[None].float() * 2 - 1
    generator = torch.Generator().manual_seed((seed + _PICTURE_SEED_STEP) % 2**64)
    noise = plain_noise(tuple(pictures.shape), generator).to(pictures.device)
    return add_noise(pictures, noise, square_root_alphas_cumprod(config)[noise_level].float())


class Upscaler(ModelParts):
    """The recipes' ``Upscaler`` on LaVie's x4 upscaler.

    The model sees eight frames at once. LaVie cuts a video into such pieces and works on each by itself, which shows at
    every cut; here neighbouring windows share frames and are averaged at every step.
    """

    @property
    def factor(self) -> int:
        """Pixels of the result per pixel of the video, along height and width."""
        return self.coder.factor

    def upscale(self, frames: Tensor, prompt: str = "", **options: object) -> Tensor:
        """As ``upscale_parts``, all frames [T, 4 H, 4 W, 3] at once."""
        return torch.cat(list(self.upscale_parts(frames, prompt, **options)))

    def upscale_parts(
        self,
        frames: Tensor,
        prompt: str = "",
        *,
        negative_prompt: str = NEGATIVE_PROMPT,
        noise_level: int = 50,
        steps: int = 50,
        cfg: float = 5.0,
        seed: int = 0,
        window: int = 8,
        overlap: int = 4,
        patches: Sequence[Patch] = (),
        callback: SampleCallback | None = None,
    ) -> Iterator[Tensor]:
        """A video enlarged.

        Args:
            frames: [T, H, W, 3] in 0..1, one frame or more, any size.
            prompt: what the video shows; may be empty.
            negative_prompt: what to keep away from.
            noise_level: 0..350: how much of the video is covered with noise before it is enlarged; higher invents more
                detail and keeps less of the video.
            steps: sampling steps, 1..1000.
            cfg: classifier-free guidance; at 1 the negative prompt is not computed.
            seed: of the noise.
            window: frames that the model sees at once (it was trained on 8); 0 is the whole video.
            overlap: frames that neighbouring windows share, 0 (visible cuts) to ``window`` - 1.
            patches: attention patches, outermost first.
            callback: called after every step with (step, total, denoised latents); may raise to cancel.

        Returns:
            Frames [n, 4 H, 4 W, 3] in 0..1, a few at a time, T in all. The sampling is done when this returns; only
            decoding is left to the iterator.

        Raises:
            ValueError: not a video, or settings out of range; before any work.
        """
        check_frames(frames, least=1)
        check_settings(self.unet.config, steps, cfg)
        if window < 0 or (0 < window < len(frames) and not 0 <= overlap < window):
            raise ValueError(
                f"window is {window} and overlap {overlap}; choose a window of 1 or more (0: the whole video) and an "
                "overlap of 0 to one less than it."
            )
        pictures = noised_pictures(frames, noise_level, seed, self.unet.config)
        conditions = Conditions(
            self.text.encode(prompt, self.device),
            self.text.encode(negative_prompt, self.device),
            cfg,
            patches,
            channels=pictures,
            class_label=noise_level,
            window=min(window, len(frames)),
            overlap=overlap if 0 < window < len(frames) else 0,
        )
        noise = plain_noise((1, self.coder.channels, *pictures.shape[2:]), torch.Generator().manual_seed(seed))
        latents = sample_latents(self.unet, noise, conditions, self.device, steps=steps, callback=callback)
        return self.coder.decode_parts(latents, self.device)
