"""LAMP's sampler in ComfyUI: its steps written out by hand, with and without a locked first frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from native_models import TinyModel, tiny
from torch import Tensor

from mask_guided_video.host.models.loading import load_native_toybox
from mask_guided_video.host.sampling.first_frame_lock import lock_first_frame
from mask_guided_video.host.sampling.lamp_sampler import lamp_sampler
from mask_guided_video.video_models.sampling.first_frame import FirstFrame

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

PROMPT = "a red ball moves left on sand"


@pytest.fixture(scope="module")
def toybox(tiny_folder: Path) -> TinyModel:
    return TinyModel("toybox", lambda: load_native_toybox(tiny_folder)[0], (1, 4, 5, 8, 6), 32)


def run(model: TinyModel, patcher: Any, sampler: Any, steps: int = 5, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """A film sampled as SamplerCustom does, and the predictions of all steps."""
    import comfy.sample
    import comfy.samplers

    noise = model.noise()
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "ddim_uniform", steps)
    predictions: list[Tensor] = []
    film = comfy.sample.sample_custom(
        patcher,
        noise,
        model.cfg,
        sampler,
        sigmas,
        model.conditioning(1),
        model.conditioning(2),
        torch.zeros_like(noise),
        callback=lambda step, denoised, *rest: predictions.append(denoised.clone()),
        disable_pbar=True,
        seed=0,
        **options,
    )
    return film, predictions


def adain(frames: Tensor, reference: Tensor) -> Tensor:
    """Frames [n, C, h, w] with mean and spread of one [C, h, w]."""
    out = torch.empty_like(frames)
    for number, frame in enumerate(frames):
        for channel in range(len(frame)):
            own, wanted = frame[channel], reference[channel]
            spread = [(part.var(unbiased=True) + 1e-8).sqrt() for part in (own, wanted)]
            out[number, channel] = (own - own.mean()) / spread[0] * spread[1] + wanted.mean()
    return out


def lamp_by_hand(noise: Tensor, first: Tensor, alpha_bars: list[float], predictions: list[Tensor]) -> Tensor:
    """DDIM with AdaIN in its published order, given what the model takes the film for in each step.

    Args:
        noise: [T, C, h, w].
        first: clean first frame [C, h, w].
        alpha_bars: before each step, and 1 after the last.
        predictions: [T, C, h, w] each.
    """
    steps = len(predictions)
    latents = noise.clone()
    for k, clean in enumerate(predictions):
        here, there = alpha_bars[k], alpha_bars[k + 1]
        direction = (latents - here**0.5 * clean) / (1 - here) ** 0.5
        latents = there**0.5 * clean + (1 - there) ** 0.5 * direction
        if k / steps > 0.6:
            latents[1:2] = adain(latents[1:2], first)
        latents[2:] = adain(latents[2:], latents[1])
    latents[1:] = adain(latents[1:], first)
    latents[0] = first
    return latents


def test_steps_by_hand_on_a_v_model(toybox: TinyModel) -> None:
    import comfy.samplers

    frame = torch.randn(1, 4, 1, 8, 6, generator=torch.Generator().manual_seed(7)) * 2.0 + 0.5
    film, predictions = run(toybox, lock_first_frame(toybox.patcher, frame), lamp_sampler())
    model = toybox.patcher.model
    sigmas = comfy.samplers.calculate_sigmas(model.model_sampling, "ddim_uniform", 5).double()
    alpha_bars = (1 / (sigmas**2 + 1)).tolist()
    # ComfyUI starts from noise of full size at the highest level: DDIM's own start.
    expected = lamp_by_hand(
        toybox.noise()[0].transpose(0, 1).double(),
        model.process_latent_in(frame)[0, :, 0].double(),
        alpha_bars,
        [part[0].transpose(0, 1).double() for part in predictions],
    )
    found = model.process_latent_in(film)[0].transpose(0, 1).double()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    assert torch.equal(film[:, :, :1], frame)


def test_steps_by_hand_on_a_flow_model() -> None:
    import comfy.samplers

    model = tiny("wan")
    frame = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(7))
    film, predictions = run(model, lock_first_frame(model.patcher, frame), lamp_sampler(0.3))
    network = model.patcher.model
    sigmas = comfy.samplers.calculate_sigmas(network.model_sampling, "ddim_uniform", 5).double().tolist()
    latents = model.noise()[0].transpose(0, 1).double() * sigmas[0]
    first = network.process_latent_in(frame)[0, :, 0].double()
    for k, clean in enumerate(part[0].transpose(0, 1).double() for part in predictions):
        latents = clean + sigmas[k + 1] * (latents - clean) / sigmas[k]
        if k / len(predictions) > 0.3:
            latents[1:2] = adain(latents[1:2], first)
        latents[2:] = adain(latents[2:], latents[1])
    latents[1:] = adain(latents[1:], first)
    found = network.process_latent_in(film)[0].transpose(0, 1).double()
    torch.testing.assert_close(found[1:], latents[1:], atol=2e-3, rtol=1e-3)
    assert torch.equal(film[:, :, :1], frame)


def test_without_a_lock_the_models_own_first_frame_is_the_measure(toybox: TinyModel) -> None:
    film, predictions = run(toybox, toybox.patcher, lamp_sampler())
    network = toybox.patcher.model
    own = network.process_latent_in(film)
    torch.testing.assert_close(own[:, :, :1], predictions[-1][:, :, :1], atol=1e-4, rtol=1e-4)
    for values in (own.mean(dim=(-2, -1)), own.std(dim=(-2, -1))):
        torch.testing.assert_close(values[:, :, 1:], values[:, :, :1].expand(-1, -1, 4), atol=1e-3, rtol=1e-3)


def test_films_in_the_batch() -> None:
    model = tiny("svd")
    frame = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(7))
    film, _ = run(model, lock_first_frame(model.patcher, frame), lamp_sampler())
    assert torch.equal(film[:1], frame)
    for values in (film.mean(dim=(-2, -1)), film.std(dim=(-2, -1))):
        torch.testing.assert_close(values[1:], values[:1].expand(5, -1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("way", "match", "sampler"),
    [
        pytest.param("whole", False, "ddim", id="the plain film"),
        pytest.param("whole", True, "euler", id="the other sampler, latents like the first frame's"),
        pytest.param("later start", True, "ddim", id="from a later step"),
        pytest.param("later start", False, "euler", id="from a later step of the other sampler"),
        pytest.param("locked background", False, "ddim", id="a background that is kept"),
        pytest.param("locked background", True, "euler", id="a kept background by the other sampler"),
    ],
)
def test_stand_alone_and_comfyui_agree(tiny_folder: Path, sampler: str, match: bool, way: str) -> None:
    from mask_guided_video.host.sampling.comfy_video_model import ComfyVideoModel
    from mask_guided_video.video_models.sampling.background_lock import BackgroundLock
    from mask_guided_video.video_models.toybox import load_toybox

    makers = load_toybox(folder=tiny_folder), ComfyVideoModel(*load_native_toybox(tiny_folder))
    noise = makers[0].noise(4, 32, 32, seed=7)
    first = FirstFrame(torch.randn(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(3)), match)
    mask = torch.zeros(1, 1, 4, 8, 8)
    mask[..., 2:6, 2:6] = 1.0
    options: dict[str, Any] = {
        "whole": {},
        "later start": {"start_percent": 0.4, "latents": noise * 0.3},
        "locked background": {"background_lock": BackgroundLock(noise * 0.3, mask)},
    }[way]
    films = [
        maker.sample(
            noise,
            maker.encode_prompt(PROMPT),
            maker.encode_prompt(""),
            steps=5,
            sampler=sampler,
            first_frame=first,
            **options,
        )
        for maker in makers
    ]
    assert all(torch.equal(film[:, :, :1], first.latents) for film in films)
    torch.testing.assert_close(*films, atol=2e-3, rtol=2e-3)


def test_previews_and_bad_frames_of_the_hosts_maker(tiny_folder: Path) -> None:
    from mask_guided_video.host.sampling.comfy_video_model import ComfyVideoModel

    maker = ComfyVideoModel(*load_native_toybox(tiny_folder))
    prompts = maker.encode_prompt(PROMPT), maker.encode_prompt("")
    noise, first = maker.noise(4, 32, 32, seed=7), FirstFrame(torch.ones(1, 4, 1, 8, 8))
    previews: list[Tensor] = []
    maker.sample(noise, *prompts, steps=2, first_frame=first, callback=lambda *step: previews.append(step[2]))
    assert len(previews) == 2 and all(torch.equal(preview[:, :, :1], first.latents) for preview in previews)
    with pytest.raises(ValueError, match="9 x 8 cells but the video of 4 channels and 8 x 8"):
        maker.sample(noise, *prompts, steps=2, first_frame=FirstFrame(torch.ones(1, 4, 1, 8, 9)))
