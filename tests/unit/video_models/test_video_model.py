"""The stand-alone video model, with real classes at tiny sizes and random weights."""

from __future__ import annotations

import math

import pytest
import torch
from guides import plain_guide

from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.video_models.lavie.config import LaVieConfig
from mask_guided_video.video_models.lavie.unet import LaVieUNet
from mask_guided_video.video_models.sampling.background_lock import BackgroundLock
from mask_guided_video.video_models.sampling.noise_schedule import (
    alphas_cumprod,
    square_root_alphas_cumprod,
)
from mask_guided_video.video_models.sampling.schedulers import make_scheduler
from mask_guided_video.video_models.video_model import StandaloneVideoModel, VideoGeometry
from mask_guided_video.video_models.word_tokenizer import make_word_tokenizer

CONFIG = LaVieConfig(
    block_out_channels=(16, 32),
    attention_levels=(True, True),
    layers_per_block=1,
    num_heads=2,
    cross_attention_dim=16,
    norm_num_groups=4,
    prediction_type="v_prediction",
    native_frames=4,
)
PROMPT = "a red ball bounces on sand"


@pytest.fixture(scope="module")
def model() -> StandaloneVideoModel:
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    tokenizer = make_word_tokenizer(["a", "ball", "bounces", "on", "red", "sand"], 10)
    text_config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(text_config)
    geometry = VideoGeometry(4, 1, (1, 1, 1), 4, native_frames=4, width=16, height=16)
    return StandaloneVideoModel(LaVieUNet(CONFIG), vae, encoder, tokenizer, geometry)


@pytest.fixture(scope="module")
def prompts(model):
    return model.encode_prompt(PROMPT), model.encode_prompt("")


