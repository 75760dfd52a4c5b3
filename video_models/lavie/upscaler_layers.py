"""Transformers and convolutions over time of LaVie's upscaler.

Tensors between layers are [B * T, C, H, W], frames inside the batch; names of submodules are those of ``lavie_vsr.pt``.
Source of the structure: Vchitect/LaVie, vsr/models/attention.py and temporal_module.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import silu

from .blocks import ResNetBlock, joint_group_norm
from .config import UpscalerConfig
from .layers import Attention, AttentionFunction, FeedForward, TemporalAttention, over_time
from .sites import BlockPlace, ClipContext, transformer_places

# What the norms of convolutions over time add to variances; the U-Net's others have 1e-5.
TEMPORAL_EPS = 1e-6


@dataclass(frozen=True)
class TransformerPlaces:
    """Where the three attentions of one transformer stand among those of their kind.

    Attributes:
        first: of the first attention of a frame, which is ``cross`` where ``text_only``, else ``self``.
        text: of the second, which is ``cross``.
        time: of the one over time.
        text_only: whether the first attention looks at the text too.
    """

    first: BlockPlace
    text: BlockPlace
    time: BlockPlace
    text_only: bool

    @classmethod
    def of_model(cls, config: UpscalerConfig) -> list[TransformerPlaces]:
        """Every transformer of a U-Net in the order of its forward pass."""
        transformers = transformer_places(config)
        # The middle block's first attention always looks at the same frame.
        text_only = [place.name != "mid.0" and config.only_cross_attention[place.level] for place in transformers]
        total, text_totals = len(transformers), len(transformers) + sum(text_only)
        places, selves, texts = [], 0, 0
        for place, looks_at_text in zip(transformers, text_only, strict=True):
            if looks_at_text:
                first = BlockPlace(place.name, texts, text_totals, place.level)
            else:
                first = BlockPlace(place.name, selves, 2 * total - text_totals, place.level)
            selves, texts = selves + (not looks_at_text), texts + looks_at_text
            places.append(cls(first, BlockPlace(place.name, texts, text_totals, place.level), place, looks_at_text))
            texts += 1
        return places


class TemporalResNet(nn.Module):
    """Two convolutions over time alone, with norms over the whole clip and, if wanted, the time embedding."""

    def __init__(
        self,
        channels: int,
        kernel: int,
        time_channels: int | None,
        groups: int,
        operations: Any,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels, eps=TEMPORAL_EPS, **factory)
        self.conv1 = operations.Conv3d(
            channels, channels, kernel_size=(kernel, 1, 1), padding=(kernel // 2, 0, 0), **factory
        )
        self.time_emb_proj = None
        if time_channels is not None:
            self.time_emb_proj = operations.Linear(time_channels, channels, **factory)
        self.norm2 = operations.GroupNorm(groups, channels, eps=TEMPORAL_EPS, **factory)
        self.conv2 = operations.Conv3d(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0), **factory)

    def forward(self, hidden: Tensor, time: Tensor | None, frames: int) -> Tensor:
        """[B * T, C, H, W] and, with a time embedding, [B, time_channels] to [B * T, C, H, W]."""

        def convolve(layer: nn.Module, values: Tensor) -> Tensor:
            clip = values.unflatten(0, (-1, frames)).transpose(1, 2)
            return layer(clip).transpose(1, 2).flatten(0, 1)

        out = convolve(self.conv1, silu(joint_group_norm(self.norm1, hidden, frames)))
        if self.time_emb_proj is not None:
            out = out + self.time_emb_proj(silu(time)).repeat_interleave(frames, dim=0)[:, :, None, None]
        return hidden + convolve(self.conv2, silu(joint_group_norm(self.norm2, out, frames)))


class TemporalModule(nn.Module):
    """After every level: convolutions over time, then over space, added to what came in."""

    def __init__(self, channels: int, time_channels: int, groups: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.resblocks_3d_t = TemporalResNet(channels, 5, time_channels, groups, operations, **factory)
        self.resblocks_3d_s = ResNetBlock(
            channels, channels, time_channels, groups, operations, eps=TEMPORAL_EPS, **factory
        )
        self.shift_conv = operations.Conv2d(channels, channels, kernel_size=1, **factory)

    def forward(self, hidden: Tensor, time: Tensor, frames: int) -> Tensor:
        """[B * T, C, H, W] and [B, time_channels] to [B * T, C, H, W]."""
        shift = self.resblocks_3d_s(self.resblocks_3d_t(hidden, time, frames), time, frames)
        return hidden + self.shift_conv(shift)


class UpscalerBlock(nn.Module):
    """Two attentions of a frame, one over time, feed-forward."""

    def __init__(
        self,
        channels: int,
        places: TransformerPlaces,
        config: UpscalerConfig,
        operations: Any,
        attention_function: AttentionFunction,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.places = places
        text, heads = config.cross_attention_dim, config.num_heads
        source = text if places.text_only else channels
        self.attn1 = Attention(channels, source, heads, operations, attention_function, **factory)
        self.norm1 = operations.LayerNorm(channels, **factory)
        self.attn2 = Attention(channels, text, heads, operations, attention_function, **factory)
        self.norm2 = operations.LayerNorm(channels, **factory)
        self.attn_temporal = TemporalAttention(channels, config, operations, attention_function, **factory)
        self.norm_temporal = operations.LayerNorm(channels, **factory)
        self.ff = FeedForward(channels, operations, **factory)
        self.norm3 = operations.LayerNorm(channels, **factory)

    def forward(self, hidden: Tensor, context: Tensor, clip: ClipContext, height: int, width: int) -> Tensor:
        """[B * T, H * W, C] to the same; ``context`` is [B, S, C']."""
        places, words = self.places, context.shape[1]
        normed = self.norm1(hidden)
        if places.text_only:
            options = clip.options_at("cross", places.first, height, width, words)
            hidden = hidden + self.attn1(normed, context, clip.frames, options)
        else:
            options = clip.options_at("self", places.first, height, width)
            hidden = hidden + self.attn1(normed, normed, 1, options)
        options = clip.options_at("cross", places.text, height, width, words)
        hidden = hidden + self.attn2(self.norm2(hidden), context, clip.frames, options)
        options = clip.options_at("temporal", places.time, height, width)
        hidden = hidden + over_time(self.attn_temporal, self.norm_temporal(hidden), clip, options)
        return hidden + self.ff(self.norm3(hidden))


class UpscalerTransformer(nn.Module):
    """A convolution over time, then norm per frame, linear in, one transformer block, linear out, residual."""

    def __init__(
        self,
        channels: int,
        places: TransformerPlaces,
        config: UpscalerConfig,
        operations: Any,
        attention_function: AttentionFunction,
        **factory: Any,
    ) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.resblock_temporal = TemporalResNet(channels, 3, None, groups, operations, **factory)
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6, **factory)
        self.proj_in = operations.Linear(channels, channels, **factory)
        self.transformer_blocks = nn.ModuleList(
            [UpscalerBlock(channels, places, config, operations, attention_function, **factory)]
        )
        self.proj_out = operations.Linear(channels, channels, **factory)

    def forward(self, hidden: Tensor, context: Tensor, clip: ClipContext) -> Tensor:
        """[B * T, C, H, W] to the same."""
        height, width = hidden.shape[-2:]
        hidden = self.resblock_temporal(hidden, None, clip.frames)
        tokens = self.proj_in(self.norm(hidden).flatten(2).transpose(1, 2))
        tokens = self.transformer_blocks[0](tokens, context, clip, height, width)
        return hidden + self.proj_out(tokens).transpose(1, 2).reshape(hidden.shape)
