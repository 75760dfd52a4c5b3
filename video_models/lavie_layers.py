"""Attention layers of the LaVie U-Net: self, cross and temporal, in LaVie's order.

Tensors between layers are [B * T, C, H, W], frames inside the batch; names of submodules are those of
``lavie_base.pt``. Source of the structure: Vchitect/LaVie, base/models/attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attention_patches.site import SITE_KEY, AttentionKind, AttentionSite, BatchRows
from .lavie_config import LaVieConfig

AttentionFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class ClipContext:
    """What every layer must know about the clip in flight.

    Attributes:
        batch: samples times conditioning chunks.
        frames: frames in this call.
        frame_indices: where they stand in the whole clip.
        clip_frames: length of the whole clip.
        chunks: conditional (0) or unconditional (1), per chunk of the batch.
        progress, sigma: see ``AttentionSite``.
        transformer_options: the caller's options, passed on to every attention call.
    """

    batch: int
    frames: int
    frame_indices: tuple[int, ...]
    clip_frames: int
    chunks: tuple[int, ...]
    progress: float
    sigma: float
    transformer_options: dict[str, Any]

    def options_at(
        self, kind: AttentionKind, place: BlockPlace, height: int, width: int, text_length: int = 0
    ) -> dict[str, Any]:
        """The caller's options with the site of one attention call in them."""
        samples = self.batch // len(self.chunks)
        if kind == "temporal":
            rows = BatchRows(self.chunks, samples, "positions", height * width)
            queries = self.frames
        else:
            rows = BatchRows(self.chunks, samples, "frames", self.frames)
            queries = height * width
        site = AttentionSite(
            kind=kind,
            block=place.name,
            index=place.index,
            total=place.total,
            level=place.level,
            grid=(self.frames, height, width),
            frames=self.frame_indices,
            clip_frames=self.clip_frames,
            video=slice(0, queries),
            text=slice(0, text_length) if kind == "cross" else None,
            rows=rows,
            progress=self.progress,
            sigma=self.sigma,
        )
        return {**self.transformer_options, SITE_KEY: site}


@dataclass(frozen=True)
class BlockPlace:
    """Name, running index and level of a transformer in the U-Net."""

    name: str
    index: int
    total: int
    level: int

    def with_total(self, total: int) -> BlockPlace:
        return replace(self, total=total)


class Attention(nn.Module):
    """Multi-head attention with the projections of diffusers' naming.

    Args:
        channels: of the queries and of the output.
        context_channels: of what keys and values are made from.
        num_heads: how many heads.
        operations: where ``Linear`` comes from.
        attention_function: called as ``f(q, k, v, heads, mask=..., transformer_options=...)``.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        num_heads: int,
        operations: Any,
        attention_function: AttentionFunction,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_function = attention_function
        self.to_q = operations.Linear(channels, channels, bias=False, **factory)
        self.to_k = operations.Linear(context_channels, channels, bias=False, **factory)
        self.to_v = operations.Linear(context_channels, channels, bias=False, **factory)
        self.to_out = nn.ModuleList([operations.Linear(channels, channels, **factory)])

    def forward(self, hidden: Tensor, context: Tensor, repeats: int, options: dict[str, Any]) -> Tensor:
        """Attend from ``hidden`` [B, L, C] to ``context`` [B / repeats, S, C'], each row of it ``repeats`` times."""
        key, value = self.to_k(context), self.to_v(context)
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=0), value.repeat_interleave(repeats, dim=0)
        out = self.attention_function(self.to_q(hidden), key, value, self.num_heads, transformer_options=options)
        return self.to_out[0](out)


