"""Which attention functions carry guidance, and what is called in the place of those that do not.

Guidance lies in channels of q and k that are far larger than the rest, and in masks. Kernels that round q and k by
blocks of tokens, or leave out keys that seem unimportant, lose the one or the other without a word. So they are asked:

1. a function that knows the host's ``low_precision_attention`` is called with it off, which it obeys;
2. the host's plain functions are exact, and names that say "rounds" are believed;
3. every other function, and every override that does not call the function it is given, is measured: a few rows of its
   first guided result of each size are compared with the softmax written out. Sizes matter, since many functions round
   or leave out long sequences only; and so does the real call, since a probe of our own would be one more.

Those that fail are left out of the guided calls of the run and serve all others.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from ..attention_call import AttentionCall
from .torch_attention import torch_attention

logger = logging.getLogger(__name__)

# The host's way to ask for exact attention.
REQUEST = "low_precision_attention"
# The host's functions that are exact; flash attention takes no mask.
EXACT = frozenset(
    ("attention_basic", "attention_split", "attention_sub_quad", "attention_pytorch", "attention_xformers")
)
EXACT_WITHOUT_MASK = frozenset(("attention_flash",))
# Functions with these words in their names round q and k by block, which region channels do not survive, and return
# wrong results for masks on most of their builds (Comfy-Org/ComfyUI#13735).
ROUNDING = ("sage", "int8", "fp8", "fp4")
# What functions raise that refuse a width of heads or a mask.
REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, ImportError)
# Rows of the result that are compared, and how far they may be off, of their norm: units of the type's precision, and
# at least what matrix units round away in single precision. Eight bits are off by 2 % before there is any guidance.
COMPARED_ROWS = 8
ALLOWED_UNITS, ALLOWED_ERROR = 4, 5e-3

Attention = Callable[..., Tensor]


def takes_guidance(function: Attention, masked: bool) -> bool | None:
    """Say whether an attention function carries channels, and with ``masked`` a mask; None if nobody knows."""
    kernel = _undecorated(function)
    code = getattr(kernel, "__code__", None)
    name = getattr(kernel, "__name__", "")
    if kernel is torch_attention or name in EXACT or (code is not None and _mentions(code, REQUEST)):
        return True
    if name in EXACT_WITHOUT_MASK:
        return not masked
    named = f"{getattr(function, '__qualname__', '')} {getattr(kernel, '__qualname__', '')}".lower()
    return False if any(word in named for word in ROUNDING) else None


def replacing_kernel(override: Attention | None) -> Attention | None:
    """The attention function that an override only hands its calls on to, in the place of the one it is given.

    It takes any call that the host's function takes. None for overrides that may do more than that.
    """
    # An argument that is there already would stand where the given function does.
    if override is None or isinstance(override, functools.partial):
        return None
    shim = _undecorated(override)
    code = getattr(shim, "__code__", None)
    if code is None or code.co_argcount != 1 or not code.co_flags & inspect.CO_VARARGS:
        return None
    if _reads(code, code.co_varnames[0]):
        return None
    held = [value for value in (*_held_values(shim), *_named_values(shim)) if _is_attention(value)]
    return held[0] if len({_undecorated(value) for value in held}) == 1 else None


class ExactCalls:
    """Guided calls of one stack: what each function was found to carry."""

    def __init__(self) -> None:
        # With the function, so that no other one gets its id.
        self._verdicts: dict[Hashable, tuple[bool, Attention]] = {}
        self._said: set[str] = set()

    def forget(self) -> None:
        """Measure anew, and say it anew: at the end of a run."""
        self._verdicts, self._said = {}, set()

    def function(self, function: Attention) -> Attention:
        """Return an attention function for guided calls: this one where it carries them, else torch's."""

        @functools.wraps(function)
        def exact(*args: Any, **kwargs: Any) -> Tensor:
            call = AttentionCall.bind(args, kwargs)
            known = takes_guidance(function, call.mask is not None)
            out = self._asked(function, function, known, call, args, kwargs)
            if out is None:
                self._say(logging.INFO, function)
                return torch_attention(*args, **kwargs)
            return out

        return exact

    def through(self, override: Attention, function: Attention, *args: Any, **kwargs: Any) -> Tensor:
        """Run a guided call through another pack's override, or past it where it does not carry the call.

        Args:
            override: of the other pack.
            function: what it is given to call, of ``function``.
            *args: of the call.
            **kwargs: of the call.
        """
        call, kernel = AttentionCall.bind(args, kwargs), replacing_kernel(override)
        known = takes_guidance(override if kernel is None else kernel, call.mask is not None)
        calls: list[None] = []

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Tensor:
            calls.append(None)
            return function(*args, **kwargs)

        out = self._asked(functools.partial(override, counted), override, known, call, args, kwargs, calls)
        if out is None:
            self._say(*((logging.WARNING, override) if kernel is None else (logging.INFO, kernel)))
            return function(*args, **kwargs)
        return out

    def _asked(
        self,
        run: Attention,
        identity: Attention,
        known: bool | None,
        call: AttentionCall,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        calls: Sequence[None] = (),
    ) -> Tensor | None:
        """Return the result of ``run``, or None where it does not carry the call; ``calls`` says that it left that to
        the function it was given."""
        key = (id(identity), call.q.dtype, call.q.device.type, call.q.shape[-1], call.lengths, call.mask is None)
        if known is None:
            known = self._verdicts.get(key, (None,))[0]
        if known is not None:
            return run(*args, **kwargs) if known else None
        try:
            out = run(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS:
            # Then the function that it was given has failed.
            if calls:
                raise
            out = None
        if calls:
            return out
        carried = out is not None and agrees(out, call)
        self._verdicts[key] = carried, identity
        return out if carried else None

    def _say(self, level: int, function: Attention) -> None:
        name = getattr(_undecorated(function), "__qualname__", type(function).__name__)
        if name not in self._said:
            self._said.add(name)
            logger.log(
                level,
                "the attention function %s rounds, leaves out or refuses what guidance is made of, so guided calls are "
                "computed exactly without it and all other calls still go to it.",
                name,
            )


def agrees(out: Tensor, call: AttentionCall) -> bool:
    """Compare a few rows of the result of a call with the softmax written out in single precision.

    Args:
        out: what a function returned for the call.
        call: without a ``scale`` of its own.
    """
    q, k, v = call.split()
    result = call.split_result(out)
    if result.shape != (*q.shape[:3], v.shape[3]):
        return False
    rows = torch.linspace(0, q.shape[2] - 1, min(COMPARED_ROWS, q.shape[2])).long().tolist()
    q, k, v, result = (_ends(tensor).float() for tensor in (q[:, :, rows], k, v, result[:, :, rows]))
    logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    bias = call.bias
    if bias is not None:
        logits = logits + _ends(bias if bias.shape[2] == 1 else bias[:, :, rows]).float()
    expected = logits.softmax(dim=3) @ v
    allowed = max(ALLOWED_UNITS * torch.finfo(call.q.dtype).eps, ALLOWED_ERROR)
    return bool((result - expected).norm() <= allowed * expected.norm())


def _ends(tensor: Tensor) -> Tensor:
    """The first and the last of the batch rows and of the heads of [B or 1, heads or 1, ...]."""
    rows, heads = ([0, -1] if size > 1 else [0] for size in tensor.shape[:2])
    return tensor[rows][:, heads]


def _undecorated(function: Attention) -> Any:
    """The function itself under decorators, partials and bound methods."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.ismethod(function):
            function = function.__func__
        else:
            return function


def _mentions(code: CodeType, name: str) -> bool:
    return name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] or name in code.co_consts


def _reads(code: CodeType, variable: str) -> bool:
    """Say whether a function does anything with one of its variables."""
    arguments = (instruction.argval for instruction in dis.get_instructions(code))
    return any(variable == value or (isinstance(value, tuple) and variable in value) for value in arguments)


def _held_values(function: Any) -> list[Any]:
    """What a function has closed over and its defaults."""
    found = list(function.__defaults__ or ())
    for cell in function.__closure__ or ():
        # A variable may have no value yet.
        with contextlib.suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _named_values(function: Any) -> list[Any]:
    """What the dotted names in a function's code stand for, as in ``comfy.ldm.modules.attention.attention_pytorch``."""
    values, value = [], None
    for name in function.__code__.co_names:
        value = getattr(value, name) if hasattr(value, name) else function.__globals__.get(name)
        values.append(value)
    return values


def _is_attention(value: Any) -> bool:
    """Say whether a function has the arguments of the host's attention functions."""
    code = getattr(_undecorated(value), "__code__", None) if callable(value) else None
    return code is not None and code.co_varnames[:5] in (
        ("q", "k", "v", "heads", "mask"),
        ("query", "key", "value", "heads", "mask"),
    )
