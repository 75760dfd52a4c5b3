"""Stable Diffusion 1 as a native model of clips, and LAMP's layers on native models: they agree and leave nothing."""

from __future__ import annotations

import pytest
import torch
from hollow_checkpoints import save_picture_unet, save_sd1_folder
from lavie_stages import stage_config, stage_state

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

KINDS = ("picture", "base")


def config_of(kind):
    if kind == "base":
        return stage_config("base")
    return stage_config("base", picture_model=True, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class Both:
    """One U-Net by itself and in ComfyUI, and tensors of a file for it."""

    def __init__(self, kind):
        from mask_guided_video.host.models.lavie_models import native_model
        from mask_guided_video.video_models.lavie.files import make_unet
        from mask_guided_video.video_models.motion.lamp import expected_shapes

        config = config_of(kind)
        state = stage_state(config)
        self.alone = make_unet(config).eval().requires_grad_(False)
        self.alone.load_state_dict(state, strict=False)
        self.native = native_model(state, config)
        generator = torch.Generator().manual_seed(1)
        shapes = expected_shapes(self.alone)
        self.tensors = {name: 0.1 * torch.randn(size, generator=generator) for name, size in shapes.items()}

    def by_itself(self, strength):
        from mask_guided_video.video_models.motion.lamp import with_lamp

        unet = with_lamp(self.alone, self.tensors, strength) if strength else self.alone
        clip, text = inputs()
        return unet(clip, torch.tensor([300.0]), text)


@pytest.fixture(scope="module", params=KINDS)
def both(request):
    return Both(request.param)


def inputs():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, 4, 3, 6, 5, generator=generator), torch.randn(1, 4, 32, generator=generator)


def predict(patcher, **loading):
    """The native U-Net's own prediction, as the sampler would load the model."""
    patcher.patch_model(device_to=torch.device("cpu"), **loading)
    try:
        clip, text = inputs()
        return patcher.model.diffusion_model(clip, torch.tensor([300.0]), text)
    finally:
        patcher.unpatch_model(device_to=torch.device("cpu"))


def apply(both, **options):
    from mask_guided_video.host.motion.lamp import apply_lamp

    return apply_lamp(both.native, both.tensors, **options)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_native_and_by_itself_agree(both, strength):
    expected = both.by_itself(strength)
    torch.testing.assert_close(predict(apply(both, strength=strength)), expected, rtol=1e-4, atol=1e-5)
    assert ((expected - both.by_itself(0.0)).abs().max() > 0.01) == (strength > 0)


def test_partly_loaded_models_agree_too(both):
    whole, patched, seen = predict(apply(both)), apply(both), []
    watch = both.native.model.diffusion_model.register_forward_hook(lambda *_: seen.append(patched.model.model_lowvram))
    found = predict(patched, lowvram_model_memory=20_000)
    watch.remove()
    assert seen == [True]
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_the_original_is_untouched(both):
    network = both.native.model.diffusion_model
    before = predict(both.native)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    patched = apply(both)
    assert not torch.equal(predict(patched), before)
    assert torch.equal(predict(both.native), before)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network.conv_in_over_time is None
    expected = "first" if network.config.picture_model else "self"
    assert network.mid_block.attentions[0].transformer_blocks[0].key_source == expected
    assert both.native.object_patches == {} and both.native.patches == {}
    assert torch.equal(predict(patched), predict(patched))


def test_strength_0_hangs_nothing(both):
    idle = apply(both, strength=0.0)
    assert idle is not both.native and idle.object_patches == {} and idle.patches == {}
    assert torch.equal(predict(idle), predict(both.native))


def test_an_error_while_sampling_leaves_nothing_behind(both):
    patched = apply(both)
    network, before = both.native.model.diffusion_model, predict(both.native)
    patched.patch_model(device_to=torch.device("cpu"))
    with pytest.raises(ValueError, match="latents have shape"):
        network(torch.zeros(1, 3, 2, 4, 4), torch.tensor([300.0]), inputs()[1])
    patched.unpatch_model(device_to=torch.device("cpu"))
    assert torch.equal(predict(both.native), before)


def test_core_sampling_and_memory(both):
    """Through core's sampler; the host is told how much more memory the model takes."""
    from mask_guided_video.host.sampling.comfy_sampling import SamplerSettings, sample_film
    from mask_guided_video.nodes.video import SeededVideoNoise

    text = [[inputs()[1], {}]]
    films = {}
    for name, model in (("plain", both.native), ("tuned", apply(both)), ("plain again", both.native)):
        films[name] = sample_film(
            model, text, text, SeededVideoNoise(1, "plain", 16, 4, 0.2), {"samples": torch.zeros(1, 4, 3, 4, 4)},
            SamplerSettings(2, 3.0),
        )["samples"]  # fmt: skip
    assert torch.equal(films["plain"], films["plain again"])
    assert films["tuned"].isfinite().all() and not torch.equal(films["plain"], films["tuned"])
    assert apply(both).model_size() > both.native.model_size()


def test_masks_reach_the_layers_that_a_file_brings(both):
    """Attention over time and first-frame keys are sites that patches see."""
    from mask_guided_video.backbones.registry import install_patches

    seen = []

    def note(attend, q, k, v, site):
        seen.append((site.kind, site.key_frames))
        return attend(q, k, v, site)

    predict_with = install_patches(apply(both), [note])
    from mask_guided_video.host.sampling.comfy_sampling import SamplerSettings, sample_film
    from mask_guided_video.nodes.video import SeededVideoNoise

    text = [[inputs()[1], {}]]
    sample_film(
        predict_with, text, text, SeededVideoNoise(1, "plain", 16, 4, 0.2), {"samples": torch.zeros(1, 4, 3, 4, 4)},
        SamplerSettings(1, 1.0),
    )  # fmt: skip
    assert ("self", ((0,), (0,), (0,))) in seen
    assert ("temporal", None) in seen and ("cross", None) in seen


