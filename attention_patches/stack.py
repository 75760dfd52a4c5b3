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
from .patch import Attend, AttentionPatch, Patch, as_patch
from .site import SITE_KEY, AttentionSite, SiteFinder

logger = logging.getLogger(__name__)

# What stacks tell each other of a call, in ``transformer_options``.
STATE_KEY = "attention_patches"

Override: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class CallState:
    """What the stacks in a chain of overrides tell those behind them of one call.

    Attributes:
        applied: stacks whose patches are already around the call; see ``PatchStack.around``.
        innermost: patches that take the kernel's place, for the last stack to run.
        exact: the call carries guidance, which a kernel that quantises or leaves out keys would lose.
    """

    applied: tuple[object, ...] = ()
    innermost: tuple[AttentionPatch, ...] = ()
    exact: bool = False

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> CallState:
        """What the stacks before said of a call with these arguments."""
        return (kwargs.get("transformer_options") or {}).get(STATE_KEY) or cls()


class HostKernel:
    """The function that comes after the patches of a call, in the form that patches call it in.

    Args:
        call: the call, with its scale as the kernel's own.
        site: where it stands.
        plain: what is called for tensors as they came.
        exact: gives what is called for those that carry guidance.
    """

    def __init__(
        self,
        call: AttentionCall,
        site: AttentionSite,
        plain: Callable[..., Tensor],
        exact: Callable[[], Callable[..., Tensor]],
    ) -> None:
        self._call, self._site = call, site
        self._plain, self._exact = plain, exact
        self._rest = {name: value for name, value in call.rest.items() if name != "enable_gqa"}
        self._state = CallState.of(call.rest)
        #: Of each call, whether the function left the heads of its result together in memory.
        self.together: list[bool] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, bias: Tensor | None) -> Tensor:
        """Return [B, heads, Lq, dv]; arguments as in ``Attend``."""
        heads, widened = q.shape[1], q.shape[3] != self._call.head_dim
        # Functions sum in another order when the heads come split, so rows that are left alone must not.
        split = self._call.skip_reshape or widened
        tensors = (q, k, v) if split else tuple(tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v))
        arguments = dict(self._rest, mask=bias, skip_reshape=split, skip_output_reshape=True)
        changes: dict[str, Any] = {}
        if site is not self._site:
            # A patch has split the call: the next stack in the chain must know.
            changes[SITE_KEY] = site
        guided = bias is not None or widened or self._state.exact
        if guided:
            changes[STATE_KEY] = replace(self._state, exact=True)
            arguments[REQUEST] = False
        if changes:
            arguments["transformer_options"] = {**self._rest["transformer_options"], **changes}
        out = (self._exact() if guided else self._plain)(*tensors, heads, **arguments)
        # Some functions know skip_output_reshape only on some of their paths.
        if out.ndim == 3:
            return out.unflatten(-1, (heads, -1)).transpose(1, 2)
        self.together.append(out.is_contiguous())
        return out


