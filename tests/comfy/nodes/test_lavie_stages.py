"""Interpolate Video and Upscale Video: agreement with the stand-alone stages, windows, samplers, and wrong choices."""

from __future__ import annotations

import pytest
import torch
from lavie_stages import make_stage, stage_config, stage_state

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

PROMPT, AGAINST = "a red ball moves left on sand", "blue square"
STAGES = ("interpolation", "upscaling")


@pytest.fixture(scope="module")
def interpolation(tiny_folder):
    with torch.inference_mode():
        return make_stage("interpolation", tiny_folder)


@pytest.fixture(scope="module")
def upscaling(tiny_folder):
    with torch.inference_mode():
        return make_stage("upscaling", tiny_folder)


@pytest.fixture
def stage(request):
    return request.getfixturevalue(request.param)


both_stages = pytest.mark.parametrize("stage", STAGES, indirect=True)


def film(frames, height=16, width=24, seed=3):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def interpolate(stage, frames, window=16, overlap=4, model=None):
    from mask_guided_video.nodes.lavie_stages import InterpolateVideo

    prompts = stage.prompt(PROMPT), stage.prompt(AGAINST)
    return InterpolateVideo.execute(model or stage.model, *prompts, stage.vae, frames, window, overlap).args


def upscale(stage, frames, noise_level=50, window=8, overlap=4, model=None):
    from mask_guided_video.nodes.lavie_stages import UpscaleVideo

    prompts = stage.prompt(PROMPT), stage.prompt(AGAINST)
    return UpscaleVideo.execute(model or stage.model, *prompts, frames, noise_level, window, overlap).args


def sample(inputs, steps=3, seed=5, cfg=3.0, **settings):
    from mask_guided_video.host.sampling.comfy_sampling import SamplerSettings, sample_film
    from mask_guided_video.nodes.video import SeededVideoNoise

    model, positive, negative, latent = inputs
    noise = SeededVideoNoise(seed, "plain", 16, 4, 0.2)
    return sample_film(model, positive, negative, noise, latent, SamplerSettings(steps, cfg, **settings))["samples"]


@pytest.mark.parametrize("frames,window,overlap", [(2, 16, 4), (7, 3, 1), (6, 4, 2), (5, 0, 1)])
def test_interpolation_agrees_with_itself_alone(interpolation, frames, window, overlap):
    given = film(frames)
    settings = {"negative_prompt": AGAINST, "steps": 3, "cfg": 3.0, "seed": 5, "prompt_suffix": ""}
    alone = interpolation.alone.interpolate(given, PROMPT, window=window, overlap=overlap, **settings)
    inputs = interpolate(interpolation, given, window, overlap)
    assert ("context_handler" in inputs[0].model_options) == (0 < window < frames)
    latents = sample(inputs)
    assert latents.shape == (1, 4, 4 * (frames - 1) + 1, 4, 6)
    hosted = interpolation.vae.decode(latents)[0]
    assert hosted.shape == alone.shape == (4 * (frames - 1) + 1, 16, 24, 3)
    assert (hosted - alone).abs().max().item() <= 2 / 255


@pytest.mark.parametrize(
    "frames,window,overlap,noise_level", [(1, 8, 4, 50), (7, 3, 1, 50), (6, 4, 3, 0), (4, 2, 0, 350), (5, 0, 4, 50)]
)
def test_upscaling_agrees_with_itself_alone(upscaling, frames, window, overlap, noise_level):
    given = film(frames, 7, 10)
    settings = {"negative_prompt": AGAINST, "noise_level": noise_level, "steps": 3, "cfg": 3.0, "seed": 5}
    alone = upscaling.alone.upscale(given, PROMPT, window=window, overlap=overlap, **settings)
    latents = sample(upscale(upscaling, given, noise_level, window, overlap))
    assert latents.shape == (1, 4, frames, 7, 10)
    hosted = upscaling.vae.decode(latents)[0]
    assert hosted.shape == alone.shape == (frames, 28, 40, 3)
    assert (hosted - alone).abs().max().item() <= 2 / 255


