"""Guidance beside nodes that replace whole blocks or wrap the model: skipped, repeated and cached blocks and steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from dense_reference import DenseReference
from family_rows import rows
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import sample, tiny
from torch import Tensor

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]

# Of the output's range, in single precision; and what each side's doing changes at least.
EXACT, CLEAR = 1e-4, 2e-3
ORDERS = ("other first", "ours first")
# A block of each model to replace, and the attention calls when it is skipped and when it runs twice.
BLOCKS: dict[str, tuple[tuple[str, int], str, str]] = {
    "wan": (("double_block", 1), "S0 C0", "S0 C0 S0 C0 S0 C0"),
    "ltx": (("double_block", 0), "S0 C0", "S0 C0 S0 C0 S0 C0"),
    "hunyuan": (("single_block", 0), "-0 -0 J0 J0", "-0 -0 J0 J0 J0 J0"),
    "mochi": (("double_block", 1), "J0", "J0 J0 J0"),
}


class SkippedSteps(DenseReference):
    """Explicit biases where another node leaves out whole evaluations of the model."""

    def call_model(self, apply_model: Any, args: dict[str, Any]) -> Tensor:
        self.chunks = args["cond_or_uncond"]
        self.prompts = list(args["c"]["c_crossattn"].chunk(len(self.chunks)))
        self.count = 0
        self.model_calls += 1
        out = apply_model(args["input"], args["timestep"], **args["c"])
        assert self.count in (0, len(self.order))
        return out


def prove_both(
    name: str, order: str, other: Callable[[Any], Any], calls: str | None = None, reference: Any = None, **settings: Any
) -> None:
    """Both patches in an order equal explicit biases beside the other, and each one changes the film."""
    model, guide, spans = tiny(name), guide_of(name, "separate"), spans_of(name)
    settings = {"steps": 1, **settings}
    ours_first = order == "ours first"
    both = other(patched(model, guide, spans)) if ours_first else patched(model, guide, spans, other(model.patcher))
    film = sample(model, both, **settings)
    reference = reference or dense(model, guide, spans)
    reference.order = reference.order if calls is None else calls.split()
    expected = sample(model, reference.hang(other(model.patcher)), **settings)
    assert relative(film, expected) < EXACT
    assert relative(film, sample(model, other(model.patcher), **settings)) > CLEAR
    assert relative(film, sample(model, patched(model, guide, spans), **settings)) > CLEAR


def with_block(name: str, replacement: Callable[..., Any]) -> Callable[[Any], Any]:
    """A node that replaces a block."""

    def node(patcher: Any) -> Any:
        patcher = patcher.clone()
        kind, index = BLOCKS[name][0]
        patcher.set_model_patch_replace(replacement, "dit", kind, index)
        return patcher

    return node


def with_wrapper(kind: str, make: Callable[[], Callable[..., Any]]) -> Callable[[Any], Any]:
    """A node that wraps the model, anew for every run."""

    def node(patcher: Any) -> Any:
        patcher = patcher.clone()
        patcher.add_wrapper_with_key(kind, "another_pack", make())
        return patcher

    return node


def main_input(args: Mapping[str, Any]) -> str:
    return "img" if "img" in args else "x"


def twice(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The block runs two times, and its doing is doubled in part, as enhancers do; with an argument of their own."""
    first = extra["original_block"]({**args, "enhanced": True})
    second = extra["original_block"](first | {name: value for name, value in args.items() if name not in first})
    return {name: 0.5 * (first[name] + second[name]) for name in first}


def skipped(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Skip-layer guidance and block caches leave a block out."""
    return {name: args[name] for name in ("img", "txt") if name in args}


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("order", ORDERS)
def test_a_block_that_runs_twice(name: str, order: str) -> None:
    prove_both(name, order, with_block(name, twice), BLOCKS[name][2])


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("order", ORDERS)
def test_a_block_that_is_skipped(name: str, order: str) -> None:
    prove_both(name, order, with_block(name, skipped), BLOCKS[name][1])


def every_second_step() -> Callable[..., Tensor]:
    """TeaCache and its kin return what the model made before."""
    kept: list[Tensor] = []

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        if kept:
            return kept.pop()
        out = executor(*args, **kwargs)
        kept.append(out)
        return out

    return wrapper


def brighter() -> Callable[..., Tensor]:
    return lambda executor, *args, **kwargs: 1.05 * executor(*args, **kwargs)


@pytest.mark.parametrize("name", rows(["wan", "hunyuan", "cosmos", "sd15"], ("wan", "cosmos")))
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["diffusion_model", "apply_model"])
def test_steps_that_are_skipped(name: str, order: str, kind: str) -> None:
    model, guide, spans = tiny(name), guide_of(name, "separate"), spans_of(name)
    proof = dense(model, guide, spans)
    reference = SkippedSteps(model, proof.guides)
    prove_both(name, order, with_wrapper(kind, every_second_step), reference=reference, steps=4)


@pytest.mark.parametrize("name", rows(["wan", "hunyuan", "sd15"], ("wan", "hunyuan")))
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["diffusion_model", "apply_model", "outer_sample"])
def test_wrapped_models(name: str, order: str, kind: str) -> None:
    prove_both(name, order, with_wrapper(kind, brighter))


@pytest.mark.parametrize("name", ["wan", "hunyuan", "cosmos", "sd15"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_function_wrapper_that_evaluates_the_rows_apart(name: str, order: str) -> None:
    calls: list[int] = []

    def apart(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        chunks = args["cond_or_uncond"]
        parts = []
        for index, chunk in enumerate(chunks):
            given = {key: part(value, index, len(chunks)) for key, value in args["c"].items()}
            options = {**args["c"]["transformer_options"], "cond_or_uncond": [chunk]}
            options["uuids"] = [args["c"]["transformer_options"]["uuids"][index]]
            given["transformer_options"] = options
            inputs = [part(args[key], index, len(chunks)) for key in ("input", "timestep")]
            parts.append(0.98 * apply_model(*inputs, **given))
            calls.append(chunk)
        return torch.cat(parts)

    def part(value: Any, index: int, count: int) -> Any:
        return value.chunk(count)[index] if isinstance(value, Tensor) else value

    def node(patcher: Any) -> Any:
        patcher = patcher.clone()
        patcher.set_model_unet_function_wrapper(apart)
        return patcher

    model, guide, spans = tiny(name), guide_of(name, "separate"), spans_of(name)
    both = (
        node(patched(model, guide, spans))
        if order == "ours first"
        else patched(model, guide, spans, node(model.patcher))
    )
    film = sample(model, both, steps=1)
    assert sorted(calls) == [0, 1]
    # The same without the factor is the guided film of one batch, which is proven elsewhere.
    unguided = sample(model, node(model.patcher), steps=1)
    assert relative(film, unguided) > CLEAR
    whole = patched(model, guide, spans)
    whole.set_model_unet_function_wrapper(
        lambda apply_model, args: 0.98 * apply_model(args["input"], args["timestep"], **args["c"])
    )
    assert relative(film, sample(model, whole, steps=1)) < EXACT


def test_the_chain_of_block_replacements_is_left_as_it_was() -> None:
    model = tiny("wan")
    node = with_block("wan", twice)
    patcher = node(patched(model, guide_of("wan", "separate"), spans_of("wan")))
    before = dict(patcher.model_options["transformer_options"]["patches_replace"]["dit"])
    sample(model, patcher)
    assert (
        patcher.model_options["transformer_options"]["patches_replace"]["dit"] == before == {("double_block", 1): twice}
    )
