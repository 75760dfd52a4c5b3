"""Where an attention call stands in a video model: all that a patch may know about its surroundings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

from .latent_time import LatentTime

AttentionKind = Literal["self", "cross", "temporal", "joint"]
FoldedAxis = Literal["none", "frames", "positions"]
# Batch rows that a patch may change: those of the positive prompt alone, or those of the negative one too.
GuidedRows = Literal["conditional", "both"]
# Frames that self-attention looks at; see ``frame_keys``.
KeySource = Literal["self", "first", "first_prev", "first_self", "first_prev_self"]

CONDITIONAL = 0
UNCONDITIONAL = 1

# The key in ``transformer_options`` under which a backbone leaves the site, or a ``SiteFinder``, for the override.
SITE_KEY = "attention_site"


class Span(NamedTuple):
    """Neighbouring tokens of a sequence, from ``start`` to before ``stop``."""

    start: int
    stop: int

    def within(self, length: int) -> range:
        """Those of them that a sequence of ``length`` tokens has."""
        return range(min(self.start, length), min(self.stop, length))


@dataclass(frozen=True)
class BatchRows:
    """How the batch axis of q, k and v is made, outermost first: chunk, sample, folded axis.

    Two chunks of two samples, each of three frames that are folded into the batch (``folded_size`` is 3)::

        row      0  1  2 | 3  4  5 | 6  7  8 | 9 10 11
        frame    0  1  2 | 0  1  2 | 0  1  2 | 0  1  2
        sample      0    |    1    |    0    |    1
        chunk      conditional     |   unconditional

    Attributes:
        chunks: one entry per chunk, ``CONDITIONAL`` or ``UNCONDITIONAL`` (ComfyUI's ``cond_or_uncond``).
        samples: videos per chunk.
        folded: which axis of the video is folded into the batch: ``none`` (all tokens of the clip are in the
            sequence), ``frames`` (one row per frame) or ``positions`` (one row per spatial cell, row-major).
        folded_size: how many rows the folded axis makes (1 for ``none``).
        prompts: one name per chunk of the prompt that it is conditioned on, so that words are steered only where they
            stand; empty when unknown. See ``TextSpans.prompts``.
    """

    chunks: tuple[int, ...] = (CONDITIONAL,)
    samples: int = 1
    folded: FoldedAxis = "none"
    folded_size: int = 1
    prompts: tuple[str, ...] = ()

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
        video: the part of the query sequence that holds video tokens.
        text: the part of the key sequence that holds text tokens; None in cross-attention means all of it, and
            elsewhere that there are none.
        rows: how the batch axis is made.
        progress: 0 at the first step (pure noise) to 1 at the end: ``1 - timestep / (train_timesteps - 1)``.
        sigma: noise level, in the model's own units.
        extent: (rows, columns) of the grid that the picture fills, as (7.5, 13) of (8, 13) cells where the size of the
            latents is not a multiple of the patch and the model pads; None when it fills all.
        latent_time: how many frames of the video each latent frame covers; None when unknown: then the numbers of masks
            and frames decide. Where a token covers several latent frames, ``frames`` names the first of them.
        query_frames: index in the whole clip of the frames whose video tokens are queries, where a patch lets some
            frames meet others; ``grid`` and ``frames`` then count those of the keys. None where they are the same.
        key_video: the part of the key sequence that holds video tokens; None where it is ``video``.
        text_part: where a patch lets frames meet a part of the text only: the number of its first token in the whole
            text, and how many tokens the whole text has; ``text`` then is that part. None where the text is whole.
        key_frames: where frames are folded into the batch and meet other frames than themselves: for each of the T
            frames those whose tokens are its video keys, one after another, as indices in the whole clip. All are
            among ``frames``, every row names equally many, and one that is named twice stands there twice. None where
            each frame meets itself.
    """

    kind: AttentionKind
    block: str
    index: int
    total: int
    level: int
    grid: tuple[int, int, int]
    frames: tuple[int, ...]
    clip_frames: int
    video: Span
    text: Span | None
    rows: BatchRows
    progress: float
    sigma: float
    extent: tuple[float, float] | None = None
    latent_time: LatentTime | None = None
    query_frames: tuple[int, ...] | None = None
    key_video: Span | None = None
    text_part: tuple[int, int] | None = None
    key_frames: tuple[tuple[int, ...], ...] | None = None

    @cached_property
    def layout(self) -> AttentionSite:
        """This site without its place in the model and in the schedule: what the tables of a call may depend on.

        Sites of equal layout are equal and have the same hash, so that tables are kept by it.
        """
        return replace(self, block="", index=0, total=0, progress=0.0, sigma=0.0)

    def video_queries(self, length: int) -> range:
        """Where the video stands in a query sequence of ``length`` tokens."""
        return self.video.within(length)

    def video_keys(self, length: int) -> range:
        """Where the video stands in a key sequence of ``length`` tokens; nowhere in cross-attention."""
        if self.kind == "cross":
            return range(0)
        return (self.key_video or self.video).within(length)

    def text_keys(self, length: int) -> range:
        """Where the text stands in a key sequence of ``length`` tokens."""
        if self.kind not in ("cross", "joint"):
            return range(0)
        return range(length) if self.text is None else self.text.within(length)


def chunk_site(site: AttentionSite, chunk: int) -> AttentionSite:
    """Describe the rows of one chunk of a call."""
    rows = site.rows
    return replace(
        site, rows=replace(rows, chunks=(rows.chunks[chunk],), prompts=rows.prompts[chunk : chunk + 1] or rows.prompts)
    )


class CallSize(NamedTuple):
    """Lengths of the query and the key sequence of an attention call, and channels of all heads of a query together."""

    queries: int
    keys: int
    width: int


# Called with the size of each attention call and its ``transformer_options``, in the order in which a model makes them;
# returns where that call stands, or None where nothing is known of it and it is left alone.
SiteFinder: TypeAlias = Callable[[CallSize, Mapping[str, Any]], AttentionSite | None]
