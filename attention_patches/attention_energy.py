"""How much of the attention to an object's words lies inside its mask, measured at each call, and its energy.

The share of one head, frame and object is the attention mass of the object's words at video tokens inside the mask,
divided by that at all video tokens of the frame. The energy of a clip is the mean of ``(1 - share)^2`` over calls,
heads, frames and objects: 0 where the words are seen from inside their masks only.

Source: layout guidance by cross-attention (Chen et al., arXiv 2304.03373), on videos LVD (arXiv 2309.17444). There the
best part of the mass counts; here all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor

from .checks import check_film, checked_masks
from .errors import GuideError
from .guidance.regions import FOREGROUND, MaskPyramid
from .guidance.text_spans import TextSpans
from .patch import Attend, AttentionPatch, Run, Scope
from .site import CONDITIONAL, AttentionSite

# How tokens of a call, [rows, heads, tokens, objects], lie in a video.
_VIDEO = {
    "none": "b h (t n) r -> b h r t n",
    "frames": "(b t) h n r -> b h r t n",
    "positions": "(b n) h t r -> b h r t n",
}


class ShareRecord:
    """What was measured while an ``AttentionShare`` was recording.

    Attributes:
        shares: of each call, [B, heads, N] in 0..1; N counts the frames and objects that are there.
        maps: of each call the attention mass of the words, [B, R, T, h, w], mean over heads; where asked for.
    """

    def __init__(self, keeps_maps: bool = False) -> None:
        self.keeps_maps = keeps_maps
        self.shares: list[Tensor] = []
        self.maps: list[Tensor] = []

    def energy(self) -> Tensor:
        """Mean of (1 - share)^2 of each clip, [B]; differentiable.

        Raises:
            GuideError: nothing was measured.
        """
        self._check()
        return torch.stack([(1.0 - share).square().mean(dim=(1, 2)) for share in self.shares]).mean(dim=0)

    def share(self) -> Tensor:
        """Mean share of each clip, [B].

        Raises:
            GuideError: nothing was measured.
        """
        self._check()
        return torch.stack([share.detach().mean(dim=(1, 2)) for share in self.shares]).mean(dim=0)

    def word_map(self, height: int, width: int) -> Tensor:
        """Where the words are seen, [B, R, T, height, width] in 0..1: calls count alike, 1 is each frame's highest.

        Raises:
            GuideError: nothing was measured, or maps were not asked for.
        """
        self._check()
        if not self.maps:
            raise GuideError("no maps were kept; record with maps.")
        sizes = [tuple(found.shape[2:3]) for found in self.maps]
        chosen = [found for found, size in zip(self.maps, sizes, strict=True) if size == sizes[0]]
        total = torch.stack([_resized(_to_highest(found), height, width) for found in chosen]).mean(dim=0)
        return _to_highest(total - total.amin(dim=(3, 4), keepdim=True))

    def _check(self) -> None:
        if not self.shares:
            raise GuideError(
                "no attention call looks at the objects' words, so their share cannot be measured; give phrases that "
                "are in the prompt, masks that hold an object, and blocks that the model has."
            )


class AttentionShare(AttentionPatch):
    """Measures the share of the words' attention inside the masks; calls go on unchanged.

    Only conditional rows are measured, cross-attention and joint calls. Where video and text share one sequence, mass
    is counted among the text keys alone. Patches that stand before it are not seen in the measure, those behind it are
    not either: bias that came with the call counts, and nothing else. Put it first to measure the model itself.

    Args:
        masks: [R, F, H, W] in 0..1, one track per object.
        spans: positions of each object's words.
        blocks: whose calls are measured, as ``Scope.blocks``.

    Raises:
        GuideError: numbers of masks and phrases differ, no phrase has a position, or unknown blocks.
    """

    def __init__(self, masks: Tensor, spans: TextSpans, blocks: str = "all") -> None:
        super().__init__()
        self.masks = checked_masks(masks)
        if len(spans.positions) != len(self.masks):
            raise GuideError(
                f"there are {len(spans.positions)} phrases and {len(self.masks)} masks; give one phrase per mask."
            )
        if not any(spans.positions):
            raise GuideError("no object has words in the prompt, so attention to them cannot be measured; name them.")
        self.spans = spans
        named = [bool(places) for places in spans.positions]
        #: Whether there is anything to measure: an object that has words and is somewhere.
        self.has_objects = bool((self.masks[named] >= FOREGROUND).any())
        self._scope = Scope(blocks=blocks, rows="conditional")
        self._pyramid = MaskPyramid(self.masks)
        self._record: ShareRecord | None = None

    @contextmanager
    def recording(self, maps: bool = False) -> Iterator[ShareRecord]:
        """Measure all calls inside of the block; outside of it the patch acts at no call."""
        self._record = record = ShareRecord(maps)
        try:
            yield record
        finally:
            self._record = None

    def release(self) -> None:
        """Drop the pooled masks."""
        super().release()
        self._pyramid = MaskPyramid(self.masks)

    def check_run(self, run: Run) -> None:
        """Compare the masks with the clip.

        Raises:
            GuideError: they do not fit in length or in shape.
        """
        check_film(self.masks, run.clip_frames, run.height, run.width, run.latent_time)

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether a call is measured now."""
        if self._record is None or site.kind not in ("cross", "joint") or site.query_frames is not None:
            return False
        return self._scope.includes(site) and bool(self._chunks(site))

    def _chunks(self, site: AttentionSite) -> list[int]:
        rows = site.rows
        conditional = [at for at, chunk in enumerate(rows.chunks) if chunk == CONDITIONAL]
        return [at for at in conditional if self.spans.holds_for(rows.prompts, at)]

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Measure and go on; tensors [B, heads, L, d]."""
        if self._record is not None and self.acts_at(site):
            for chunk in self._chunks(site):
                self._measure(self._record, attend.bias, q, k, site, chunk)
        return attend(q, k, v, site)

    def _measure(
        self, record: ShareRecord, bias: Tensor | None, q: Tensor, k: Tensor, site: AttentionSite, chunk: int
    ) -> None:
        text, video = site.text_keys(k.shape[2]), site.video_queries(q.shape[2])
        positions = self.spans.in_part(len(text), site.text_part).positions
        size = site.rows.samples * site.rows.folded_size
        rows = slice(chunk * size, (chunk + 1) * size)
        if bias is not None:
            bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])[rows]
            bias = bias[:, :, video.start : video.stop, text.start : text.stop]
        mass = word_mass(q[rows, :, video.start : video.stop], k[rows, :, text.start : text.stop], positions, bias)
        found = rearrange(mass, _VIDEO[site.rows.folded], b=site.rows.samples, t=site.grid[0])
        if record.keeps_maps:
            height, width = site.grid[1:]
            record.maps.append(found.detach().mean(dim=1).unflatten(-1, (height, width)))
        regions = self._pyramid.regions(
            *site.grid[1:], site.clip_frames, site.extent, site.latent_time, site.level
        ).take(site.frames)
        there = regions.present & torch.tensor([bool(places) for places in positions])[:, None]
        if not bool(there.any()):
            return
        inside = regions.objects.flatten(2).to(found)
        record.shares.append(mass_share(found, inside)[:, :, there.to(found.device)])


def word_mass(q: Tensor, k: Tensor, positions: Sequence[Sequence[int]], bias: Tensor | None = None) -> Tensor:
    """Attention that each query gives to the words of each object.

    Args:
        q: [B, heads, Lq, d].
        k: [B, heads, Lk, d], text keys.
        positions: of each object's words among the keys.
        bias: added to the logits, broadcastable to [B, heads, Lq, Lk]; True and False as in attention masks.

    Returns:
        float32 [B, heads, Lq, R] in 0..1.
    """
    logits = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else logits + bias
    attention = logits.softmax(dim=-1)
    return torch.stack([attention[..., list(places)].sum(dim=-1) for places in positions], dim=-1)


def mass_share(mass: Tensor, inside: Tensor) -> Tensor:
    """Part of each frame's mass that lies inside of the mask.

    Args:
        mass: [B, heads, R, T, n], at least 0.
        inside: [R, T, n] in 0..1.

    Returns:
        [B, heads, R, T] in 0..1; 0 where there is no mass.
    """
    total = mass.sum(dim=-1).clamp(min=torch.finfo(mass.dtype).tiny)
    return (mass * inside).sum(dim=-1) / total


def _to_highest(maps: Tensor) -> Tensor:
    return maps / maps.amax(dim=(3, 4), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def _resized(maps: Tensor, height: int, width: int) -> Tensor:
    flat = maps.flatten(0, 2)[:, None]
    resized = torch.nn.functional.interpolate(flat, (height, width), mode="bilinear", align_corners=False)
    return resized[:, 0].unflatten(0, maps.shape[:3])
