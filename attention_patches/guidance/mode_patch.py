"""A guide in a mode, bound to a prompt's tokens, as an attention patch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ..site import CONDITIONAL, AttentionSite, chunk_site
from ..stack import Attend
from .boxes import box_masks, mask_boxes
from .guide_patch import GuidePatch, chosen_chunks, text_length
from .modes.mode import MaskMode, ModeCall
from .plan import Plan, make_plan
from .regions import MaskPyramid, Regions, latent_frame_groups, pool_time
from .text_spans import TextSpans

if TYPE_CHECKING:
    from .guide import ModeGuide


class MaskModePatch(GuidePatch):
    """The patch of a ``ModeGuide``; see ``mode_patches``.

    Attributes:
        innermost: whether the mode takes the kernel's place at some calls, or joins frames there, so that other patches
            must come before it.
    """

    guide: ModeGuide

    def __init__(self, guide: ModeGuide, text_spans: TextSpans | None = None) -> None:
        super().__init__(guide, text_spans)
        self._is_active = guide.is_active
        self.innermost = type(guide.mode).edit is not MaskMode.edit or guide.mode.space_time
        self._forget()

    def _forget(self) -> None:
        # Masks as they are (False) and filled up to their boxes (True), made when asked for; boxes by length of the clip.
        self._pyramids: dict[bool, MaskPyramid] = {}
        self._clip_boxes: dict[Hashable, Tensor] = {}

    def release(self) -> None:
        """Drop all tables, on devices too."""
        super().release()
        self._forget()

    def phase(self, site: AttentionSite) -> Hashable:
        """What the mode's rule depends on besides the sizes of a call."""
        return self.guide.mode.phase(site)

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether this call is guided at all: kind, schedule, block, rows and words."""
        mode = self.guide.mode
        if not self._is_active or not mode.acts_at(site):
            return False
        if site.kind == "cross":
            return bool(self.worded_chunks(site, chosen_chunks(site, mode.cross_rows)))
        return bool(chosen_chunks(site, mode.rows)) and (site.kind == "joint" or not mode.only_words)

    def worded_chunks(self, site: AttentionSite, chunks: Sequence[int]) -> list[int]:
        """Those of some chunks whose words are steered; unconditional ones by the places of the positive prompt."""
        conditional = [at for at in chunks if site.rows.chunks[at] == CONDITIONAL]
        known = super().worded_chunks(site, conditional)
        if self.text_spans is None or site.kind not in ("cross", "joint") or not self._has_length(site):
            return known
        return sorted({*known, *(at for at in chunks if at not in conditional)})

    def _has_length(self, site: AttentionSite) -> bool:
        """Say whether a text is as long as the positive prompt's, so that places in that are places in it."""
        length = self.text_spans.length
        if not length or site.text is None:
            return True
        whole = site.text.stop - site.text.start if site.text_part is None else site.text_part[1]
        return whole % length == 0

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Guide one attention call; tensors [B, heads, L, d].

        Raises:
            ValueError: the tensors do not have the sizes that the site says, or the masks' frames do not fit the clip.
        """
        if self._joins_frames(attend, site) and self.acts_at(site):
            return self._in_space_and_time(attend, q, k, v, site)
        return super().__call__(attend, q, k, v, site)

    def _joins_frames(self, attend: Attend, site: AttentionSite) -> bool:
        """Say whether queries of a frame shall meet all frames here: not where another patch chose frames for them."""
        if not self.guide.mode.space_time or site.kind != "self" or site.rows.folded != "frames":
            return False
        return site.key_frames is None and attend.bias is None

    def _in_space_and_time(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Run frame-by-frame self-attention over all frames in one sequence, where there is an object."""
        frames, clip = site.grid[0], self._regions(site, boxed=False)
        guided = clip.take(site.frames).guided & (self._frame_strength(site, site.frames) > 0.0)
        if not bool(guided.any()):
            return attend(q, k, v, site)
        chunks = chosen_chunks(site, self.guide.mode.rows)
        left_alone = not bool(guided.all()) or len(chunks) < len(site.rows.chunks)
        out = attend(q, k, v, site).clone() if left_alone else q.new_empty(*q.shape[:3], v.shape[3])
        size = site.rows.samples * frames
        for chunk in chunks:
            rows = slice(chunk * size, (chunk + 1) * size)
            joined = chunk_site(site, chunk)
            tokens = slice(0, frames * q.shape[2])
            joined = replace(joined, rows=replace(joined.rows, folded="none", folded_size=1), video=tokens)
            tensors = [rearrange(tensor[rows], "(b t) h n d -> b h (t n) d", t=frames) for tensor in (q, k, v)]
            found = super().__call__(attend, *tensors, joined)
            found = rearrange(found, "b h (t n) d -> (b t) h n d", t=frames)
            kept = guided.repeat(site.rows.samples).nonzero()[:, 0].to(q.device)
            out[kept + rows.start] = found[kept]
        return out

    def make_plan(self, attend: Attend, q: Tensor, lengths: tuple[int, int], site: AttentionSite) -> Plan:
        """Ask the mode what to do for each share of the chunks: those whose words are known, and the others."""
        mode = self.guide.mode
        worded = self.worded_chunks(site, chosen_chunks(site, mode.cross_rows))
        shares = [(tuple(worded), True)]
        if site.kind != "cross" and not mode.only_words:
            chosen = chosen_chunks(site, mode.rows)
            # Film and words are in one sequence here: rows whose film is left alone are left alone.
            worded = [at for at in worded if at in chosen]
            shares = [(tuple(worded), True), (tuple(at for at in chosen if at not in worded), False)]
        tables, edits = [], []
        for chunks, with_words in shares:
            if not chunks:
                continue
            call = self._call(site, lengths, with_words, q.device, boxed=False)
            found, edit = mode.tables(call), mode.edit(call)
            if found is not None:
                tables.append((chunks, found))
            if edit is not None:
                edits.append((chunks, edit))
        return make_plan(tables, site.rows, q, attend.last, edits)

    def _call(
        self, site: AttentionSite, lengths: tuple[int, int], with_words: bool, device: torch.device, boxed: bool
    ) -> ModeCall:
        asking = site.frames if site.query_frames is None else site.query_frames
        clip, boxes = self._regions(site, boxed), self._boxes(site)
        spans = None
        if with_words:
            spans = self.text_spans.in_part(text_length(site, lengths[1]), site.text_part)
        return ModeCall(
            site=site,
            regions=clip.take(site.frames),
            asking=clip.take(asking),
            lengths=lengths,
            spans=None if spans is None else spans.positions,
            ordinary=() if spans is None else spans.ordinary,
            background=() if spans is None else spans.background,
            begin=() if spans is None else spans.begin,
            frame_strength=self._frame_strength(site, asking),
            boxes=boxes[:, list(site.frames)],
            asking_boxes=boxes[:, list(asking)],
            boxed=partial(self._call, site, lengths, with_words, device, True),
            device=device,
        )

    def _regions(self, site: AttentionSite, boxed: bool) -> Regions:
        """Regions of the whole clip on a site's grid."""
        guide = self.guide
        if boxed not in self._pyramids:
            pyramid = guide.pyramid()
            if boxed:
                # Boxes overlap where their objects do not.
                pyramid = MaskPyramid(
                    box_masks(guide.masks), pyramid.hard, guide.time_pooling, pyramid.rule, apart=False
                )
            self._pyramids[boxed] = pyramid
        return self._pyramids[boxed].regions(
            *site.grid[1:], site.clip_frames, site.extent, site.time_factor, site.level
        )

    def _boxes(self, site: AttentionSite) -> Tensor:
        """Boxes of the whole clip, [R, clip frames, 4]."""
        key = (site.clip_frames, site.time_factor)
        if key not in self._clip_boxes:
            masks = pool_time(self.guide.masks, site.clip_frames, self.guide.time_pooling, site.time_factor)
            self._clip_boxes[key] = mask_boxes(masks)
        return self._clip_boxes[key]

    def _frame_strength(self, site: AttentionSite, frames: Sequence[int]) -> Tensor:
        """Strength of the guide in some frames of the clip: the mean of what the pixel frames of each have."""
        values = torch.tensor(self.guide.frame_strength or (1.0,))
        groups = latent_frame_groups(len(values), site.clip_frames, site.time_factor)
        clip = torch.stack([values[group.start : group.stop].mean() for group in groups])
        return self.guide.strength * clip[list(frames)]
