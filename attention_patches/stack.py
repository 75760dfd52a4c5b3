"""Compose attention patches into the one function that ComfyUI (and our own models) call.

A patch is middleware: it gets the rest of the chain as ``attend`` and the tensors of one attention call, and calls
``attend`` zero, one or more times. Patches compose by order and none of them knows a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .attention import torch_attention
from .site import SITE_KEY, AttentionSite, SiteFinder

logger = logging.getLogger(__name__)

# The key in ``transformer_options`` under which stacks note that their patches are already around a call.
APPLIED_KEY = "attention_patches_applied"
# The key in ``transformer_options`` under which a stack hands its innermost patches on to the stacks behind it.
INNERMOST_KEY = "attention_patches_innermost"
# The call names of ComfyUI's attention functions after ``func``, in their positional order.
_POSITIONAL = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")
# The sub-quadratic function names its tensors in full.
_SYNONYMS = {"query": "q", "key": "k", "value": "v"}
# Kernels with these words in their names quantise q and k by block, which region channels do not survive, and return
# wrong results for masks on most of their builds (Comfy-Org/ComfyUI#13735).
_QUANTISING = ("sage",)
# Overrides with these words in their names stand for the attention function itself: they read no site.
_KERNELS = ("sage", "flash")


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


Patch: TypeAlias = Callable[[Attend, Tensor, Tensor, Tensor, AttentionSite], Tensor]
Override: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class _Call:
    """One call of an attention function with its arguments sorted by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    skip_reshape: bool
    skip_output_reshape: bool
    rest: dict[str, Any]

    @classmethod
    def bind(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Call:
        if len(args) > len(_POSITIONAL):
            raise TypeError(
                f"an attention call has at most {len(_POSITIONAL)} positional arguments ({', '.join(_POSITIONAL)}) "
                f"but got {len(args)}; pass the others by name."
            )
        named = dict(zip(_POSITIONAL, args, strict=False))
        for name, value in kwargs.items():
            named[_SYNONYMS.get(name, name)] = value
        missing = [name for name in _POSITIONAL[:4] if name not in named]
        if missing:
            raise TypeError(f"the attention call lacks {', '.join(missing)}; pass q, k, v and heads.")
        return cls(
            q=named.pop("q"),
            k=named.pop("k"),
            v=named.pop("v"),
            heads=named.pop("heads"),
            mask=named.pop("mask", None),
            skip_reshape=named.pop("skip_reshape", False),
            skip_output_reshape=named.pop("skip_output_reshape", False),
            rest=named,
        )

    @property
    def lengths(self) -> tuple[int, int]:
        """Lengths of the query and of the key sequence."""
        return self.q.shape[-2], self.k.shape[-2]

    def split_heads(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` as [B, heads, L, d], whichever of the two layouts the call came in."""
        if self.skip_reshape:
            return tensor
        return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Bring a mask to an additive one of four axes; [Lq, Lk] and [B, Lq, Lk] are ComfyUI's short forms."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        # Half of ComfyUI's attention functions take a boolean mask for something else.
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    if mask.ndim == 2:
        return mask[None, None]
    if mask.ndim == 3:
        return mask[:, None]
    return mask


class PatchStack:
    """Patches in order, the first one outermost, as one attention override.

    Args:
        patches: called outermost first. A patch may have a method ``acts_at(site) -> bool``: where all patches of the
            stack say no, the call goes through with its arguments untouched. A patch with a true attribute
            ``innermost`` takes the place of the kernel: it comes after all others, those of the stacks behind this one
            too, since what it would hand on to them has no keys any more.
        previous: the override that was installed before this one; it takes the place of the attention function.
    """

    def __init__(self, patches: Sequence[Patch], previous: Override | None = None) -> None:
        self.patches: tuple[Patch, ...] = tuple(patches)
        self.previous = previous
        # Shared by all stacks that ``around`` makes of this one; see APPLIED_KEY.
        self._identity = object()
        self._marks_calls = False
        self._warned: set[str] = set()

    def chain(self, previous: Override | None) -> PatchStack:
        """Return a stack with the same patches that calls ``previous`` where the attention function would be called."""
        return PatchStack(self.patches, previous)

    def around(self, override: Override | None) -> PatchStack:
        """Return this stack laid around an override that may hold on to this very stack: it acts once all the same."""
        outer = self.chain(override)
        outer._identity, outer._marks_calls = self._identity, True
        return outer

    def release(self) -> None:
        """Drop the tables that the patches keep on devices; they are made again when needed."""
        self._warned = set()
        for patch in self.patches:
            drop = getattr(patch, "release", None)
            if drop is not None:
                drop()

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchStack:
        # ComfyUI deep-copies model options at every clone; patches are immutable and their tables are shared.
        return self

    # A compiled model calls this as it is: sites and tables are Python objects that differ from step to step.
    @torch.compiler.disable
    def override(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run one attention call through the patches; what ``optimized_attention_override`` holds.

        Args:
            func: the host's attention function, called as ``func(q, k, v, heads, mask=None, **kwargs)``.
            *args: q, k, v, heads, mask and so on by position, [B, L, heads * d] or, with ``skip_reshape``,
                [B, heads, L, d].
            **kwargs: the same by name, ``transformer_options`` with the site, and whatever else the host passes: it
                is handed on.

        Returns:
            [B, Lq, heads * d], or with ``skip_output_reshape`` [B, heads, Lq, d].
        """
        options = kwargs.get("transformer_options") or {}
        site, applied = options.get(SITE_KEY), options.get(APPLIED_KEY, ())
        patches = () if self._identity in applied else self.patches
        if callable(site):
            site = self._find(site, _Call.bind(args, kwargs))
            # A finder counts calls, so that it is asked once: the next stack in the chain gets the answer.
            options = {**options, SITE_KEY: site}
            kwargs = {**kwargs, "transformer_options": options}
        active = [] if site is None else [patch for patch in patches if _acts_at(patch, site)]
        inner = [*(patch for patch in active if _is_innermost(patch)), *options.get(INNERMOST_KEY, ())]
        if inner:
            active = [patch for patch in active if not _is_innermost(patch)]
            behind = isinstance(getattr(self.previous, "__self__", None), PatchStack)
            options = {**options, INNERMOST_KEY: tuple(inner) if behind else ()}
            kwargs = {**kwargs, "transformer_options": options}
            active += [] if behind else inner
        if not active:
            return func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs)
        if self._marks_calls:
            kwargs = {**kwargs, "transformer_options": {**options, APPLIED_KEY: (*applied, self._identity)}}
        call = _Call.bind(args, kwargs)
        head_dim = call.split_heads(call.q).shape[3]

        found = site

        # Whether the function leaves the heads of its results together in memory.
        whole_heads: list[bool] = []

        def kernel(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, bias: Tensor | None) -> Tensor:
            heads = q.shape[1]
            function, previous = func, self.previous
            if bias is not None or q.shape[3] != head_dim:
                function, previous = _exact(func), None if _quantises(self.previous) else self.previous
            # Functions sum in another order when the heads come split, so rows that are left alone must not.
            split = call.skip_reshape or q.shape[3] != head_dim
            tensors = (q, k, v) if split else (tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v))
            arguments = dict(call.rest, mask=bias, skip_reshape=split, skip_output_reshape=True)
            if site is not found:
                # A patch has split the call: the next stack in the chain shall know.
                arguments["transformer_options"] = {**call.rest["transformer_options"], SITE_KEY: site}
            if previous is None:
                out = function(*tensors, heads, **arguments)
            else:
                out = previous(function, *tensors, heads, **arguments)
            # Some functions know skip_output_reshape only on some of their paths.
            if out.ndim == 3:
                return out.unflatten(-1, (heads, -1)).transpose(1, 2)
            whole_heads.append(out.is_contiguous())
            return out

        last = self.previous is None or _named(self.previous, _KERNELS)
        attend = Attend(kernel, _bias(call.mask, call.q.dtype), last)
        for patch in reversed(active):
            attend = _wrap(patch, attend)
        out = attend(*(call.split_heads(tensor) for tensor in (call.q, call.k, call.v)), site)
        if not call.skip_output_reshape:
            return out.transpose(1, 2).flatten(2)
        # What follows may round otherwise when memory is laid out otherwise.
        return out.contiguous() if all(whole_heads) else out

    def _find(self, finder: SiteFinder, call: _Call) -> AttentionSite | None:
        """Ask where a call stands; None too when its batch is not the one that the model was called with."""
        site = finder(*call.lengths)
        if site is None or call.q.shape[0] == site.rows.total:
            return site
        if site.kind not in self._warned:
            self._warned.add(site.kind)
            logger.warning(
                "%s attention in block %s is called with %d rows where the batch has %d: another node splits the "
                "batch there, so these calls are not guided; take that node out to guide them.",
                *(site.kind, site.block, call.q.shape[0], site.rows.total),
            )
        return None


def _named(function: Callable[..., Any] | None, words: Sequence[str]) -> bool:
    """Say whether one of the words is in the name of a function."""
    name = getattr(function, "__qualname__", "").lower()
    return any(word in name for word in words)


def _quantises(function: Callable[..., Any] | None) -> bool:
    """Say whether an attention function is one of those that round q and k by block."""
    return _named(function, _QUANTISING)


def _exact(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function, or torch's own where it cannot take channels and masks."""
    return torch_attention if _quantises(function) else function


def _acts_at(patch: Patch, site: AttentionSite) -> bool:
    decide = getattr(patch, "acts_at", None)
    return True if decide is None else decide(site)


def _is_innermost(patch: Patch) -> bool:
    return getattr(patch, "innermost", False)


def _wrap(patch: Patch, following: Attend) -> Attend:
    """Return ``patch`` and what follows it as one continuation."""

    def continuation(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, bias: Tensor | None) -> Tensor:
        return patch(following.with_bias(bias), q, k, v, site)

    return Attend(continuation, following.bias, last=False)
