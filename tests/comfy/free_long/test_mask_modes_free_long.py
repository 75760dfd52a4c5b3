"""Every mode of mask guidance beside FreeLong, hung before or after it; and dynamic masks in every family of models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from family_rows import rows
from long_models import EXACT, FRAMES, SETTINGS, free_long, long_model
from mode_guides import guided, hung_patches, mode_guide, moving_masks, suits, word_places
from native_guides import first_predictions, left_alone, relative
from native_models import BUILDERS, TinyModel, sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong
from mask_guided_video.attention_patches.guidance.modes.registry import MODES

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# Of the output's range: what guidance changes at least.
CLEAR = 1e-3


@pytest.fixture(params=["wan", "hunyuan", "lavie"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    """A tiny model with a film longer than FreeLong's window."""
    if request.param != "lavie":
        return long_model(request.param)
    return TinyModel("lavie", lambda: request.getfixturevalue("native")[0], (1, 4, FRAMES, 7, 10), 32, text=6)


def settings_of(model: TinyModel) -> FreeLong:
    """FreeLong of the model's kind; its low pass mixes cells, and cells that no rule holds are left alone as they are.

    Where cells are batch rows it so matters whether the guide is inside or around; windows alone do not mix cells.
    """
    return replace(SETTINGS["FreeLong"], end_percent=0.0 if model.name == "lavie" else 1.0)


def film_of(model: TinyModel, patcher: object = None) -> Tensor:
    return sample(model, patcher, steps=1)


@pytest.mark.parametrize("mode", list(MODES))
def test_free_long_in_either_order(model: TinyModel, mode: str) -> None:
    """Rules that take the kernel's place come last, wherever they were hung: FreeLong is never lost."""
    settings = settings_of(model)
    guide = mode_guide(model, mode, masks=moving_masks(model, FRAMES), key_source="self")
    inside = film_of(model, free_long(model, settings, guided(model, guide)))
    around = film_of(model, guided(model, guide, patcher=free_long(model, settings)))
    assert bool(inside.isfinite().all()) and relative(inside, around) < EXACT
    for one in (free_long(model, settings), guided(model, guide)):
        assert relative(inside, film_of(model, one)) > CLEAR


@pytest.mark.parametrize("order", ["guide first", "FreeLong first"])
def test_free_long_with_keys_of_the_first_frame(model: TinyModel, order: str) -> None:
    settings = replace(SETTINGS["FreeLong"], largest_level="blend")
    guide = mode_guide(model, "dmg", masks=moving_masks(model, FRAMES), key_source="first_self")
    if order == "guide first":
        patcher = free_long(model, settings, guided(model, guide))
    else:
        patcher = guided(model, guide, patcher=free_long(model, settings))
    film = film_of(model, patcher)
    assert torch.equal(film_of(model, patcher), film) and bool(film.isfinite().all())
    assert relative(film, film_of(model, free_long(model, settings))) > CLEAR


@pytest.mark.parametrize("name", rows(BUILDERS))
def test_dynamic_masks_in_every_family(name: str) -> None:
    model = tiny(name)
    assert suits("dmg", model)
    before = first_predictions(model, model.patcher)
    nothing = (mode_guide(model, "dmg", strength=0.0), mode_guide(model, "dmg", masks=0.0 * moving_masks(model)))
    for guide in nothing:
        found = first_predictions(model, guided(model, guide))
        assert all(torch.equal(found[prompt], before[prompt]) for prompt in before)
    patcher = guided(model, mode_guide(model, "dmg", rows="conditional", gamma_temporal=4.0))
    found, again = (first_predictions(model, patcher) for _ in range(2))
    assert all(bool(film.isfinite().all()) and torch.equal(film, again[prompt]) for prompt, film in found.items())
    assert relative(found["positive"], before["positive"]) > CLEAR
    if model.cfg > 1.0:
        assert left_alone(name, found["negative"], before["negative"])
    assert all(not getattr(patch, "_plans", None) for patch in hung_patches(patcher))
    assert (word_places(model) is None) == (name == "svd")
