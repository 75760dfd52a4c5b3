"""Where the attention calls of LaVie's U-Nets stand: what each layer knows of the clip and of its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...attention_patches.frame_keys import KeyPlaces, folded_site
from ...attention_patches.site import SITE_KEY, AttentionKind, AttentionSite, BatchRows, Span
from ..sampling.window_frames import CALL_FRAMES_KEY, window_frames
from .config import LaVieConfig, UpscalerConfig


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

    @classmethod
    def of(
        cls, latents: Tensor, timesteps: Tensor, options: dict[str, Any] | None, train_timesteps: int
    ) -> ClipContext:
        """Read the caller's options for latents [B, C, T, H, W].

        Args:
            latents: of the call.
            timesteps: [B], 0 .. train_timesteps - 1.
            options: ComfyUI's ``transformer_options``; read here: ``cond_or_uncond``, ``sigmas``, ``context_window``,
                ``call_frames`` and ``clip_frames`` (which frames these are, and of how many, when the call sees a
                window of the clip).
            train_timesteps: length of the noise schedule.
        """
        options = options or {}
        frames = latents.shape[2]
        window = options.get("context_window")
        indices = options.get(CALL_FRAMES_KEY) or window_frames(options, frames)
        sigmas = options.get("sigmas")
        return cls(
            batch=latents.shape[0],
            frames=frames,
            frame_indices=indices,
            clip_frames=options.get("clip_frames")
            or getattr(window, "total_frames", None)
            or max(frames, max(indices) + 1),
            chunks=tuple(options.get("cond_or_uncond", (0,))),
            progress=1.0 - float(timesteps.flatten()[0]) / (train_timesteps - 1),
            sigma=float(sigmas.flatten()[0]) if sigmas is not None else float("nan"),
            transformer_options=options,
        )

    def options_at(
        self,
        kind: AttentionKind,
        place: BlockPlace,
        height: int,
        width: int,
        text_length: int = 0,
        places: KeyPlaces | None = None,
    ) -> dict[str, Any]:
        """The caller's options with the site of one attention call in them.

        Args:
            kind: of the call.
            place: of its transformer.
            height, width: of the grid there.
            text_length: tokens of the text, for cross-attention.
            places: of ``key_places`` where frames look at other frames than themselves.
        """
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
            video=Span(0, queries),
            text=Span(0, text_length) if kind == "cross" else None,
            rows=rows,
            progress=self.progress,
            sigma=self.sigma,
        )
        if places is not None:
            site = folded_site(site, places, queries)
        return {**self.transformer_options, SITE_KEY: site}


@dataclass(frozen=True)
class BlockPlace:
    """Name, running index and level of a transformer in the U-Net."""

    name: str
    index: int
    total: int
    level: int


def transformer_places(config: LaVieConfig | UpscalerConfig) -> list[BlockPlace]:
    """Every transformer of a U-Net in the order of its forward pass."""
    last = len(config.block_out_channels) - 1
    names: list[tuple[str, int]] = []
    for level in range(last + 1):
        if config.attention_levels[level]:
            names += [(f"down.{level}.{layer}", level) for layer in range(config.layers_per_block)]
    names.append(("mid.0", last))
    for number, level in enumerate(reversed(range(last + 1))):
        if config.attention_levels[level]:
            names += [(f"up.{number}.{layer}", level) for layer in range(config.layers_per_block + 1)]
    return [BlockPlace(name, index, len(names), level) for index, (name, level) in enumerate(names)]
