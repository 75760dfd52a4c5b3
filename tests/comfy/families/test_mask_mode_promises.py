"""What every mode of mask guidance promises, on native models of each kind at tiny size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from half_precision import in_half
from mode_guides import Watch, by_frame, guided, hung_patches, mode_guide, moving_masks, suits
from native_guides import first_predictions, relative
from native_models import TinyModel, sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.guidance.modes.registry import MODES
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.backbones.registry import install_patches

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# A transformer, two joint ones, of which one has sound and calls of its own for each prompt, a U-Net whose frames are
# rows, and LaVie, which attends over time too.
MODELS = ("wan", "hunyuan", "minimax_h3", "sd15", "lavie")
# Of the output's range: what guidance changes at least, and what single precision may differ by.
CLEAR, EXACT = 1e-3, 1e-5
PLAIN: dict[str, Tensor] = {}


# By default these two run in every mode, and the others in one mode of each kind: words only, a partition, channels of
# all sorts, and changed probabilities.
IN_ALL_MODES = ("wan", "sd15")
OF_EACH_KIND = ("cross_text", "separate", "dmg", "videograin")
PAIRS = [
    pytest.param((name, mode), id=f"{name}-{mode}", marks=() if quick else pytest.mark.slow)
    for name in MODELS
    for mode in MODES
    for quick in [name in IN_ALL_MODES or mode in OF_EACH_KIND]
]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Names of a model and of a mode."""
    return request.param


@pytest.fixture
def model(pair: tuple[str, str], request: pytest.FixtureRequest) -> TinyModel:
    """The model of the pair."""
    name, _ = pair
    if name != "lavie":
        return replace(tiny(name), cfg=3.0)
    return TinyModel("lavie", lambda: request.getfixturevalue("native")[0], (1, 4, 5, 7, 10), 32, text=6)


@pytest.fixture(params=list(MODES))
def any_mode(request: pytest.FixtureRequest) -> str:
    """One of the modes, for tests of one model."""
    return request.param


@pytest.fixture
def mode(pair: tuple[str, str]) -> str:
    """The mode of the pair."""
    return pair[1]


def film_of(model: TinyModel, patcher: Any = None) -> Tensor:
    """The film after one step: what guidance does in one it does in all."""
    return sample(model, patcher, steps=1)


def plain(model: TinyModel) -> Tensor:
    """The film without guidance, made once."""
    if model.name not in PLAIN:
        PLAIN[model.name] = film_of(model)
    return PLAIN[model.name]


@pytest.mark.parametrize("nothing", ["strength 0", "no object"])
def test_no_guidance_is_bit_identical(model: TinyModel, mode: str, nothing: str) -> None:
    settings = {"strength": 0.0} if nothing == "strength 0" else {"masks": torch.zeros_like(moving_masks(model))}
    assert torch.equal(film_of(model, guided(model, mode_guide(model, mode, **settings))), plain(model))


@pytest.mark.parametrize("nothing", ["strength 0 in all frames", "masks below one half"])
def test_what_amounts_to_no_guidance_is_bit_identical(any_mode: str, nothing: str) -> None:
    model, masks = tiny("wan"), moving_masks(tiny("wan"))
    settings: dict[str, Any] = {"frame_strength": (0.0,) * masks.shape[1]}
    if nothing == "masks below one half":
        settings = {"masks": 0.4 * masks}
    assert torch.equal(film_of(model, guided(model, mode_guide(model, any_mode, **settings))), plain(model))


def test_the_same_seed_gives_the_same_pixels_and_nothing_stays(model: TinyModel, mode: str) -> None:
    """Also after a run that was cancelled and one that failed."""
    from comfy.model_management import InterruptProcessingException

    before = plain(model)
    patcher = guided(model, mode_guide(model, mode))
    film = film_of(model, patcher)
    assert bool(film.isfinite().all()) and relative(film, before) > CLEAR
    for error in (InterruptProcessingException, RuntimeError):

        def stop(args: dict[str, Any], error: type[Exception] = error) -> Tensor:
            raise error

        failing = patcher.clone()
        failing.set_model_sampler_post_cfg_function(stop)
        with pytest.raises(error):
            film_of(model, failing)
    for patch in hung_patches(patcher):
        kept = [getattr(patch, "_plans", {}), *(each._levels for each in getattr(patch, "_pyramids", {}).values())]
        assert not any(kept)
    assert torch.equal(film_of(model), before)
    assert torch.equal(film_of(model, patcher), film)
    assert "optimized_attention_override" not in model.patcher.model_options["transformer_options"]