def test_padding_is_zero_and_words_are_found(model) -> None:
    embedding = model.encode_prompt(PROMPT).embedding
    assert embedding.shape == (1, 10, 16)
    assert bool((embedding[0, 7:] == 0).all()) and bool((embedding[0, :7].abs().sum(dim=1) > 0).all())
    assert model.token_spans(PROMPT, ["red ball", "Sand"]).positions == ((1, 2), (5,))
    spans = model.token_spans(PROMPT, ["red ball"], "on sand")
    assert (spans.background, spans.ordinary) == ((4, 5), (0, 1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="'blue ball'.*'a red ball bounces on sand'"):
        model.token_spans(PROMPT, ["blue ball"])


def test_an_unknown_word_is_not_taken_for_another(model) -> None:
    assert model.token_spans("a giraffe on sand", ["giraffe"]).positions == ((1,),)
    with pytest.raises(ValueError, match="'zebra'"):
        model.token_spans("a giraffe on sand", ["zebra"])


def test_noise_is_seeded_and_checked(model) -> None:
    assert torch.equal(
        model.noise(3, 20, 16, 5), torch.randn(1, 4, 3, 5, 4, generator=torch.Generator().manual_seed(5))
    )
    with pytest.raises(ValueError, match="frames is 0"):
        model.noise(0, 16, 16, 0)
    with pytest.raises(ValueError, match="width is 17.*16"):
        model.noise(1, 16, 17, 0)


def test_ddim_and_euler_agree(model, prompts) -> None:
    noise = model.noise(3, 20, 12, 1)
    ddim = model.sample(noise, *prompts, steps=5, cfg=3.0)
    euler = model.sample(noise, *prompts, steps=5, cfg=3.0, sampler="euler")
    torch.testing.assert_close(ddim, euler, atol=2e-4, rtol=1e-4)
    assert torch.equal(ddim, model.sample(noise, *prompts, steps=5, cfg=3.0))


def test_a_clip_is_sampled_alike_alone_and_in_a_batch(model, prompts) -> None:
    noise = torch.cat([model.noise(2, 8, 8, 1), model.noise(2, 8, 8, 2)])
    both = model.sample(noise, *prompts, steps=3)
    torch.testing.assert_close(both[1:], model.sample(noise[1:], *prompts, steps=3), atol=1e-5, rtol=1e-5)


def test_cfg_one_leaves_the_negative_prompt_alone(model, prompts) -> None:
    noise = model.noise(2, 8, 8, 1)
    other = model.encode_prompt("sand")
    first = model.sample(noise, prompts[0], prompts[1], steps=2, cfg=1.0)
    assert torch.equal(first, model.sample(noise, prompts[0], other, steps=2, cfg=1.0))
    assert not torch.equal(first, model.sample(noise, prompts[0], other, steps=2, cfg=2.0))


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_late_start_keeps_the_given_latents(model, prompts, sampler: str) -> None:
    noise, latents = model.noise(2, 8, 8, 1), torch.randn(1, 4, 2, 2, 2)
    steps = []
    out = model.sample(
        noise,
        *prompts,
        steps=10,
        start_percent=0.75,
        latents=latents,
        sampler=sampler,
        callback=lambda step, total, _: steps.append((step, total)),
    )
    # Progress at timestep t is 1 - t / 999: of 901, 801, ... 1 the last three lie behind 0.75.
    assert steps == [(1, 3), (2, 3), (3, 3)]
    last = model.sample(noise, *prompts, steps=1000, start_percent=0.9999, latents=latents, sampler=sampler)
    torch.testing.assert_close(last, latents, atol=0.05, rtol=0)
    assert not torch.equal(out, last)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_the_locked_background_comes_back_exactly(model, prompts, sampler: str) -> None:
    latents = torch.randn(1, 4, 2, 4, 4)
    mask = torch.zeros(1, 1, 2, 4, 4)
    mask[..., :2] = 1.0
    lock = BackgroundLock(latents, mask)
    out = model.sample(model.noise(2, 16, 16, 1), *prompts, steps=4, sampler=sampler, background_lock=lock)
    assert torch.equal(out[..., 2:], latents[..., 2:])
    assert not torch.equal(out[..., :2], latents[..., :2])


def test_a_guide_changes_the_film_and_strength_nothing_does_not(model, prompts) -> None:
    noise = model.noise(3, 16, 16, 1)
    masks = torch.zeros(1, 3, 16, 16)
    masks[..., 4:12, 4:12] = 1.0
    plain = model.sample(noise, *prompts, steps=3)

    def guided(**options) -> torch.Tensor:
        patch = GuidePatch(plain_guide(masks=masks, mode="separate", **options))
        return model.sample(noise, *prompts, steps=3, patches=[patch])

    assert torch.equal(plain, guided(strength=0.0))
    assert not torch.equal(plain, guided(strength=4.0))
    assert bool(guided(strength=4.0).isfinite().all())


def test_a_cancelled_run_leaves_nothing_behind(model, prompts) -> None:
    noise = model.noise(2, 8, 8, 1)
    before = model.sample(noise, *prompts, steps=3)

    def cancel(step: int, total: int, denoised: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(noise, *prompts, steps=3, callback=cancel)
    assert torch.equal(before, model.sample(noise, *prompts, steps=3))


def test_frames_go_through_the_vae_in_their_order(model) -> None:
    frames = torch.rand(11, 8, 12, 3)
    latents = model.encode(frames)
    assert latents.shape == (1, 4, 11, 2, 3)
    torch.testing.assert_close(latents[:, :, 3:4], model.encode(frames[3:4]), atol=1e-5, rtol=1e-5)
    decoded = model.decode(latents)
    assert decoded.shape == frames.shape and 0 <= float(decoded.min()) and float(decoded.max()) <= 1
    with pytest.raises(ValueError, match="NaN"):
        model.decode(torch.full((1, 4, 1, 2, 2), math.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"cfg": math.nan}, "cfg is nan"),
        ({"start_percent": 0.5}, "no latents"),
        ({"start_percent": 1.0}, "start_percent is 1.0"),
        ({"sampler": "magic"}, "'magic'"),
        ({"latents": torch.zeros(1, 4, 9, 2, 2)}, "make both the same"),
    ],
)
def test_bad_settings_are_named(model, prompts, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.sample(model.noise(2, 8, 8, 1), *prompts, **options)


def test_schedule_values() -> None:
    alpha_bar = alphas_cumprod(LaVieConfig())
    expected = {0: 0.9999, 1: 0.99978009, 21: 0.99322036, 481: 0.09395023, 981: 5.787793e-5, 999: 4.035830e-5}
    for timestep, value in expected.items():
        assert float(alpha_bar[timestep]) == pytest.approx(value, rel=2e-6)
    for timestep, sigma in {481: 3.105468, 981: 131.441, 999: 157.407}.items():
        level = alpha_bar[timestep]
        assert float(((1 - level) / level).sqrt()) == pytest.approx(sigma, rel=1e-5)
    # Stable Diffusion's own schedule, whose square roots are linear, ends far lower.
    last = square_root_alphas_cumprod(LaVieConfig(beta_start=0.00085, beta_end=0.012))[-1]
    assert float(((1 - last) / last).sqrt()) == pytest.approx(14.6146, rel=1e-5)
    assert make_scheduler("ddim", LaVieConfig(), 50).timesteps.tolist() == list(range(981, 0, -20))


def test_ddim_step_literal() -> None:
    scheduler = make_scheduler("ddim", LaVieConfig(), 50)
    one, half = torch.tensor([1.0]), torch.tensor([0.5])
    assert float(scheduler.step(half, 981, one).prev_sample) == pytest.approx(1.108527, abs=2e-5)
