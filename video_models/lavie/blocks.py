"""Parts of LaVie's U-Nets beside attention: ResNets with norms over all frames, changes of size, time embedding.

Tensors are [B * T, C, H, W], frames inside the batch; names of submodules are those of the published files. Source of
the structure: Vchitect/LaVie, base/models and vsr/models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from .config import LaVieConfig, UpscalerConfig
from .sites import ClipContext

# What the name of a place has after that of the convolution which it follows.
OVER_TIME = "_over_time"


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


class TimedConvolutions(nn.Module):
    """A module with two-dimensional convolutions, each of which another over time may follow.

    Motion files bring those over time (see ``lamp.py``): the one after ``conv1`` stands in ``conv1_over_time`` and is
    called with [B * T, C, H, W] and the number of frames. Without such a file these places hold None.
    """

    convolutions: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        for name in self.convolutions:
            setattr(self, name + OVER_TIME, None)

    def convolve(self, name: str, hidden: Tensor, frames: int) -> Tensor:
        """Apply the convolution of a name, and what follows it over time."""
        hidden = getattr(self, name)(hidden)
        over_time = getattr(self, name + OVER_TIME)
        return hidden if over_time is None else over_time(hidden, frames)


class ResNetBlock(TimedConvolutions):
    """Two convolutions with joint norms, the time embedding added between them."""

    convolutions = ("conv1", "conv2", "conv_shortcut")

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
        out = self.convolve("conv1", silu(joint_group_norm(self.norm1, hidden, frames)), frames)
        out = out + self.time_emb_proj(silu(time)).repeat_interleave(frames, dim=0)[:, :, None, None]
        out = self.convolve("conv2", silu(joint_group_norm(self.norm2, out, frames)), frames)
        return out + (hidden if self.conv_shortcut is None else self.convolve("conv_shortcut", hidden, frames))


class Resample(TimedConvolutions):
    """Halve (stride 2) or double (nearest, then a convolution) height and width."""

    convolutions = ("conv",)

    def __init__(self, channels: int, stride: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, **factory)

    def forward(self, hidden: Tensor, frames: int, size: tuple[int, int] | None = None) -> Tensor:
        if size is not None:
            hidden = interpolate(hidden, size=size, mode="nearest")
        return self.convolve("conv", hidden, frames)


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


class LevelledUNet(TimedConvolutions):
    """A first convolution, levels down, a middle, levels up and a last one, which all of LaVie's U-Nets have."""

    convolutions = ("conv_in", "conv_out")
    down_blocks: nn.ModuleList
    mid_block: Level
    up_blocks: nn.ModuleList

    def build_levels(
        self,
        config: LaVieConfig | UpscalerConfig,
        resnet: Callable[[int, int], nn.Module],
        transformer: Callable[[int], nn.Module],
        resample: Callable[[int, int], Resample],
    ) -> None:
        """Make them in the order of the forward pass.

        Args:
            config: widths, layers and which levels attend.
            resnet: makes one of (channels in, channels out).
            transformer: makes the next one, of that many channels.
            resample: makes a change of size of (channels, stride).
        """
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips, channels = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            resnets, attentions = [], []
            for _ in range(config.layers_per_block):
                resnets.append(resnet(channels, width))
                channels = width
                skips.append(width)
                if config.attention_levels[level]:
                    attentions.append(transformer(width))
            smaller = resample(width, 2) if level < last else None
            if smaller is not None:
                skips.append(width)
            self.down_blocks.append(Level(resnets, attentions, smaller, up=False))

        resnets = [resnet(channels, channels), resnet(channels, channels)]
        self.mid_block = Level(resnets, [transformer(channels)], None, up=False)

        for level in reversed(range(len(widths))):
            width = widths[level]
            resnets, attentions = [], []
            for _ in range(config.layers_per_block + 1):
                resnets.append(resnet(channels + skips.pop(), width))
                channels = width
                if config.attention_levels[level]:
                    attentions.append(transformer(width))
            larger = resample(width, 1) if level > 0 else None
            self.up_blocks.append(Level(resnets, attentions, larger, up=True))

    def run_levels(self, hidden: Tensor, time: Tensor, context: Tensor, clip: ClipContext) -> Tensor:
        """From the first convolution's result to that of the last level: [B * T, C, H, W] to the same.

        Args:
            hidden: result of the first convolution.
            time: embedding of the timesteps [B, 4 C].
            context: text embedding [B, S, C'].
            clip: what the layers know about the clip.
        """
        frames, skips = clip.frames, [hidden]
        for number, block in enumerate(self.down_blocks):
            for layer, resnet in enumerate(block.resnets):
                hidden = resnet(hidden, time, frames)
                if len(block.attentions):
                    hidden = block.attentions[layer](hidden, context, clip)
                skips.append(hidden)
            for downsampler in block.downsamplers:
                hidden = downsampler(hidden, frames)
                skips.append(hidden)
            hidden = self.after_level("down", number, hidden, time, frames)

        hidden = self.mid_block.resnets[0](hidden, time, frames)
        hidden = self.mid_block.attentions[0](hidden, context, clip)
        hidden = self.mid_block.resnets[1](hidden, time, frames)
        hidden = self.after_level("mid", 0, hidden, time, frames)

        for number, block in enumerate(self.up_blocks):
            for layer, resnet in enumerate(block.resnets):
                hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), time, frames)
                if len(block.attentions):
                    hidden = block.attentions[layer](hidden, context, clip)
            for upsampler in block.upsamplers:
                hidden = upsampler(hidden, frames, tuple(skips[-1].shape[-2:]))
            hidden = self.after_level("up", number, hidden, time, frames)
        return hidden

    def after_level(self, part: str, number: int, hidden: Tensor, time: Tensor, frames: int) -> Tensor:
        """What follows a level (``down`` or ``up`` and its number, or ``mid``); nothing in the base model."""
        return hidden
