"""Attention layers of the LaVie U-Nets: self, cross and temporal, in LaVie's order.

Tensors between layers are [B * T, C, H, W], frames inside the batch; names of submodules are those of
``lavie_base.pt`` and ``lavie_interpolation.pt``. Source of the structure: Vchitect/LaVie, base/models/attention.py and
interpolation/models/attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...attention_patches.frame_keys import KeyPlaces, KeySource, key_places
from ...attention_patches.kernels.torch_attention import OVERRIDE_KEY
from .config import LaVieConfig
from .sites import BlockPlace, ClipContext

AttentionFunction = Callable[..., Tensor]

# Temporal attention works on as many spatial cells at a time as fit into this many bytes: at 128 frames those of all
# cells would take several gigabytes.
TEMPORAL_BYTES = 2**28


class TemporalSizes(Protocol):
    """What temporal attention reads of a model's config."""

    num_heads: int
    rotary_dim: int
    relative_buckets: int
    relative_max_distance: int


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


class SelfAttention(Attention):
    """Self-attention in which frames look at themselves or, where places are given, at the first or the one before."""

    def forward(self, hidden: Tensor, places: KeyPlaces | None, options: dict[str, Any]) -> Tensor:  # type: ignore[override]
        """[B * T, L, C] to the same; ``places`` are of ``key_places``, or None where each frame looks at itself."""
        if places is None:
            return super().forward(hidden, hidden, 1, options)

        def chosen(projected: Tensor) -> Tensor:
            clips = projected.unflatten(0, (-1, len(places)))
            columns = [clips[:, list(column)] for column in zip(*places, strict=True)]
            return torch.cat(columns, dim=2).flatten(0, 1)

        key, value = chosen(self.to_k(hidden)), chosen(self.to_v(hidden))
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
    """Attention of one spatial cell over time, with rotary and relative positions or, as in the interpolation model,
    without any."""

    def __init__(
        self,
        channels: int,
        config: TemporalSizes,
        operations: Any,
        attention_function: AttentionFunction,
        positions: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__(channels, channels, config.num_heads, operations, attention_function, **factory)
        self.time_rel_pos_bias, self.rotary_emb = None, None
        if positions:
            self.time_rel_pos_bias = RelativePositionBias(
                config.relative_buckets, config.relative_max_distance, config.num_heads, operations, **factory
            )
            head_dim = channels // config.num_heads
            self.rotary_emb = RotaryEmbedding(min(config.rotary_dim, head_dim), factory.get("device"))

    def forward(self, hidden: Tensor, options: dict[str, Any]) -> Tensor:  # type: ignore[override]
        """Attend over T: [B * cells, T, C] to the same.

        Cells are taken in turns within ``TEMPORAL_BYTES``. Where the attention function is overridden, which may need
        all of them in one call, this holds for queries, keys and values only.
        """
        bias = None
        if self.time_rel_pos_bias is not None:
            bias = self.time_rel_pos_bias(hidden.shape[1], hidden.device).to(hidden.dtype)
        cells, size = hidden.shape[0], self._cells_at_a_time(hidden)
        if size >= cells:
            return self._attend(*self._project(hidden), bias, options)
        turns = [slice(begin, begin + size) for begin in range(0, cells, size)]
        if options.get(OVERRIDE_KEY) is None:
            out = torch.empty_like(hidden)
            for turn in turns:
                out[turn] = self._attend(*self._project(hidden[turn]), bias, options)
            return out
        return self._attend(*self._project_in_turns(hidden, turns), bias, options)

    def _cells_at_a_time(self, hidden: Tensor) -> int:
        """How many cells fit: queries, keys, values, result, rotary in float32, logits of attention that keeps them."""
        length, channels = hidden.shape[1:]
        size = hidden.element_size()
        return max(1, TEMPORAL_BYTES // (length * channels * (6 * size + 8) + self.num_heads * length**2 * size))

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of some cells, each [cells, heads, T, d]."""
        query, key, value = (
            projection(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        if self.rotary_emb is not None:
            query, key = self.rotary_emb(query), self.rotary_emb(key)
        return query, key, value

    def _project_in_turns(self, hidden: Tensor, turns: list[slice]) -> list[Tensor]:
        """Queries, keys and values of all cells, with the room that some of them take beside them."""
        tensors: list[Tensor] = []
        for turn in turns:
            parts = self._project(hidden[turn])
            # Memory is laid out as without turns, so that what follows sums in the same order.
            tensors = tensors or [_room_like(part, hidden.shape[0]) for part in parts]
            for tensor, part in zip(tensors, parts, strict=True):
                tensor[turn] = part
        return tensors

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        out = self.attention_function(
            query, key, value, self.num_heads, mask=bias, skip_reshape=True, transformer_options=options
        )
        return self.to_out[0](out)


def _room_like(part: Tensor, rows: int) -> Tensor:
    """Memory for ``rows`` rows [heads, T, d], laid out as those of ``part``."""
    _, heads, length, dim = part.shape
    if part.is_contiguous():
        return part.new_empty(rows, heads, length, dim)
    return part.new_empty(rows, length, heads, dim).transpose(1, 2)


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
    """Self, cross and temporal attention and feed-forward, in this order; in the interpolation model time comes last.

    In Stable Diffusion's U-Net (``picture_model``) time comes last too, and its attention and norm are None until a
    motion file brings them. ``key_source`` says which frames self-attention looks at; motion files may change it.
    """

    def __init__(
        self, channels: int, config: LaVieConfig, operations: Any, attention_function: AttentionFunction, **factory: Any
    ) -> None:
        super().__init__()
        heads = config.num_heads
        interpolates = config.stage == "interpolation"
        self.time_is_last = interpolates or config.picture_model
        self.key_source: KeySource = "first_prev" if interpolates else "first" if config.picture_model else "self"
        self.attn1 = SelfAttention(channels, channels, heads, operations, attention_function, **factory)
        self.norm1 = operations.LayerNorm(channels, **factory)
        self.attn2 = Attention(channels, config.cross_attention_dim, heads, operations, attention_function, **factory)
        self.norm2 = operations.LayerNorm(channels, **factory)
        self.attn_temp, self.norm_temp = None, None
        if not config.picture_model:
            self.attn_temp = TemporalAttention(
                channels, config, operations, attention_function, positions=not self.time_is_last, **factory
            )
            self.norm_temp = operations.LayerNorm(channels, **factory)
        self.ff = FeedForward(channels, operations, **factory)
        self.norm3 = operations.LayerNorm(channels, **factory)

    def forward(
        self, hidden: Tensor, context: Tensor, clip: ClipContext, place: BlockPlace, height: int, width: int
    ) -> Tensor:
        """[B * T, H * W, C] to the same; ``context`` is [B, S, C']."""
        normed = self.norm1(hidden)
        places = None if self.key_source == "self" else key_places(self.key_source, clip.frame_indices)
        hidden = hidden + self.attn1(normed, places, clip.options_at("self", place, height, width, places=places))
        options = clip.options_at("cross", place, height, width, context.shape[1])
        hidden = hidden + self.attn2(self.norm2(hidden), context, clip.frames, options)
        if self.attn_temp is None:
            return hidden + self.ff(self.norm3(hidden))
        options = clip.options_at("temporal", place, height, width)
        if self.time_is_last:
            hidden = hidden + self.ff(self.norm3(hidden))
            return hidden + over_time(self.attn_temp, self.norm_temp(hidden), clip, options)
        hidden = hidden + over_time(self.attn_temp, self.norm_temp(hidden), clip, options)
        return hidden + self.ff(self.norm3(hidden))


def over_time(attention: TemporalAttention, normed: Tensor, clip: ClipContext, options: dict[str, Any]) -> Tensor:
    """Temporal attention of tokens [B * T, H * W, C] to the same."""
    cells = normed.unflatten(0, (clip.batch, clip.frames)).transpose(1, 2)
    moved = attention(cells.flatten(0, 1), options).unflatten(0, (clip.batch, -1))
    return moved.transpose(1, 2).flatten(0, 1)


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
