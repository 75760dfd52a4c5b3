"""The default attention function means what ComfyUI's does."""

from __future__ import annotations

from typing import Any

import attention_calls
import pytest
import torch
from attention_calls import joined
from torch import Tensor

from mask_guided_video.attention_patches.kernels.explicit import explicit_attention
from mask_guided_video.attention_patches.kernels.torch_attention import attention, torch_attention


def split(tensor: Tensor) -> Tensor:
    return attention_calls.split(tensor, 3)


def test_layouts_agree() -> None:
    q, k, v = joined(5), joined(7, 1), joined(7, 2)
    out = attention(q, k, v, 3)
    assert out.shape == (2, 5, 24)
    reference = explicit_attention(split(q), split(k), split(v))
    torch.testing.assert_close(split(out), reference)
    assert torch.equal(attention(split(q), split(k), split(v), 3, skip_reshape=True), out)
    assert torch.equal(attention(q, k, v, 3, skip_output_reshape=True), split(out))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (2, 5, 7), (2, 1, 5, 7), (1, 3, 5, 7), (2, 3, 5, 7)])
def test_mask_forms(shape: tuple[int, ...]) -> None:
    q, k, v = joined(5), joined(7, 1), joined(7, 2)
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    full = mask if mask.ndim == 4 else mask[:, None] if mask.ndim == 3 else mask[None, None]
    reference = explicit_attention(split(q), split(k), split(v), full)
    torch.testing.assert_close(split(attention(q, k, v, 3, mask)), reference)
    torch.testing.assert_close(split(attention(q, k, v, heads=3, mask=mask)), reference)


def test_override_gets_everything() -> None:
    q, k, v = joined(5), joined(7, 1), joined(7, 2)
    seen: dict[str, Any] = {}

    def override(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.update(kwargs, func=func, args=args)
        return func(*args, **kwargs)

    options = {"optimized_attention_override": override}
    out = attention(q, k, v, 3, transformer_options=options, low_precision_attention=False)
    assert torch.equal(out, attention(q, k, v, 3))
    assert seen["func"] is torch_attention and seen["args"][3] == 3
    assert seen["transformer_options"] is options
    assert seen["low_precision_attention"] is False
