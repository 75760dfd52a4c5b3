"""Copies of networks that take no extra memory."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def sharing_copy(network: Network) -> Network:
    """A new network that shares parameters and buffers with the given one; modules put into it stay out of that one."""
    shared = {id(value): value for value in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
