"""Two patches on one tiny model, ours and another pack's, in either order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dense_reference import DenseReference
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import TinyModel, sample
from torch import Tensor

# Of the output's range, in single precision; and what each side's doing changes at least.
EXACT, CLEAR = 1e-4, 2e-3
ORDERS = ("other first", "ours first")


def in_order(model: TinyModel, order: str, other: Callable[[Any], Any], ours: Callable[[Any], Any]) -> Any:
    """The model with both patches, one after the other."""
    first, second = (other, ours) if order == "other first" else (ours, other)
    return second(first(model.patcher))


def prove_both(
    model: TinyModel,
    order: str,
    other: Callable[[Any], Any],
    reference: DenseReference | None = None,
    mode: str = "separate",
    exact: float = EXACT,
    **settings: Any,
) -> Tensor:
    """Sample with both patches; compare with explicit biases beside the other, and with each alone."""
    name = model.name
    guide, spans = guide_of(name, mode), spans_of(name)
    both = sample(
        model, in_order(model, order, other, lambda patcher: patched(model, guide, spans, patcher)), **settings
    )
    reference = reference or dense(model, guide, spans)
    expected = sample(model, reference.hang(other(model.patcher)), **settings)
    assert reference.model_calls
    assert relative(both, expected) < exact
    assert relative(both, sample(model, other(model.patcher), **settings)) > CLEAR
    assert relative(both, sample(model, patched(model, guide, spans), **settings)) > CLEAR
    return both
