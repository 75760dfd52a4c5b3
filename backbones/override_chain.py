"""Keep our stacks outermost in the chain of attention overrides, whatever another pack has put there after them.

Most packs set ``optimized_attention_override`` without a look at what was there, and some take the calls first and hand
on what they do not want. Our stacks are put around theirs again, at each call of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..attention_patches.kernels.torch_attention import OVERRIDE_KEY
from ..attention_patches.patch import AttentionPatch
from ..attention_patches.stack import Override, PatchStack

# Where the stacks of a patched model are in ``transformer_options``, in the order in which they were installed.
STACKS_KEY = "attention_patch_stacks"


class OverrideChain:
    """The overrides of one patched model, each made once: a compiled model is compiled anew for other functions."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], tuple[Override | None, Override | None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> OverrideChain:
        return self

    def complete(self, options: dict[str, Any]) -> None:
        """Put the model's stacks around the override, unless they are outermost as they are.

        Overrides that call the ones before them may keep the calls that suit them, as sparse attention keeps the long
        ones, or make two calls of one. A stack that they hold on to acts once all the same.

        Args:
            options: ``transformer_options`` of one model call, changed in place.
        """
        override, stacks = options.get(OVERRIDE_KEY), options.get(STACKS_KEY, ())
        outermost, foreign = outermost_stacks(override)
        if all(stack in outermost for stack in stacks):
            return
        key = (id(foreign), *map(id, stacks))
        if key not in self._made:
            outer = foreign
            for stack in stacks:
                outer = stack.around(outer).override
            # The override is kept too, so that no other one gets its id. Several threads may run one model.
            self._made.setdefault(key, (foreign, outer))
        options[OVERRIDE_KEY] = self._made[key][1]

    def release(self) -> None:
        """Drop all overrides that were made; they hold on to other packs' functions."""
        self._made = {}


def patches_on(model: Any) -> list[AttentionPatch]:
    """All our patches on a ComfyUI ``ModelPatcher``, in the order in which nodes added them."""
    options = model.model_options.get("transformer_options", {})
    return [patch for stack in options.get(STACKS_KEY, ()) for patch in stack.patches]


def hung_stacks(options: Mapping[str, Any], stack: PatchStack) -> tuple[PatchStack, ...]:
    """All stacks of a model and one more."""
    return (*options.get(STACKS_KEY, ()), stack)


def outermost_stacks(override: Override | None) -> tuple[Sequence[PatchStack], Override | None]:
    """Our stacks that a call meets before any other pack's override, and that override."""
    found: list[PatchStack] = []
    while isinstance(stack := getattr(override, "__self__", None), PatchStack):
        found.append(stack)
        override = stack.previous
    return found, override
