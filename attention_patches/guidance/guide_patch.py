"""What guides have in common once they are bound to a prompt: checks before a run, and plans per kind of call."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..checks import check_film
from ..site import CONDITIONAL, AttentionSite
from ..stack import Attend, Patch
from .plan import Plan
from .regions import MaskPyramid
from .text_spans import TextSpans

logger = logging.getLogger(__name__)

# Plans that a patch keeps: grids x kinds of a model times its context windows; all are dropped when there are more.
MAX_PLANS = 256


class BindableGuide(Protocol):
    """Regions of a clip and what attention shall make of them, not yet bound to a model.

    Attributes:
        masks: [R, F, H, W] float in 0..1.
        phrases: one per object, or none.
        background_phrase: words of the prompt that name what is outside of all objects, or empty.
        blocks: comma list of block name patterns.
        mode_name: for reports.
        percents: where in the schedule it begins and ends.
        strength: 0 is no guidance.
        uses_words: whether the places of the phrases make a difference.
        needs_words: whether there is no guidance without them.
        is_active: whether it asks for anything at all.
    """

    masks: Tensor
    phrases: tuple[str, ...]
    blocks: str

    @property
    def background_phrase(self) -> str: ...
    @property
    def mode_name(self) -> str: ...
    @property
    def percents(self) -> tuple[float, float]: ...
    @property
    def strength(self) -> float: ...
    @property
    def uses_words(self) -> bool: ...
    @property
    def needs_words(self) -> bool: ...
    @property
    def is_active(self) -> bool: ...

    def on_blocks(self, names: Sequence[str]) -> BindableGuide:
        """This guide for a model whose blocks have these names."""

    def pyramid(self) -> MaskPyramid:
        """The masks as attention will see them."""

    def bind(self, text_spans: TextSpans | None) -> tuple[Patch, ...]:
        """The patches of this guide for a prompt, outermost first."""


class GuidePatch(ABC):
    """A guide bound to a prompt's tokens. Plans stay until ``release``; copies of the patch share them.

    Args:
        guide: the guide.
        text_spans: for each object the positions of its words in the conditional text sequence, or None.

    Raises:
        ValueError: the numbers of phrases and masks differ, or the guide needs words and is given none.
    """

    def __init__(self, guide: BindableGuide, text_spans: TextSpans | None) -> None:
        if text_spans is not None and len(text_spans.positions) != len(guide.masks):
            raise ValueError(
                f"{len(text_spans.positions)} phrases were found in the prompt but the guide has {len(guide.masks)} "
                "masks; give one phrase per object."
            )
        if text_spans is None and guide.needs_words and guide.is_active:
            raise ValueError(
                f"mode {guide.mode_name} steers the words of the objects but the guide is not bound to a prompt; give "
                "phrases and the prompt's tokens."
            )
        self.guide = guide
        self.text_spans = text_spans
        self._plans: dict[Hashable, Plan] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> GuidePatch:
        return self

    def release(self) -> None:
        """Drop all tables, on devices too."""
        self._plans = {}

    def check_clip(self, clip_frames: int, height: int, width: int, time_factor: int | None = None) -> None:
        """Compare the guide with the clip that is about to be sampled; arguments and errors as ``check_film``."""
        if self.guide.is_active:
            check_film(self.guide.masks, clip_frames, height, width, time_factor)

    def check_text(self, prompts: Mapping[str, int]) -> None:
        """Compare the places of the objects' words with the prompts that are about to be sampled.

        Args:
            prompts: for each positive prompt, by its name, how many tokens its text has.

        Raises:
            ValueError: the places were counted in another text.
        """
        spans = self.text_spans
        if not self.guide.is_active or spans is None or not self.guide.uses_words:
            return
        lengths = [length for name, length in prompts.items() if spans.prompts is None or name in spans.prompts]
        for length in lengths:
            spans.repeated(length)
        # Of a prompt that is known by name, more text may have been appended.
        if spans.prompts is None and spans.length and lengths and all(length % spans.length for length in lengths):
            raise ValueError(
                f"the objects' words were found in a text of {spans.length} tokens but the positive prompt has "
                f"{lengths[0]}; give Patch Attention the very prompt and text encoder of the film."
            )
        if prompts and not lengths:
            logger.warning(
                "the objects' words belong to a prompt that is not among the positive ones, so words are not guided; "
                "connect the same conditioning to Patch Attention and to the sampler."
            )

    def check_steps(self, progress: Sequence[float]) -> None:
        """Say so when none of a run's steps lies in the part of the schedule that the guide has.

        Args:
            progress: of each step, as in ``AttentionSite``.
        """
        for sentence in idle_steps(self.guide, progress):
            logger.warning(sentence)

    @abstractmethod
    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether this call is guided at all."""

    @abstractmethod
    def make_plan(self, attend: Attend, q: Tensor, lengths: tuple[int, int], site: AttentionSite) -> Plan:
        """Make what is done at calls of the kind of this one; ``lengths`` of queries and keys."""

    def phase(self, site: AttentionSite) -> Hashable:
        """What plans depend on besides the sizes of a call."""
        return None

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Guide one attention call; tensors [B, heads, L, d].

        Raises:
            ValueError: the tensors do not have the sizes that the site says, or the masks' frames do not fit the clip.
        """
        # Some patches ask for queries that are no video in a call of their own.
        if site.query_frames == () or not self.acts_at(site):
            return attend(q, k, v, site)
        return self._plan(attend, q, k, site).run(attend, q, k, v, site)

    def _plan(self, attend: Attend, q: Tensor, k: Tensor, site: AttentionSite) -> Plan:
        lengths = (q.shape[2], k.shape[2])
        text = None if site.text is None else (site.text.start, site.text.stop)
        key = (
            *(site.kind, site.level, site.grid, site.extent, site.frames, site.clip_frames, site.time_factor),
            *(site.video.start, site.video.stop, text, site.text_part, site.rows, site.query_frames),
            site.key_frames,
            None if site.key_video is None else (site.key_video.start, site.key_video.stop),
            *(lengths, q.shape[3], q.dtype, q.device, attend.last, self.phase(site)),
        )
        plan = self._plans.get(key)
        if plan is None:
            check_site(q, site)
            if len(self._plans) >= MAX_PLANS:
                self._plans = {}
            plan = self._plans[key] = self.make_plan(attend, q, lengths, site)
        return plan

    def worded_chunks(self, site: AttentionSite, chunks: Sequence[int]) -> list[int]:
        """Those of some chunks whose text has the objects' words where the guide knows them."""
        if self.text_spans is None or site.kind not in ("cross", "joint"):
            return []
        # The words are those of one prompt: the rows of others have other words at these places.
        prompts = site.rows.prompts
        return [chunk for chunk in chunks if self.text_spans.holds_for(prompts, chunk)]


