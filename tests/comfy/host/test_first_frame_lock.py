"""A clean first frame in ComfyUI's models: what the network is given in every call, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_rows import pairs, rows
from first_frame_calls import (
    first_of,
    frame_of,
    host_sample,
    models_by_name,
    prove_clean,
    recorded,
    seen_form,
)
from native_models import TinyModel, sample
from torch import Tensor

from mask_guided_video.host.sampling import first_frame_lock
from mask_guided_video.host.sampling.first_frame_lock import as_film, lock_first_frame
from mask_guided_video.host.sampling.host_windows import ContextWindows, install_context_windows

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

SAMPLERS = ("euler", "ddim", "dpmpp_2m")
# v, eps with the film in the batch, flow, flow, EDM with the film in the batch and a picture beside it, flow, and
# Cosmos' own.
MODELS = ("toybox", "sd15", "sdxl", "wan", "wan_image", "wan_5b", "ltx", "svd", "hunyuan", "mochi", "cosmos")


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> Callable[[str], TinyModel]:
    return models_by_name(tiny_folder)


@pytest.mark.parametrize(("name", "sampler"), pairs(MODELS, SAMPLERS, ("toybox", "wan")))
def test_every_call_is_given_the_clean_frame_and_the_film_begins_with_it(
    models: Callable[[str], TinyModel], name: str, sampler: str
) -> None:
    model = models(name)
    frame = frame_of(model)
    locked = lock_first_frame(model.patcher, frame)
    with recorded(model) as calls:
        film = sample(model, locked, steps=3, sampler=sampler)
    prove_clean(model, calls, frame)
    assert torch.equal(first_of(model, film), frame)
    if sampler != "euler":
        return
    plain = sample(model, steps=3, sampler=sampler)
    # What follows depends on the first frame, and the model itself is as it was.
    changes = (as_film(film) - as_film(plain))[:, :, 1:].abs().amax(dim=(0, 1, 3, 4))
    assert bool(film.isfinite().all()) and bool((changes > 1e-4).all()) == (name not in ("sd15", "sdxl"))


def test_pictures_of_an_image_model_do_not_know_each_other(models: Callable[[str], TinyModel]) -> None:
    """Without attention over time, a first frame changes nothing but itself: other frames stay as they are."""
    model = models("sd15")
    film = sample(model, lock_first_frame(model.patcher, frame_of(model)))
    torch.testing.assert_close(film[1:], sample(model)[1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde", "dpm_2", "uni_pc", "lcm", "heunpp2"])
@pytest.mark.parametrize("name", rows(["toybox", "sd15", "wan"], ("wan",)))
def test_samplers_with_noise_and_with_calls_between_steps(
    models: Callable[[str], TinyModel], name: str, sampler: str
) -> None:
    model = models(name)
    frame = frame_of(model)
    with recorded(model) as calls:
        film = sample(model, lock_first_frame(model.patcher, frame), steps=3, sampler=sampler)
    prove_clean(model, calls, frame)
    assert torch.equal(first_of(model, film), frame) and bool(film.isfinite().all())


@pytest.mark.parametrize("name", ["toybox", "sd15", "wan", "ltx", "svd"])
def test_a_film_that_is_noised_in_part(models: Callable[[str], TinyModel], name: str) -> None:
    model = models(name)
    frame, latents = frame_of(model), torch.randn(model.latents, generator=torch.Generator().manual_seed(5))
    given = latents.clone()
    with recorded(model) as calls:
        film = host_sample(model, lock_first_frame(model.patcher, frame), latents, denoise=0.5)
    prove_clean(model, calls, frame)
    assert torch.equal(first_of(model, film), frame) and torch.equal(latents, given)


@pytest.mark.parametrize("name", ["toybox", "wan", "sd15"])
def test_a_noise_mask_does_not_undo_the_lock(models: Callable[[str], TinyModel], name: str) -> None:
    model = models(name)
    frame, latents = frame_of(model), torch.randn(model.latents, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(1, 1, as_film(latents).shape[2], *latents.shape[-2:])
    mask[:, :, 0] = 0.0
    mask[..., :3] = 0.0
    mask = mask if latents.ndim == 5 else mask[0, 0][:, None]
    with recorded(model) as calls:
        film = host_sample(model, lock_first_frame(model.patcher, frame), latents, noise_mask=mask)
    prove_clean(model, calls, frame)
    assert torch.equal(first_of(model, film), frame)
    torch.testing.assert_close(as_film(film)[:, :, 1:, :, :3], as_film(latents)[:, :, 1:, :, :3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["toybox", "wan", "ltx", "hunyuan"])
@pytest.mark.parametrize("frames", [1, 2])
def test_several_films_at_once(models: Callable[[str], TinyModel], name: str, frames: int) -> None:
    """One frame for all films, or one for each."""
    model = models(name)
    given = frame_of(model, frames)
    with recorded(model) as calls:
        film = sample(model, lock_first_frame(model.patcher, given), noise=model.noise(films=2))
    prove_clean(model, calls, given)
    assert torch.equal(film[:, :, :1], given.expand(2, -1, -1, -1, -1))


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform", "looped_uniform"])
@pytest.mark.parametrize("name", ["toybox", "sd15", "wan", "ltx", "svd"])
def test_context_windows(models: Callable[[str], TinyModel], name: str, schedule: str) -> None:
    """Windows that hold the beginning of the clip are given the frame, wherever it lies in them, and only there."""
    model = models(name)
    frame = frame_of(model)
    windows = ContextWindows(3, 1, schedule)
    locked = install_context_windows(lock_first_frame(model.patcher, frame), model.window_axis, windows)
    with recorded(model) as calls:
        film = sample(model, locked, noise=model.noise(frames=7), steps=3)
    prove_clean(model, calls, frame)
    wanted = seen_form(model, frame)[0, :, 0]
    for given, window in zip(calls.inputs, calls.windows, strict=True):
        assert len(window) == 3
        held = [bool((given[:, :, :, place] == wanted).all()) for place in range(3)]
        assert held == [index == 0 for index in window]
    assert any(0 not in window for window in calls.windows)
    assert torch.equal(first_of(model, film), frame)


@pytest.mark.parametrize(("name", "place"), [("wan_vace_reference", 1), ("hunyuan_reference", 0)])
def test_a_reference_picture_before_the_film_stays(models: Callable[[str], TinyModel], name: str, place: int) -> None:
    """The film's first frame is locked, which stands behind the reference where that is one of the latents."""
    model = models(name)
    frame = frame_of(model)
    with recorded(model) as calls:
        film = sample(model, lock_first_frame(model.patcher, frame))
    wanted = seen_form(model, frame)[0, :, 0]
    for given in calls.inputs:
        held = [bool((given[:, :, :, index] == wanted).all()) for index in range(given.shape[3])]
        assert held == [index == place for index in range(given.shape[3])]
    assert torch.equal(film[:, :, place : place + 1], frame)
    assert not torch.equal(film[:, :, 1 - place : 2 - place], frame)


