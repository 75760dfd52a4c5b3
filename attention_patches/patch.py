"""What an attention patch is: all that one may be asked, where and when it acts, and what it remembers.

A technique is a subclass of ``AttentionPatch`` that overrides what it needs. The shortest one is a plain function
``(attend, q, k, v, site) -> out``, which a stack takes as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar, get_args

from torch import Tensor

from .checks import block_patterns, check_choice, check_percents, matches_block
from .latent_time import PICTURES, LatentTime
from .site import CONDITIONAL, AttentionSite, GuidedRows

# What a patch remembers: grids x kinds of a model times its context windows; all is dropped when there is more.
MAX_PLANS = 256

Made = TypeVar("Made")


@dataclass(frozen=True)
class Attend:
    """The rest of the chain, as a patch sees it: ``out = attend(q, k, v, site)``.

    q is [B, heads, Lq, d], k [B, heads, Lk, d] and v [B, heads, Lk, dv]; the result is [B, heads, Lq, dv]. The kernel
    at the end scales by ``q.shape[-1] ** -0.5``; a patch that appends channels makes up for it. Kernels may insist on
    ``dv == d``: pad v and slice the result.

    Attributes:
        continuation: ``(q, k, v, site, bias) -> out``, the patches after this one and then the kernel.
        bias: the additive mask that came with the call, broadcastable to [B, heads, Lq, Lk], or None. It is kept:
            calling ``attend`` applies it.
        last: no other patch and no foreign override comes after this one, so that nobody reads ``site`` any more.
            Only then may the tensors be a part of the batch rows, heads or tokens that the site describes. A patch that
            is not the last one and wants a part of the frames passes a site of that part.
    """

    continuation: Callable[[Tensor, Tensor, Tensor, AttentionSite, Tensor | None], Tensor]
    bias: Tensor | None = None
    last: bool = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Run the rest of the chain with the bias that came with the call."""
        return self.continuation(q, k, v, site, self.bias)

    def with_bias(self, bias: Tensor | None) -> Attend:
        """Return the same continuation with another additive bias.

        A patch that wants a bias of its own passes ``attend.bias + own``; one that calls ``attend`` on a part of the
        rows or tokens passes the matching part of ``attend.bias``.
        """
        return replace(self, bias=bias)


@dataclass(frozen=True)
class Run:
    """What is known of a run of a sampler before its first step.

    Attributes:
        clip_frames: frames of the whole clip as the model counts them; 0 when unknown.
        height, width: of its latents; only their ratio counts.
        latent_time: see ``AttentionSite``.
        prompts: for each positive prompt, by its name, how many tokens its text has.
        before: for those of which it is known, how many of these tokens are of other text that stands before the
            prompt's own.
        progress: of each step, as in ``AttentionSite``; empty when unknown.
    """

    clip_frames: int
    height: int
    width: int
    latent_time: LatentTime | None = None
    prompts: Mapping[str, int] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)
    progress: Sequence[float] = ()

    @property
    def token_frames(self) -> int:
        """Frames of tokens of the whole clip: fewer than its latent frames where a token covers several."""
        return (self.latent_time or PICTURES).token_frames(self.clip_frames)


@dataclass(frozen=True)
class Scope:
    """Where and when a patch acts, read and checked once.

    Attributes:
        start_percent: it begins at this part of the schedule, 0..1.
        end_percent: it ends at this part of the schedule, 0..1.
        blocks: comma list of block name patterns: ``all``, ``mid,up``, ``down.1.*``.
        rows: ``conditional`` leaves unconditional batch rows alone; ``both`` takes them too.

    Raises:
        GuideError: a part of the schedule out of its range, an empty list of blocks, or unknown rows.
    """

    start_percent: float = 0.0
    end_percent: float = 1.0
    blocks: str = "all"
    rows: GuidedRows = "both"
    patterns: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_percents(self.start_percent, self.end_percent)
        check_choice("rows", self.rows, get_args(GuidedRows))
        object.__setattr__(self, "patterns", block_patterns(self.blocks))

    def includes(self, site: AttentionSite) -> bool:
        """Say whether a call lies in this part of the schedule and in one of these blocks."""
        return self.is_during(site.progress) and any(matches_block(site.block, pattern) for pattern in self.patterns)

    def is_during(self, progress: float) -> bool:
        """Say whether a step at ``progress`` lies in this part of the schedule."""
        return self.start_percent <= max(progress, 0.0) <= self.end_percent

    def chunks(self, site: AttentionSite) -> list[int]:
        """Indices of the chunks of a call whose rows these are."""
        return chosen_chunks(site, self.rows)


