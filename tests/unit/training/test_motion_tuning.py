"""The tuning loop: what is learned, gradients through the mask patches, resuming to the bit, a full disk."""

import json
import logging

import numpy as np
import pytest
import torch

from mask_guided_video.training.checkpoints import load_checkpoint, save_checkpoint
from mask_guided_video.training.motion.architectures import LoraArchitecture, make_architecture
from mask_guided_video.training.motion.data import ClipWords, TrainingClip
from mask_guided_video.training.motion.examples import Example, ExampleMaker, motion_loss
from mask_guided_video.training.motion.loop import Run, checkpoint_layers, tune
from mask_guided_video.training.motion.report import loss_curve, smoothed, validation_film
from mask_guided_video.training.motion.settings import MaskAugmentation, MotionSettings

WORDS = ClipWords("a red ball moves left on grass", ("red ball",), "grass")


def clips():
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(1, 5, 16, 16, dtype=torch.uint8)
    for frame in range(5):
        masks[0, frame, 4:12, 2 * frame : 2 * frame + 8] = 255
    return [TrainingClip(WORDS, torch.randn(2, 4, 5, 8, 8, generator=generator), masks) for _ in range(2)]


def settings(**values):
    usual = {"steps": 6, "batch": 2, "learning_rate": 1e-2, "checkpoint_every": 2, "flip": 0.5}
    return MotionSettings(**{**usual, **values})


def run_of(model, folder=None, architecture=None, **values):
    chosen = settings(**values)
    examples = ExampleMaker(model, clips(), chosen)
    return Run(chosen, architecture or LoraArchitecture(rank=2), examples, torch.device("cpu"), folder)


def example(model, timestep=500, **values):
    maker = ExampleMaker(model, clips(), settings(**values))
    latents = clips()[0].latents[:1, :, :4]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    masks = clips()[0].masks[:, :4].float() / 255
    context = maker.words[WORDS].context
    return Example(latents, noise, timestep, context, True, maker.patches(WORDS, masks), True)


class Remembering(torch.nn.Module):
    """Predicts nothing, and keeps what it was given."""

    dtype = torch.float32

    def forward(self, x, timesteps, context, transformer_options):
        self.seen = x
        return torch.zeros_like(x)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_first_frame_is_clean_and_left_out_of_the_loss(tiny_video_model, kind):
    from dataclasses import replace

    config = replace(tiny_video_model.unet.config, prediction_type=kind)
    given, network = example(tiny_video_model), Remembering()
    loss = motion_loss(network, given, config, torch.device("cpu"))
    betas = torch.linspace(config.beta_start, config.beta_end, 1000, dtype=torch.float64)
    power = float(torch.cumprod(1 - betas, 0)[500])
    noisy = power**0.5 * given.latents + (1 - power) ** 0.5 * given.noise
    assert torch.equal(network.seen[:, :, 0], given.latents[:, :, 0])
    torch.testing.assert_close(network.seen[:, :, 1:], noisy[:, :, 1:])
    target = given.noise
    if kind == "v_prediction":
        target = power**0.5 * given.noise - (1 - power) ** 0.5 * given.latents
    torch.testing.assert_close(loss, (target[:, :, 1:] ** 2).mean())


def test_an_example_that_is_not_locked_is_learned_from_whole(tiny_video_model):
    from dataclasses import replace

    given, network = replace(example(tiny_video_model), is_locked=False), Remembering()
    loss = motion_loss(network, given, tiny_video_model.unet.config, torch.device("cpu"))
    assert not torch.equal(network.seen[:, :, 0], given.latents[:, :, 0])
    torch.testing.assert_close(loss, (given.noise**2).mean())


