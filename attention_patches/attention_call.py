"""One call of an attention function with its arguments sorted by name, whichever of the host's forms it came in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .kernels.torch_attention import repeat_heads
from .site import CallSize

# The call names of ComfyUI's attention functions after ``func``, in their positional order.
POSITIONAL = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")
# The sub-quadratic function names its tensors in full.
SYNONYMS = {"query": "q", "key": "k", "value": "v"}


@dataclass(frozen=True)
class AttentionCall:
    """Attributes as the arguments of ``attention``; ``rest`` is what else was passed by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    skip_reshape: bool
    skip_output_reshape: bool
    rest: dict[str, Any]

    @classmethod
    def bind(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AttentionCall:
        """Sort the arguments of a call.

        Raises:
            TypeError: there are more positional arguments than attention functions have, or q, k, v or heads lack.
        """
        if len(args) > len(POSITIONAL):
            raise TypeError(
                f"an attention call has at most {len(POSITIONAL)} positional arguments ({', '.join(POSITIONAL)}) "
                f"but got {len(args)}; pass the others by name."
            )
        named = dict(zip(POSITIONAL, args, strict=False))
        for name, value in kwargs.items():
            named[SYNONYMS.get(name, name)] = value
        missing = [name for name in POSITIONAL[:4] if name not in named]
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

    @property
    def size(self) -> CallSize:
        """What tells this call from others of its block."""
        return CallSize(*self.lengths, self.heads * self.head_dim)

    @property
    def head_dim(self) -> int:
        """d of q and k."""
        return self.q.shape[-1] if self.skip_reshape else self.q.shape[-1] // self.heads

    @property
    def bias(self) -> Tensor | None:
        """The mask as an additive one of four axes; [Lq, Lk] and [B, Lq, Lk] are ComfyUI's short forms."""
        mask, dtype = self.mask, self.q.dtype
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

    def plainly_scaled(self) -> AttentionCall:
        """This call without a ``scale`` of its own: q is multiplied so that ``d ** -0.5`` does the same.

        In half precision q is rounded once more, as in the host's sub-quadratic function; a power of two rounds
        nothing.
        """
        rest = dict(self.rest)
        scale = rest.pop("scale", None)
        factor = 1.0 if scale is None else scale * self.head_dim**0.5
        return replace(self, q=self.q if math.isclose(factor, 1.0, rel_tol=1e-7) else self.q * factor, rest=rest)

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as [B, heads, L, d]; keys and values of grouped heads (``enable_gqa``) once for each head of q."""
        if self.skip_reshape:
            tensors = (self.q, self.k, self.v)
        else:
            widths = (self.head_dim, self.head_dim, self.v.shape[-1] // self.heads)
            if self.rest.get("enable_gqa"):
                widths = (self.head_dim,) * 3
            pairs = zip((self.q, self.k, self.v), widths, strict=True)
            tensors = tuple(tensor.unflatten(-1, (-1, width)).transpose(1, 2) for tensor, width in pairs)
        if not self.rest.get("enable_gqa"):
            return tensors
        heads = tensors[0].shape[1]
        return tensors[0], repeat_heads(tensors[1], heads), repeat_heads(tensors[2], heads)

    def split_result(self, out: Tensor) -> Tensor:
        """What a function returned for this call, as [B, heads, Lq, dv]."""
        # Some functions know skip_output_reshape only on some of their paths.
        return out if out.ndim == 4 else out.unflatten(-1, (self.heads, -1)).transpose(1, 2)
