"""The attention function of our own models, with the same meaning and the same way in as ComfyUI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

OVERRIDE_KEY = "optimized_attention_override"


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    *,
    transformer_options: Mapping[str, Any] | None = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Scaled dot-product attention that obeys ``transformer_options["optimized_attention_override"]``.

    Args:
        q: queries, [B, Lq, heads * d], or with ``skip_reshape`` [B, heads, Lq, d].
        k: keys, same layout with Lk.
        v: values, same layout with Lk.
        heads: number of heads.
        mask: additive float bias in q's dtype, [Lq, Lk], [B or 1, Lq, Lk] or [B or 1, heads or 1, Lq, Lk].
        transformer_options: may hold the override, and for it the attention site.
        skip_reshape: the tensors come with the heads split.
        skip_output_reshape: leave the heads of the result split.
        **kwargs: ``scale`` and ``enable_gqa`` as ``torch_attention``; all of them are handed on to the override.

    Returns:
        [B, Lq, heads * d], or with ``skip_output_reshape`` [B, heads, Lq, d].
    """
    options = transformer_options or {}
    override = options.get(OVERRIDE_KEY)
    if override is None:
        return torch_attention(
            q, k, v, heads, mask, skip_reshape=skip_reshape, skip_output_reshape=skip_output_reshape, **kwargs
        )
    return override(
        torch_attention,
        q,
        k,
        v,
        heads,
        mask=mask,
        skip_reshape=skip_reshape,
        skip_output_reshape=skip_output_reshape,
        transformer_options=options,
        **kwargs,
    )


def torch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    *,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Tensor:
    """Torch's fused attention; arguments as ``attention``, which calls it where nothing overrides.

    Args:
        scale: factor on the products of queries and keys, ``d ** -0.5`` when None.
        enable_gqa: k and v may have fewer heads, each of which serves as many heads of q.
    """
    if not skip_reshape:
        widths = (q.shape[-1] // heads,) * 3 if enable_gqa else tuple(t.shape[-1] // heads for t in (q, k, v))
        pairs = zip((q, k, v), widths, strict=True)
        q, k, v = (tensor.unflatten(-1, (-1, width)).transpose(1, 2) for tensor, width in pairs)
    if enable_gqa:
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    if mask is not None:
        # Short forms: no batch axis, no head axis.
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Repeat the heads of [B, fewer, L, d] for the ``heads`` heads of q that share them; unchanged if none do."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)