def test_the_film_and_the_noise_level_matter(upscaling, interpolation):
    given = film(3)
    first = sample(upscale(upscaling, given))
    assert torch.equal(first, sample(upscale(upscaling, given)))
    assert not torch.equal(first, sample(upscale(upscaling, given.flip(0))))
    assert not torch.equal(first, sample(upscale(upscaling, given, noise_level=200)))
    between = sample(interpolate(interpolation, given))
    assert torch.equal(between, sample(interpolate(interpolation, given)))
    assert not torch.equal(between, sample(interpolate(interpolation, given.flip(0))))


@both_stages
def test_core_samplers_work(stage):
    make = upscale if stage.model.model.diffusion_model.config.stage == "upscaling" else interpolate
    assert torch.isfinite(sample(make(stage, film(3)), sampler_name="dpmpp_2m", scheduler="karras")).all()


@both_stages
def test_without_guidance_and_two_films_at_once(stage):
    make = upscale if stage.model.model.diffusion_model.config.stage == "upscaling" else interpolate
    model, positive, negative, latent = make(stage, film(3))
    assert torch.isfinite(sample((model, positive, negative, latent), cfg=1.0)).all()
    two = {"samples": latent["samples"].repeat(2, 1, 1, 1, 1)}
    results = sample((model, positive, negative, two))
    assert results.shape[0] == 2 and not torch.equal(results[0], results[1])


def core_windows(model, length, **settings):
    import comfy.context_windows as windows

    core = model.clone()
    core.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=length,
        context_overlap=1,
        context_stride=1,
        closed_loop=False,
        dim=2,
        **settings,
    )
    return core


@both_stages
def test_cores_own_windows_cut_the_film_too(stage):
    """Without an anchor they are ours; with one, as they are set by default, each window sees the frame before it."""
    from mask_guided_video.host.sampling.host_windows import ContextWindows, install_context_windows

    make = upscale if stage.model.model.diffusion_model.config.stage == "upscaling" else interpolate
    inputs = make(stage, film(4), window=0)
    length = inputs[3]["samples"].shape[2] // 2 + 1
    own = sample((install_context_windows(inputs[0], 2, ContextWindows(length, 1)), *inputs[1:]))
    assert torch.equal(sample((core_windows(inputs[0], length, causal_window_fix=False), *inputs[1:])), own)
    anchored = sample((core_windows(inputs[0], length), *inputs[1:]))
    assert torch.isfinite(anchored).all() and not torch.equal(anchored, own)


def test_a_text_with_as_many_channels_as_the_film_has_frames_stays_whole(upscaling):
    """ComfyUI takes an axis that is as long as the clip for its frames."""
    inputs = upscale(upscaling, film(32, 4, 6), window=0)
    assert inputs[3]["samples"].shape[2] == inputs[1][0][0].shape[-1] == 32
    assert torch.isfinite(sample((core_windows(inputs[0], 30), *inputs[1:]), steps=1)).all()
    assert torch.isfinite(sample(upscale(upscaling, film(32, 4, 6), window=30), steps=1)).all()


@both_stages
def test_guidance_and_free_long_reach_the_stages(stage):
    from guides import plain_guide

    from mask_guided_video.attention_patches.free_long import FreeLong
    from mask_guided_video.attention_patches.guidance.patch import GuidePatch
    from mask_guided_video.backbones.registry import install_patches, require_supported
    from mask_guided_video.host.sampling.long_clips import install_free_long

    family, network = require_supported(stage.model)
    assert family.native_frames(network) == {"interpolation": 61, "upscaling": 8}[network.config.stage]
    make = upscale if network.config.stage == "upscaling" else interpolate
    model, positive, negative, latent = make(stage, film(3))
    plain = sample((model, positive, negative, latent))
    masks = torch.zeros(1, latent["samples"].shape[2], 32, 48)
    masks[..., 8:24, 4:20] = 1.0
    guided = install_patches(model, [GuidePatch(plain_guide(masks, mode="separate"))])
    longer = install_free_long(model, FreeLong(window=2))
    assert not torch.equal(plain, sample((longer, positive, negative, latent)))
    assert not torch.equal(plain, sample((guided, positive, negative, latent)))
    idle = install_free_long(model, FreeLong(window=latent["samples"].shape[2]))
    assert torch.equal(plain, sample((idle, positive, negative, latent)))


