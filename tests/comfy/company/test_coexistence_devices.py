"""Guidance where the host runs the chunks of a step on several devices, each in a thread of its own."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from native_guides import guide_of, patched, relative, spans_of
from native_models import sample, tiny

from mask_guided_video.backbones import host_hooks
from mask_guided_video.backbones.host_hooks import RUN_KEY, RunFacts

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]

# Of the output's range, in single precision: threads see other batch sizes than one call with both chunks.
EXACT, CLEAR = 1e-5, 2e-3


def on_two_devices(patcher: Any) -> Any:
    """A model with a copy on a second device, as the host's node for several GPUs makes it: two names of the CPU."""
    import comfy.model_patcher

    if not hasattr(patcher, "match_multigpu_clones"):
        pytest.skip("this ComfyUI has no conditioning on several devices")
    whole = patcher.model
    model = copy.deepcopy(whole, {id(whole.model_config): whole.model_config})
    second = comfy.model_patcher.ModelPatcher(model, torch.device("cpu", 0), torch.device("cpu"))
    second.is_multigpu_base_clone = True
    patcher = patcher.clone()
    patcher.set_additional_models("multigpu", [second])
    return patcher


@pytest.mark.parametrize("name", ["wan", "hunyuan", "sd15"])
def test_a_step_in_two_threads_is_the_step_in_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    guided = patched(model, guide_of(name, "separate"), spans_of(name))
    facts: list[RunFacts] = []
    together, threads = threading.Barrier(2, timeout=60), set()
    call_model = host_hooks._call_model

    def meet(executor: Any, family: Any, network: Any, made: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        threads.add(threading.current_thread())
        together.wait()
        facts.append(kwargs.get("transformer_options", args[3] if len(args) > 3 else None)[RUN_KEY])
        return call_model(executor, family, network, made, x, t, *args, **kwargs)

    settings = {"cfg": 3.0, "steps": 2}
    expected = sample(model, guided, **settings)
    split = on_two_devices(guided)
    monkeypatch.setattr(host_hooks, "_call_model", meet)
    film = sample(model, split, **settings)
    monkeypatch.undo()
    # One thread for each chunk, two steps, and one set of facts for all.
    assert len(threads) == 2 and len(facts) == 4 and len({id(one) for one in facts}) == 1
    assert facts[0].model_calls == 4
    assert relative(film, expected) < EXACT
    assert relative(film, sample(model, **settings)) > CLEAR
