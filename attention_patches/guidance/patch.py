"""A guide bound to the tokens of a prompt, as an attention patch."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from ..checks import check_film
from ..errors import GuideError
from ..frame_keys import FirstFrameKeys, FirstFrameKeysPatch
from ..latent_time import latent_frame_groups
from ..patch import Attend, AttentionPatch, Run, check_site, chosen_chunks
from ..site import CONDITIONAL, AttentionSite, Span, chunk_site
from .boxes import box_masks, mask_boxes
from .call import CallTensors, ModeCall
from .guide import Guide
from .modes.mode import MaskMode
from .plan import Plan, make_plan
from .regions import MaskPyramid, Regions, time_frames
from .share_book import BlockShare, ShareBook, shares_told
from .tables import wanted_tables
from .text_spans import TextSpans

logger = logging.getLogger(__name__)


def guide_patches(guide: Guide, text_spans: TextSpans | None = None) -> tuple[AttentionPatch, ...]:
    """Bind a guide to a prompt's tokens as attention patches.

    Args:
        guide: masks, mode and strength. Strength 0 or masks without an object leave every call untouched.
        text_spans: for each object the positions of its words in the conditional text sequence. Without them words are
            left alone.

    Returns:
        Patches for a ``PatchStack``, outermost first: keys of other frames, then masks. Keys of other frames are taken
        during the whole schedule, in the mode's blocks and rows.

    Raises:
        GuideError: the numbers of phrases and masks differ, or the mode guides words only and is given none.
    """
    patch = GuidePatch(guide, text_spans)
    if guide.keys == "self" or not guide.is_active:
        return (patch,)
    chosen = guide.key_source is not None
    keys = FirstFrameKeys(guide.keys, blocks=guide.mode.blocks, rows=guide.mode.rows, whole_clips=chosen)
    return (FirstFrameKeysPatch(keys), patch)


class GuidePatch(AttentionPatch):
    """A guide bound to a prompt's tokens.

    Masks are pooled once per grid, and once per kind of call the tables are made and brought to the device.
    ``innermost`` is true where the mode takes the kernel's place at some calls, or joins frames there.

    Args:
        guide: the guide.
        text_spans: for each object the positions of its words in the conditional text sequence, or None.

    Raises:
        GuideError: as ``guide_patches``.
    """

    def __init__(self, guide: Guide, text_spans: TextSpans | None = None) -> None:
        super().__init__()
        if text_spans is not None and len(text_spans.positions) != len(guide.masks):
            raise GuideError(
                f"{len(text_spans.positions)} phrases were found in the prompt but the guide has {len(guide.masks)} "
                "masks; give one phrase per object."
            )
        if text_spans is None and guide.mode.only_words and guide.is_active:
            raise GuideError(
                f"mode {guide.mode.name} steers the words of the objects but the guide is not bound to a prompt; give "
                "phrases and the prompt's tokens."
            )
        self.guide = guide
        self.text_spans = text_spans
        self.innermost = type(guide.mode).edit is not MaskMode.edit or guide.mode.space_time
        self._is_active = guide.is_active
        #: What the last run found of the share of attention that the guide asks for.
        self.shares: tuple[BlockShare, ...] = ()
        self._forget()

    def _forget(self) -> None:
        # Masks as they are (False) and filled up to their boxes (True), made when asked for; boxes by length of the
        # clip.
        self._pyramids: dict[bool, MaskPyramid] = {}
        self._clip_boxes: dict[Hashable, Tensor] = {}
        self._book = ShareBook()

    def release(self) -> None:
        """Drop all tables, on devices too; what a run found of shares is kept until the next run ends."""
        super().release()
        if self._book.shares:
            self.shares = tuple(self._book.shares)
            for line in self.shares_told():
                logger.info(line)
        self._forget()

    def shares_told(self) -> list[str]:
        """One line for each region on the attention that the last run found and made; none without a goal."""
        names = self.guide.phrases or ("",) * len(self.guide.masks)
        return shares_told(self.shares, names)

    def check_run(self, run: Run) -> None:
        """Compare masks and places of words with the clip and its prompts, and say so when no step is the guide's.

        Raises:
            GuideError: the masks do not fit the clip, or the places were counted in another text.
        """
        if not self.guide.is_active:
            return
        check_film(self.guide.masks, run.clip_frames, run.height, run.width, run.latent_time)
        if self.text_spans is not None and self.guide.mode.uses_words:
            _check_text(self.text_spans, run)
        for sentence in idle_steps(self.guide, run.progress):
            logger.warning(sentence)
        first, last, share = guided_steps(self.guide, run.progress)
        if share:
            steps = (self.guide.mode.name, first, last, len(run.progress), 100.0 * share)
            logger.info("mode %s guides steps %d to %d of %d: %.0f %% of the schedule.", *steps)

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether this call is guided at all: kind, schedule, block, rows and words."""
        mode = self.guide.mode
        if not self._is_active or not mode.acts_at(site) or self.guide.factor_at(site.progress) == 0.0:
            return False
        if site.kind == "cross":
            return bool(self._chunks_with_words(site, chosen_chunks(site, mode.cross_rows)))
        return bool(mode.scope.chunks(site)) and (site.kind == "joint" or not mode.only_words)

    def _chunks_with_words(self, site: AttentionSite, chunks: Sequence[int]) -> list[int]:
        """Those of some chunks whose words are steered; unconditional ones by the places of the positive prompt."""
        spans, rows = self.text_spans, site.rows
        if spans is None or site.kind not in ("cross", "joint"):
            return []
        # The words are those of one prompt: the rows of others have other words at these places.
        known = [at for at in chunks if rows.chunks[at] == CONDITIONAL and spans.holds_for(rows.prompts, at)]
        if _has_length(site, spans):
            known += [at for at in chunks if rows.chunks[at] != CONDITIONAL]
        return sorted(known)

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Guide one attention call; tensors [B, heads, L, d].

        Raises:
            GuideError: the tensors do not have the sizes that the site says, or the masks' frames do not fit the clip.
        """
        # Some patches pass queries that are no part of the video in a call of their own.
        if site.query_frames == () or not self.acts_at(site):
            return attend(q, k, v, site)
        if self._joins_frames(attend, site):
            return self._in_space_and_time(attend, q, k, v, site)
        return self._guide(attend, q, k, v, site)

    def _guide(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        check_site(q, site)
        phase, factor = self.guide.mode.phase(site), self.guide.factor_at(site.progress)
        plan = self.planned(self._make_plan, site.layout, phase, factor, CallTensors.of(q, k), attend.last)
        return plan.run(attend, q, k, v, site, None if self.guide.goal is None else self._book)

    def _joins_frames(self, attend: Attend, site: AttentionSite) -> bool:
        """Say whether queries of a frame are to meet all frames here: not where another patch chose frames for them."""
        if not self.guide.mode.space_time or site.kind != "self" or site.rows.folded != "frames":
            return False
        return site.key_frames is None and attend.bias is None

    def _in_space_and_time(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Run frame-by-frame self-attention over all frames in one sequence, where there is an object."""
        frames = site.grid[0]
        guided = self._regions(site, filled=False).take(site.frames).guided
        guided = guided & (self._frame_strength(site, site.frames) > 0.0)
        if not bool(guided.any()):
            return attend(q, k, v, site)
        chunks = self.guide.mode.scope.chunks(site)
        left_alone = not bool(guided.all()) or len(chunks) < len(site.rows.chunks)
        out = attend(q, k, v, site).clone() if left_alone else q.new_empty(*q.shape[:3], v.shape[3])
        size = site.rows.samples * frames
        for chunk in chunks:
            rows = slice(chunk * size, (chunk + 1) * size)
            joined = chunk_site(site, chunk)
            unfolded = replace(joined.rows, folded="none", folded_size=1)
            joined = replace(joined, rows=unfolded, video=Span(0, frames * q.shape[2]))
            whole = (rearrange(tensor[rows], "(b t) h n d -> b h (t n) d", t=frames) for tensor in (q, k, v))
            queries, keys, values = whole
            found = self._guide(attend, queries, keys, values, joined)
            found = rearrange(found, "b h (t n) d -> (b t) h n d", t=frames)
            kept = guided.repeat(site.rows.samples).nonzero()[:, 0].to(q.device)
            out[kept + rows.start] = found[kept]
        return out

    def _make_plan(
        self, layout: AttentionSite, phase: Hashable, factor: float, tensors: CallTensors, last: bool
    ) -> Plan:
        """Ask the mode what to do for each share of the chunks: those whose words are known, and the others."""
        mode = self.guide.mode
        with_words = self._chunks_with_words(layout, chosen_chunks(layout, mode.cross_rows))
        shares = [(tuple(with_words), True)]
        if layout.kind != "cross" and not mode.only_words:
            chosen = mode.scope.chunks(layout)
            # Video and words are in one sequence here: rows whose video is left alone are left alone.
            with_words = [at for at in with_words if at in chosen]
            shares = [(tuple(with_words), True), (tuple(at for at in chosen if at not in with_words), False)]
        tables, edits = [], []
        for chunks, knows_words in shares:
            if not chunks:
                continue
            call = self._call(layout, phase, tensors, knows_words, filled=False, factor=factor)
            found, edit = mode.tables(call), mode.edit(call)
            if found is not None:
                # Each branch of guidance finds its own gains.
                apart = [chunks] if found.raised is None else [(chunk,) for chunk in chunks]
                tables += [(part, found) for part in apart]
            if edit is not None:
                wanted = None if call.goal is None else wanted_tables(call)
                apart = [chunks] if wanted is None else [(chunk,) for chunk in chunks]
                edits += [(part, edit, wanted) for part in apart]
        return make_plan(tables, layout.rows, tensors, last, edits)

    def _call(
        self,
        layout: AttentionSite,
        phase: Hashable,
        tensors: CallTensors,
        knows_words: bool,
        filled: bool,
        factor: float = 1.0,
    ) -> ModeCall:
        query_frames = layout.frames if layout.query_frames is None else layout.query_frames
        clip, boxes = self._regions(layout, filled), self._boxes(layout)
        spans = None
        if knows_words and self.text_spans is not None:
            spans = self.text_spans.in_part(len(layout.text_keys(tensors.keys)), layout.text_part)
        return ModeCall(
            site=layout,
            phase=phase,
            regions=clip.take(layout.frames),
            query_regions=clip.take(query_frames),
            lengths=(tensors.queries, tensors.keys),
            spans=None if spans is None else spans.positions,
            ordinary=() if spans is None else spans.ordinary,
            background=() if spans is None else spans.background,
            begin=() if spans is None else spans.begin,
            frame_strength=factor * self._frame_strength(layout, query_frames),
            boxes=boxes[:, list(layout.frames)],
            query_boxes=boxes[:, list(query_frames)],
            boxes_filled=partial(self._call, layout, phase, tensors, knows_words, True, factor),
            device=tensors.device,
            goal=self.guide.goal,
        )

    def _regions(self, site: AttentionSite, filled: bool) -> Regions:
        """Regions of the whole clip on a site's grid, with the masks filled up to their boxes or not."""
        guide = self.guide
        if filled not in self._pyramids:
            pyramid = guide.pyramid()
            if filled:
                # Boxes overlap where their objects do not.
                masks = box_masks(guide.masks)
                pyramid = MaskPyramid(masks, pyramid.hard, guide.time_pooling, pyramid.rule, apart=False)
            self._pyramids[filled] = pyramid
        height, width = site.grid[1:]
        return self._pyramids[filled].regions(
            height, width, site.clip_frames, site.extent, site.latent_time, site.level
        )

    def _boxes(self, site: AttentionSite) -> Tensor:
        """Boxes of the whole clip, [R, clip frames, 4]."""
        key = (site.clip_frames, site.latent_time)
        if key not in self._clip_boxes:
            guide = self.guide
            frames = time_frames(guide.masks, site.clip_frames, guide.time_pooling, site.latent_time)
            self._clip_boxes[key] = torch.cat([mask_boxes(frame) for frame in frames], dim=1)
        return self._clip_boxes[key]

    def _frame_strength(self, site: AttentionSite, frames: Sequence[int]) -> Tensor:
        """Strength of the guide in some frames of the clip: the mean of what the pixel frames of each have."""
        values = torch.tensor(self.guide.frame_strength or (1.0,))
        groups = latent_frame_groups(len(values), site.clip_frames, site.latent_time)
        clip = torch.stack([values[list(group)].mean() for group in groups])
        return self.guide.strength * clip[list(frames)]


