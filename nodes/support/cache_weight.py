"""What results weigh in ComfyUI's cache, which frees the heaviest when memory runs short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...perception.mask_stack import MaskStack

T = TypeVar("T")


class _Weighed(tuple):
    """One tensor as long as a value is heavy: ComfyUI's cache counts tensors, and looks for them in tuples only."""

    def __new__(cls, *arguments: Any, **values: Any) -> Any:
        # A changed copy (``dataclasses.replace``) weighs something else: it is a plain value again.
        return cls.__bases__[0](*arguments, **values)

    # Guides are compared as objects, not as tuples of tensors.
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        plain = object.__new__(type(self).__bases__[0])
        plain.__dict__.update(self.__dict__)
        return weighed, (plain,)


def weighed(value: T) -> T:
    """A result for a wire: the same value, which ComfyUI's cache counts with the bytes that it keeps in memory.

    Args:
        value: a dataclass that holds tensors or masks.
    """
    if isinstance(value, _Weighed):
        return value
    # It reports this size and takes one byte of memory.
    weight = torch.zeros((), dtype=torch.uint8).expand(bytes_in_memory(value))
    made = tuple.__new__(_weighed_class(type(value)), (weight,))
    made.__dict__.update(value.__dict__)
    return made


@cache
def _weighed_class(kind: type) -> type:
    return type(kind.__name__, (kind, _Weighed), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def bytes_in_memory(value: Any) -> int:
    """Bytes of all tensors on the CPU and of all masks in memory that a value holds."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() if value.device.type == "cpu" else 0
    if isinstance(value, MaskStack):
        return value.bytes_in_memory
    if is_dataclass(value):
        return sum(bytes_in_memory(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return sum(map(bytes_in_memory, value.values()))
    return sum(map(bytes_in_memory, value)) if isinstance(value, list | tuple) else 0
