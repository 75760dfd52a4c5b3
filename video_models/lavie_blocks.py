"""Parts of LaVie's U-Nets beside attention: ResNets with norms over all frames, changes of size, time embedding.

Tensors are [B * T, C, H, W], frames inside the batch; names of submodules are those of the published files. Source of
the structure: Vchitect/LaVie, base/models and vsr/models.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu


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
        self,
        channels: int,
        out_channels: int,
        time_channels: int,
        groups: int,
        operations: Any,
        eps: float = 1e-5,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels, eps=eps, **factory)
        self.conv1 = operations.Conv2d(channels, out_channels, kernel_size=3, padding=1, **factory)
        self.time_emb_proj = operations.Linear(time_channels, out_channels, **factory)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=eps, **factory)
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
