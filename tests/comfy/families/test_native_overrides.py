"""Guidance beside other packs' hooks in the same model, whoever came first: all of them run, and the masks stay exact.

The other packs' hooks change what the model computes; the reference of explicit biases has the same hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dense_reference import CALLS, OVERRIDE
from family_rows import rows
from native_guides import dense, first_predictions, guide_of, left_alone, masks_of, patched, relative, spans_of
from native_models import BUILDERS, tiny
from torch import Tensor

from mask_guided_video.attention_patches.guidance import plan as guidance_plan
from mask_guided_video.attention_patches.patch import Attend
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

FAMILIES = sorted(BUILDERS)
EXACT = 1e-4
CLEAR = 1e-3
# Families whose blocks other packs can replace, and the kinds of their blocks.
REPLACED_BLOCKS = {
    "wan": ("double_block", 0),
    "wan_image": ("double_block", 0),
    "ltx": ("double_block", 0),
    "ltxav": ("double_block", 0),
    "hunyuan": ("single_block", 0),
    "hunyuan_reference": ("double_block", 0),
    "hunyuan15": ("double_block", 0),
    "mochi": ("double_block", 0),
    "minimax_h3": ("double_block", 0),
}
NO_HOOKS = {"cogvideox", "cogvideox15", "cosmos", "kandinsky5", "sd15", "sdxl", "svd"}
Hang = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def by_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)


def prove_beside(name: str, other: Hang, order: str) -> None:
    """Guidance together with another pack's hook equals explicit biases together with it."""
    model, guide, spans = tiny(name), guide_of(name, "separate", rows="conditional"), spans_of(name)
    if order == "other first":
        both = patched(model, guide, spans, other(model.patcher))
    else:
        both = other(patched(model, guide, spans))
    found = first_predictions(model, both)
    # The explicit biases are outermost, as the model calls them.
    expected = first_predictions(model, dense(model, guide, spans).hang(other(model.patcher)))
    alone = first_predictions(model, patched(model, guide, spans))
    unguided = first_predictions(model, other(model.patcher))
    assert relative(found["positive"], expected["positive"]) < EXACT
    assert relative(found["positive"], alone["positive"]) > CLEAR
    assert relative(found["positive"], unguided["positive"]) > CLEAR
    assert left_alone(name, found["negative"], unguided["negative"])


def other_override(patcher: Any) -> Any:
    """Another pack's override, which weakens what attention says; it calls the one before it."""
    patcher = patcher.clone()
    options = patcher.model_options["transformer_options"]
    previous = options.get(OVERRIDE)

    def override(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        out = function(*args, **kwargs) if previous is None else previous(function, *args, **kwargs)
        return 0.8 * out

    options[OVERRIDE] = override
    return patcher


@pytest.mark.parametrize("name", rows(FAMILIES))
@pytest.mark.parametrize("order", ["other first", "ours first"])
def test_another_override(name: str, order: str) -> None:
    prove_beside(name, other_override, order)


@pytest.mark.parametrize("name", sorted(REPLACED_BLOCKS))
@pytest.mark.parametrize("order", ["other first", "ours first"])
def test_another_packs_block(name: str, order: str) -> None:
    runs: list[int] = []

    def weaken(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        runs.append(1)
        out = extra["original_block"](args)
        # LTX-2's blocks give film and sound at once.
        return {
            key: tuple(0.5 * part for part in value) if isinstance(value, tuple) else 0.5 * value
            for key, value in out.items()
        }

    def replace_block(patcher: Any) -> Any:
        patcher = patcher.clone()
        kind, number = REPLACED_BLOCKS[name]
        patcher.set_model_patch_replace(weaken, "dit", kind, number)
        return patcher

    prove_beside(name, replace_block, order)
    assert len(runs) == 3


@pytest.mark.parametrize("name", rows(["sd15", "sdxl", "svd"]))
@pytest.mark.parametrize("order", ["other first", "ours first"])
@pytest.mark.parametrize("place", ["attn1", "attn2"])
def test_another_packs_attention_patch(name: str, order: str, place: str) -> None:
    def weaken(hidden: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        return hidden, 0.7 * context, 0.7 * value

    def add_patch(patcher: Any) -> Any:
        patcher = patcher.clone()
        getattr(patcher, f"set_model_{place}_patch")(weaken)
        return patcher

    prove_beside(name, add_patch, order)


@pytest.mark.parametrize("name", rows(FAMILIES))
@pytest.mark.parametrize("modes", [("focus", "separate"), ("separate hard", "cross_text")])
def test_two_guides_add_up(name: str, modes: tuple[str, str]) -> None:
    model, spans = tiny(name), spans_of(name)
    if spans is None and "cross_text" in modes:
        pytest.skip("a model without words")
    first = guide_of(name, modes[0])
    # The other guide's objects stand elsewhere.
    second = guide_of(name, modes[1], masks=masks_of(model).flip(-1), rows="conditional")
    twice = patched(model, second, spans, patched(model, first, spans))
    reference = dense(model, first, spans, second, spans)
    expected = first_predictions(model, reference.hang(model.patcher))
    found = first_predictions(model, twice)
    for prompt in ("positive", "negative")[: 2 if model.cfg > 1.0 else 1]:
        assert relative(found[prompt], expected[prompt]) < EXACT
    assert relative(found["positive"], first_predictions(model, patched(model, first, spans))["positive"]) > CLEAR


def test_blocks_that_run_in_another_order() -> None:
    """Predict2 has no hook around its blocks; where the core says which one is running, others may come and go."""
    model, named, found = tiny("cosmos_predict2"), [], []

    def watch(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        found.append((site.index, site.kind))
        return attend(q, k, v, site)

    def note(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        named.append(kwargs["transformer_options"].get("block_index"))
        return function(*args, **kwargs)

    patcher = model.patcher.clone()
    patcher.model_options["transformer_options"][OVERRIDE] = note
    patcher.add_object_patch("diffusion_model.blocks.0.forward", lambda hidden, *args, **kwargs: hidden)
    first_predictions(model, install_patches(patcher, [watch]))
    if None in named:
        pytest.skip("this core does not say which block is running")
    assert named and set(named) == {1}
    assert set(found) == {(1, "self"), (1, "cross")} and len(found) == len(named)


def test_every_family_with_block_hooks_is_here() -> None:
    """U-Nets have hooks around attention, some others none around their blocks, or one that fails."""
    hooked = {name.split("_")[0] for name in REPLACED_BLOCKS}
    assert hooked == {name.split("_")[0] for name in CALLS} - NO_HOOKS
