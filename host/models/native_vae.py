"""Two-dimensional VAEs as native ComfyUI VAEs of video: frames go through one by one, latents are [B, C, T, h, w]."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .lavie_models import LatentScaling


class FramewiseAutoencoder(nn.Module):
    """An image autoencoder applied to every frame of a video.

    Args:
        encode: [N, 3, H, W] in -1..1 to raw latents [N, C, h, w] (posterior modes).
        decode: the way back.
        autoencoder: the module both belong to, so that its weights move with this one.
    """

    def __init__(self, autoencoder: nn.Module, encode: Any, decode: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self._encode = encode
        self._decode = decode

    def encode(self, video: Tensor, **_: Any) -> Tensor:
        """[B, 3, T, H, W] to [B, C, T, h, w]."""
        return self._framewise(self._encode, video)

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        """[B, C, T, h, w] to [B, 3, T, H, W]."""
        return self._framewise(self._decode, latents)

    @staticmethod
    def _framewise(function: Any, video: Tensor) -> Tensor:
        if video.ndim == 4:
            return function(video)
        batch, _, frames = video.shape[:3]
        # Frame by frame: memory stays that of one picture however long the clip is.
        folded = video.transpose(1, 2).flatten(0, 1)
        results = torch.cat([function(frame[None]) for frame in folded])
        return results.unflatten(0, (batch, frames)).transpose(1, 2)


@cache
def _vae_class() -> type:
    """ComfyUI's VAE, holding an autoencoder that it did not detect itself; made on first use."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.sd

    class FramewiseVAE(comfy.sd.VAE):
        """Native VAE: VAEDecode gives [T, H, W, 3] pictures, VAEEncode takes a video to [1, C, T, h, w] latents."""

        def __init__(
            self, autoencoder: FramewiseAutoencoder, factor: int, channels: int, dtypes: list[torch.dtype]
        ) -> None:
            # The smallest VAE that the host knows; it brings every attribute this version of the host expects.
            super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)})
            self.first_stage_model = autoencoder.eval()
            self.latent_channels = channels
            self.latent_dim = 3
            self.downscale_ratio = (_same_length, factor, factor)
            self.upscale_ratio = (_same_length, factor, factor)
            self.downscale_index_formula = (1, factor, factor)
            self.upscale_index_formula = (1, factor, factor)
            self.working_dtypes = dtypes
            self.memory_used_encode = _pixels_memory(600, 1)
            self.memory_used_decode = _pixels_memory(800, factor * factor)
            self.vae_dtype = management.vae_dtype(self.device, self.working_dtypes)
            self.first_stage_model.to(self.vae_dtype)
            self.patcher = comfy.model_patcher.ModelPatcher(
                self.first_stage_model, load_device=self.device, offload_device=management.vae_offload_device()
            )

    return FramewiseVAE


def _same_length(frames: int) -> int:
    return frames


def _pixels_memory(per_pixel: int, pixels_per_cell: int) -> Any:
    """ComfyUI's memory estimate in bytes: activations of one frame, plus the video itself."""

    def estimate(shape: Any, dtype: torch.dtype) -> int:
        import comfy.model_management as management

        height, width, frames = shape[-2], shape[-1], shape[2] if len(shape) == 5 else 1
        return height * width * pixels_per_cell * (per_pixel + 6 * frames) * management.dtype_size(dtype)

    return estimate


def diffusers_vae(folder: Path) -> tuple[Any, LatentScaling]:
    """Read a diffusers ``AutoencoderKL`` folder.

    Args:
        folder: holds ``config.json`` and ``diffusion_pytorch_model.safetensors``.

    Returns:
        The native ComfyUI VAE in float32, and the scaling of its latents
        with preview colours measured on it.

    Raises:
        FileNotFoundError: if the folder is missing.
    """
    from diffusers import AutoencoderKL

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; restore the VAE folder from the release.")
    autoencoder = (
        AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
        .float()
        .eval()
        .requires_grad_(False)
    )
    config = autoencoder.config

    def encode(pictures: Tensor) -> Tensor:
        return autoencoder.encode(pictures).latent_dist.mode()

    def decode(latents: Tensor) -> Tensor:
        return autoencoder.decode(latents).sample

    factor = 2 ** (len(config.block_out_channels) - 1)
    scale, shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    rgb_factors, rgb_bias = preview_colours(encode, factor, scale, shift)
    # float32 on every device, as in stand-alone use: such a VAE is small.
    vae = _vae_class()(
        FramewiseAutoencoder(autoencoder, encode, decode), factor, config.latent_channels, [torch.float32]
    )
    return vae, LatentScaling(scale, shift, rgb_factors, rgb_bias)


def framewise_vae(vae: Any) -> Any:
    """Make a native VAE of video out of a native VAE of pictures (Stable Diffusion 1's, which LaVie uses)."""
    inner = vae.first_stage_model
    return _vae_class()(
        FramewiseAutoencoder(inner, inner.encode, inner.decode),
        vae.spacial_compression_encode(),
        vae.latent_channels,
        vae.working_dtypes,
    )


@torch.inference_mode()
def preview_colours(encode: Any, factor: int, scale: float, shift: float) -> tuple[list[list[float]], list[float]]:
    """Linear map from scaled latents to colours, fitted on a chart of flat colours.

    Args:
        encode: [N, 3, H, W] in -1..1 to raw latents.
        factor: pixels per latent cell.
        scale, shift: of the latents.

    Returns:
        ``factors`` [channels][3] and ``bias`` [3]; colour in -1..1 = latents @ factors + bias.
    """
    levels = torch.linspace(-1.0, 1.0, 4)
    colours = torch.cartesian_prod(levels, levels, levels)
    # Patches of eight cells, of which the inner four count: far enough from the borders of the picture.
    pictures = colours[:, :, None, None].expand(-1, -1, 8 * factor, 8 * factor).contiguous()
    latents = (encode(pictures).float() - shift) * scale
    inner = latents[:, :, 2:6, 2:6]
    known = inner.permute(0, 2, 3, 1).reshape(-1, inner.shape[1])
    target = colours.repeat_interleave(16, dim=0)
    design = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    solution = torch.linalg.lstsq(design, target).solution
    return solution[:-1].tolist(), solution[-1].tolist()
