"""LaVie's x4 upscaler: a Stable Diffusion upscaler U-Net that sees several frames, every size from a config.

With the default config its state dict has the names and shapes of ``lavie_vsr.pt``. Beside what the base model has:
convolutions over time before every transformer and after every level, a class embedding for the noise that was added to
the small pictures, linear projections, and levels where both attentions of a frame look at the text. Source of the
structure: Vchitect/LaVie, vsr/models and vsr/configs/unet_3d_config.json.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ...attention_patches.kernels.torch_attention import attention
from .blocks import (
    LevelledUNet,
    Resample,
    ResNetBlock,
    TimestepEmbedding,
    joint_group_norm,
    timestep_embedding,
)
from .config import UpscalerConfig
from .layers import AttentionFunction, RotaryEmbedding
from .sites import ClipContext
from .upscaler_layers import TemporalModule, TransformerPlaces, UpscalerTransformer


class UpscalerUNet(LevelledUNet):
    """Denoiser of the latents of a large video, beside the small video.

    Args:
        config: all sizes.
        operations: where layers come from: ``torch.nn``, or one of ComfyUI's ``comfy.ops`` classes.
        attention_function: ``attention_patches.attention.attention`` or ComfyUI's ``optimized_attention``.
        dtype, device: of the parameters.
    """

    def __init__(
        self,
        config: UpscalerConfig | None = None,
        operations: Any = nn,
        attention_function: AttentionFunction = attention,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or UpscalerConfig()
        self.dtype = dtype or torch.float32
        factory = {"dtype": dtype, "device": device}
        widths = config.block_out_channels
        time_channels, groups = 4 * widths[0], config.norm_num_groups
        places = iter(TransformerPlaces.of_model(config))

        def resnet(channels: int, out_channels: int) -> ResNetBlock:
            return ResNetBlock(channels, out_channels, time_channels, groups, operations, **factory)

        def transformer(channels: int) -> UpscalerTransformer:
            return UpscalerTransformer(channels, next(places), config, operations, attention_function, **factory)

        def resample(channels: int, stride: int) -> Resample:
            return Resample(channels, stride, operations, **factory)

        def over_time(channels: int) -> TemporalModule:
            return TemporalModule(channels, time_channels, groups, operations, **factory)

        self.conv_in = operations.Conv2d(config.in_channels, widths[0], kernel_size=3, padding=1, **factory)
        self.time_embedding = TimestepEmbedding(widths[0], operations, **factory)
        self.class_embedding = operations.Embedding(config.noise_levels, time_channels, **factory)
        # Computed anew at every use; the file has it here as well as in every attention over time.
        self.temporal_rotary_emb = RotaryEmbedding(config.rotary_dim, device)

        self.build_levels(config, resnet, transformer, resample)
        self.down_temporal_blocks = nn.ModuleList(over_time(width) for width in widths)
        self.mid_temporal_block = over_time(widths[-1])
        self.up_temporal_blocks = nn.ModuleList(over_time(width) for width in reversed(widths))
        self.conv_norm_out = operations.GroupNorm(groups, widths[0], eps=1e-5, **factory)
        self.conv_out = operations.Conv2d(widths[0], config.out_channels, kernel_size=3, padding=1, **factory)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        class_labels: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        """Predict noise or velocity.

        Args:
            x: noisy latents and, after them, the noisy small pictures (-1..1) of the same height and width:
                [B, C, T, H, W].
            timesteps: [B], 0 .. num_train_timesteps - 1, fractions allowed.
            context: text embedding [B, S, cross_attention_dim].
            class_labels: [B] whole numbers, how noisy the small pictures are, 0 .. max_noise_level.
            transformer_options: as ``LaVieUNet.forward``.

        Returns:
            [B, out_channels, T, H, W].

        Raises:
            ValueError: if x has not the axes or channels, or the noise levels are missing or out of range.
        """
        batch, frames, labels = self._check(x, class_labels)
        clip = ClipContext.of(x, timesteps, transformer_options, self.config.num_train_timesteps)
        embedding = timestep_embedding(timesteps, self.config.block_out_channels[0]).to(x.dtype)
        time = self.time_embedding(embedding.expand(batch, -1))
        time = time + self.class_embedding(labels).to(time.dtype).expand(batch, -1)
        hidden = self.convolve("conv_in", x.transpose(1, 2).flatten(0, 1), frames)

        hidden = self.run_levels(hidden, time, context, clip)
        hidden = self.convolve("conv_out", silu(joint_group_norm(self.conv_norm_out, hidden, frames)), frames)
        return hidden.unflatten(0, (batch, frames)).transpose(1, 2)

    def after_level(self, part: str, number: int, hidden: Tensor, time: Tensor, frames: int) -> Tensor:
        """Convolutions over time."""
        if part == "mid":
            return self.mid_temporal_block(hidden, time, frames)
        blocks = self.down_temporal_blocks if part == "down" else self.up_temporal_blocks
        return blocks[number](hidden, time, frames)

    def _check(self, x: Tensor, class_labels: Tensor | None) -> tuple[int, int, Tensor]:
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.in_channels or x.shape[2] == 0:
            raise ValueError(
                f"the upscaler's input has shape {tuple(x.shape)}; it wants [B, {config.in_channels}, T, H, W]: "
                f"{config.out_channels} channels of latents and, after them, the small pictures."
            )
        if class_labels is None:
            raise ValueError(
                "the upscaler was given no noise level (class_labels); give one per sample, the noise in the small "
                f"pictures, 0 to {config.max_noise_level}."
            )
        low, high = (int(value) for value in class_labels.aminmax())
        if low < 0 or high > config.max_noise_level:
            raise ValueError(
                f"the noise level is {low if low < 0 else high}; give a value from 0 to {config.max_noise_level}."
            )
        return x.shape[0], x.shape[2], class_labels.to(x.device, torch.long).flatten()