def test_the_first_frame_of_a_film_decides_what_follows(models: Callable[[str], TinyModel]) -> None:
    model = models("toybox")
    films = [sample(model, lock_first_frame(model.patcher, frame_of(model, seed=seed))) for seed in (1, 2, 1)]
    assert torch.equal(films[0], films[2])
    assert float((films[0] - films[1])[:, :, 1:].abs().amax()) > 1e-3


def test_other_frames_are_given_what_they_were_without_the_lock(models: Callable[[str], TinyModel]) -> None:
    """Double precision on the way rounds to the same bits."""
    for name in ("toybox", "sd15", "svd", "wan", "cosmos"):
        model = models(name)
        with recorded(model) as plain:
            sample(model, steps=1)
        with recorded(model) as calls:
            sample(model, lock_first_frame(model.patcher, frame_of(model)), steps=1)
        (one,), (other,) = plain.inputs, calls.inputs
        assert torch.equal(one[:, :, :, 1:], other[:, :, :, 1:])
        assert not torch.equal(one[:, :, :, :1], other[:, :, :, :1])


@pytest.mark.parametrize("name", ["toybox", "sd15", "svd", "cosmos"])
def test_devices_without_double_precision(
    models: Callable[[str], TinyModel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's input is then right to the last digit, and the result still to the bit."""
    monkeypatch.setattr(first_frame_lock, "DOUBLE_DEVICES", ())
    model = models(name)
    frame = frame_of(model)
    with recorded(model) as calls:
        film = sample(model, lock_first_frame(model.patcher, frame))
    wanted = seen_form(model, frame)[:, :, 0]
    for given in calls.first_frames():
        torch.testing.assert_close(given, wanted.expand_as(given), atol=1e-6, rtol=1e-6)
    assert torch.equal(first_of(model, film), frame)


@pytest.mark.parametrize("name", ["toybox", "wan"])
def test_half_precision(models: Callable[[str], TinyModel], name: str) -> None:
    model = models(name)
    frame = frame_of(model)
    network = model.patcher.model
    before = network.manual_cast_dtype
    seen: list[Tensor] = []
    handle = network.diffusion_model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    network.manual_cast_dtype = torch.bfloat16
    try:
        with pytest.MonkeyPatch.context() as patch:
            # What the layers would do in half precision is of no interest here.
            patch.setattr(type(network.diffusion_model), "forward", lambda _, x, *args, **kwargs: torch.zeros_like(x))
            film = sample(model, lock_first_frame(model.patcher, frame))
    finally:
        handle.remove()
        network.manual_cast_dtype = before
    wanted = seen_form(model, frame).bfloat16()
    assert seen and all(given.dtype == torch.bfloat16 for given in seen)
    assert all(torch.equal(given[:, :, :1], wanted.repeat(2, 1, 1, 1, 1)) for given in seen)
    assert torch.equal(film[:, :, :1], frame)
