"""Guidance on models that ComfyUI compiles: the same film, and nothing is compiled anew from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from native_guides import guide_of, patched, relative, spans_of
from native_models import sample, tiny

from mask_guided_video.attention_patches.guidance import plan as guidance_plan

pytestmark = pytest.mark.comfy

# Of the output's range, in single precision.
EXACT, CLEAR = 1e-4, 2e-3
# In one order each; both would take minutes.
MODELS = {"wan": "guided first"}
SLOW_MODELS = {
    "sd15": "compiled first",
    "wan": "compiled first",
    "hunyuan": "guided first",
    "ltx": "compiled first",
    "cosmos": "compiled first",
    "svd": "guided first",
    "mochi": "guided first",
}


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    torch.compiler.reset()
    with torch.inference_mode():
        yield
    torch.compiler.reset()


@pytest.fixture(autouse=True)
def kernels_of_long_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels, as for films of real length."""
    monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)


def compiled(patcher: Any, backend: str) -> Any:
    """What the core's node for compiling does."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    patcher = patcher.clone()
    set_torch_compile_wrapper(patcher, backend)
    return patcher


def guided_and_compiled(name: str, order: str, backend: str) -> Any:
    model, guide, spans = tiny(name), guide_of(name, "separate"), spans_of(name)
    if order == "guided first":
        return compiled(patched(model, guide, spans), backend)
    return patched(model, guide, spans, compiled(model.patcher, backend))


def programs() -> int:
    """How many programs were compiled since the start of the test."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "order"), [*MODELS.items(), *SLOW_MODELS.items()])
def test_compiled_film_is_the_same_and_steps_compile_nothing(name: str, order: str) -> None:
    model = tiny(name)
    patcher = guided_and_compiled(name, order, "eager")
    expected = sample(model, patched(model, guide_of(name, "separate"), spans_of(name)), steps=3)
    at_first = programs()
    film = sample(model, patcher, steps=3)
    assert relative(film, expected) < EXACT
    assert relative(film, sample(model, steps=3)) > CLEAR
    # The core gives the model the noise levels of the run, so the second number of steps is compiled once more.
    sample(model, patcher, steps=4)
    compiled_for_all = programs()
    assert compiled_for_all > at_first
    sample(model, patcher, steps=8)
    assert torch.equal(sample(model, patcher, steps=3), film)
    assert programs() == compiled_for_all


@pytest.mark.slow
def test_blocks_share_their_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which block it is must not be compiled in: a real model has dozens of them, and a limit of eight."""
    model = tiny("sdxl")
    with monkeypatch.context() as strict:
        strict.setattr("torch._dynamo.config.fail_on_recompile_limit_hit", True)
        film = sample(model, guided_and_compiled("sdxl", "compiled first", "eager"), steps=1)
    expected = sample(model, patched(model, guide_of("sdxl", "separate"), spans_of("sdxl")), steps=1)
    assert relative(film, expected) < EXACT


@pytest.mark.slow
def test_override_that_another_pack_put_in_its_place_is_compiled_once() -> None:
    model = tiny("wan")
    patcher = guided_and_compiled("wan", "guided first", "eager")

    def louder(func: Any, *args: Any, **kwargs: Any) -> Any:
        return 1.1 * func(*args, **kwargs)

    patcher.model_options["transformer_options"]["optimized_attention_override"] = louder
    sample(model, patcher, steps=3)
    sample(model, patcher, steps=4)
    before = programs()
    sample(model, patcher, steps=8)
    assert programs() == before


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_other_backends(backend: str) -> None:
    model = tiny("wan")
    if backend == "inductor":
        try:
            torch.compile(lambda x: x.sin() + x.cos(), backend=backend)(torch.ones(8))
        except (RuntimeError, OSError) as error:
            pytest.skip(f"this machine cannot compile with inductor: {error}")
    film = sample(model, guided_and_compiled("wan", "compiled first", backend), steps=2)
    expected = sample(model, patched(model, guide_of("wan", "separate"), spans_of("wan")), steps=2)
    assert relative(film, expected) < 1e-3
