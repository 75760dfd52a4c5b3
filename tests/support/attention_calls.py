"""Attention calls as video models make them: where they stand, random tensors for them, and the stack around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.patch import Patch
from mask_guided_video.attention_patches.site import (
    CONDITIONAL,
    SITE_KEY,
    UNCONDITIONAL,
    AttentionSite,
    BatchRows,
    Span,
)
from mask_guided_video.attention_patches.stack import PatchStack


def make_site(
    kind: str,
    folded: str,
    grid: tuple[int, int, int],
    *,
    before: int = 0,
    text_tokens: int = 0,
    text_first: bool = False,
    chunks: tuple[int, ...] = (CONDITIONAL, UNCONDITIONAL),
    samples: int = 1,
    **changes: Any,
) -> AttentionSite:
    """A call whose rows hold whole clips, frames or cells, by ``folded``.

    Args:
        kind: ``self``, ``cross``, ``temporal`` or ``joint``.
        folded: which axis is in the batch.
        grid: (T, H, W) tokens.
        before: tokens of no frame that stand in front.
        text_tokens: words; the keys of ``cross``, and behind the video in ``joint``, or before it with ``text_first``.
        chunks: one entry per chunk of the batch.
        samples: videos per chunk.
        **changes: other values of the site.
    """
    frames, height, width = grid
    size = {"none": 1, "frames": frames, "positions": height * width}[folded]
    start = before + (text_tokens if text_first else 0)
    video = Span(start, start + frames * height * width // size)
    behind = Span(0, text_tokens) if text_first else Span(video.stop, video.stop + text_tokens)
    site = AttentionSite(
        kind=kind,
        block="down.1.0",
        index=0,
        total=2,
        level=1,
        grid=grid,
        frames=tuple(range(frames)),
        clip_frames=frames,
        video=video,
        text={"cross": Span(0, text_tokens), "joint": behind}.get(kind),
        rows=BatchRows(chunks, samples, folded, size),
        progress=0.1,
        sigma=5.0,
    )
    return replace(site, **changes)


def film_kind(folded: str, after: int = 0) -> str:
    """What attention within the film is called: joint with ``after`` words, over time where cells are in the batch."""
    return "joint" if after else "temporal" if folded == "positions" else "self"


def lengths_of(site: AttentionSite) -> tuple[int, int]:
    """How many queries and how many keys a call has."""
    queries = max(site.video.stop, site.text.stop) if site.kind == "joint" else site.video.stop
    return queries, site.text.stop - site.text.start if site.kind == "cross" else queries


def make_tensors(
    site: AttentionSite,
    channels: int,
    queries: int = 0,
    keys: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """Random q [B, queries, C], k and v [B, keys, C]; as many as the call has where no number is given."""
    queries = queries or lengths_of(site)[0]
    keys = keys or (lengths_of(site)[1] if site.kind == "cross" else queries)
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(site.rows.total, length, channels, generator=generator).to(dtype)
        for length in (queries, keys, keys)
    ]


def joined(length: int, seed: int = 0) -> Tensor:
    """Random tokens [2, length, 24], heads side by side."""
    return torch.randn(2, length, 24, generator=torch.Generator().manual_seed(seed))


def split(tensor: Tensor, heads: int) -> Tensor:
    """[B, L, C] with heads side by side as [B, heads, L, C / heads]."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def soft_masks(objects: int, grid: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Masks [N, T, H, W] with clear inside and outside, objects overlapping here and there; pixels are tokens."""
    noise = torch.rand(objects, *grid, generator=torch.Generator().manual_seed(seed))
    masks = torch.where(noise > 0.6, noise, 0.2 * noise)
    masks[:, :, 0, 0] = 0.9
    return masks


def run(
    patches: Sequence[Patch], site: AttentionSite, qkv: Sequence[Tensor], mask: Tensor | None = None, heads: int = 2
) -> Tensor:
    """[B, L, C] attention with patches in one stack."""
    options = {"optimized_attention_override": PatchStack([*patches]).override, SITE_KEY: site}
    return attention(*qkv, heads, mask, transformer_options=options)


def run_chained(
    patches: Sequence[Patch], site: AttentionSite, qkv: Sequence[Tensor], mask: Tensor | None = None, heads: int = 2
) -> Tensor:
    """As ``run``, with a stack for each patch, the first one outermost, as nodes in a row make them."""
    override = None
    for patch in reversed(patches):
        override = PatchStack([patch]).chain(override).override
    options = {"optimized_attention_override": override, SITE_KEY: site}
    return attention(*qkv, heads, mask, transformer_options=options)
