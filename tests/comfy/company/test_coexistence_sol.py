"""Guidance beside Sol-Attn's override as it is: it takes the long calls first and hands on the rest.

Only its kernel, which needs a GPU, is replaced, by one that leaves keys out and takes any width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from company import CLEAR, EXACT, ORDERS, in_order
from dense_reference import OVERRIDE
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import sample, tiny
from packs import SOL_ATTENTION, load_pack
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]


@pytest.fixture
def kept(comfy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of heads of the calls that the kernel was given."""
    pack, widths = load_pack(comfy_folder, SOL_ATTENTION, "sol_attention"), []

    def kernel(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        widths.append(q.shape[3])
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k[:, ::2], v[:, ::2]))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def ineligible(q: Tensor, k: Tensor, mask: Any, width: int, min_tokens: int) -> str | None:
        return "short" if q.shape[1] < min_tokens else "cross-attention" if q.shape[1] != k.shape[1] else None

    monkeypatch.setattr(pack, "_sol_attn_kernel", kernel)
    monkeypatch.setattr(pack, "_ineligible", ineligible)
    return widths


def node(pack: ModuleType) -> Callable[[Any], Any]:
    """What its node sets: an override that hands on to the one before it."""

    def patch(patcher: Any) -> Any:
        patcher = patcher.clone()
        options = patcher.model_options["transformer_options"]
        options[OVERRIDE] = pack.make_override(min_tokens=72, previous=options.get(OVERRIDE))
        return patcher

    return patch


@pytest.mark.parametrize("order", ORDERS)
def test_guided_calls_are_whole_and_all_others_sparse(
    comfy_folder: Path, kept: list[int], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = tiny("wan"), node(load_pack(comfy_folder, SOL_ATTENTION, "sol_attention"))
    guide, spans = guide_of("wan", "separate"), spans_of("wan")
    expected = sample(model, dense(model, guide, spans).hang(model.patcher), cfg=1.0)
    film = sample(model, in_order(model, order, other, lambda patcher: patched(model, guide, spans, patcher)), cfg=1.0)
    assert relative(film, expected) < EXACT
    kept.clear()
    # Outside of the guided part of the schedule it is as without us.
    late = guide_of("wan", "separate", start_percent=0.9)
    film = sample(model, in_order(model, order, other, lambda patcher: patched(model, late, spans, patcher)))
    assert kept == [24] * 4
    sparse = sample(model, other(model.patcher))
    assert torch.equal(film, sparse) and relative(sparse, sample(model)) > CLEAR
