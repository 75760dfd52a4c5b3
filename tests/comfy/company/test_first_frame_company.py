"""A clean first frame beside other packs' patches, guides and samplers; statistics; frames that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from first_frame_calls import (
    first_of,
    frame_of,
    host_sample,
    models_by_name,
    prove_clean,
    recorded,
    seen_form,
)
from native_models import TinyModel, sample, tiny
from torch import Tensor

from mask_guided_video.host.sampling.first_frame_lock import as_film, lock_first_frame

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> Callable[[str], TinyModel]:
    return models_by_name(tiny_folder)


# --- beside others ----------------------------------------------------------------------------------------------------


def test_wrappers_and_functions_of_other_packs_are_kept(models: Callable[[str], TinyModel]) -> None:
    model = models("toybox")
    frame = frame_of(model)
    called: list[str] = []

    def wrapper(apply_model: Any, args: dict[str, Any]) -> Tensor:
        called.append("model_function_wrapper")
        # Others may change what the model is given: the lock has the last word on the first frame.
        return apply_model(args["input"] * 0.9, args["timestep"], **args["c"])

    def after(args: dict[str, Any]) -> Tensor:
        called.append("post_cfg")
        return args["denoised"] * 0.99

    for before in (True, False):
        called.clear()
        patcher = model.patcher.clone() if before else lock_first_frame(model.patcher, frame)
        patcher.set_model_unet_function_wrapper(wrapper)
        patcher.set_model_sampler_post_cfg_function(after)
        locked = lock_first_frame(patcher, frame) if before else patcher
        with recorded(model) as calls:
            film = sample(model, locked)
        prove_clean(model, calls, frame)
        assert torch.equal(film[:, :, :1], frame)
        assert called.count("model_function_wrapper") == len(calls.inputs) and called.count("post_cfg") == 2


def test_a_second_lock_replaces_the_first(models: Callable[[str], TinyModel]) -> None:
    model = models("wan")
    one, other = frame_of(model, seed=1), frame_of(model, seed=2)
    film = sample(model, lock_first_frame(lock_first_frame(model.patcher, one), other))
    assert torch.equal(film, sample(model, lock_first_frame(model.patcher, other)))


def test_the_model_and_its_options_stay_as_they_were(models: Callable[[str], TinyModel]) -> None:
    from comfy.model_management import InterruptProcessingException

    model = models("toybox")
    before = sample(model)
    wrappers, options = repr(model.patcher.wrappers), repr(model.patcher.model_options)
    locked = lock_first_frame(model.patcher, frame_of(model))
    own_options = repr(locked.model_options)
    film = sample(model, locked)

    def cancel(args: dict[str, Any]) -> Tensor:
        raise InterruptProcessingException

    cancelled = locked.clone()
    cancelled.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(InterruptProcessingException):
        sample(model, cancelled)
    assert torch.equal(film, sample(model, locked)) and torch.equal(film, sample(model, locked.clone()))
    assert torch.equal(before, sample(model))
    assert repr(model.patcher.wrappers) == wrappers and repr(model.patcher.model_options) == options
    assert repr(locked.model_options) == own_options


def test_masks_guide_behind_a_lock(models: Callable[[str], TinyModel]) -> None:
    from native_guides import guide_of, patched

    model = tiny("wan")
    frame = frame_of(model)
    guide = guide_of("wan", "focus")
    plain = sample(model, lock_first_frame(model.patcher, frame))
    films = [
        sample(model, lock_first_frame(patched(model, guide, None), frame)),
        sample(model, patched(model, guide, None, lock_first_frame(model.patcher, frame))),
    ]
    assert torch.equal(*films) and torch.equal(films[0][:, :, :1], frame)
    assert float((films[0] - plain)[:, :, 1:].abs().max()) > 1e-4


def test_leftover_noise_is_left_to_the_sampler_that_follows(models: Callable[[str], TinyModel]) -> None:
    import comfy.sample

    model = models("toybox")
    frame = frame_of(model)
    locked, latents = lock_first_frame(model.patcher, frame), torch.zeros(model.latents)
    prompts = model.conditioning(1), model.conditioning(2)

    def stage(noise: Tensor, latents: Tensor, **steps: Any) -> Tensor:
        arguments = (locked, noise, 4, model.cfg, "euler", "simple", *prompts, latents)
        return comfy.sample.sample(*arguments, disable_pbar=True, seed=3, **steps)

    noise = model.noise()
    half = stage(noise, latents, start_step=0, last_step=2, force_full_denoise=False)
    assert not torch.equal(half[:, :, :1], frame)
    with recorded(model) as calls:
        film = stage(torch.zeros_like(noise), half, start_step=2, last_step=4, disable_noise=True)
    prove_clean(model, calls, frame)
    whole = stage(noise, latents)
    assert torch.equal(film[:, :, :1], frame)
    torch.testing.assert_close(film, whole, atol=1e-4, rtol=1e-4)


# --- statistics -------------------------------------------------------------------------------------------------------


def spread(film: Tensor) -> Tensor:
    return torch.stack([film.mean(dim=(-2, -1)), film.std(dim=(-2, -1))])


@pytest.mark.parametrize("name", ["toybox", "svd", "wan"])
def test_predictions_take_the_first_frames_statistics(models: Callable[[str], TinyModel], name: str) -> None:
    model = models(name)
    frame = frame_of(model)
    predictions: list[Tensor] = []

    def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        predictions.append(as_film(denoised.clone()))

    latents = torch.zeros(model.latents)
    locked = lock_first_frame(model.patcher, frame, match_statistics=True, switch=0.3)
    film = host_sample(model, locked, latents, callback=callback)
    clean = seen_form(model, frame)
    # Steps 0 and 1 of 4 are before 0.3, steps 2 and 3 behind it.
    for number, denoised in enumerate(predictions):
        reference = denoised[:, :, 1:2] if number < 2 else clean
        rest = spread(denoised[:, :, 1:])
        torch.testing.assert_close(rest, spread(reference).expand_as(rest), atol=1e-3, rtol=1e-3)
        assert torch.equal(denoised[:, :, :1], clean)
    assert float((spread(predictions[0][:, :, 1:2]) - spread(clean)).abs().max()) > 0.01
    assert torch.equal(first_of(model, film), frame)
    assert not torch.equal(film, host_sample(model, lock_first_frame(model.patcher, frame), latents))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("toybox", (1, 4, 2, 8, 6), r"\(1, 4, 2, 8, 6\), that is 2 frames; give one frame alone"),
        ("toybox", (3, 4, 8, 6), "3 frames"),
        ("sd15", (2, 4, 8, 12), "2 frames"),
        ("wan", (1, 4, 1, 8, 12), "this model's latents have 16 channels; encode the picture with"),
        ("toybox", (4, 8, 6), r"shape \(4, 8, 6\)"),
    ],
)
def test_latents_that_are_no_frame_of_the_model(
    models: Callable[[str], TinyModel], name: str, size: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lock_first_frame(models(name).patcher, torch.zeros(size))


def test_values_that_are_not_finite(models: Callable[[str], TinyModel]) -> None:
    model = models("toybox")
    with pytest.raises(ValueError, match="NaN or infinite"):
        lock_first_frame(model.patcher, torch.full_like(frame_of(model), math.nan))


@pytest.mark.parametrize(
    ("name", "frame", "message"),
    [
        ("toybox", (1, 4, 1, 8, 7), "7 x 8 cells but the video of 4 channels and 6 x 8 cells"),
        ("toybox", (3, 4, 1, 8, 6), "3 first frames for 1 videos"),
        ("wan", (2, 16, 1, 8, 12), "2 first frames for 1 videos"),
        ("svd", (1, 4, 9, 12), "12 x 9 cells but the video of 4 channels and 12 x 8"),
    ],
)
def test_frames_that_do_not_fit_the_film_are_refused_before_the_model_is_called(
    models: Callable[[str], TinyModel], name: str, frame: tuple[int, ...], message: str
) -> None:
    model = models(name)
    locked = lock_first_frame(model.patcher, torch.ones(frame))
    with recorded(model) as calls, pytest.raises(ValueError, match=message):
        sample(model, locked)
    assert not calls.inputs


def test_a_condition_for_a_part_of_the_picture_is_refused(models: Callable[[str], TinyModel]) -> None:
    model = models("sd15")
    positive = model.conditioning(1)
    positive[0][1]["area"] = (4, 6, 0, 0)
    with pytest.raises(ValueError, match="give the condition a mask instead of an area"):
        sample(model, lock_first_frame(model.patcher, frame_of(model)), positive=positive)