def test_films_of_a_batch_are_guided_each_for_itself(any_mode: str) -> None:
    model = tiny("wan")
    patcher, noise = guided(model, mode_guide(model, any_mode)), model.noise(films=2)
    films = sample(model, patcher, steps=1, noise=noise)
    for index in range(2):
        alone = sample(model, patcher, steps=1, noise=noise[index : index + 1])
        assert relative(films[index : index + 1], alone) < EXACT


def watched(model: TinyModel, patcher: Any) -> list[tuple[Any, Tensor, Tensor]]:
    """Every call of one step: its site, what plain attention gives and what came out."""
    watch = Watch()
    film_of(model, install_patches(patcher, [watch]))
    return watch.calls


def test_a_frame_without_an_object_is_left_alone(model: TinyModel, mode: str) -> None:
    calls = watched(model, guided(model, mode_guide(model, mode, key_source="self")))
    changed = 0.0
    for site, without, out in calls:
        found, expected = by_frame(out, site), by_frame(without, site)
        torch.testing.assert_close(found[:, :, -1], expected[:, :, -1], atol=1e-4, rtol=1e-4)
        changed = max(changed, relative(found, expected))
    assert changed > CLEAR


def test_unconditional_rows_change_only_when_asked(model: TinyModel, mode: str) -> None:
    before = first_predictions(model, model.patcher)
    only = guided(model, mode_guide(model, mode, rows="conditional", cross_rows="conditional"))
    found = first_predictions(model, only)
    assert torch.equal(found["negative"], before["negative"])
    assert relative(found["positive"], before["positive"]) > CLEAR
    both = first_predictions(model, guided(model, mode_guide(model, mode, rows="both", cross_rows="both")))
    assert relative(both["negative"], before["negative"]) > CLEAR


def test_rows_with_nothing_left_to_see_keep_their_normal_attention(model: TinyModel, mode: str) -> None:
    """An object on the left third whose phrase is the whole text: nothing is left for the right third."""
    if mode == "trailblazer":
        pytest.skip("it weakens words and never hides them")
    masks = moving_masks(model)[:1]
    masks[:] = 0.0
    masks[..., : masks.shape[3] // 3] = 1.0
    everything = tuple(range(model.text))
    spans = TextSpans(("all of it",), (everything,), model.text, ordinary=everything)
    calls = watched(model, guided(model, mode_guide(model, mode, masks=masks, key_source="self"), spans))
    crossed = [call for call in calls if call[0].kind == "cross"]
    assert crossed or model.name in ("hunyuan", "minimax_h3")
    for site, without, out in crossed:
        height, width = site.grid[1:]
        right = [row * width + width - 1 for row in range(height)]
        found, expected = (by_frame(each, site)[:, :, :, right] for each in (out, without))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_object_that_fills_the_picture_divides_nothing(model: TinyModel, mode: str) -> None:
    if MODES[mode].space_time:
        pytest.skip("frames are joined wherever there is an object")
    masks = torch.ones_like(moving_masks(model)[:1])
    spans = TextSpans(("ball",), ((1,),), model.text, ordinary=(1, 2))
    calls = watched(model, guided(model, mode_guide(model, mode, masks=masks, key_source="self"), spans))
    for site, without, out in calls:
        if site.kind in ("self", "temporal"):
            torch.testing.assert_close(out, without, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("wan", torch.float16),
        ("wan", torch.bfloat16),
        ("hunyuan", torch.float16),
        ("hunyuan", torch.bfloat16),
        ("sd15", torch.float16),
        ("svd", torch.bfloat16),
    ],
)
def test_films_are_finite_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """At the greatest strength that a guide takes."""
    model, patcher = tiny(name), in_half(name, dtype)
    before = first_predictions(model, patcher)["positive"]
    for mode in MODES:
        if suits(mode, model):
            found = first_predictions(model, guided(model, mode_guide(model, mode, strength=10.0), patcher=patcher))
            assert all(bool(film.isfinite().all()) for film in found.values()), mode
            assert relative(found["positive"], before) > CLEAR, mode