def test_vaes_of_pictures_encode_too(interpolation, tiny_folder):
    from mask_guided_video.host.sampling.film_encoding import encode_frames

    class Pictures:
        """ComfyUI's VAE of pictures: [n, H, W, 3] to [n, C, h, w]."""

        latent_dim, downscale_ratio, upscale_ratio = 2, 4, 4

        def throw_exception_if_invalid(self):
            pass

        def temporal_compression_decode(self):
            return None

        def spacial_compression_encode(self):
            return 4

        def encode(self, frames):
            return torch.cat([interpolation.vae.encode(frame[None])[:, :, 0] for frame in frames])

    frames = film(11)
    torch.testing.assert_close(encode_frames(Pictures(), frames), encode_frames(interpolation.vae, frames))
    assert encode_frames(interpolation.vae, frames).shape == (1, 4, 11, 4, 6)


class TestWrongChoices:
    """Every one is named before any work."""

    @both_stages
    def test_a_stage_without_its_film(self, stage):
        raw = (stage.model, stage.prompt(PROMPT), stage.prompt(AGAINST), {"samples": torch.zeros(1, 4, 3, 4, 4)})
        with pytest.raises(ValueError, match="sampled without a video; put (Interpolate|Upscale) Video between"):
            sample(raw)

    def test_conditions_of_another_stage(self, native, interpolation, upscaling):
        inputs = interpolate(interpolation, film(3))
        with pytest.raises(ValueError, match="come from Interpolate Video but the model is LaVie's base model"):
            sample((native[0], *inputs[1:]))
        with pytest.raises(ValueError, match="come from Interpolate Video but the model is LaVie's upscaler"):
            sample((upscaling.model, *inputs[1:]))
        with pytest.raises(ValueError, match="come from Upscale Video but .* load lavie_vsr.pt"):
            sample((interpolation.model, *upscale(upscaling, film(3))[1:]))

    def test_another_model_at_the_node(self, native, interpolation, upscaling):
        with pytest.raises(ValueError, match="the model is LaVie's base model, but here the interpolation model"):
            interpolate(interpolation, film(3), model=native[0])
        with pytest.raises(ValueError, match="the model is LaVie's interpolation model, but here the upscaler"):
            upscale(upscaling, film(3), model=interpolation.model)
        other = native[0].clone()
        other.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
        with pytest.raises(ValueError, match="Upscale Video works with LaVie's upscaler, not with Linear"):
            upscale(upscaling, film(3), model=other)

    def test_a_latent_that_is_not_the_nodes(self, interpolation, upscaling):
        model, positive, negative, latent = interpolate(interpolation, film(3))
        with pytest.raises(ValueError, match="9 frames of 6 x 4 but 3 frames of 6 x 4 are sampled"):
            sample((model, positive, negative, {"samples": latent["samples"][:, :, :3]}))
        model, positive, negative, latent = upscale(upscaling, film(3))
        with pytest.raises(ValueError, match="3 frames of 24 x 16 but 3 frames of 12 x 16"):
            sample((model, positive, negative, {"samples": latent["samples"][..., :12]}))

    def test_prompts_of_another_text_encoder(self, interpolation):
        model, positive, negative, latent = interpolate(interpolation, film(2))
        wide = [[torch.zeros(1, 4, 1024), positive[0][1]]]
        with pytest.raises(ValueError, match="1024 channels but LaVie's interpolation model reads 32"):
            sample((model, wide, negative, latent))

    def test_films_and_windows_that_do_not_fit(self, interpolation, upscaling):
        with pytest.raises(ValueError, match="1 frames; at least 2"):
            interpolate(interpolation, film(1))
        with pytest.raises(ValueError, match="window is 1"):
            interpolate(interpolation, film(5), window=1)
        with pytest.raises(ValueError, match="window is 4 and overlap 4"):
            interpolate(interpolation, film(5), window=4, overlap=4)
        with pytest.raises(ValueError, match="context windows of 4 latent frames cannot overlap by 4"):
            upscale(upscaling, film(5), window=4, overlap=4)
        with pytest.raises(ValueError, match="2 x 2 pixels"):
            interpolate(interpolation, film(2, 2, 2))
        broken = film(3)
        broken[1, 0, 0] = torch.nan
        with pytest.raises(ValueError, match="NaN or infinite values in frame 1"):
            upscale(upscaling, broken)

    def test_vaes_that_compress_time(self, interpolation):
        from stand_in_models import make_vae

        from mask_guided_video.host.sampling.film_encoding import encode_frames

        with pytest.raises(ValueError, match="4 frames into one latent frame"):
            encode_frames(make_vae("wan"), film(5))
        with pytest.raises(ValueError, match="no VAE"):
            encode_frames(None, film(5))

    def test_recipes_want_the_base_model(self, interpolation):
        from mask_guided_video.host.sampling.comfy_video_model import ComfyVideoModel

        with pytest.raises(ValueError, match="this model is LaVie's interpolation model, but here the base model"):
            ComfyVideoModel(interpolation.model, interpolation.clip, interpolation.vae)


