"""Levers between sampling steps: the energy falls, a crude clip is held, and without them nothing changes."""

from __future__ import annotations

import itertools

import pytest
import torch

from mask_guided_video.attention_patches.attention_energy import AttentionShare
from mask_guided_video.video_models.sampling.denoising import Conditions, sample_latents
from mask_guided_video.video_models.sampling.first_frame import FirstFrame
from mask_guided_video.video_models.sampling.levers import (
    DescentSettings,
    DualClock,
    EnergyDescent,
    Look,
    SamplingLevers,
    descend,
    noise_level,
)
from mask_guided_video.video_models.text_encoding import TextEmbedding

PROMPT = "a red ball moves left on sand"


@pytest.fixture
def model(tiny_video_model):
    return tiny_video_model


def masks(frames=4):
    found = torch.zeros(1, frames, 16, 16)
    found[..., 4:12, 0:6] = 1.0
    return found


def share(model, given=None):
    return AttentionShare(masks() if given is None else given, model.token_spans(PROMPT, ("red ball",)))


def sample(model, levers=None, **options):
    noise = model.noise(4, 16, 16, 1)
    prompts = model.encode_prompt(PROMPT), model.encode_prompt("")
    return model.sample(noise, *prompts, steps=4, cfg=3.0, levers=levers, **options)


class TestDescent:
    def test_one_step_of_known_length_down_a_known_slope(self):
        latents = torch.zeros(1, 1, 1, 1, 4)
        found, energies = descend(
            latents, lambda x: (x - 3.0).square().mean(dim=(1, 2, 3, 4)), 0.5, DescentSettings(step=0.2, iterations=1)
        )
        # The slope is the same everywhere, so that each value moves by step * spread.
        assert torch.allclose(found, torch.full_like(found, 0.1))
        assert energies == [9.0]

    def test_clips_of_a_batch_go_their_own_way(self):
        latents = torch.randn(2, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0))

        def energy(x):
            return (0.05 * (x - 1.0).square().mean(dim=(1, 2, 3, 4))).clamp(max=1.0)

        settings = DescentSettings(step=0.3, iterations=6, enough=0.0, least_fall=0.0)
        together, _ = descend(latents, energy, 1.0, settings)
        alone = torch.cat([descend(clip[None], energy, 1.0, settings)[0] for clip in latents])
        assert torch.equal(together, alone)
        assert bool((energy(together) < energy(latents)).all())

    def test_a_step_too_far_is_taken_back_and_halved(self):
        seen = []

        def energy(x):
            seen.append(x.detach().clone())
            return x.square().mean(dim=(1, 2, 3, 4))

        descend(torch.full((1, 1, 1, 1, 1), 0.3), energy, 1.0, DescentSettings(step=1.0, iterations=3, enough=0.0))
        assert [round(float(x), 3) for x in seen] == [0.3, -0.7, -0.2]

    def test_it_stops_where_there_is_enough(self):
        calls = []

        def energy(x):
            calls.append(1)
            return x.square().mean(dim=(1, 2, 3, 4))

        latents = torch.full((1, 1, 1, 1, 1), 0.1)
        found, _ = descend(latents, energy, 1.0, DescentSettings(enough=0.5, iterations=5))
        assert torch.equal(found, latents)
        assert len(calls) == 1

    @pytest.mark.parametrize("value", [{"until": 1.5}, {"step": float("nan")}, {"iterations": -1}, {"enough": 2.0}])
    def test_values_out_of_range_are_refused(self, value):
        with pytest.raises(ValueError, match=next(iter(value))):
            DescentSettings(**value)