class RotaryEmbedding(nn.Module):
    """Interleaved rotary embedding of the first ``dim`` channels of a head, angles in float32.

    The ``freqs`` buffer is there because the checkpoint has it; it is never read, since files of other rotary
    package versions or of half precision hold rounded values.
    """

    def __init__(self, dim: int, device: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("freqs", self.frequencies(device))

    def frequencies(self, device: Any) -> Tensor:
        """10000^(-2j / dim) for j = 0 .. dim / 2 - 1."""
        return 10000.0 ** (-torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Rotate [..., T, head_dim] by frame index."""
        length = hidden.shape[-2]
        positions = torch.arange(length, device=hidden.device, dtype=torch.float32)
        angles = positions[:, None] * self.frequencies(hidden.device)
        cosine, sine = angles.cos(), angles.sin()
        even, odd = hidden[..., 0 : self.dim : 2].float(), hidden[..., 1 : self.dim : 2].float()
        rotated = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)
        return torch.cat([rotated.to(hidden.dtype), hidden[..., self.dim :]], dim=-1)


class RelativePositionBias(nn.Module):
    """T5's bucketed relative position bias, bidirectional: one learned number per bucket and head."""

    def __init__(self, buckets: int, max_distance: int, num_heads: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.buckets = buckets
        self.max_distance = max_distance
        self.relative_attention_bias = operations.Embedding(buckets, num_heads, **factory)

    def bucket(self, relative: Tensor) -> Tensor:
        """Bucket of each relative position (key index - query index), an integer tensor of the same shape."""
        half = self.buckets // 2
        exact = half // 2
        distance = relative.abs()
        scaled = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + scaled * (half - exact)).long().clamp(max=half - 1)
        return (relative > 0).long() * half + torch.where(distance < exact, distance, far)

    def forward(self, length: int, device: torch.device) -> Tensor:
        """Bias [1, heads, T, T] to add to the logits."""
        index = torch.arange(length, device=device)
        values = self.relative_attention_bias(self.bucket(index[None, :] - index[:, None]))
        return values.permute(2, 0, 1)[None]


class TemporalAttention(Attention):
    """Attention of one spatial cell over time, with rotary and relative positions."""

    def __init__(
        self, channels: int, config: LaVieConfig, operations: Any, attention_function: AttentionFunction, **factory: Any
    ) -> None:
        super().__init__(channels, channels, config.num_heads, operations, attention_function, **factory)
        head_dim = channels // config.num_heads
        self.time_rel_pos_bias = RelativePositionBias(
            config.relative_buckets, config.relative_max_distance, config.num_heads, operations, **factory
        )
        self.rotary_emb = RotaryEmbedding(min(config.rotary_dim, head_dim), factory.get("device"))

    def forward(self, hidden: Tensor, options: dict[str, Any]) -> Tensor:  # type: ignore[override]
        """Attend over T: [B * positions, T, C] to the same."""
        batch, length, channels = hidden.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, length, self.num_heads, channels // self.num_heads).transpose(1, 2)

        query, key = self.rotary_emb(heads(self.to_q(hidden))), self.rotary_emb(heads(self.to_k(hidden)))
        value = heads(self.to_v(hidden))
        bias = self.time_rel_pos_bias(length, hidden.device).to(query.dtype)
        out = self.attention_function(
            query, key, value, self.num_heads, mask=bias, skip_reshape=True, transformer_options=options
        )
        return self.to_out[0](out)


class GEGLU(nn.Module):
    """Gated GELU: one projection, halved into value and gate."""

    def __init__(self, channels: int, inner: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.proj = operations.Linear(channels, inner * 2, **factory)

    def forward(self, hidden: Tensor) -> Tensor:
        value, gate = self.proj(hidden).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU feed-forward, four times as wide inside."""

    def __init__(self, channels: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        inner = channels * 4
        self.net = nn.ModuleList(
            [
                GEGLU(channels, inner, operations, **factory),
                nn.Identity(),
                operations.Linear(inner, channels, **factory),
            ]
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.net[2](self.net[0](hidden))


class TransformerBlock(nn.Module):
    """Self, cross, temporal attention and feed-forward, in this order (the temporal one comes third)."""

    def __init__(
        self, channels: int, config: LaVieConfig, operations: Any, attention_function: AttentionFunction, **factory: Any
    ) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, config.num_heads, operations, attention_function, **factory)
        self.norm1 = operations.LayerNorm(channels, **factory)
        self.attn2 = Attention(
            channels, config.cross_attention_dim, config.num_heads, operations, attention_function, **factory
        )
        self.norm2 = operations.LayerNorm(channels, **factory)
        self.attn_temp = TemporalAttention(channels, config, operations, attention_function, **factory)
        self.norm_temp = operations.LayerNorm(channels, **factory)
        self.ff = FeedForward(channels, operations, **factory)
        self.norm3 = operations.LayerNorm(channels, **factory)

    def forward(
        self, hidden: Tensor, context: Tensor, clip: ClipContext, place: BlockPlace, height: int, width: int
    ) -> Tensor:
        """[B * T, H * W, C] to the same; ``context`` is [B, S, C']."""
        normed = self.norm1(hidden)
        hidden = hidden + self.attn1(normed, normed, 1, clip.options_at("self", place, height, width))
        options = clip.options_at("cross", place, height, width, context.shape[1])
        hidden = hidden + self.attn2(self.norm2(hidden), context, clip.frames, options)

        cells, channels = hidden.shape[1:]
        over_time = self.norm_temp(hidden).view(clip.batch, clip.frames, cells, channels).transpose(1, 2)
        over_time = over_time.reshape(clip.batch * cells, clip.frames, channels)
        moved = self.attn_temp(over_time, clip.options_at("temporal", place, height, width))
        moved = moved.view(clip.batch, cells, clip.frames, channels).transpose(1, 2)
        hidden = hidden + moved.reshape(hidden.shape)
        return hidden + self.ff(self.norm3(hidden))


class VideoTransformer(nn.Module):
    """Norm per frame, 1 x 1 convolution in, one transformer block, 1 x 1 convolution out, residual."""

    def __init__(
        self,
        channels: int,
        place: BlockPlace,
        config: LaVieConfig,
        operations: Any,
        attention_function: AttentionFunction,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.place = place
        self.norm = operations.GroupNorm(config.norm_num_groups, channels, eps=1e-6, **factory)
        self.proj_in = operations.Conv2d(channels, channels, kernel_size=1, **factory)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, config, operations, attention_function, **factory)]
        )
        self.proj_out = operations.Conv2d(channels, channels, kernel_size=1, **factory)

    def forward(self, hidden: Tensor, context: Tensor, clip: ClipContext) -> Tensor:
        """[B * T, C, H, W] to the same."""
        height, width = hidden.shape[-2:]
        tokens = self.proj_in(self.norm(hidden)).flatten(2).transpose(1, 2).contiguous()
        tokens = self.transformer_blocks[0](tokens, context, clip, self.place, height, width)
        return hidden + self.proj_out(tokens.transpose(1, 2).reshape(hidden.shape))
