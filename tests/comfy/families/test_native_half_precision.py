"""Guidance on native models in half precision: finite, and explicit biases' result within the type's rounding."""

from __future__ import annotations

import pytest
import torch
from dense_reference import CALLS
from family_rows import rows
from half_precision import ROUNDING, in_half
from native_guides import dense, first_predictions, guide_of, patched, relative, spans_of
from native_models import tiny

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]

NAMES = ("wan", "ltx", "hunyuan", "mochi", "minimax_h3", "sd15", "svd")
MODES = ("separate", "separate hard", "focus", "focus_fg", "cross_text")


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("name", rows(NAMES))
def test_guidance_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model, patcher = tiny(name), in_half(name, dtype)
    plain = first_predictions(model, patcher)["positive"]
    for mode in MODES:
        if mode == "cross_text" and not CALLS[name].has_words:
            continue
        guide, spans = guide_of(name, mode), spans_of(name)
        expected = first_predictions(model, dense(model, guide, spans).hang(patcher))["positive"]
        guided = first_predictions(model, patched(model, guide, spans, patcher))["positive"]
        assert guided.isfinite().all(), mode
        assert relative(guided, expected) < ROUNDING[dtype], mode
        assert relative(guided, plain) > 2 * relative(guided, expected), mode