def test_what_a_file_does_not_fit(both):
    from mask_guided_video.host.models.lavie_models import native_model
    from mask_guided_video.host.motion.lamp import apply_lamp

    once = apply(both)
    with pytest.raises(ValueError, match="has a LAMP file already, so second.safetensors has no room"):
        apply_lamp(once, both.tensors, path="second.safetensors")
    with pytest.raises(ValueError, match="bird.safetensors lacks 2 tensors"):
        apply_lamp(both.native, dict(list(both.tensors.items())[2:]), path="bird.safetensors")
    upscaler = native_model(stage_state(stage_config("upscaling")), stage_config("upscaling"))
    with pytest.raises(ValueError, match="not for UpscalerUNet"):
        apply_lamp(upscaler, both.tensors)


def test_a_folder_of_stable_diffusion_1_loads(tmp_path):
    """Its U-Net narrow, text encoder and VAE hollow: MODEL, CLIP and VAE come out of one folder."""
    from mask_guided_video.backbones.registry import require_supported
    from mask_guided_video.host.models.loading import load_lavie_file

    save_picture_unet(tmp_path / "unet")
    model, clip, vae = load_lavie_file(tmp_path)
    assert clip is None and vae is None
    save_sd1_folder(tmp_path)
    model, clip, vae = load_lavie_file(tmp_path)
    family, network = require_supported(model)
    assert family.name == "LaVie" and network.config.picture_model and network.config.num_heads == 8
    # Stable Diffusion's schedule, whose last sigma is 14.6.
    assert model.model.model_sampling.sigma_max.item() == pytest.approx(14.6146, abs=1e-3)
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a horse runs"))
    assert text[0][0].shape[-1] == 768
    film = vae.decode(torch.zeros(1, 4, 2, 2, 3))
    assert film.shape == (1, 2, 16, 24, 3)


def test_one_file_makes_the_same_film_in_both(tiny_folder, tmp_path):
    """A motion file with LAMP's layers, read once by itself and once in ComfyUI, with a clean first frame."""
    from mask_guided_video.attention_patches.frame_keys import FirstFrameKeys, FirstFrameKeysPatch
    from mask_guided_video.host.models.loading import load_native_toybox
    from mask_guided_video.host.motion import motion_files as hosted
    from mask_guided_video.host.sampling.comfy_video_model import ComfyVideoModel
    from mask_guided_video.video_models.motion import motion_files as files
    from mask_guided_video.video_models.motion.lamp import expected_shapes
    from mask_guided_video.video_models.sampling.first_frame import FirstFrame
    from mask_guided_video.video_models.toybox import load_toybox

    alone, (model, clip, vae) = load_toybox(folder=tiny_folder), load_native_toybox(tiny_folder)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: 0.05 * torch.randn(size, generator=generator) for name, size in expected_shapes(alone.unet).items()
    }
    names = ("conv_in.weight", "conv_out.weight")
    info = files.MotionInfo("lamp", "Toybox", files.base_hash(alone.unet.state_dict(), names), names, 4)
    files.write_motion(tmp_path / "bird.safetensors", tensors, info)
    motion = files.read_motion(tmp_path / "bird.safetensors")

    noise = alone.noise(4, 32, 32, seed=7)
    first = FirstFrame(alone.encode(torch.rand(1, 32, 32, 3, generator=generator)))
    keys = (FirstFrameKeysPatch(FirstFrameKeys("first")),)
    films = {}
    for name, maker in {
        "plain": alone,
        "alone": files.apply_motion(alone, motion, 0.8),
        "hosted": ComfyVideoModel(hosted.apply_motion(model, motion, 0.8), clip, vae),
        "plain again": ComfyVideoModel(model, clip, vae),
    }.items():
        prompts = maker.encode_prompt("a red ball"), maker.encode_prompt("")
        films[name] = maker.sample(noise, *prompts, steps=3, patches=keys, first_frame=first)
    assert torch.equal(films["alone"][:, :, :1], first.latents) and torch.equal(
        films["hosted"][:, :, :1], first.latents
    )
    torch.testing.assert_close(films["hosted"], films["alone"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(films["plain again"], films["plain"], rtol=1e-3, atol=1e-3)
    assert (films["alone"] - films["plain"]).abs().max() > 0.05


def test_one_frame_is_what_comfyuis_own_model_makes():
    """Of a checkpoint in the original's names, whose tensors are ComfyUI's own U-Net's."""
    from native_models import sd15

    from mask_guided_video.video_models.lavie.files import infer_config, make_unet, unet_state

    theirs = sd15().patcher.model.diffusion_model
    prefixed = {f"model.diffusion_model.{name}": value for name, value in theirs.state_dict().items()}
    state = unet_state(prefixed)
    unet = make_unet(infer_config(state)).eval()
    unet.load_state_dict(state)
    clip, text = inputs()
    time = torch.tensor([300.0])
    expected = theirs(clip[:, :, 0], time, text)
    torch.testing.assert_close(unet(clip[:, :, :1], time, text)[:, :, 0], expected, rtol=1e-4, atol=1e-5)
    assert len(prefixed) == len(state) and expected.std() > 0.05