@pytest.mark.parametrize(
    "constants",
    [
        {"gamma_self": 6.0, "gamma_temporal": 4.0, "beta_decay_percent": 0.0},
        # So strong that object and background become attentions of their own, written side by side into one result.
        {"gamma_self": 1000.0, "gamma_temporal": 1000.0, "keys": "self"},
        {"gamma_self": 6.0, "masks": "soft", "keys": "first_prev_self"},
    ],
)
def test_gradients_flow_through_the_mask_patches(tiny_video_model, constants):
    given = example(tiny_video_model, constants={"blocks": "all", "end_percent": 1.0, **constants})
    architecture = LoraArchitecture(rank=2, modules=("self_attention", "cross_queries", "temporal"))
    tuned = architecture.prepare(tiny_video_model.unet)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in architecture.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def loss():
        return motion_loss(tuned, given, tuned.config, torch.device("cpu"))

    loss().backward()
    gradients = [parameter.grad for parameter in architecture.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
    # Along the gradient the loss changes as the gradient says.
    length = float(torch.stack([(gradient**2).sum() for gradient in gradients]).sum().sqrt())
    values = []
    for turn in (1e-2, -2e-2):
        with torch.no_grad():
            for parameter, gradient in zip(architecture.parameters(), gradients, strict=True):
                parameter += turn * gradient / length
            values.append(float(loss()))
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(length, rel=2e-2)
    # The masks do something: without them the loss is another one.
    from dataclasses import replace

    plain = float(motion_loss(tuned, replace(given, patches=()), tuned.config, torch.device("cpu")))
    assert abs(plain - values[1]) > 1e-5


def test_checkpointing_gives_the_same_gradients(tiny_video_model):
    given, gradients = example(tiny_video_model), []
    for kept in (True, False):
        architecture = LoraArchitecture(rank=2)
        tuned = architecture.prepare(tiny_video_model.unet)
        if not kept:
            checkpoint_layers(tuned)
        motion_loss(tuned, given, tuned.config, torch.device("cpu")).backward()
        gradients.append([parameter.grad for parameter in architecture.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
    assert any(bool(gradient.any()) for gradient in gradients[0])


def test_a_prepared_network_starts_as_the_base_and_leaves_it_alone(tiny_video_model):
    unet = tiny_video_model.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    names = [name for name, _ in unet.named_modules()]
    architecture = LoraArchitecture(rank=3, alpha=6.0)
    tuned = architecture.prepare(unet)
    latents, context = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 3, 16)
    with torch.no_grad():
        assert torch.equal(tuned(latents, torch.tensor([5.0]), context), unet(latents, torch.tensor([5.0]), context))
    assert [name for name, _ in unet.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    # 7 transformers with 5 layers of 16 x 16 each: 3 * (16 + 16) numbers per layer.
    layers = len(architecture.base_names())
    assert layers % 5 == 0 and sum(value.numel() for value in architecture.parameters()) == layers * 3 * 32
    assert all(name.endswith("weight") and name in before for name in architecture.base_names())
    again = LoraArchitecture(rank=3, alpha=6.0)
    again.prepare(unet)
    assert all(torch.equal(value, again.state()[name]) for name, value in architecture.state().items())


def test_wrong_architectures(tiny_video_model):
    with pytest.raises(ValueError, match="'adapter'; choose one of lora"):
        make_architecture("adapter")
    with pytest.raises(ValueError, match="rank is 0"):
        make_architecture("lora", rank=0)
    with pytest.raises(ValueError, match="no layers that fit modules nothing"):
        LoraArchitecture(modules=("nothing",)).prepare(tiny_video_model.unet)
    with pytest.raises(ValueError, match="is not a pattern"):
        LoraArchitecture(modules=("(",))


def test_an_interrupted_run_gives_the_same_weights(tiny_video_model, tmp_path):
    whole = run_of(tiny_video_model, tmp_path / "whole")
    tune(whole, tiny_video_model.unet)
    for steps in (2, 3, None):
        # Everything anew, as in another process; the global state of chance is another one each time.
        torch.manual_seed(steps or 0)
        parts = run_of(tiny_video_model, tmp_path / "parts")
        tune(parts, tiny_video_model.unet, stop_at=steps)
    assert parts.losses == whole.losses and len(whole.losses) == 6
    state = whole.architecture.state()
    assert all(torch.equal(value, state[name]) for name, value in parts.architecture.state().items())
    fresh = LoraArchitecture(rank=2)
    fresh.prepare(tiny_video_model.unet)
    assert not all(torch.equal(value, state[name]) for name, value in fresh.state().items())


def test_a_cancelled_run_keeps_its_last_checkpoint(tiny_video_model, tmp_path):
    def cancel(step, total, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(run_of(tiny_video_model, tmp_path), tiny_video_model.unet, progress=cancel)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2
    whole, resumed = run_of(tiny_video_model), run_of(tiny_video_model, tmp_path)
    tune(whole, tiny_video_model.unet)
    tune(resumed, tiny_video_model.unet)
    assert resumed.losses == whole.losses


def test_a_run_of_other_settings_is_not_resumed(tiny_video_model, tmp_path):
    tune(run_of(tiny_video_model, tmp_path), tiny_video_model.unet, stop_at=2)
    with pytest.raises(ValueError, match=r"other settings: learning_rate 0.01 \(now 0.1\); resume"):
        tune(run_of(tiny_video_model, tmp_path, learning_rate=0.1), tiny_video_model.unet)
    with pytest.raises(ValueError, match=r"rank 2 \(now 3\)"):
        tune(run_of(tiny_video_model, tmp_path, LoraArchitecture(rank=3)), tiny_video_model.unet)
    tune(run_of(tiny_video_model, tmp_path, checkpointing=True), tiny_video_model.unet, stop_at=3)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3


def test_half_precision_of_the_forward_pass(tiny_video_model):
    run = run_of(tiny_video_model, precision="bf16", steps=2)
    tune(run, tiny_video_model.unet)
    assert all(np.isfinite(run.losses))
    assert all(value.dtype == torch.float32 for value in run.architecture.parameters())
    # Another precision in the same process, which accelerate by itself would refuse.
    tune(run_of(tiny_video_model, steps=1), tiny_video_model.unet)


def test_a_loss_that_is_not_finite_ends_the_run(tiny_video_model, monkeypatch):
    from mask_guided_video.training.motion import loop as motion_loop

    monkeypatch.setattr(motion_loop, "motion_loss", lambda *arguments: torch.tensor(torch.nan, requires_grad=True))
    with pytest.raises(ValueError, match="the loss is nan at step 1; lower the learning rate"):
        tune(run_of(tiny_video_model), tiny_video_model.unet)


def test_examples_of_a_step_are_the_same_every_time(tiny_video_model):
    maker = ExampleMaker(tiny_video_model, clips(), settings(batch=4))
    first, second, other = maker.examples(7, 1000), maker.examples(7, 1000), maker.examples(8, 1000)
    assert all(torch.equal(a.noise, b.noise) and a.timestep == b.timestep for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].noise, other[0].noise)
    # Noise levels are spread over the schedule, one in each quarter.
    assert [given.timestep // 250 for given in first] == [0, 1, 2, 3]


def test_shares_of_the_settings(tiny_video_model):
    chosen = settings(
        batch=40,
        prompt_dropout=0.5,
        first_frame=0.25,
        augmentation=MaskAugmentation(0, 0.0, 0.5),
        mode="dmg",
    )
    made = [
        given for step in range(5) for given in ExampleMaker(tiny_video_model, clips(), chosen).examples(step, 1000)
    ]
    assert 75 <= sum(given.has_prompt for given in made) <= 125
    assert 35 <= sum(given.is_locked for given in made) <= 65
    assert 75 <= sum(bool(given.patches) for given in made) <= 125


def test_full_disk_leaves_the_last_good_checkpoint(tiny_video_model, tmp_path, caplog, small_files):
    tune(run_of(tiny_video_model, tmp_path), tiny_video_model.unet, stop_at=2)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with small_files(1000):
        with caplog.at_level(logging.WARNING):
            run = run_of(tiny_video_model, tmp_path)
            tune(run, tiny_video_model.unet)
        assert len(run.losses) == 6 and (tmp_path / "checkpoint.pt").read_bytes() == good
        assert "step 4 could not be written" in caplog.text and "File too large" in caplog.text
        with pytest.raises(OSError, match="File too large.*the last one is still there"):
            save_checkpoint(tmp_path / "checkpoint.pt", {"values": torch.zeros(1000)})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_loss_curve_and_validation_film(tiny_video_model):
    assert smoothed([4.0, 2.0, 0.0, 6.0], 2).tolist() == [4.0, 3.0, 1.0, 3.0]
    picture = loss_curve([1.0 / (step + 1) for step in range(50)])
    colours = {colour for _, colour in picture.getcolors(100000)}
    assert picture.size == (760, 400) and (30, 80, 180) in colours
    assert loss_curve([0.5]).size == (760, 400)
    with pytest.raises(ValueError, match="no losses"):
        loss_curve([])
    maker = ExampleMaker(tiny_video_model, clips(), settings())
    film = validation_film(tiny_video_model, tiny_video_model.unet, maker, clips()[0], steps=2)
    assert film.shape == (4, 16, 32, 3)
    # The first frame is the clip's own, on both sides.
    assert torch.equal(film[0, :, :16], film[0, :, 16:])


def test_settings_in_the_checkpoint_are_readable(tiny_video_model, tmp_path):
    tune(run_of(tiny_video_model, tmp_path), tiny_video_model.unet, stop_at=2)
    kept = json.loads(load_checkpoint(tmp_path / "checkpoint.pt")["settings"])
    assert kept["kind"] == "lora" and kept["rank"] == 2 and kept["augmentation"]["grow"] == 2
