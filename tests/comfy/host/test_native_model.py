"""The native MODEL, CLIP and VAE: agreement with the stand-alone model, core samplers, clones, cancel."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from guides import plain_guide

from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.backbones.families.lavie import LaVie
from mask_guided_video.video_models.sampling.background_lock import BackgroundLock

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

PROMPT = "a red ball moves left on sand"


def conditioning(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def empty_latent(frames=4, cells=8):
    return {"samples": torch.zeros(1, 4, frames, cells, cells)}


def sample(native, model=None, steps=3, seed=5, latent=None, **settings):
    from mask_guided_video.host.sampling.comfy_sampling import SamplerSettings, sample_film
    from mask_guided_video.nodes.video import SeededVideoNoise

    own, clip, _ = native
    noise = SeededVideoNoise(seed, "plain", 16, 4, 0.2)
    positive, negative = conditioning(clip, PROMPT), conditioning(clip, "")
    settings = SamplerSettings(steps, **settings)
    return sample_film(model or own, positive, negative, noise, latent or empty_latent(), settings)["samples"]


def guide(mode="separate", frames=4, **settings):
    masks = torch.zeros(1, frames, 32, 32)
    masks[:, :, 8:24, 4:20] = 1.0
    return plain_guide(masks, ("red ball",), mode=mode, **settings)


def patched(native, value=None):
    from mask_guided_video.backbones.registry import install_patches
    from mask_guided_video.host.prompts.prompt_tokens import token_spans

    model, clip, _ = native
    value = value or guide()
    return install_patches(model, [GuidePatch(value, token_spans(clip, PROMPT, value.phrases, LaVie()))])


def models(folder):
    from mask_guided_video.host.models.loading import load_native_toybox
    from mask_guided_video.host.sampling.comfy_video_model import ComfyVideoModel
    from mask_guided_video.video_models.toybox import load_toybox

    return load_toybox(folder=folder), ComfyVideoModel(*load_native_toybox(folder))


def film(model, noise, steps, options):
    positive, negative = model.encode_prompt(PROMPT), model.encode_prompt("")
    if options.get("guided"):
        value = guide(frames=noise.shape[2])
        options = {"patches": (GuidePatch(value, model.token_spans(PROMPT, value.phrases)),)}
    return model.decode(model.sample(noise, positive, negative, steps=steps, **options))


@pytest.mark.parametrize(
    ("way", "sampler"),
    [("plain", "ddim"), ("plain", "euler"), ("guided", "ddim"), ("later start", "euler"), ("locked", "euler")],
)
def test_stand_alone_and_comfyui_agree(tiny_folder, sampler, way):
    alone, hosted = models(tiny_folder)
    assert hosted.geometry == alone.geometry
    noise = alone.noise(4, 32, 32, seed=7)
    assert torch.equal(noise, hosted.noise(4, 32, 32, seed=7))
    mask = torch.zeros(1, 1, 4, 8, 8)
    mask[..., 2:6, 2:6] = 1.0
    options = {
        "plain": {},
        "guided": {"guided": True},
        "later start": {"start_percent": 0.4, "latents": noise * 0.3},
        "locked": {"background_lock": BackgroundLock(noise * 0.3, mask)},
    }[way]
    options = {"sampler": sampler, **options} if way != "guided" else options
    first, second = (film(model, noise, 5, options) for model in (alone, hosted))
    assert first.shape == second.shape == (4, 32, 32, 3)
    assert (first - second).abs().max().item() <= 2 / 255


def test_toybox_agrees_within_two_steps_of_a_byte(toybox_folder):
    alone, hosted = models(toybox_folder)
    noise = alone.noise(8, 64, 64, seed=11)
    first, second = (film(model, noise, 10, {}) for model in (alone, hosted))
    assert (first - second).abs().max().item() <= 2 / 255


def test_the_recipe_makes_the_same_films_on_both(tiny_folder):
    from mask_guided_video.recipes.mask_refine.recipe import mask_refine
    from mask_guided_video.recipes.mask_refine.settings import MaskRefineSettings

    settings = MaskRefineSettings(
        PROMPT, ("red ball",), frames=4, height=32, width=32, steps=4, mode="separate", background_lock=True
    )
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 4:20] = 1.0
    alone, hosted = (mask_refine(model, None, None, settings, masks=mask) for model in models(tiny_folder))
    assert (alone.first - hosted.first).abs().max().item() <= 2 / 255
    assert (alone.second - hosted.second).abs().max().item() <= 2 / 255
    assert not torch.equal(hosted.first, hosted.second)


def test_films_are_decoded_in_parts(tiny_folder):
    alone, hosted = models(tiny_folder)
    latents = torch.randn(1, 4, 40, 8, 8)
    parts = list(hosted.decode_parts(latents))
    assert len(parts) > 1 and sum(map(len, parts)) == 40
    assert torch.equal(torch.cat(parts), hosted.decode(latents))
    torch.testing.assert_close(hosted.decode(latents), alone.decode(latents), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="2 clips"):
        hosted.decode_parts(latents.expand(2, -1, -1, -1, -1))


def test_encoders_agree(tiny_folder):
    alone, hosted = models(tiny_folder)
    for text in (PROMPT, "", "red " * 40, "a dragon"):
        torch.testing.assert_close(alone.encode_prompt(text).embedding, hosted.encode_prompt(text).embedding)
    frames = torch.rand(3, 32, 32, 3)
    torch.testing.assert_close(alone.encode(frames), hosted.encode(frames), atol=1e-5, rtol=1e-4)


def test_prompt_weights_are_understood(native):
    _, clip, _ = native
    plain = conditioning(clip, "a red ball")[0][0]
    torch.testing.assert_close(conditioning(clip, "a (red:1.0) ball")[0][0], plain)
    heavy = conditioning(clip, "a (red:1.5) ball")[0][0]
    assert not torch.equal(heavy[:, 1], plain[:, 1])
    torch.testing.assert_close(heavy[:, 2], plain[:, 2])


def test_spans_follow_words_and_weights(native):
    from mask_guided_video.host.prompts.prompt_tokens import token_spans

    _, clip, _ = native
    spans = token_spans(clip, "a (red:1.3) ball and a blue ball", ["red ball", "ball"], LaVie())
    assert spans.positions == ((1, 2), (2, 6))
    with pytest.raises(ValueError, match="'green dragon'.*does not occur"):
        token_spans(clip, "a purple unicorn", ["green dragon"], LaVie())


def test_vae_makes_films_and_latents(native):
    vae = native[2]
    pictures = vae.decode(torch.randn(1, 4, 5, 8, 8))
    assert pictures.shape == (1, 5, 32, 32, 3)
    assert vae.encode(torch.rand(5, 32, 32, 3)).shape == (1, 4, 5, 8, 8)
    assert vae.encode(torch.rand(5, 33, 35, 3)).shape == (1, 4, 5, 8, 8)
    assert vae.decode_tiled(torch.randn(1, 4, 5, 8, 8), tile_x=4, tile_y=4, overlap=1).shape == (1, 5, 32, 32, 3)


def test_preview_colours_are_the_vaes(toybox_folder):
    from mask_guided_video.host.models.loading import load_native_toybox

    model, _, vae = load_native_toybox(toybox_folder)
    latent_format = model.model.latent_format
    red = torch.tensor([0.9, 0.1, 0.1]).expand(1, 64, 64, 3)
    latents = latent_format.process_in(vae.encode(red))
    colours = latents[0, :, 0].permute(1, 2, 0) @ torch.tensor(latent_format.latent_rgb_factors)
    colours = (colours + torch.tensor(latent_format.latent_rgb_factors_bias)) / 2 + 0.5
    torch.testing.assert_close(colours[8, 8], red[0, 0, 0], atol=0.15, rtol=0)


def test_previews_show_the_first_frame(native):
    from latent_preview import Latent2RGBPreviewer

    latent_format = native[0].model.latent_format
    previewer = Latent2RGBPreviewer(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
    assert previewer.decode_latent_to_preview(torch.randn(1, 4, 3, 8, 6)).size == (6, 8)


@pytest.mark.parametrize("sampler_name,scheduler", [("euler", "normal"), ("dpmpp_2m", "karras"), ("uni_pc", "simple")])
def test_core_samplers_work(native, sampler_name, scheduler):
    assert torch.isfinite(sample(native, sampler_name=sampler_name, scheduler=scheduler)).all()


def test_one_frame_batches_and_cfg_one(native):
    assert sample(native, latent=empty_latent(frames=1)).shape == (1, 4, 1, 8, 8)
    assert sample(native, latent={"samples": torch.zeros(2, 4, 3, 8, 8)}).shape == (2, 4, 3, 8, 8)
    assert torch.isfinite(sample(native, cfg=1.0)).all()


def test_guidance_changes_the_film_and_repeats(native):
    plain = sample(native)
    guided = sample(native, patched(native))
    assert not torch.equal(plain, guided)
    assert torch.equal(guided, sample(native, patched(native)))


def test_strength_zero_and_no_object_are_bit_identical(native):
    plain = sample(native)
    assert torch.equal(plain, sample(native, patched(native, guide(strength=0.0))))
    empty = plain_guide(torch.zeros(1, 4, 32, 32), ("red ball",), mode="separate")
    assert torch.equal(plain, sample(native, patched(native, empty)))


def test_original_is_untouched_by_clones_and_patches(native):
    model = native[0]
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    plain = sample(native)
    sample(native, patched(native))
    assert model.model_options["transformer_options"] == {}
    assert torch.equal(plain, sample(native))
    assert all(torch.equal(before[name], value) for name, value in model.model.state_dict().items())


def test_two_guides_stack_and_foreign_overrides_are_called(native):
    from mask_guided_video.backbones.registry import install_patches

    calls = []

    def foreign(function, *args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    model = native[0].clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = foreign
    once = install_patches(model, [GuidePatch(guide("focus"))])
    twice = install_patches(once, [GuidePatch(guide("focus_fg"))])
    result = sample(native, twice)
    assert calls
    assert not torch.equal(result, sample(native, once))


class Stop(Exception):
    """Raised in the middle of a run."""


def test_exception_in_the_middle_leaves_the_model_clean(native, monkeypatch):
    import latent_preview

    model = patched(native)
    good, plain = sample(native, model), sample(native)

    def stopping(*_):
        def callback(step, *_):
            if step == 1:
                raise Stop

        return callback

    with monkeypatch.context() as context:
        context.setattr(latent_preview, "prepare_callback", stopping)
        with pytest.raises(Stop):
            sample(native, model)
    assert torch.equal(good, sample(native, model))
    assert torch.equal(plain, sample(native))


def test_tables_are_dropped_after_a_run(native):
    from mask_guided_video.backbones.registry import install_patches

    patch = GuidePatch(guide("focus"))
    sample(native, install_patches(native[0], [patch]))
    assert patch._plans == {}


def test_context_windows_take_their_part_of_the_masks(native):
    import comfy.context_windows as windows

    model = patched(native, guide(frames=12))
    handler = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=6,
        context_overlap=2,
        context_stride=1,
        closed_loop=False,
        dim=2,
    )
    model.model_options["context_handler"] = handler
    assert torch.isfinite(sample(native, model, latent=empty_latent(frames=12))).all()


def test_masks_that_do_not_fit_the_film_are_named(native):
    with pytest.raises(ValueError, match="3 mask frames do not fit a clip of 4 frames"):
        sample(native, patched(native, guide(frames=3)))


def test_other_models_are_refused_by_name(native):
    from mask_guided_video.backbones.registry import install_patches

    other = native[0].clone()
    other.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="model not supported: Linear"):
        install_patches(other, [])


def test_missing_and_broken_files_are_named(tiny_folder, tmp_path):
    from mask_guided_video.host.models.loading import load_lavie_file, load_native_toybox

    with pytest.raises(FileNotFoundError, match="unet.safetensors is missing"):
        load_native_toybox(tmp_path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((tiny_folder / "unet.safetensors").read_bytes()[:5000])
    with pytest.raises(RuntimeError, match="broken.safetensors cannot be read"):
        load_lavie_file(broken)
    vae_file = next((tiny_folder / "vae").glob("*.safetensors"))
    shutil.copy(vae_file, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="vae.safetensors.*not one of LaVie's U-Nets"):
        load_lavie_file(tmp_path / "vae.safetensors")


def test_lavie_file_alone_gives_a_model(tiny_folder, tmp_path, native):
    from safetensors.torch import load_file

    from mask_guided_video.backbones.registry import require_supported
    from mask_guided_video.host.models.loading import load_lavie_file

    torch.save({"ema": load_file(tiny_folder / "unet.safetensors")}, tmp_path / "lavie.pt")
    with pytest.raises(ValueError, match="groups do not both divide"):
        load_lavie_file(tmp_path / "lavie.pt")
    # What shapes cannot tell stands beside the file.
    shutil.copy(tiny_folder / "config.json", tmp_path / "lavie.json")
    model, clip, vae = load_lavie_file(tmp_path / "lavie.pt")
    assert clip is None and vae is None
    assert require_supported(model)[1].config == require_supported(native[0])[1].config
    assert model.model.model_sampling.sigma_max.item() == pytest.approx(157.407, abs=0.01)


def test_steps_and_blocks_are_told_alike(tiny_folder):
    alone, hosted = models(tiny_folder)
    assert hosted.block_names == alone.block_names
    for start in (0.0, 0.5):
        steps = hosted.step_progress(5, "ddim", start)
        assert steps == pytest.approx(alone.step_progress(5, "ddim", start), abs=2e-3) and len(steps) > 1


def test_a_prompt_that_is_too_long_is_told_once(tiny_folder, caplog):
    """However often phrases are looked for in it."""
    from mask_guided_video.host.models.loading import load_native_toybox
    from mask_guided_video.host.prompts.prompt_tokens import token_spans

    native = load_native_toybox(tiny_folder)
    prompt = "a red ball moves left " * 24
    with caplog.at_level(logging.WARNING):
        assert token_spans(native[1], prompt, ("red ball",), LaVie()).positions[0]
        assert "reads the first" not in caplog.text
        native[1].tokenize(prompt)
    assert caplog.text.count("the text encoder reads the first") == 1
