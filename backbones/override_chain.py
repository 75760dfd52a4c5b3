"""Keep our stacks in the chain of attention overrides when another pack has put its own in their place.

Most packs set ``optimized_attention_override`` without a look at what was there. What they leave out is laid around
their override again, at each call of the model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

from ..attention_patches.attention import OVERRIDE_KEY
from ..attention_patches.stack import Override, PatchStack

# Where the stacks of a patched model lie in ``transformer_options``, in the order in which they were hung.
STACKS_KEY = "attention_patch_stacks"
# Other packs' overrides hold on to a handful of functions.
MAX_LOOKED_AT = 500


class OverrideChain:
    """The overrides of one patched model, each made once: a compiled model is compiled anew for other functions."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], tuple[Override | None, Override]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> OverrideChain:
        return self

    def complete(self, options: dict[str, Any]) -> None:
        """Lay those stacks around the override that it does not reach by itself.

        Args:
            options: ``transformer_options`` of one model call, changed in place.
        """
        override = options.get(OVERRIDE_KEY)
        reached = reached_stacks(override)
        missing = [stack for stack in options.get(STACKS_KEY, ()) if stack not in reached]
        if not missing:
            return
        key = (id(override), *map(id, missing))
        if key not in self._made:
            outer = override
            for stack in missing:
                outer = stack.around(outer).override
            # The override is kept too, so that no other one gets its id.
            self._made[key] = (override, outer)
        options[OVERRIDE_KEY] = self._made[key][1]

    def release(self) -> None:
        """Drop all overrides that were made; they hold on to other packs' functions."""
        self._made = {}


def hung_stacks(options: Mapping[str, Any], stack: PatchStack) -> tuple[PatchStack, ...]:
    """All stacks of a model and one more."""
    return (*options.get(STACKS_KEY, ()), stack)


def reached_stacks(override: Override | None) -> Sequence[PatchStack]:
    """Our stacks that an override holds on to, and so calls: as previous ones, in closures, partials and attributes."""
    found: list[PatchStack] = []
    ahead: list[Any] = [override]
    looked_at: dict[int, Any] = {}
    while ahead and len(looked_at) < MAX_LOOKED_AT:
        value = ahead.pop()
        if id(value) in looked_at:
            continue
        looked_at[id(value)] = value
        if isinstance(value, PatchStack):
            found.append(value)
            ahead.append(value.previous)
        else:
            ahead += _held_values(value)
    return found


def _held_values(value: Any) -> list[Any]:
    """What a function, a callable object or a container holds on to; nothing for all else."""
    if isinstance(value, MethodType):
        return [value.__self__, *_attributes(value.__self__)]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        return [*_closed_over(value), *(value.__defaults__ or ()), *_attributes(value)]
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    return _attributes(value) if callable(value) else []


def _closed_over(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        # A variable that has no value yet.
        with contextlib.suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _attributes(value: Any) -> list[Any]:
    """Attributes of an object; none of classes and of networks, which are large and hold no override."""
    if isinstance(value, type) or hasattr(value, "named_parameters"):
        return []
    return list(getattr(value, "__dict__", {}).values())