class PatchStack:
    """Patches in order, the first one outermost, as one attention override.

    A patch that lets every query see its first key more, on a model of one's own::

        def favour_first_key(attend, q, k, v, site):
            bias = q.new_zeros(1, 1, 1, k.shape[2])
            bias[..., 0] = 2.0
            return attend.with_bias(bias if attend.bias is None else attend.bias + bias)(q, k, v, site)

        stack = PatchStack([favour_first_key])
        options = {"attention_site": site}  # where the call stands; in ComfyUI the model's family says so
        out = stack.override(torch_attention, q, k, v, heads, transformer_options=options)  # [B, L, heads * d]

    Args:
        patches: called outermost first; plain functions act at every call.
        previous: the override that was installed before this one; it takes the place of the attention function.
        host: the attention function of the host, for calls in containers.
    """

    def __init__(
        self, patches: Sequence[Patch], previous: Override | None = None, host: Callable[..., Tensor] = torch_attention
    ) -> None:
        self.patches: tuple[AttentionPatch, ...] = tuple(map(as_patch, patches))
        self.previous = previous
        self.host = host
        # Shared by all stacks that ``around`` makes of this one; see ``CallState``.
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
            patch.release()

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
        site, kwargs = self._site_of(partial(AttentionCall.bind, args), kwargs)
        active, kwargs = self._order(site, kwargs)
        if site is not None and active:
            return self._run_patches(active, func, AttentionCall.bind(args, kwargs), site)
        if CallState.of(kwargs).exact:
            return self._exact(func)(*args, **kwargs)
        return func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs)

    def run_containers(self, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``run`` for tensors in containers (``peek``, ``take``) that the next function empties as soon as it can.

        Calls without an active patch go on in their containers, so that the tensors are freed as early as without us.
        """

        def peeked(kwargs: Mapping[str, Any]) -> AttentionCall:
            return AttentionCall.bind((q.peek(), k.peek(), v.peek(), *args), kwargs)

        site, kwargs = self._site_of(peeked, kwargs)
        active, kwargs = self._order(site, kwargs)
        exact = CallState.of(kwargs).exact
        in_containers = _in_containers(self.previous or self.host)
        if not active and not exact and in_containers is not None:
            return in_containers(q, k, v, *args, **kwargs)
        func = inspect.unwrap(self.host)
        taken = (q.take(), k.take(), v.take(), *args)
        if site is not None and active:
            return self._run_patches(active, func, AttentionCall.bind(taken, kwargs), site)
        return self._exact(func)(*taken, **kwargs)

    def _site_of(
        self, bind: Callable[[Mapping[str, Any]], AttentionCall], kwargs: dict[str, Any]
    ) -> tuple[AttentionSite | None, dict[str, Any]]:
        """Return where a call stands, and the arguments to hand on."""
        options = kwargs.get("transformer_options") or {}
        site = options.get(SITE_KEY)
        if not callable(site):
            return site, kwargs
        site = self._find(site, bind(kwargs), options)
        # A finder counts calls, so that it is asked once: the next stack in the chain gets the answer.
        return site, {**kwargs, "transformer_options": {**options, SITE_KEY: site}}

    def _order(self, site: AttentionSite | None, kwargs: dict[str, Any]) -> tuple[list[AttentionPatch], dict[str, Any]]:
        """Return the patches that act at a call, outermost first, and the arguments to hand on."""
        state = before = CallState.of(kwargs)
        patches = () if self._identity in state.applied else self.patches
        acting = [] if site is None else [patch for patch in patches if patch.acts_at(site)]
        active = [patch for patch in acting if not patch.innermost]
        inner = (*(patch for patch in acting if patch.innermost), *state.innermost)
        if _is_stack(self.previous):
            state = replace(state, innermost=inner)
        else:
            active += inner
            state = replace(state, innermost=())
        if active and self._marks_calls:
            state = replace(state, applied=(*state.applied, self._identity))
        if state != before:
            options = kwargs.get("transformer_options") or {}
            kwargs = {**kwargs, "transformer_options": {**options, STATE_KEY: state}}
        return active, kwargs

    def _exact(self, func: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What comes after the patches, for calls that carry guidance."""
        if self.previous is None:
            return self._exact_calls.function(func)
        if _is_stack(self.previous):
            return partial(self.previous, func)
        return partial(self._exact_calls.through, self.previous, self._exact_calls.function(func))

    def _run_patches(
        self, active: Sequence[AttentionPatch], func: Callable[..., Tensor], given: AttentionCall, site: AttentionSite
    ) -> Tensor:
        """Run a call through the patches that act at its site."""
        call = given.plainly_scaled()
        kernel = self._kernel(func, call, site)
        return self._chain(active, kernel, call, site)

    def _kernel(self, func: Callable[..., Tensor], call: AttentionCall, site: AttentionSite) -> HostKernel:
        """What comes after the patches of a call."""
        plain = func if self.previous is None else partial(self.previous, func)
        return HostKernel(call, site, plain, partial(self._exact, func))

    def _chain(
        self, active: Sequence[AttentionPatch], kernel: HostKernel, call: AttentionCall, site: AttentionSite
    ) -> Tensor:
        """Run the patches around the kernel, and lay out what they return as the call asks."""
        last = self.previous is None or replacing_kernel(self.previous) is not None
        attend = Attend(kernel, call.bias, last)
        for patch in reversed(active):
            attend = _wrap(patch, attend)
        out = attend(*call.split(), site)
        if not call.skip_output_reshape:
            return out.transpose(1, 2).flatten(2)
        # What follows may round otherwise when memory is laid out otherwise.
        return out.contiguous() if all(kernel.together) else out

    def _find(self, finder: SiteFinder, call: AttentionCall, options: Mapping[str, Any]) -> AttentionSite | None:
        """Ask where a call stands; None too when its batch is not the one that the model was called with."""
        site = finder(call.size, options)
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

    override.__self__ = stack  # type: ignore[attr-defined]
    if _in_containers(stack.previous or stack.host) is not None:
        override.container_function = torch.compiler.disable(stack.run_containers)  # type: ignore[attr-defined]
    return override


def _in_containers(function: Callable[..., Any]) -> Callable[..., Tensor] | None:
    """The form of an attention function that takes its tensors in containers, where it has one."""
    return getattr(function, "container_function", None)


def _is_stack(override: Override | None) -> bool:
    return isinstance(getattr(override, "__self__", None), PatchStack)


def _wrap(patch: AttentionPatch, following: Attend) -> Attend:
    """Return ``patch`` and what follows it as one continuation."""

    def continuation(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, bias: Tensor | None) -> Tensor:
        return patch(following.with_bias(bias), q, k, v, site)

    return Attend(continuation, following.bias, last=False)