def shares_of(patches: Iterable[object]) -> list[str]:
    """What the guides among some patches found of shares in their last runs, in lines; see ``shares_told``."""
    return [line for patch in patches if isinstance(patch, GuidePatch) for line in patch.shares_told()]


def idle_steps(guide: Guide, progress: Sequence[float]) -> list[str]:
    """Say so, in at most one sentence, when none of a run's steps lies in the part of the schedule that a guide has.

    Args:
        guide: that may ask for nothing, of which nothing is said.
        progress: of each step, as in ``AttentionSite``.
    """
    scope = guide.mode.scope
    if not guide.is_active or not progress or any(map(guide.factor_at, progress)):
        return []
    if any(map(scope.is_during, progress)):
        return [
            f"the strength curve of mode {guide.mode.name} is 0 at each of the {len(progress)} steps of this run (the "
            f"first is at {progress[0]:.3f}, the last at {progress[-1]:.3f}) in the part of the schedule from "
            f"{scope.start_percent:g} to {scope.end_percent:g}: it does nothing here; raise the curve, or widen the "
            "mode's schedule."
        ]
    return [
        f"mode {guide.mode.name} acts from {scope.start_percent:g} to {scope.end_percent:g} of the schedule, where "
        f"none of the {len(progress)} steps of this run lies (the first is at {progress[0]:.3f}, the last at "
        f"{progress[-1]:.3f}): it does nothing here; widen its schedule or take more steps."
    ]


