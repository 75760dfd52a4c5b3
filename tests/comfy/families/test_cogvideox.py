"""Guidance in CogVideoX, by comparison with explicit biases at every attention call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from native_guides import GUIDES, first_predictions, patched, relative
from native_models import TinyModel, sample
from tiny_cogvideox import FRAMES, SPANS, cogvideox, guide_of, reference

from mask_guided_video.attention_patches.guidance import plan as guidance_plan
from mask_guided_video.backbones.families.cogvideox import CogVideoX
from mask_guided_video.backbones.registry import require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# Of the output's range, in single precision; and what guidance changes at least.
EXACT, CLEAR = 1e-4, 5e-3


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return cogvideox()


# --- the proof --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 11), pytest.param((8, 12), marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", sorted(GUIDES))
@pytest.mark.parametrize("kernel", ["as it comes", "channels", "partition"])
def test_guided_film_equals_explicit_biases(
    size: tuple[int, int], mode: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel != "as it comes":
        monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)
        monkeypatch.setattr(guidance_plan, "PARTITION_TOKENS", 1 if kernel == "partition" else 10**9)
    model, guide = cogvideox(size), guide_of(mode, size)
    spans = None if mode == "separate among film" else SPANS
    dense = reference(model, guide, spans)
    expected = sample(model, dense.hang(model.patcher))
    guided = sample(model, patched(model, guide, spans))
    assert dense.model_calls == 2
    assert relative(guided, expected) < EXACT
    assert relative(guided, sample(model)) > CLEAR


def test_strength_zero_is_bit_identical(model: TinyModel) -> None:
    guide = guide_of("separate", strength=0.0)
    assert torch.equal(sample(model, patched(model, guide, SPANS)), sample(model))


def test_unconditional_rows_are_left_alone_to_the_bit(model: TinyModel) -> None:
    guide = guide_of("separate", rows="conditional")
    before = first_predictions(model, model.patcher)
    after = first_predictions(model, patched(model, guide, SPANS))
    expected = first_predictions(model, reference(model, guide).hang(model.patcher))
    assert torch.equal(after["negative"], before["negative"])
    assert relative(after["positive"], expected["positive"]) < EXACT
    assert relative(after["positive"], before["positive"]) > CLEAR


def test_pictures_in_further_channels_are_no_part_of_the_film() -> None:
    """Image to video joins the picture's latents to the film's channels."""
    model = cogvideox(in_channels=32)

    def joined(patcher: Any) -> Any:
        patcher = patcher.clone()
        zeros = torch.zeros(2, 16, FRAMES, 8, 12)
        patcher.add_wrapper_with_key(
            "apply_model",
            "picture",
            lambda executor, x, t, c_concat=None, *args, **kwargs: executor(x, t, zeros, *args, **kwargs),
        )
        return patcher

    guide = guide_of("separate")
    expected = sample(model, reference(model, guide).hang(joined(model.patcher)))
    guided = sample(model, patched(model, guide, SPANS, joined(model.patcher)))
    assert relative(guided, expected) < EXACT
    assert relative(guided, sample(model, joined(model.patcher))) > CLEAR


def test_the_family_is_known_by_its_parts(model: TinyModel) -> None:
    family, network = require_supported(model.patcher)
    assert isinstance(family, CogVideoX) and family.block_names(network) == ["block.0", "block.1"]
    (grid,) = family.grids(network, (1, 16, FRAMES, 7, 11), {})
    assert (grid.frames, grid.rows, grid.columns, grid.filled) == (FRAMES, 4, 6, (3.5, 5.5))
