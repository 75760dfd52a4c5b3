"""The joint video transformer: text tokens and video tokens in one sequence through every block.

The structure is that of single-stream joint attention as in CogVideoX (arXiv 2408.06072: text first, rotary positions
on the video alone, padding of the text among the keys), with the modulation by the timestep that all blocks share of
PixArt-alpha (arXiv 2310.00426) and normed queries and keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from ...attention_patches.kernels.torch_attention import attention
from ..lavie.blocks import timestep_embedding
from ..lavie.layers import AttentionFunction
from ..lavie.sites import ClipContext
from .config import JointConfig
from .sites import joint_options

# Channels of the sines and cosines that say where a token is, per axis.
POSITION_CHANNELS = 32
# Shift, scale and gate of attention and of the feed-forward layer.
MODULATIONS = 6


def token_positions(grid: tuple[int, int, int], first_frame: int, device: torch.device) -> Tensor:
    """Frame, row and column of every video token, frames outermost: float32 [T * H * W, 3]."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in grid]
    axes[0] = axes[0] + first_frame
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def position_waves(positions: Tensor) -> Tensor:
    """Sines and cosines of positions [L, axes]: [L, axes * POSITION_CHANNELS]."""
    half = POSITION_CHANNELS // 2
    rates = 100.0 ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angles = positions[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def rotary_angles(positions: Tensor, head_channels: int, base: float) -> Tensor:
    """Angle of every pair of channels of a head, for positions [L, 3]: float32 [L, head_channels / 2].

    A quarter of the pairs, at least one, turns with the frame; the rest is shared by row and column.
    """
    pairs = head_channels // 2
    over_time = max(1, pairs // 4)
    rows = (pairs - over_time + 1) // 2
    angles = []
    for axis, count in enumerate((over_time, rows, pairs - over_time - rows)):
        rates = base ** (-torch.arange(count, device=positions.device, dtype=torch.float32) / count)
        angles.append(positions[:, axis : axis + 1] * rates)
    return torch.cat(angles, dim=-1)


def rotate(hidden: Tensor, angles: Tensor, text_length: int) -> Tensor:
    """Turn the video tokens of [B, heads, S + L, d] by their angles [L, d / 2]; the text in front stays."""
    cosine, sine = angles.cos(), angles.sin()
    video = hidden[:, :, text_length:].float()
    even, odd = video[..., 0::2], video[..., 1::2]
    turned = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)
    return torch.cat([hidden[:, :, :text_length], turned.to(hidden.dtype)], dim=2)


class JointAttention(nn.Module):
    """Self-attention of the whole sequence."""

    def __init__(
        self, config: JointConfig, operations: Any, attention_function: AttentionFunction, **factory: Any
    ) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_function = attention_function
        width = config.width
        self.to_q = operations.Linear(width, width, bias=False, **factory)
        self.to_k = operations.Linear(width, width, bias=False, **factory)
        self.to_v = operations.Linear(width, width, bias=False, **factory)
        self.norm_q = operations.RMSNorm(config.head_channels, eps=1e-6, **factory)
        self.norm_k = operations.RMSNorm(config.head_channels, eps=1e-6, **factory)
        self.to_out = operations.Linear(width, width, **factory)

    def forward(self, hidden: Tensor, angles: Tensor, text_length: int, options: dict[str, Any]) -> Tensor:
        """[B, S + L, C] to the same."""
        query, key, value = (
            projection(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        query = rotate(self.norm_q(query), angles, text_length).to(value.dtype)
        key = rotate(self.norm_k(key), angles, text_length).to(value.dtype)
        out = self.attention_function(query, key, value, self.num_heads, skip_reshape=True, transformer_options=options)
        return self.to_out(out)


class JointBlock(nn.Module):
    """Attention and feed-forward layer, each modulated by the timestep."""

    def __init__(
        self, config: JointConfig, operations: Any, attention_function: AttentionFunction, **factory: Any
    ) -> None:
        super().__init__()
        width = config.width
        self.norm1 = operations.LayerNorm(width, elementwise_affine=False, eps=1e-6, **factory)
        self.attn = JointAttention(config, operations, attention_function, **factory)
        self.norm2 = operations.LayerNorm(width, elementwise_affine=False, eps=1e-6, **factory)
        self.mlp_in = operations.Linear(width, config.mlp_ratio * width, **factory)
        self.mlp_out = operations.Linear(config.mlp_ratio * width, width, **factory)
        self.modulation = nn.Parameter(torch.zeros(MODULATIONS, width, **factory))

    def forward(
        self, hidden: Tensor, time: Tensor, angles: Tensor, text_length: int, options: dict[str, Any]
    ) -> Tensor:
        """[B, S + L, C] to the same; ``time`` [B, 6, C] is what all blocks share."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (time + self.modulation.to(time)).unsqueeze(2).unbind(1)
        inner = self.norm1(hidden) * (1 + scale1) + shift1
        hidden = hidden + gate1 * self.attn(inner, angles, text_length, options)
        inner = self.norm2(hidden) * (1 + scale2) + shift2
        return hidden + gate2 * self.mlp_out(gelu(self.mlp_in(inner), approximate="tanh"))


class JointVideoTransformer(nn.Module):
    """Denoiser of video latents.

    Args:
        config: all sizes.
        operations: where layers come from: ``torch.nn``, or one of ComfyUI's ``comfy.ops`` classes.
        attention_function: ``attention_patches.attention.attention`` or ComfyUI's ``optimized_attention``.
        dtype, device: of the parameters.
    """

    def __init__(
        self,
        config: JointConfig | None = None,
        operations: Any = nn,
        attention_function: AttentionFunction = attention,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or JointConfig()
        self.dtype = dtype or torch.float32
        factory = {"dtype": dtype, "device": device}
        width, cells = config.width, math.prod(config.patch)
        self.patch_in = operations.Linear(config.in_channels * cells, width, **factory)
        self.position_in = operations.Linear(3 * POSITION_CHANNELS, width, bias=False, **factory)
        self.text_in = operations.Linear(config.text_channels, width, **factory)
        self.text_position_in = operations.Linear(POSITION_CHANNELS, width, bias=False, **factory)
        self.time_in = operations.Linear(width, width, **factory)
        self.time_modulation = operations.Linear(width, MODULATIONS * width, **factory)
        self.blocks = nn.ModuleList(
            JointBlock(config, operations, attention_function, **factory) for _ in range(config.depth)
        )
        self.norm_out = operations.LayerNorm(width, elementwise_affine=False, eps=1e-6, **factory)
        self.modulation_out = nn.Parameter(torch.zeros(2, width, **factory))
        self.patch_out = operations.Linear(width, config.out_channels * cells, **factory)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        transformer_options: dict[str, Any] | None = None,
        first_frame: int = 0,
        **_: Any,
    ) -> Tensor:
        """Predict noise or velocity.

        Args:
            x: noisy latents [B, C, T, H, W].
            timesteps: [B], 0 .. num_train_timesteps - 1, fractions allowed.
            context: text embedding [B, S, text_channels].
            transformer_options: ComfyUI's options; read here: what ``ClipContext.of`` names, and by the attention
                function ``optimized_attention_override``.
            first_frame: position of the first frame in its clip, for training on single frames.

        Returns:
            [B, out_channels, T, H, W].

        Raises:
            ValueError: if x has not five axes, the config's channels, at least one frame and whole patches.
        """
        grid = self._grid(x)
        text_length = context.shape[1]
        clip = ClipContext.of(x, timesteps, transformer_options, self.config.num_train_timesteps)
        waves = timestep_embedding(timesteps, self.config.width).to(x.dtype)
        time = silu(self.time_in(waves)).expand(x.shape[0], -1)
        shared = self.time_modulation(time).unflatten(-1, (MODULATIONS, -1))

        positions = token_positions(grid, first_frame, x.device)
        angles = rotary_angles(positions, self.config.head_channels, self.config.rotary_base)
        hidden = torch.cat([self._text_tokens(context), self._video_tokens(x, positions)], dim=1)
        for index, block in enumerate(self.blocks):
            options = joint_options(clip, self.config.block_names, index, grid, text_length)
            hidden = block(hidden, shared, angles, text_length, options)
        shift, scale = (time[:, None] + self.modulation_out.to(time)).unsqueeze(2).unbind(1)
        video = self.norm_out(hidden[:, text_length:]) * (1 + scale) + shift
        return self._latents(self.patch_out(video), grid)

    def _grid(self, x: Tensor) -> tuple[int, int, int]:
        """Tokens of the video along (T, H, W)."""
        if x.ndim != 5 or x.shape[1] != self.config.in_channels or x.shape[2] == 0:
            raise ValueError(
                f"latents have shape {tuple(x.shape)}; this model wants [B, {self.config.in_channels}, T, H, W]."
            )
        _, rows, columns = self.config.patch
        if x.shape[3] % rows or x.shape[4] % columns:
            raise ValueError(
                f"latents have {x.shape[3]} x {x.shape[4]} cells; this model wants multiples of {rows} x {columns}."
            )
        return (x.shape[2], x.shape[3] // rows, x.shape[4] // columns)

    def _text_tokens(self, context: Tensor) -> Tensor:
        """[B, S, text_channels] to tokens [B, S, C]; padding is zero there, and becomes tokens of its position."""
        index = torch.arange(context.shape[1], device=context.device, dtype=torch.float32)
        return self.text_in(context) + self.text_position_in(position_waves(index[:, None]).to(context.dtype))

    def _video_tokens(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B, C, T, H, W] to tokens [B, L, width], frames outermost and then rows."""
        _, rows, columns = self.config.patch
        cells = x.unflatten(4, (-1, columns)).unflatten(3, (-1, rows))
        cells = cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        return self.patch_in(cells) + self.position_in(position_waves(positions).to(x.dtype))

    def _latents(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, L, channels * cells] to [B, channels, T, H, W]."""
        _, rows, columns = self.config.patch
        cells = tokens.unflatten(2, (self.config.out_channels, rows, columns)).unflatten(1, grid)
        return cells.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
