"""The lamp architecture in the tuning loop: what is trained, and a stopped run goes on to the bit."""

import pytest
import torch
from lamp_runs import DEVICE, circling_balls, run_of, same
from tiny_picture_unet import tiny_picture_unet
from tiny_stable_diffusion import tiny_clip, tiny_vae, write_folder

from mask_guided_video.attention_patches.kernels.torch_attention import OVERRIDE_KEY
from mask_guided_video.recipes.films.files import write_film
from mask_guided_video.training.motion.data import TrainingClip
from mask_guided_video.training.motion.examples import motion_loss
from mask_guided_video.training.motion.lamp import LampArchitecture
from mask_guided_video.training.motion.loop import tune
from mask_guided_video.training.train_motion import main
from mask_guided_video.video_models.lavie.models import open_lavie
from mask_guided_video.video_models.motion.lamp import PREFIX, with_lamp
from mask_guided_video.video_models.motion.motion_files import (
    apply_motion,
    read_motion,
)
from mask_guided_video.video_models.toybox import load_toybox


@pytest.fixture(scope="module")
def circles():
    return circling_balls(load_toybox())


def test_a_stopped_run_goes_on_to_the_same_bits(tiny_video_model, circles, tmp_path):
    clips = [TrainingClip(clip.words, clip.latents[:, :, :, :8, :8], None) for clip in circles]
    whole = run_of(tiny_video_model, clips, steps=6)
    tune(whole, tiny_video_model.unet)
    for end in (3, None):
        run = run_of(tiny_video_model, clips, tmp_path / "run", steps=6)
        tune(run, tiny_video_model.unet, stop_at=end)
    assert same(run.architecture.state(), whole.architecture.state())
    assert run.losses == whole.losses and len(run.losses) == 6


def test_what_is_trained_and_what_is_not(tiny_video_model):
    architecture = LampArchitecture(seed=1)
    tuned = architecture.prepare(tiny_video_model.unet)
    trained = {name for name, value in tuned.named_parameters() if value.requires_grad}
    parts = ("conv1d", "conv_gate", "attn1.parametrizations.to_q", "attn1.to_q", "attn_temp")
    assert trained and all(any(f".{part}." in f".{name}" for part in parts) for name in trained)
    assert len(trained) == len(architecture.parameters()) == len(architecture.state())
    assert not any("norm_temp" in name or "attn2" in name for name in trained)
    # As made, it is the model that it is made of, but for the keys: only new attention over time starts at random.
    for block in tuned.modules():
        if hasattr(block, "key_source"):
            block.key_source = "self"
    clip = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    text, time = torch.zeros(1, 3, tuned.config.cross_attention_dim), torch.tensor([500.0])
    with torch.no_grad():
        assert torch.equal(tuned(clip, time, text), tiny_video_model.unet(clip, time, text))
    assert set(architecture.base_names()) <= set(tiny_video_model.unet.state_dict())
    assert "conv_in.weight" in architecture.base_names()


def test_the_first_values_come_from_the_seed():
    from mask_guided_video.video_models.lavie.config import LaVieConfig
    from mask_guided_video.video_models.lavie.files import make_unet

    unet = make_unet(
        LaVieConfig(
            picture_model=True, block_out_channels=(16, 16), attention_levels=(True, False), layers_per_block=1,
            num_heads=2, cross_attention_dim=16, norm_num_groups=4,
        )
    )  # fmt: skip
    states = []
    for seed in (1, 1, 2):
        architecture = LampArchitecture(seed=seed)
        tuned = architecture.prepare(unet)
        states.append(architecture.state())
    assert same(states[0], states[1]) and not same(states[0], states[2])
    name = f"{PREFIX}mid_block.attentions.0.transformer_blocks.0.attn_temp"
    assert not states[0][f"{name}.to_out.0.weight"].any() and states[0][f"{name}.to_out.0.bias"].any()
    assert states[0][f"{name}.to_q.weight"].any()
    assert not any(value.any() for key, value in states[0].items() if "attn_temp" not in key)
    assert tuned.mid_block.attentions[0].transformer_blocks[0].norm_temp.weight.requires_grad is False
    # A file of these values opens into the same model.
    clip = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    text, time = torch.zeros(1, 3, 16), torch.tensor([500.0])
    with torch.no_grad():
        assert torch.equal(with_lamp(unet, states[2])(clip, time, text), tuned(clip, time, text))


def test_it_loads_its_own_tensors_only(tiny_video_model):
    architecture = LampArchitecture()
    architecture.prepare(tiny_video_model.unet)
    state = {name: torch.full_like(value, 0.25) for name, value in architecture.state().items()}
    architecture.load(state)
    assert same(architecture.state(), state)
    with pytest.raises(ValueError, match="are those of another run"):
        architecture.load(dict(list(state.items())[1:]))
    with pytest.raises(ValueError, match="not a Linear"):
        architecture.prepare(torch.nn.Linear(1, 1))


def test_frames_look_at_the_first_without_masks_too(tiny_video_model, circles):
    """LAMP's own rule is in its U-Net; any architecture follows the one that the settings name."""
    tuned = LampArchitecture().prepare(tiny_video_model.unet)
    assert tuned.mid_block.attentions[0].transformer_blocks[0].key_source == "first"
    assert tiny_video_model.unet.mid_block.attentions[0].transformer_blocks[0].key_source == "self"
    run = run_of(tiny_video_model, circles, key_source="first")
    (example, *_) = run.examples.examples(0, 1000)
    assert [patch.settings.source for patch in example.patches] == ["first"]
    seen = []

    class Watched(torch.nn.Module):
        dtype, config = torch.float32, tiny_video_model.unet.config

        def forward(self, x, timesteps, context, transformer_options):
            seen.append(OVERRIDE_KEY in transformer_options)
            return torch.zeros_like(x)

    motion_loss(Watched(), example, Watched.config, DEVICE)
    assert seen == [True]
    assert run_of(tiny_video_model, circles).examples.examples(0, 1000)[0].patches == ()


def test_from_the_command_line_on_stable_diffusion_1(tmp_path):
    """A folder in diffusers' layout and films without masks become a motion file that opens on that folder."""
    base = write_folder(tmp_path / "sd1", tiny_clip(), tiny_vae())
    tiny_picture_unet().save_pretrained(base / "unet")
    (tmp_path / "films").mkdir()
    for number in range(2):
        frames = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(number))
        write_film(tmp_path / "films" / f"{number}.mp4", frames, 8)
    words = {"videos": tmp_path / "films", "base": base, "out": tmp_path / "m.safetensors", "run": tmp_path / "run"}
    words |= {"prompt": "red ball", "arch": "lamp", "steps": 2, "batch": 1, "frames": 3, "width": 16, "height": 16}
    assert (
        main([*(part for name, value in words.items() for part in (f"--{name}", str(value))), "--checkpointing"]) == 0
    )
    motion = read_motion(tmp_path / "m.safetensors")
    assert (motion.info.kind, motion.info.base_name, motion.info.steps) == ("lamp", "sd1", 2)
    model = open_lavie(base)
    noise, prompt = model.noise(3, 16, 16, seed=1), model.encode_prompt("red ball")
    films = [maker.sample(noise, prompt, prompt, steps=1, cfg=1.0) for maker in (model, apply_motion(model, motion))]
    assert films[1].isfinite().all() and not torch.equal(*films)