class AttentionPatch(ABC):
    """Middleware of one attention call; see ``PatchStack``. Copies of a patch share what it remembers.

    Attributes:
        innermost: whether it takes the place of the kernel: it comes after all others, those of the stacks behind its
            own too, since what it would hand on to them has no keys any more.
        chooses_frames: its name in messages, where it lets frames meet others and needs calls of the whole clip.
    """

    innermost: bool = False
    chooses_frames: str = ""

    def __init__(self) -> None:
        self._plans: dict[Hashable, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionPatch:
        # ComfyUI deep-copies model options at every clone; patches are immutable and what they remember is shared.
        return self

    def acts_at(self, site: AttentionSite) -> bool:
        """Say whether a call is changed. Where no patch of a stack acts, the call goes through with its arguments."""
        return True

    def check_run(self, run: Run) -> None:
        """Compare the patch with a run before its first step.

        Raises:
            GuideError: the patch does not fit the run; the message says what to change.
        """
        # Most patches fit every run.
        return

    def release(self) -> None:
        """Forget all that was made, on devices too; it is made again when needed."""
        self._plans = {}

    def planned(self, make: Callable[..., Made], *arguments: Hashable) -> Made:
        """Return ``make(*arguments)``, made once for each set of arguments until ``release``.

        The arguments are all that ``make`` is given, so that what is remembered never belongs to another call; use
        ``AttentionSite.layout`` for a site.
        """
        key = (make, arguments)
        if key not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                self._plans = {}
            self._plans[key] = make(*arguments)
        return self._plans[key]

    @abstractmethod
    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Run one attention call: call ``attend`` zero, one or more times.

        Args:
            attend: the rest of the chain.
            q, k, v: [B, heads, Lq, d], [B, heads, Lk, d], [B, heads, Lk, dv].
            site: where the call stands.

        Returns:
            [B, heads, Lq, dv].
        """


Function: TypeAlias = Callable[[Attend, Tensor, Tensor, Tensor, AttentionSite], Tensor]
Patch: TypeAlias = AttentionPatch | Function


class FunctionPatch(AttentionPatch):
    """A plain function as a patch that acts at every call."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """Call the function."""
        return self.function(attend, q, k, v, site)


def as_patch(patch: Patch) -> AttentionPatch:
    """Return a patch, made of a plain function where that is given."""
    return patch if isinstance(patch, AttentionPatch) else FunctionPatch(patch)


def chosen_chunks(site: AttentionSite, rows: GuidedRows) -> list[int]:
    """Indices of the chunks of a call with the given rows: all with ``both``, else the conditional ones."""
    return [index for index, chunk in enumerate(site.rows.chunks) if rows == "both" or chunk == CONDITIONAL]


def check_site(q: Tensor, site: AttentionSite) -> None:
    """Compare a call's queries [B, heads, Lq, d] with what its site says.

    Raises:
        ValueError: batch rows or video tokens are not as many as the site says, or keys come from frames that are not
            in the call.
    """
    frames, height, width = site.grid
    query_frames = frames if site.query_frames is None else len(site.query_frames)
    tokens = {"none": query_frames * height * width, "frames": height * width, "positions": query_frames}
    groups = {"none": 1, "frames": frames, "positions": height * width}
    wanted, found = tokens[site.rows.folded], len(site.video_queries(q.shape[2]))
    if q.shape[0] != site.rows.total or site.rows.folded_size != groups[site.rows.folded] or found != wanted:
        raise ValueError(
            f"attention {site.kind} in block {site.block!r} has {q.shape[0]} rows and {found} video tokens, but grid "
            f"{site.grid} folded by {site.rows.folded!r} means {site.rows.total} rows and {wanted} tokens; the "
            "backbone describes its sites wrongly."
        )
    if len(site.frames) != frames:
        raise ValueError(
            f"attention {site.kind} in block {site.block!r} has {frames} frames but names {len(site.frames)} of the "
            "clip; the backbone describes its sites wrongly."
        )
    if site.key_frames is not None:
        missing = {frame for row in site.key_frames for frame in row} - set(site.frames)
        if missing or len(site.key_frames) != frames:
            raise ValueError(
                f"attention {site.kind} in block {site.block!r} has frames {site.frames} but takes its keys from "
                f"{site.key_frames}; the backbone describes its sites wrongly."
            )