class TestEnergy:
    def test_it_falls_and_the_words_are_seen_more_inside(self, model):
        shares, energies = {}, []
        for name, iterations in (("without", 0), ("with", 4)):
            settings = DescentSettings(until=0.6, step=0.2, iterations=iterations, enough=0.0, least_fall=0.0)
            look = Look(share(model), 0.6, lambda record, _, name=name: shares.update({name: float(record.share())}))
            acting = SamplingLevers(
                EnergyDescent(share(model), settings), look=look, report=lambda _, found: energies.append(found)
            )
            result = sample(model, acting)
            assert bool(torch.isfinite(result).all())
        assert shares["with"] > shares["without"]
        assert all(found[-1] < found[0] for found in energies)
        assert energies

    @pytest.mark.parametrize("sampler", ["ddim", "euler"])
    def test_both_samplers_descend_alike(self, model, sampler):
        energies = []
        settings = DescentSettings(until=0.9, iterations=2)
        sample(
            model,
            SamplingLevers(EnergyDescent(share(model), settings), report=lambda step, found: energies.append(step)),
            sampler=sampler,
        )
        assert energies == list(range(1, len(energies) + 1))
        assert energies

    @pytest.mark.parametrize("off", ["none", "iterations", "step", "empty masks", "window"])
    def test_nothing_to_do_is_bit_for_bit_the_model_alone(self, model, off):
        settings = {"iterations": {"iterations": 0}, "step": {"step": 0.0}, "window": {"until": 1.0}}.get(off, {})
        given = share(model, torch.zeros(1, 4, 16, 16) if off == "empty masks" else None)
        acting = SamplingLevers(None if off == "none" else EnergyDescent(given, DescentSettings(**settings)))
        assert torch.equal(sample(model, acting), sample(model))

    def test_within_inference_mode(self, model):
        acting = SamplingLevers(EnergyDescent(share(model), DescentSettings(until=0.6)))
        expected = sample(model, acting)
        with torch.inference_mode():
            found = sample(model, acting)
        assert torch.equal(found, expected)
        assert not torch.equal(found, sample(model))

    def test_a_cancelled_run_leaves_model_and_patch_as_they_were(self, model):
        acting = SamplingLevers(EnergyDescent(share(model), DescentSettings(until=0.6)))
        before = sample(model)

        def cancel(step, *_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sample(model, acting, callback=cancel)
        assert torch.equal(sample(model), before)
        assert all(parameter.grad is None for parameter in model.unet.parameters())

    def test_with_a_first_frame_the_frame_stays(self, model):
        first = FirstFrame(model.noise(1, 16, 16, 7))
        found = sample(model, SamplingLevers(EnergyDescent(share(model))), first_frame=first)
        assert torch.equal(found[:, :, :1], first.latents)


class TestDualClock:
    def test_inside_is_held_to_its_level_and_free_below(self, model):
        crude = model.noise(4, 16, 16, 5)
        mask = torch.zeros(1, 1, 4, *crude.shape[-2:])
        mask[..., 0] = 1.0
        all_the_way = sample(model, SamplingLevers(dual_clock=DualClock(crude, mask, 1.0, 0.0)))
        free = sample(model, SamplingLevers(dual_clock=DualClock(crude, mask, 1.0, 1.0)))
        later = sample(model, SamplingLevers(dual_clock=DualClock(crude, mask, 0.5, 0.5)))
        distances = [float((found - crude)[..., 0].abs().mean()) for found in (all_the_way, free)]
        assert distances[0] < distances[1]
        assert not torch.equal(later, free)

    def test_a_full_mask_held_to_the_last_step_gives_that_step_of_the_crude_clip(self):
        network = _Identity()
        crude = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
        prompts = [TextEmbedding("", torch.zeros(1, 1, 1))] * 2
        found = sample_latents(
            network,
            noise,
            Conditions(*prompts, 1.0),
            torch.device("cpu"),
            steps=5,
            levers=SamplingLevers(dual_clock=DualClock(crude, torch.ones(1, 1, 1, 3, 3), 1.0, 0.0)),
        )
        # The network knows the crude clip's noise: what is held is on its line, and the last step leads to it.
        assert len(network.seen) == 5
        for (level, seen), (following, _) in itertools.pairwise(network.seen):
            assert level > following
            assert seen.shape == crude.shape
        level, last = network.seen[-1]
        assert torch.allclose(last, crude * level_signal(level) + noise * level, atol=1e-4)
        assert bool(torch.isfinite(found).all())

    def test_what_does_not_fit_is_refused(self, model):
        crude = model.noise(4, 16, 16, 5)
        mask = torch.ones(1, 1, 1, *crude.shape[-2:])
        with pytest.raises(ValueError, match="begins at noise level"):
            DualClock(crude, mask, 0.3, 0.5)
        with pytest.raises(ValueError, match="outside 0..1"):
            DualClock(crude, mask * 2.0)
        with pytest.raises(ValueError, match="frames"):
            DualClock(crude, mask.expand(-1, -1, 3, -1, -1))
        with pytest.raises(ValueError, match="same size"):
            sample(model, SamplingLevers(dual_clock=DualClock(crude[:, :, :2], mask)))
        with pytest.raises(ValueError, match="begins at its own level"):
            sample(model, SamplingLevers(dual_clock=DualClock(crude, mask)), start_percent=0.5, latents=crude)


class _Identity(torch.nn.Module):
    """A network that predicts no noise, and writes down what it sees and at which spread of noise."""

    def __init__(self) -> None:
        super().__init__()
        from mask_guided_video.video_models.lavie.config import LaVieConfig
        from mask_guided_video.video_models.sampling.noise_schedule import alphas_cumprod

        self.config = LaVieConfig(prediction_type="epsilon")
        self.alpha_bar = alphas_cumprod(self.config)
        self.dtype = torch.float32
        self.seen = []

    def forward(self, x, timesteps, context, transformer_options):
        self.seen.append((float((1.0 - self.alpha_bar[int(timesteps[0])]).sqrt()), x.clone()))
        return torch.zeros_like(x)


def level_signal(spread: float) -> float:
    return (1.0 - spread**2) ** 0.5


def test_noise_levels():
    assert noise_level(1.0) == 0.5
    assert noise_level(0.0) == 0.0
    # Rectified flow: noise sigma, signal 1 - sigma.
    assert noise_level(0.3 / 0.7) == pytest.approx(0.3)
