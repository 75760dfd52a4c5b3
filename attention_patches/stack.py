"""Compose attention patches into the one function that ComfyUI (and our own models) call.

A patch is middleware: it gets the rest of the chain as ``attend`` and the tensors of one attention call, and calls
``attend`` zero, one or more times. Patches compose by order and none of them knows a model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .attention_call import AttentionCall
from .kernels.exact import REQUEST, ExactCalls, replacing_kernel
from .kernels.torch_attention import torch_attention
from .site import SITE_KEY, AttentionSite, SiteFinder

logger = logging.getLogger(__name__)

# The key in ``transformer_options`` under which stacks note that their patches are already around a call.
APPLIED_KEY = "attention_patches_applied"
# The key in ``transformer_options`` under which a stack hands its innermost patches on to the stacks behind it.
INNERMOST_KEY = "attention_patches_innermost"
# The key in ``transformer_options`` under which a stack says that a call carries guidance, to the stacks behind it.
EXACT_KEY = "attention_patches_exact"


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


class PatchStack:
    """Patches in order, the first one outermost, as one attention override.

    Args:
        patches: called outermost first. A patch may have a method ``acts_at(site) -> bool``: where all patches of the
            stack say no, the call goes through with its arguments untouched. A patch with a true attribute
            ``innermost`` takes the place of the kernel: it comes after all others, those of the stacks behind this one
            too, since what it would hand on to them has no keys any more.
        previous: the override that was installed before this one; it takes the place of the attention function.
    """

    def __init__(
        self, patches: Sequence[Patch], previous: Override | None = None, host: Callable[..., Tensor] = torch_attention
    ) -> None:
        self.patches: tuple[Patch, ...] = tuple(patches)
        self.previous = previous
        self.host = host
        # Shared by all stacks that ``around`` makes of this one; see APPLIED_KEY.
        self._identity = object()
        self._marks_calls = False
        self._warned: set[str] = set()
        self._exact_calls = ExactCalls()
        #: What ``optimized_attention_override`` holds: ``run``, and where the host may leave tensors to be freed early
        #: (``container_function``) the function for that.
        self.override: Override = _override(self)

    def chain(self, previous: Override | None) -> PatchStack:
        """Return a stack with the same patches that calls ``previous`` where the attention function would be called."""
        return PatchStack(self.patches, previous, self.host)

    def around(self, override: Override | None) -> PatchStack:
        """Return this stack laid around an override that may hold on to this very stack: it acts once all the same."""
        outer = self.chain(override)
        outer._identity, outer._marks_calls = self._identity, True
        return outer

    def release(self) -> None:
        """Drop the tables that the patches keep on devices; they are made again when needed."""
        self._warned = set()
        self._exact_calls.forget()
        for patch in self.patches:
            drop = getattr(patch, "release", None)
            if drop is not None:
                drop()

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchStack:
        # ComfyUI deep-copies model options at every clone; patches are immutable and their tables are shared.
        return self

    def run(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run one attention call through the patches.

        Args:
            func: the host's attention function, called as ``func(q, k, v, heads, mask=None, **kwargs)``.
            *args: q, k, v, heads, mask and so on by position, [B, L, heads * d] or, with ``skip_reshape``,
                [B, heads, L, d].
            **kwargs: the same by name, ``transformer_options`` with the site, and whatever else the host passes: it
                is handed on.

        Returns:
            [B, Lq, heads * d], or with ``skip_output_reshape`` [B, heads, Lq, d].
        """
        site, active, kwargs = self._resolve(partial(AttentionCall.bind, args), kwargs)
        if active:
            return self._attend(func, AttentionCall.bind(args, kwargs), site, active)
        if (kwargs.get("transformer_options") or {}).get(EXACT_KEY):
            return self._exact(func)(*args, **kwargs)
        return func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs)

    def run_containers(self, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``run`` for tensors in containers (``peek``, ``take``) that the next function empties as soon as it can.

        Calls without an active patch go on in their containers, so that the tensors are freed as early as without us.
        """

        def peeked(kwargs: Mapping[str, Any]) -> AttentionCall:
            return AttentionCall.bind((q.peek(), k.peek(), v.peek(), *args), kwargs)

        site, active, kwargs = self._resolve(peeked, kwargs)
        if not active and not (kwargs.get("transformer_options") or {}).get(EXACT_KEY):
            return _containers(self.previous or self.host)(q, k, v, *args, **kwargs)
        func = inspect.unwrap(self.host)
        taken = (q.take(), k.take(), v.take(), *args)
        if active:
            return self._attend(func, AttentionCall.bind(taken, kwargs), site, active)
        return self._exact(func)(*taken, **kwargs)

    def _resolve(
        self, bind: Callable[[Mapping[str, Any]], AttentionCall], kwargs: dict[str, Any]
    ) -> tuple[AttentionSite | None, list[Patch], dict[str, Any]]:
        """Return where a call stands, the patches that act there and the arguments to hand on."""
        options = kwargs.get("transformer_options") or {}
        site, applied = options.get(SITE_KEY), options.get(APPLIED_KEY, ())
        patches = () if self._identity in applied else self.patches
        if callable(site):
            site = self._find(site, bind(kwargs))
            # A finder counts calls, so that it is asked once: the next stack in the chain gets the answer.
            options = {**options, SITE_KEY: site}
            kwargs = {**kwargs, "transformer_options": options}
        active = [] if site is None else [patch for patch in patches if _acts_at(patch, site)]
        inner = [*(patch for patch in active if _is_innermost(patch)), *options.get(INNERMOST_KEY, ())]
        if inner:
            active = [patch for patch in active if not _is_innermost(patch)]
            behind = _is_stack(self.previous)
            options = {**options, INNERMOST_KEY: tuple(inner) if behind else ()}
            kwargs = {**kwargs, "transformer_options": options}
            active += [] if behind else inner
        if active and self._marks_calls:
            kwargs = {**kwargs, "transformer_options": {**options, APPLIED_KEY: (*applied, self._identity)}}
        return site, active, kwargs

    def _exact(self, func: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What comes after the patches, for calls that carry guidance."""
        if self.previous is None:
            return self._exact_calls.function(func)
        if _is_stack(self.previous):
            return partial(self.previous, func)
        return partial(self._exact_calls.through, self.previous, self._exact_calls.function(func))

    def _attend(
        self, func: Callable[..., Tensor], given: AttentionCall, found: AttentionSite, active: Sequence[Patch]
    ) -> Tensor:
        """Run a call through the patches that act at its site."""
        call = given.plainly_scaled()
        head_dim = call.head_dim
        rest = {name: value for name, value in call.rest.items() if name != "enable_gqa"}
        options = call.rest["transformer_options"]
        # Whether the function leaves the heads of its results together in memory.
        whole_heads: list[bool] = []

        def kernel(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, bias: Tensor | None) -> Tensor:
            heads = q.shape[1]
            # Functions sum in another order when the heads come split, so rows that are left alone must not.
            split = call.skip_reshape or q.shape[3] != head_dim
            tensors = (q, k, v) if split else (tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v))
            arguments = dict(rest, mask=bias, skip_reshape=split, skip_output_reshape=True)
            if site is not found:
                # A patch has split the call: the next stack in the chain shall know.
                arguments["transformer_options"] = {**options, SITE_KEY: site}
            if bias is not None or q.shape[3] != head_dim or options.get(EXACT_KEY):
                function = self._exact(func)
                arguments["transformer_options"] = {**arguments["transformer_options"], EXACT_KEY: True}
                arguments[REQUEST] = False
            else:
                function = func if self.previous is None else partial(self.previous, func)
            out = function(*tensors, heads, **arguments)
            # Some functions know skip_output_reshape only on some of their paths.
            if out.ndim == 3:
                return out.unflatten(-1, (heads, -1)).transpose(1, 2)
            whole_heads.append(out.is_contiguous())
            return out

        last = self.previous is None or replacing_kernel(self.previous) is not None
        attend = Attend(kernel, call.bias, last)
        for patch in reversed(active):
            attend = _wrap(patch, attend)
        out = attend(*call.split(), found)
        if not call.skip_output_reshape:
            return out.transpose(1, 2).flatten(2)
        # What follows may round otherwise when memory is laid out otherwise.
        return out.contiguous() if all(whole_heads) else out

    def _find(self, finder: SiteFinder, call: AttentionCall) -> AttentionSite | None:
        """Ask where a call stands; None too when its batch is not the one that the model was called with."""
        site = finder(*call.lengths, call.rest["transformer_options"])
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


def _override(stack: PatchStack) -> Override:
    """``PatchStack.run`` as the host calls it; a function, since the host looks for attributes on it."""

    # A compiled model calls this as it is: sites and tables are Python objects that differ from step to step.
    @torch.compiler.disable
    def override(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return stack.run(func, *args, **kwargs)

    override.__self__ = stack
    if _containers(stack.previous or stack.host) is not None:
        override.container_function = torch.compiler.disable(stack.run_containers)
    return override


def _containers(function: Callable[..., Any]) -> Callable[..., Tensor] | None:
    return getattr(function, "container_function", None)


def _is_stack(override: Override | None) -> bool:
    return isinstance(getattr(override, "__self__", None), PatchStack)


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