def guided_steps(guide: Guide, progress: Sequence[float]) -> tuple[int, int, float]:
    """Which steps of a run a guide acts in, and for how much of the schedule that is.

    A step is guided or it is not, and it leads to the next one: the fewer steps there are, the more of the schedule a
    guided one covers, whatever the end of the guide.

    Args:
        guide: that may ask for nothing.
        progress: of each step, as in ``AttentionSite``; ascending.

    Returns:
        Number of the first and of the last guided step, from 1, and the part of the schedule from the one to the end of
        the other, 0..1; all 0 where no step is guided.
    """
    inside = [at for at, place in enumerate(progress) if guide.is_active and guide.factor_at(place)]
    if not inside:
        return 0, 0, 0.0
    borders = [*progress, 1.0]
    return inside[0] + 1, inside[-1] + 1, borders[inside[-1] + 1] - borders[inside[0]]


def _check_text(spans: TextSpans, run: Run) -> None:
    """Compare the places of the objects' words with the prompts of a run.

    Raises:
        GuideError: the places were counted in another text.
    """
    lengths = [length for name, length in run.prompts.items() if spans.prompts is None or name in spans.prompts]
    for length in lengths:
        spans.repeated(length)
    # Of a prompt that is known by name, more text may have been appended.
    fitting = [spans.fits(length, run.before.get(name)) for name, length in run.prompts.items() if spans.length]
    if spans.prompts is None and fitting and not any(fitting):
        raise GuideError(
            f"the objects' words were found in a text of {spans.length} tokens but the positive prompt has "
            f"{lengths[0]}; give Patch Attention the very prompt and text encoder of the film."
        )
    if run.prompts and not lengths:
        logger.warning(
            "the objects' words belong to a prompt that is not among the positive ones, so words are not guided; "
            "connect the same conditioning to Patch Attention and to the sampler."
        )


def _has_length(site: AttentionSite, spans: TextSpans) -> bool:
    """Say whether a text is as long as the positive prompt's, so that places in that are places in it."""
    if not spans.length or site.text is None:
        return True
    whole = site.text.stop - site.text.start if site.text_part is None else site.text_part[1]
    return spans.length == whole if spans.at_end else spans.fits(whole)
