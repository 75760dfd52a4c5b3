"""The LaVie-shaped text-to-video U-Net, every size from a config.

With the default config its state dict has the names and shapes of ``lavie_base.pt``, with that of the interpolation
stage those of ``lavie_interpolation.pt``. Convolutions are two-dimensional and see frames one by one; the GroupNorms of
ResNets and of the output take their statistics over all frames of a clip. Source of the structure: Vchitect/LaVie,
base/models and interpolation/models.
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
from .config import LaVieConfig
from .layers import AttentionFunction, VideoTransformer
from .sites import ClipContext, transformer_places


class LaVieUNet(LevelledUNet):
    """Denoiser of video latents.

    Args:
        config: all sizes.
        operations: where layers come from: ``torch.nn``, or one of ComfyUI's ``comfy.ops`` classes.
        attention_function: ``attention_patches.attention.attention`` or ComfyUI's ``optimized_attention``.
        dtype, device: of the parameters.
    """

    def __init__(
        self,
        config: LaVieConfig | None = None,
        operations: Any = nn,
        attention_function: AttentionFunction = attention,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or LaVieConfig()
        self.dtype = dtype or torch.float32
        factory = {"dtype": dtype, "device": device}
        widths = config.block_out_channels
        places = iter(transformer_places(config))

        def resnet(channels: int, out_channels: int) -> ResNetBlock:
            return ResNetBlock(channels, out_channels, 4 * widths[0], config.norm_num_groups, operations, **factory)

        def transformer(channels: int) -> VideoTransformer:
            return VideoTransformer(channels, next(places), config, operations, attention_function, **factory)

        def resample(channels: int, stride: int) -> Resample:
            return Resample(channels, stride, operations, **factory)

        self.conv_in = operations.Conv2d(config.in_channels, widths[0], kernel_size=3, padding=1, **factory)
        self.time_embedding = TimestepEmbedding(widths[0], operations, **factory)

        self.build_levels(config, resnet, transformer, resample)
        self.conv_norm_out = operations.GroupNorm(config.norm_num_groups, widths[0], eps=1e-5, **factory)
        self.conv_out = operations.Conv2d(widths[0], config.out_channels, kernel_size=3, padding=1, **factory)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        transformer_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        """Predict noise or velocity.

        Args:
            x: noisy latents [B, C, T, H, W]; the interpolation model's have those of the given frames after them, one
                for each frame that is made.
            timesteps: [B], 0 .. num_train_timesteps - 1, fractions allowed.
            context: text embedding [B, S, cross_attention_dim].
            transformer_options: ComfyUI's options; read here: what ``ClipContext.of`` names, and by the attention
                function ``optimized_attention_override``.

        Returns:
            [B, out_channels, T, H, W].

        Raises:
            ValueError: if x has not five axes, the config's channels and at least one frame.
        """
        if x.ndim != 5 or x.shape[1] != self.config.in_channels or x.shape[2] == 0:
            more = ": noisy latents and, after them, those of the given frames" if self.config.stage != "base" else ""
            raise ValueError(
                f"latents have shape {tuple(x.shape)}; this model wants [B, {self.config.in_channels}, T, H, W]{more}."
            )
        batch, _, frames = x.shape[:3]
        clip = ClipContext.of(x, timesteps, transformer_options, self.config.num_train_timesteps)
        embedding = timestep_embedding(timesteps, self.config.block_out_channels[0]).to(x.dtype)
        time = self.time_embedding(embedding.expand(batch, -1))
        hidden = self.convolve("conv_in", x.transpose(1, 2).flatten(0, 1), frames)

        hidden = self.run_levels(hidden, time, context, clip)
        hidden = self.convolve("conv_out", silu(joint_group_norm(self.conv_norm_out, hidden, frames)), frames)
        return hidden.unflatten(0, (batch, frames)).transpose(1, 2)
