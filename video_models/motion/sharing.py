"""Copies of networks that take no memory of their own."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def sharing_copy(network: Network) -> Network:
    """A network of its own with the given one's parameters and buffers: modules put into it stay out of that."""
    shared = {id(value): value for value in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
