"""Videos to latents and back for stand-alone use, through a diffusers VAE of single pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# Frames that the VAE takes at once, fewer where they are large.
MOST_FRAMES = 8
MOST_PIXELS = MOST_FRAMES * 320 * 512


class FrameCoder:
    """A VAE that takes the frames of a video one by one.

    Args:
        vae: diffusers ``AutoencoderKL``.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = vae.config.latent_channels

    def encode(self, frames: Tensor, device: torch.device) -> Tensor:
        """Frames [T, H, W, 3] in 0..1 to latents [1, C, T, h, w] as a U-Net sees them.

        The last rows and columns are repeated where H or W is not a multiple of the VAE's factor.
        """
        vae, config = self.vae.to(device), self.vae.config
        pictures = frames.movedim(-1, 1)
        height, width = pictures.shape[-2:]
        missing = -height % self.factor, -width % self.factor
        latents = []
        with torch.inference_mode():
            for part in pictures.split(_frames_at_once(height, width)):
                part = part.to(device, vae.dtype) * 2 - 1
                if any(missing):
                    part = pad(part, (0, missing[1], 0, missing[0]), mode="replicate")
                latents.append(vae.encode(part).latent_dist.mode().float())
        return ((torch.cat(latents) - (config.shift_factor or 0.0)) * config.scaling_factor).transpose(0, 1)[None]

    def decode_parts(
        self, latents: Tensor, device: torch.device, size: tuple[int, int] | None = None
    ) -> Iterator[Tensor]:
        """Latents [1, C, T, h, w] to a few frames [n, H, W, 3] in 0..1 at a time, on the CPU.

        Args:
            latents: one clip.
            device: where to compute.
            size: (H, W) that the frames are cut to, where they were filled up before; None leaves them.

        Raises:
            ValueError: more than one clip, or values that are not finite; before the first frames.
        """
        if latents.shape[0] != 1:
            raise ValueError(f"latents hold {latents.shape[0]} clips; decode them one by one.")
        if not bool(latents.isfinite().all()):
            raise ValueError("the latents hold NaN or infinite values; lower cfg or the guidance strength.")
        return self._decoded(latents, device, size or (latents.shape[3] * self.factor, latents.shape[4] * self.factor))

    def _decoded(self, latents: Tensor, device: torch.device, size: tuple[int, int]) -> Iterator[Tensor]:
        vae, config = self.vae.to(device), self.vae.config
        for part in latents[0].transpose(0, 1).split(_frames_at_once(*size)):
            raw = part.to(device) / config.scaling_factor + (config.shift_factor or 0.0)
            with torch.inference_mode():
                pictures = vae.decode(raw.to(vae.dtype)).sample[..., : size[0], : size[1]].float().cpu()
            yield (pictures / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def check_frames(frames: Tensor, least: int) -> None:
    """Refuse what is not a video of ``least`` frames or more.

    Raises:
        ValueError: another shape, too few frames, or values that are not finite.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.is_floating_point() or not all(frames.shape[1:3]):
        raise ValueError(
            f"the video is {frames.dtype} of shape {tuple(frames.shape)}; "
            "give floating-point frames [T, H, W, 3] in 0..1."
        )
    if len(frames) < least:
        raise ValueError(f"the video has {len(frames)} frame{'' if len(frames) == 1 else 's'}; give at least {least}.")
    if not bool(frames.isfinite().all()):
        raise ValueError("the video holds NaN or infinite values; give frames in 0..1.")


def _frames_at_once(height: int, width: int) -> int:
    return max(1, min(MOST_FRAMES, MOST_PIXELS // (height * width)))