@pytest.mark.parametrize("stage_name", ["base", *STAGES])
def test_files_of_every_stage_load(stage_name, tmp_path):
    from mask_guided_video.host.models.loading import load_lavie_file

    config = stage_config(stage_name)
    torch.save({"ema": stage_state(config)}, tmp_path / "lavie.pt")
    config.save(tmp_path / "lavie.json")
    model, clip, vae = load_lavie_file(tmp_path / "lavie.pt")
    assert model.model.diffusion_model.config == config and clip is None and vae is None
    sampling = model.model.model_sampling
    assert sampling.sigma_max.item() == pytest.approx(157.407, abs=0.01)
    scale = {"base": 0.18215, "interpolation": 0.18215, "upscaling": 0.08333}[stage_name]
    assert model.model.latent_format.scale_factor == scale and len(model.model.latent_format.latent_rgb_factors) == 4
    noisy = model.model.process_latent_in(torch.ones(1, 4, 1, 2, 2))
    assert noisy.mean().item() == pytest.approx(scale)


@both_stages
@pytest.mark.parametrize("dtype,cast", [("bfloat16", None), ("float16", "float32"), ("bfloat16", "float32")])
def test_half_precision_is_near_full(stage, dtype, cast, monkeypatch):
    """Weights and work in half precision, as on a GPU, or half the memory for the weights alone."""
    from comfy import model_management

    from mask_guided_video.host.models.lavie_models import native_model

    config = stage.model.model.diffusion_model.config
    make = upscale if config.stage == "upscaling" else interpolate
    full = sample(make(stage, film(3)))
    monkeypatch.setattr(model_management, "unet_dtype", lambda **_: getattr(torch, dtype))
    monkeypatch.setattr(model_management, "unet_manual_cast", lambda *_: getattr(torch, cast) if cast else None)
    half = native_model(stage_state(config), config)
    half.model.latent_format = stage.model.model.latent_format
    assert half.model.diffusion_model.conv_in.weight.dtype == getattr(torch, dtype)
    found = sample(make(stage, film(3), model=half))
    assert found.isfinite().all()
    assert (found - full).abs().mean() < 0.1 * full.abs().mean()
