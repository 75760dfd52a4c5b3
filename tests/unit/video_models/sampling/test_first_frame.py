"""The first frame is given: what the stand-alone model sees of it, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mask_guided_video.video_models.lavie.config import LaVieConfig
from mask_guided_video.video_models.lavie.unet import LaVieUNet
from mask_guided_video.video_models.sampling.background_lock import BackgroundLock
from mask_guided_video.video_models.sampling.denoising import Conditions, sample_latents
from mask_guided_video.video_models.sampling.first_frame import FirstFrame
from mask_guided_video.video_models.sampling.latent_statistics import match_after_step
from mask_guided_video.video_models.text_encoding import TextEmbedding

SIZE = (1, 4, 5, 4, 6)


def draw(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def unet(prediction_type: str) -> LaVieUNet:
    config = LaVieConfig(
        block_out_channels=(8, 16),
        attention_levels=(True, True),
        layers_per_block=1,
        num_heads=2,
        cross_attention_dim=8,
        norm_num_groups=4,
        prediction_type=prediction_type,
        native_frames=4,
    )
    torch.manual_seed(0)
    network = LaVieUNet(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # What new networks multiply by zero shall matter.
            if parameter.ndim > 1 and not bool(parameter.any()):
                parameter.copy_(draw(*parameter.shape, seed=len(name)) * 0.2)
    return network


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def network(request: pytest.FixtureRequest) -> LaVieUNet:
    return unet(request.param)


def sample(network: Any, size: tuple[int, ...] = SIZE, cfg: float = 3.0, steps: int = 4, **options: Any) -> Tensor:
    prompts = [TextEmbedding("", draw(1, 3, 8, seed=seed)) for seed in (1, 2)]
    windows = {name: options.pop(name) for name in ("window", "overlap") if name in options}
    conditions = Conditions(*prompts, cfg, **windows)
    return sample_latents(network, draw(*size, seed=3), conditions, torch.device("cpu"), steps=steps, **options)


def seen_by(network: LaVieUNet, run: Callable[[], Tensor]) -> list[Tensor]:
    """What the network is given in each call, [chunks * B, C, T, h, w]."""
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        run()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("films", [1, 2])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_network_is_given_the_clean_frame_and_the_film_begins_with_it(
    network: LaVieUNet, sampler: str, films: int, cfg: float
) -> None:
    first = FirstFrame(draw(films, 4, 1, 4, 6, seed=9) * 1.7)
    size = (films, *SIZE[1:])
    results: list[Tensor] = []

    def run() -> Tensor:
        results.append(sample(network, size, cfg, first_frame=first, sampler=sampler))
        return results[0]

    seen = seen_by(network, run)
    halves = 1 if cfg == 1.0 else 2
    assert len(seen) == 4
    for batch in seen:
        assert len(batch) == halves * films
        assert torch.equal(batch[:, :, :1], first.latents.repeat(halves, 1, 1, 1, 1))
    assert torch.equal(results[0][:, :, :1], first.latents)
    other = sample(network, size, cfg, sampler=sampler)
    assert bool(results[0].isfinite().all())
    assert all(float((results[0] - other)[:, :, frame].abs().max()) > 1e-3 for frame in range(1, 5))


def test_the_samplers_agree(network: LaVieUNet) -> None:
    for match in (False, True):
        first = FirstFrame(draw(1, 4, 1, 4, 6, seed=9), match)
        films = [sample(network, steps=10, first_frame=first, sampler=sampler) for sampler in ("ddim", "euler")]
        torch.testing.assert_close(*films, atol=5e-4, rtol=1e-3)


def test_one_first_frame_serves_all_films(network: LaVieUNet) -> None:
    first = draw(1, 4, 1, 4, 6, seed=9)
    both = sample(network, (2, *SIZE[1:]), first_frame=FirstFrame(first))
    assert torch.equal(both, sample(network, (2, *SIZE[1:]), first_frame=FirstFrame(first.expand(2, -1, -1, -1, -1))))


def test_a_later_start_and_a_locked_background_keep_the_first_frame(network: LaVieUNet) -> None:
    first, latents = FirstFrame(draw(1, 4, 1, 4, 6, seed=9)), draw(*SIZE, seed=4)
    mask = torch.zeros(1, 1, 5, 4, 6)
    mask[..., 2:4] = 1.0
    late = sample(network, first_frame=first, latents=latents, start_percent=0.6)
    assert torch.equal(late[:, :, :1], first.latents)
    locked = sample(network, first_frame=first, background_lock=BackgroundLock(latents, mask))
    assert torch.equal(locked[:, :, :1], first.latents)
    assert torch.equal(locked[:, :, 1:, :, :2], latents[:, :, 1:, :, :2])
    assert not torch.equal(locked[:, :, 1:, :, 2:4], latents[:, :, 1:, :, 2:4])


def test_only_the_window_that_holds_the_beginning_sees_it(network: LaVieUNet) -> None:
    first = FirstFrame(draw(1, 4, 1, 4, 6, seed=9))
    seen = seen_by(network, lambda: sample(network, steps=2, first_frame=first, window=3, overlap=1))
    # Frames 0 to 2 and 2 to 4, in each of two steps.
    held = [torch.equal(batch[:, :, :1], first.latents.repeat(2, 1, 1, 1, 1)) for batch in seen]
    assert held == [True, False, True, False]


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_previews_begin_with_the_first_frame(network: LaVieUNet, sampler: str) -> None:
    first = FirstFrame(draw(1, 4, 1, 4, 6, seed=9))
    previews: list[Tensor] = []
    sample(network, first_frame=first, sampler=sampler, callback=lambda *step: previews.append(step[2]))
    assert len(previews) == 4 and all(torch.equal(preview[:, :, :1], first.latents) for preview in previews)


def test_statistics_are_matched_after_each_step(network: LaVieUNet) -> None:
    first = draw(1, 4, 1, 4, 6, seed=9) * 2.0 + 1.0
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda _, args: seen.append(args[0][:1].clone()))
    try:
        film = sample(network, steps=5, first_frame=FirstFrame(first, match_statistics=True, switch=0.5))
    finally:
        handle.remove()

    def spread(frames: Tensor) -> Tensor:
        return torch.stack([frames.mean(dim=(-2, -1)), frames.std(dim=(-2, -1))])

    for number, given in enumerate(seen[1:]):
        # Steps 0 and 1 of 5 are before the switch at 0.5 (2 / 5 is not above it either), steps 3 and 4 behind it.
        reference = given[:, :, 1:2] if number <= 2 else first
        torch.testing.assert_close(
            spread(given[:, :, 1:]), spread(reference).expand(-1, -1, -1, 4), atol=1e-4, rtol=1e-4
        )
    assert float((spread(seen[2][:, :, 1:2]) - spread(first)).abs().max()) > 0.1
    torch.testing.assert_close(spread(film[:, :, 1:]), spread(first).expand(-1, -1, -1, 4), atol=1e-4, rtol=1e-4)
    assert torch.equal(film[:, :, :1], first)
    assert torch.equal(
        FirstFrame(first, True).matched(film, 0, 5), match_after_step(film, first, 0, 5)
    ) and torch.equal(FirstFrame(first).matched(film, 0, 5), film)


def test_a_film_of_one_frame_is_the_first_frame(network: LaVieUNet) -> None:
    first = draw(1, 4, 1, 4, 6, seed=9)
    film = sample(network, (1, 4, 1, 4, 6), first_frame=FirstFrame(first, match_statistics=True))
    assert torch.equal(film, first)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (torch.zeros(1, 4, 2, 4, 6), r"shape \(1, 4, 2, 4, 6\); give one frame"),
        (torch.zeros(4, 4, 6), r"shape \(4, 4, 6\); give one frame"),
        (torch.full((1, 4, 1, 4, 6), math.nan), "NaN or infinite"),
        (torch.zeros(1, 4, 1, 4, 7), "4 channels and 7 x 4 cells but the video of 4 channels and 6 x 4 cells"),
        (torch.zeros(1, 16, 1, 4, 6), "16 channels"),
        (torch.zeros(3, 4, 1, 4, 6), "3 first frames for 1 videos"),
    ],
)
def test_frames_that_do_not_fit_are_refused_before_any_work(network: LaVieUNet, frame: Tensor, message: str) -> None:
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with pytest.raises(ValueError, match=message):
            sample(network, first_frame=FirstFrame(frame))
    finally:
        handle.remove()
    assert not seen


def test_a_switch_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="switch is 1.5"):
        FirstFrame(torch.zeros(1, 4, 1, 4, 6), True, 1.5)
