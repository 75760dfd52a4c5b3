"""The LaVie-shaped text-to-video U-Net, every size from a config.

With the default config its state dict has the names and shapes of ``lavie_base.pt``. Convolutions are two-dimensional
and see frames one by one; the GroupNorms of ResNets and of the output take their statistics over all frames of a clip.
Source of the structure: Vchitect/LaVie, base/models.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from ..attention_patches.attention import attention
from .lavie_config import LaVieConfig
from .lavie_layers import AttentionFunction, BlockPlace, ClipContext, VideoTransformer


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [B, dim] in float32, cosines first."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def joint_group_norm(norm: nn.Module, hidden: Tensor, frames: int) -> Tensor:
    """Apply a GroupNorm with statistics over the frames of each clip: [B * T, C, H, W] to the same."""
    height, width = hidden.shape[-2:]
    joint = hidden.view(-1, frames, *hidden.shape[1:]).transpose(1, 2).flatten(3)
    return norm(joint).unflatten(3, (height, width)).transpose(1, 2).reshape(hidden.shape)


class TimestepEmbedding(nn.Module):
    """Two linear layers on the sinusoidal embedding."""

    def __init__(self, channels: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.linear_1 = operations.Linear(channels, channels * 4, **factory)
        self.linear_2 = operations.Linear(channels * 4, channels * 4, **factory)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(embedding)))


class ResNetBlock(nn.Module):
    """Two convolutions with joint norms, the time embedding added between them."""

    def __init__(
        self, channels: int, out_channels: int, time_channels: int, groups: int, operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels, eps=1e-5, **factory)
        self.conv1 = operations.Conv2d(channels, out_channels, kernel_size=3, padding=1, **factory)
        self.time_emb_proj = operations.Linear(time_channels, out_channels, **factory)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=1e-5, **factory)
        self.conv2 = operations.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, **factory)
        self.conv_shortcut = None
        if channels != out_channels:
            self.conv_shortcut = operations.Conv2d(channels, out_channels, kernel_size=1, **factory)

    def forward(self, hidden: Tensor, time: Tensor, frames: int) -> Tensor:
        """[B * T, C, H, W] and [B, time_channels] to [B * T, C_out, H, W]."""
        out = self.conv1(silu(joint_group_norm(self.norm1, hidden, frames)))
        out = out + self.time_emb_proj(silu(time)).repeat_interleave(frames, dim=0)[:, :, None, None]
        out = self.conv2(silu(joint_group_norm(self.norm2, out, frames)))
        return out + (hidden if self.conv_shortcut is None else self.conv_shortcut(hidden))


class Resample(nn.Module):
    """Halve (stride 2) or double (nearest, then a convolution) height and width."""

    def __init__(self, channels: int, stride: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, **factory)

    def forward(self, hidden: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is not None:
            hidden = interpolate(hidden, size=size, mode="nearest")
        return self.conv(hidden)


class Level(nn.Module):
    """ResNets and transformers of one level, and the change of size after it."""

    def __init__(
        self, resnets: list[nn.Module], attentions: list[nn.Module], resample: Resample | None, up: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        samplers = nn.ModuleList([] if resample is None else [resample])
        if up:
            self.upsamplers = samplers
        else:
            self.downsamplers = samplers


class LaVieUNet(nn.Module):
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
        last = len(widths) - 1
        places = iter(self._places(config))

        def resnet(channels: int, out_channels: int) -> ResNetBlock:
            return ResNetBlock(channels, out_channels, 4 * widths[0], config.norm_num_groups, operations, **factory)

        def transformer(channels: int) -> VideoTransformer:
            return VideoTransformer(channels, next(places), config, operations, attention_function, **factory)

        self.conv_in = operations.Conv2d(config.in_channels, widths[0], kernel_size=3, padding=1, **factory)
        self.time_embedding = TimestepEmbedding(widths[0], operations, **factory)

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        channels = widths[0]
        for level, width in enumerate(widths):
            resnets, attentions = [], []
            for _ in range(config.layers_per_block):
                resnets.append(resnet(channels, width))
                channels = width
                skips.append(width)
                if config.attention_levels[level]:
                    attentions.append(transformer(width))
            resample = Resample(width, 2, operations, **factory) if level < last else None
            if resample is not None:
                skips.append(width)
            self.down_blocks.append(Level(resnets, attentions, resample, up=False))

        self.mid_block = Level(
            [resnet(channels, channels), resnet(channels, channels)], [transformer(channels)], None, up=False
        )

        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            width = widths[level]
            resnets, attentions = [], []
            for _ in range(config.layers_per_block + 1):
                resnets.append(resnet(channels + skips.pop(), width))
                channels = width
                if config.attention_levels[level]:
                    attentions.append(transformer(width))
            resample = Resample(width, 1, operations, **factory) if level > 0 else None
            self.up_blocks.append(Level(resnets, attentions, resample, up=True))

        self.conv_norm_out = operations.GroupNorm(config.norm_num_groups, widths[0], eps=1e-5, **factory)
        self.conv_out = operations.Conv2d(widths[0], config.out_channels, kernel_size=3, padding=1, **factory)

    @staticmethod
    def _places(config: LaVieConfig) -> list[BlockPlace]:
        """Every transformer in the order of the forward pass."""
        last = len(config.block_out_channels) - 1
        names: list[tuple[str, int]] = []
        for level in range(last + 1):
            if config.attention_levels[level]:
                names += [(f"down.{level}.{layer}", level) for layer in range(config.layers_per_block)]
        names.append(("mid.0", last))
        for number, level in enumerate(reversed(range(last + 1))):
            if config.attention_levels[level]:
                names += [(f"up.{number}.{layer}", level) for layer in range(config.layers_per_block + 1)]
        return [BlockPlace(name, index, len(names), level) for index, (name, level) in enumerate(names)]

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
            x: noisy latents [B, C, T, H, W].
            timesteps: [B], 0 .. num_train_timesteps - 1, fractions allowed.
            context: text embedding [B, S, cross_attention_dim].
            transformer_options: ComfyUI's options; read here: ``cond_or_uncond``, ``sigmas``, ``context_window``,
                ``clip_frames`` (of the whole clip, when the call sees a window of it), and by the attention function ``optimized_attention_override``.

        Returns:
            [B, out_channels, T, H, W].

        Raises:
            ValueError: if x has no five axes.
        """
        if x.ndim != 5:
            raise ValueError(f"latents have shape {tuple(x.shape)}; this model wants [B, C, T, H, W].")
        batch, _, frames = x.shape[:3]
        clip = self._clip_context(x, timesteps, transformer_options or {})
        embedding = timestep_embedding(timesteps, self.config.block_out_channels[0]).to(x.dtype)
        time = self.time_embedding(embedding.expand(batch, -1))
        hidden = self.conv_in(x.transpose(1, 2).flatten(0, 1))

        skips = [hidden]
        for block in self.down_blocks:
            for layer, resnet in enumerate(block.resnets):
                hidden = resnet(hidden, time, frames)
                if len(block.attentions):
                    hidden = block.attentions[layer](hidden, context, clip)
                skips.append(hidden)
            for downsampler in block.downsamplers:
                hidden = downsampler(hidden)
                skips.append(hidden)

        hidden = self.mid_block.resnets[0](hidden, time, frames)
        hidden = self.mid_block.attentions[0](hidden, context, clip)
        hidden = self.mid_block.resnets[1](hidden, time, frames)

        for block in self.up_blocks:
            for layer, resnet in enumerate(block.resnets):
                hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), time, frames)
                if len(block.attentions):
                    hidden = block.attentions[layer](hidden, context, clip)
            for upsampler in block.upsamplers:
                hidden = upsampler(hidden, tuple(skips[-1].shape[-2:]))

        hidden = self.conv_out(silu(joint_group_norm(self.conv_norm_out, hidden, frames)))
        return hidden.unflatten(0, (batch, frames)).transpose(1, 2)

    def _clip_context(self, x: Tensor, timesteps: Tensor, options: dict[str, Any]) -> ClipContext:
        frames = x.shape[2]
        window = options.get("context_window")
        indices = tuple(window.index_list) if window is not None else tuple(range(frames))
        sigmas = options.get("sigmas")
        return ClipContext(
            batch=x.shape[0],
            frames=frames,
            frame_indices=indices,
            clip_frames=options.get("clip_frames")
            or getattr(window, "total_frames", None)
            or max(frames, max(indices) + 1),
            chunks=tuple(options.get("cond_or_uncond", (0,))),
            progress=1.0 - float(timesteps.flatten()[0]) / (self.config.num_train_timesteps - 1),
            sigma=float(sigmas.flatten()[0]) if sigmas is not None else float("nan"),
            transformer_options=options,
        )
