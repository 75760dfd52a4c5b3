"""Where the joint attention calls of the transformer stand: text tokens first, then those of the video."""

from __future__ import annotations

from typing import Any

from ...attention_patches.site import SITE_KEY, AttentionSite, BatchRows, Span
from ..lavie.sites import ClipContext


def joint_options(
    clip: ClipContext, block_names: list[str], index: int, grid: tuple[int, int, int], text_length: int
) -> dict[str, Any]:
    """The caller's options with the site of one block's attention call in them.

    Args:
        clip: what the caller told of the clip.
        block_names: of all blocks.
        index: of this block.
        grid: (T, H, W) of the video tokens.
        text_length: tokens of the text.
    """
    frames, height, width = grid
    site = AttentionSite(
        kind="joint",
        block=block_names[index],
        index=index,
        total=len(block_names),
        level=0,
        grid=grid,
        frames=clip.frame_indices,
        clip_frames=clip.clip_frames,
        video=Span(text_length, text_length + frames * height * width),
        text=Span(0, text_length),
        rows=BatchRows(clip.chunks, clip.batch // len(clip.chunks)),
        progress=clip.progress,
        sigma=clip.sigma,
    )
    return {**clip.transformer_options, SITE_KEY: site}