def idle_steps(guide: BindableGuide, progress: Sequence[float]) -> list[str]:
    """Say so, in at most one sentence, when none of a run's steps lies in the part of the schedule that a guide has.

    Args:
        guide: that may ask for nothing, of which nothing is said.
        progress: of each step, as in ``AttentionSite``.
    """
    start, end = guide.percents
    if not guide.is_active or not progress or any(start <= max(step, 0.0) <= end for step in progress):
        return []
    return [
        f"mode {guide.mode_name} acts from {start:g} to {end:g} of the schedule, where none of the {len(progress)} steps "
        f"of this run lies (the first is at {progress[0]:.3f}, the last at {progress[-1]:.3f}): it does nothing here; widen "
        "its schedule or take more steps."
    ]


def chosen_chunks(site: AttentionSite, rows: str) -> list[int]:
    """Indices of the chunks that are guided: all with ``both``, else the conditional ones."""
    return [index for index, chunk in enumerate(site.rows.chunks) if rows == "both" or chunk == CONDITIONAL]


def text_length(site: AttentionSite, key_length: int) -> int:
    """Number of text tokens among the keys of a call."""
    return len(range(*(site.text or slice(None)).indices(key_length)))


def check_site(q: Tensor, site: AttentionSite) -> None:
    """Compare a call's queries [B, heads, Lq, d] with what its site says.

    Raises:
        ValueError: batch rows or video tokens are not as many as the site says.
    """
    frames, height, width = site.grid
    asking = frames if site.query_frames is None else len(site.query_frames)
    tokens = {"none": asking * height * width, "frames": height * width, "positions": asking}[site.rows.folded]
    groups = {"none": 1, "frames": frames, "positions": height * width}[site.rows.folded]
    found = len(range(*site.video.indices(q.shape[2])))
    if q.shape[0] != site.rows.total or site.rows.folded_size != groups or found != tokens:
        raise ValueError(
            f"attention {site.kind} in block {site.block!r} has {q.shape[0]} rows and {found} video tokens, but grid "
            f"{site.grid} folded by {site.rows.folded!r} means {site.rows.total} rows and {tokens} tokens; the "
            "backbone describes its sites wrongly."
        )
    if len(site.frames) != frames:
        raise ValueError(
            f"attention {site.kind} in block {site.block!r} has {frames} frames but names {len(site.frames)} of the "
            "clip; the backbone describes its sites wrongly."
        )
