"""A clean first frame in ComfyUI's models: what the network is given in every call, and what comes back, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from native_models import TinyModel, sample, tiny
from torch import Tensor

from mask_guided_video.backbones import first_frame_lock
from mask_guided_video.backbones.first_frame_lock import as_film, lock_first_frame
from mask_guided_video.backbones.host_windows import ContextWindows, install_context_windows
from mask_guided_video.backbones.loading import load_native_toybox

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

SAMPLERS = ("euler", "ddim", "dpmpp_2m")
# v, eps with the film in the batch, flow, flow, EDM with the film in the batch and a picture beside it, flow, and
# Cosmos' own.
MODELS = ("toybox", "sd15", "sdxl", "wan", "wan_image", "wan_5b", "ltx", "svd", "hunyuan", "mochi", "cosmos")


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> Callable[[str], TinyModel]:
    """Tiny models by name; ``toybox`` is one of the LaVie family."""
    toybox = TinyModel("toybox", load_native_toybox(tiny_folder)[0], (1, 4, 5, 8, 6), 32)
    return lambda name: toybox if name == "toybox" else tiny(name)


def frame_of(model: TinyModel, films: int = 1, seed: int = 70) -> Tensor:
    """A first frame as a LATENT of the model holds it."""
    size = (films, model.latents[1], 1, *model.latents[-2:])
    frame = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 1.7 + 0.3
    return frame if len(model.latents) == 5 else frame[:, :, 0]


def seen_form(model: TinyModel, frame: Tensor) -> Tensor:
    """A raw first frame as the network sees it, [B, C, 1, h, w]."""
    return model.patcher.model.process_latent_in(frame if frame.ndim == 5 else frame[:, :, None])


@dataclass
class Calls:
    """What a network was given.

    Attributes:
        inputs: of each call, [chunks, B, C, T, h, w].
        windows: frames of each call.
        chunks: cond or uncond of each call.
    """

    inputs: list[Tensor] = field(default_factory=list)
    windows: list[tuple[int, ...]] = field(default_factory=list)
    chunks: list[list[int]] = field(default_factory=list)

    def first_frames(self) -> list[Tensor]:
        """[chunks * B, C, h, w] of each call that holds the beginning of the clip."""
        pairs = zip(self.inputs, self.windows, strict=True)
        return [given.flatten(0, 1)[:, :, frames.index(0)] for given, frames in pairs if 0 in frames]


@contextmanager
def recorded(model: TinyModel) -> Iterator[Calls]:
    calls = Calls()

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        options = kwargs["transformer_options"]
        chunks = len(options["cond_or_uncond"])
        given = args[0][:, : model.latents[1]].clone()
        if given.ndim == 4:
            given = given.unflatten(0, (chunks, 1, -1)).transpose(2, 3)
        else:
            given = given.unflatten(0, (chunks, -1))
        calls.inputs.append(given)
        calls.chunks.append(list(options["cond_or_uncond"]))
        window = options.get("context_window")
        calls.windows.append(tuple(range(given.shape[3])) if window is None else tuple(window.index_list))

    handle = model.patcher.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def prove_clean(model: TinyModel, calls: Calls, frame: Tensor) -> None:
    """Every call was given the clean frame to the bit, in all its rows."""
    wanted = seen_form(model, frame)[:, :, 0]
    found = calls.first_frames()
    assert found
    for given in found:
        assert torch.equal(given, wanted.repeat(len(given) // len(wanted), 1, 1, 1))
    assert {chunk for call in calls.chunks for chunk in call} == ({0} if model.cfg == 1.0 else {0, 1})


def first_of(model: TinyModel, film: Tensor) -> Tensor:
    """First frame of raw latents, [B, C, 1, h, w] or [1, C, h, w] as in ``frame_of``."""
    return film[:, :, :1] if film.ndim == 5 else film[:1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
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
@pytest.mark.parametrize("name", ["toybox", "sd15", "wan"])
def test_samplers_with_noise_and_with_calls_between_steps(
    models: Callable[[str], TinyModel], name: str, sampler: str
) -> None:
    model = models(name)
    frame = frame_of(model)
    with recorded(model) as calls:
        film = sample(model, lock_first_frame(model.patcher, frame), steps=3, sampler=sampler)
    prove_clean(model, calls, frame)
    assert torch.equal(first_of(model, film), frame) and bool(film.isfinite().all())


def host_sample(model: TinyModel, patcher: Any, latents: Tensor, denoise: float = 1.0, **options: Any) -> Tensor:
    """As KSampler on given latents."""
    import comfy.sample

    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    prompts = model.conditioning(1), model.conditioning(2)
    arguments = (patcher, noise, 4, model.cfg, "euler", "simple", *prompts, latents)
    return comfy.sample.sample(*arguments, denoise=denoise, disable_pbar=True, seed=3, **options)


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


@pytest.mark.parametrize("name", ["wan_vace_reference", "hunyuan_reference"])
def test_a_reference_picture_before_the_film_stays(models: Callable[[str], TinyModel], name: str) -> None:
    """The film's first frame is locked, which stands behind the reference where that is one of the latents."""
    from mask_guided_video.backbones.first_frame_lock import FIRST_PLACE_KEY

    model = models(name)
    frame = frame_of(model)
    places: list[int] = []

    def note(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        places.append(kwargs["transformer_options"][FIRST_PLACE_KEY])

    handle = model.patcher.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        film = sample(model, lock_first_frame(model.patcher, frame))
    finally:
        handle.remove()
    place = 1 if name == "wan_vace_reference" else 0
    assert set(places) == {place}
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
        ("toybox", (1, 4, 1, 8, 7), "7 x 8 cells but the film of 4 channels and 6 x 8 cells"),
        ("toybox", (3, 4, 1, 8, 6), "3 first frames for 1 films"),
        ("wan", (2, 16, 1, 8, 12), "2 first frames for 1 films"),
        ("svd", (1, 4, 9, 12), "12 x 9 cells but the film of 4 channels and 12 x 8"),
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
