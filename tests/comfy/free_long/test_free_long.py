"""FreeLong in the host's own models at tiny sizes, against whole masks and whole spectra written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from direct_free_long import DirectFreeLong
from family_rows import pairs
from long_models import CLEAR, EXACT, FRAMES, SETTINGS, WINDOW, direct, free_long, long_model
from native_guides import relative
from native_models import sample, tiny
from tiny_cogvideox import CALLS as COGVIDEOX
from tiny_cogvideox import cogvideox
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.backbones.registry import require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

FAMILIES = (
    "wan",
    "wan_odd",
    "wan_reference",
    "wan_vace_reference",
    "wan_humo",
    "ltx",
    "ltx_guided",
    "ltx_weak_guide",
    "wan_scail",
    "wan_bernini",
    "cogvideox",
    "hunyuan",
    "hunyuan_masked",
    "hunyuan_reference",
    "hunyuan15",
    "hunyuan15_glyphs",
    "kandinsky5",
    "mochi",
    "minimax_h3",
    "minimax_h3_references",
    "cosmos",
    "cosmos_predict2",
)


@pytest.mark.parametrize(("name", "setting"), pairs(FAMILIES, ["FreeLong++", "FreeLong"]))
def test_film_equals_whole_masks_and_spectra(name: str, setting: str) -> None:
    model, settings = long_model(name), SETTINGS[setting]
    expected = sample(model, direct(name, settings).hang(model.patcher))
    film = sample(model, free_long(model, settings))
    assert relative(film, expected) < EXACT
    assert relative(film, sample(model)) > CLEAR


@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan"])
@pytest.mark.parametrize("setting", ["half, every other key", "windows alone"])
def test_other_settings(name: str, setting: str) -> None:
    model, settings = long_model(name), SETTINGS[setting]
    reference = direct(name, settings, blends=lambda sigma: setting != "windows alone")
    expected = sample(model, reference.hang(model.patcher))
    assert relative(sample(model, free_long(model, settings)), expected) < EXACT
    assert relative(expected, sample(model)) > CLEAR


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_whole_clip_until_end_percent(name: str) -> None:
    model = long_model(name)
    settings = replace(SETTINGS["FreeLong"], end_percent=0.45)
    last = float(model.patcher.get_model_object("model_sampling").percent_to_sigma(0.45))
    met = []

    def blends(sigma: float) -> bool:
        met.append(sigma >= last)
        return met[-1]

    expected = sample(model, direct(name, settings, blends=blends).hang(model.patcher), steps=6)
    assert True in met and False in met
    assert relative(sample(model, free_long(model, settings), steps=6), expected) < EXACT


@pytest.mark.parametrize("size", [(8, 12), (7, 11)])
def test_text_before_the_film(size: tuple[int, int]) -> None:
    model = replace(cogvideox(size), latents=(1, 16, FRAMES, *size))
    reference = DirectFreeLong(SETTINGS["FreeLong"], replace(COGVIDEOX, frames=FRAMES))
    expected = sample(model, reference.hang(model.patcher))
    film = sample(model, free_long(model, SETTINGS["FreeLong"]))
    assert relative(film, expected) < EXACT
    assert relative(film, sample(model)) > CLEAR


@pytest.mark.parametrize("name", ["wan", "mochi"])
def test_two_films_at_once(name: str) -> None:
    model, settings = long_model(name), SETTINGS["FreeLong++"]
    noise = model.noise(films=2)
    film = sample(model, free_long(model, settings), noise=noise)
    for index in range(2):
        expected = sample(model, direct(name, settings).hang(model.patcher), noise=noise[index : index + 1])
        assert relative(film[index : index + 1], expected) < EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    model = long_model("wan")
    patcher = model.patcher.clone()
    options = patcher.model_options["transformer_options"]

    def halved(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        tensors = [value.to(dtype) if isinstance(value, Tensor) else value for value in args]
        return function(*tensors, **kwargs).float()

    options["optimized_attention_override"] = halved
    film = sample(model, free_long(model, SETTINGS["FreeLong++"], patcher))
    expected = sample(model, free_long(model, SETTINGS["FreeLong++"]))
    assert bool(film.isfinite().all())
    assert relative(film, expected) < 0.1


# --- what costs nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_short_clips_are_as_without(name: str) -> None:
    model = long_model(name)
    film = sample(model, free_long(model, FreeLong(FRAMES, end_percent=1.0)))
    assert torch.equal(film, sample(model))


@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_strength_zero_hangs_nothing_in(name: str) -> None:
    model = long_model(name)
    patcher = free_long(model, FreeLong(WINDOW, strength=0.0))
    assert patcher is not model.patcher
    assert patcher.model_options["transformer_options"] == model.patcher.model_options["transformer_options"]
    assert not patcher.wrappers and not patcher.callbacks and not patcher.object_patches
    assert torch.equal(sample(model, patcher), sample(model))


def test_the_model_itself_stays_as_it_is() -> None:
    model = long_model("wan")
    before = sample(model)
    patcher = free_long(model, SETTINGS["FreeLong"])
    first, again = sample(model, patcher), sample(model, patcher)
    assert torch.equal(first, again) and torch.equal(sample(model), before)
    patch = patcher.model_options["transformer_options"]["attention_patch_stacks"][0].patches[0]
    assert isinstance(patch, FreeLongPatch) and not patch._plans


def test_after_an_exception_nothing_is_left() -> None:
    model = long_model("ltx")
    patcher = free_long(model, SETTINGS["FreeLong"])
    before = sample(model, patcher)
    stopped = patcher.clone()

    def stop(args: dict[str, Any]) -> Tensor:
        raise InterruptedError("stopped")

    stopped.set_model_sampler_post_cfg_function(stop)
    with pytest.raises(InterruptedError):
        sample(model, stopped)
    patch = patcher.model_options["transformer_options"]["attention_patch_stacks"][0].patches[0]
    assert not patch._plans
    assert torch.equal(sample(model, patcher), before)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_twice_in_the_same_blocks_is_refused() -> None:
    model = long_model("wan")
    once = free_long(model, replace(SETTINGS["FreeLong"], blocks="block.0"))
    both = free_long(model, replace(SETTINGS["FreeLong"], blocks="block.1"), once)
    assert relative(sample(model, both), sample(model, free_long(model, SETTINGS["FreeLong"]))) < EXACT
    with pytest.raises(ValueError, match=r"has FreeLong already in block\.0; take one of the nodes out"):
        free_long(model, SETTINGS["FreeLong"], once)


def test_native_lengths() -> None:
    found = {}
    # Not every ComfyUI has these.
    newer = {"wan_bernini", "minimax_h3", "minimax_h3_references"}
    for name in (*sorted(set(FAMILIES) - newer), "wan_5b", "wan_speech", "sd15", "svd"):
        family, network = require_supported(tiny(name).patcher)
        found[name] = family.native_frames(network)
    wans = {"wan": 21, "wan_odd": 21, "wan_reference": 21, "wan_vace_reference": 21, "wan_humo": 25, "wan_5b": 31}
    wans |= {"wan_scail": 21, "wan_speech": 20}
    others = {
        "ltx": 16,
        "ltx_guided": 16,
        "ltx_weak_guide": 16,
        "mochi": 28,
        "cogvideox": 13,
        "cosmos": 16,
        "cosmos_predict2": 24,
        "sd15": 16,
        "svd": 25,
    }
    chats = {"hunyuan15": 31, "hunyuan15_glyphs": 31, "kandinsky5": 31}
    hunyuans = {"hunyuan": 33, "hunyuan_masked": 33, "hunyuan_reference": 33}
    assert found == {**wans, **others, **hunyuans, **chats}
