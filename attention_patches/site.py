"""Where an attention call stands in a video model: all that a patch may know about its surroundings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["self", "cross", "temporal", "joint"]
FoldedAxis = Literal["none", "frames", "positions"]

CONDITIONAL = 0
UNCONDITIONAL = 1

# The key in ``transformer_options`` under which a backbone leaves the site for the stack's override.
SITE_KEY = "attention_site"


@dataclass(frozen=True)
class BatchRows:
    """How the batch axis of q, k and v is made, outermost first: chunk, sample, folded axis.

    Attributes:
        chunks: one entry per chunk, ``CONDITIONAL`` or ``UNCONDITIONAL`` (ComfyUI's ``cond_or_uncond``).
        samples: videos per chunk.
        folded: which axis of the video is folded into the batch: ``none`` (all tokens of the clip are in the
            sequence), ``frames`` (one row per frame) or ``positions`` (one row per spatial cell, row-major).
        folded_size: how many rows the folded axis makes (1 for ``none``).
    """

    chunks: tuple[int, ...] = (CONDITIONAL,)
    samples: int = 1
    folded: FoldedAxis = "none"
    folded_size: int = 1

    @property
    def total(self) -> int:
        """Size of the batch axis."""
        return len(self.chunks) * self.samples * self.folded_size


@dataclass(frozen=True)
class AttentionSite:
    """One attention call.

    Attributes:
        kind: what meets what: ``self`` (video tokens with video tokens, of one frame or of the clip), ``cross``
            (video queries, text keys), ``temporal`` (one cell over time), ``joint`` (video and text in one sequence).
        block: name of the block, ``down.1.0``, ``mid.0``, ``double.7``.
        index: running index among the sites of this kind, from 0.
        total: how many sites of this kind the model has.
        level: 0 at the finest grid of the model, 1 at the next coarser one, and so on.
        grid: (T, H, W) of the video tokens that take part in this call (T counts all frames of the call, also when
            they are folded into the batch).
        frames: index of each of the T frames in the whole clip (context windows give a part of it).
        clip_frames: how many frames the whole clip has, in the same (latent) frames.
        video: slice of the query sequence that holds video tokens.
        text: slice of the key sequence that holds text tokens, or None where there are none.
        rows: how the batch axis is made.
        progress: 0 at the first step (pure noise) to 1 at the end: ``1 - timestep / (train_timesteps - 1)``.
        sigma: noise level, in the model's own units.
    """

    kind: AttentionKind
    block: str
    index: int
    total: int
    level: int
    grid: tuple[int, int, int]
    frames: tuple[int, ...]
    clip_frames: int
    video: slice
    text: slice | None
    rows: BatchRows
    progress: float
    sigma: float
