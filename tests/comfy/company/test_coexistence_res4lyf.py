"""Guidance beside RES4LYF as it is: its samplers, which call the model between steps, and its other Wan."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from company import CLEAR, EXACT, ORDERS, in_order
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import sample, tiny
from packs import RES4LYF, load_pack, run_node

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]


@pytest.fixture(scope="module")
def res4lyf(comfy_folder: Path) -> ModuleType:
    return load_pack(comfy_folder, RES4LYF, "res4lyf_pack", "pywt", "kornia", "cv2", "matplotlib")


def ours(name: str, **changes: Any) -> Any:
    return partial(patched, tiny(name), guide_of(name, "separate", **changes), spans_of(name))


@pytest.mark.parametrize("name", ["wan", "sd15"])
@pytest.mark.parametrize("sampler", ["res_2s", "res_3m", "deis_2m"])
def test_its_samplers(res4lyf: ModuleType, name: str, sampler: str) -> None:
    model = tiny(name)
    film = sample(model, ours(name)(model.patcher), sampler=sampler)
    reference = dense(model, guide_of(name, "separate"), spans_of(name))
    assert relative(film, sample(model, reference.hang(model.patcher), sampler=sampler)) < EXACT
    assert relative(film, sample(model, sampler=sampler)) > CLEAR
    # The first of them calls the model twice a step, between the noise levels of the run.
    assert reference.model_calls >= (3 if sampler == "res_2s" else 2)


def test_its_sampler_node(res4lyf: ModuleType) -> None:
    """The sampler of its own with noise in every substep."""
    model = tiny("wan")
    reference = dense(model, guide_of("wan", "separate"), spans_of("wan"))

    def run(patcher: Any) -> Any:
        latent = {"samples": torch.zeros(model.latents)}
        settings = {"eta": 0.5, "sampler_name": "exponential/res_2s", "scheduler": "simple", "steps": 2, "cfg": 3.0}
        settings |= {"seed": 1, "denoise": 1.0, "steps_to_run": -1, "sampler_mode": "standard", "bongmath": True}
        conditions = {"positive": model.conditioning(1), "negative": model.conditioning(2)}
        made = run_node(res4lyf, "ClownsharKSampler_Beta", model=patcher, latent_image=latent, **conditions, **settings)
        return made["samples"]

    film = run(ours("wan")(model.patcher))
    assert relative(film, run(reference.hang(model.patcher))) < EXACT and reference.model_calls >= 3
    assert relative(film, run(model.patcher)) > CLEAR


@pytest.mark.parametrize("order", ORDERS)
def test_its_own_wan_asks_for_attention_without_options(
    res4lyf: ModuleType, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Regional conditioning replaces the classes of the blocks; one sentence says that ours does nothing there."""
    # A model of its own: the classes stay replaced.
    model = replace(tiny("wan"))

    def other(patcher: Any) -> Any:
        return run_node(res4lyf, "ReWanPatcher", model=patcher, enable=True)

    plain = sample(model, other(model.patcher))
    with caplog.at_level(logging.WARNING):
        film = sample(model, in_order(model, order, other, ours("wan")))
    assert torch.equal(film, plain)
    said = [record.message for record in caplog.records if "mask_guided_video" in record.name]
    assert len(said) == 1 and "take that node out" in said[0]
