"""The pack's nodes on latents of video and sound: the video is worked on as ever, the sound is the host's alone.

What is expected is made of the two streams apart, with the host's own functions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from native_guides import guide_of, masks_of, patched, relative, spans_of
from native_models import TinyModel, sample, tiny
from stand_in_models import make_vae
from tiny_model import flat
from torch import Tensor

from mask_guided_video.attention_patches.latent_time import latent_frame_groups
from mask_guided_video.backbones.families.minimax_h3 import MiniMaxH3
from mask_guided_video.host.sampling.first_frame_lock import lock_first_frame
from mask_guided_video.recipes.films.files import read_film
from mask_guided_video.video_models.sampling.noise import is_rescheduled

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

SEED = 7
SETTINGS = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}


@pytest.fixture(scope="module")
def model() -> TinyModel:
    """MiniMax H3; skips where ComfyUI has none."""
    model = tiny("minimax_h3")
    assert model.patcher is not None
    return model


def nested(*parts: Tensor) -> Any:
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(list(parts))


def some_latents(model: TinyModel, seed: int = 40) -> Any:
    """Latents of a video and a sound that were made before."""
    return model.noise(seed)


def host_noise(latents: Any, seed: int = SEED) -> Any:
    from comfy.sample import prepare_noise

    return prepare_noise(latents, seed)


def video_noise(mode: str = "plain", window: int = 4) -> Any:
    from mask_guided_video.nodes.video import SeededVideoNoise

    return SeededVideoNoise(SEED, mode, window, 2, 0.3)


def conditions(model: TinyModel) -> tuple[Any, Any]:
    return model.conditioning(1), model.conditioning(2)


def same(first: Any, second: Any) -> bool:
    return torch.equal(flat(first), flat(second))


def host_sample(model: TinyModel, patcher: Any, noise: Any, latents: Any, mask: Any = None, **settings: Any) -> Any:
    import comfy.sample

    steps, cfg, sampler, scheduler = SETTINGS.values()
    arguments = (patcher, noise, steps, cfg, sampler, scheduler, *conditions(model), latents)
    return comfy.sample.sample(*arguments, disable_pbar=True, noise_mask=mask, seed=SEED, **settings)


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plain", "freenoise", "specmix", "shared"])
def test_video_noise_draws_sound_as_the_host_does(model: TinyModel, mode: str) -> None:
    from mask_guided_video.video_models.sampling.noise import video_noise as video_alone

    latents = model.empty()
    noise, core = video_noise(mode).generate_noise({"samples": latents}), host_noise(latents)
    assert torch.equal(noise.unbind()[1], core.unbind()[1])
    assert torch.equal(noise.unbind()[0], video_alone(model.latents, SEED, mode, window=4, stride=2, shared=0.3))
    assert torch.equal(noise.unbind()[0], core.unbind()[0]) == (mode == "plain")
    assert is_rescheduled(noise) == (mode in ("freenoise", "specmix"))


def test_video_noise_counts_frames_as_the_vae_does(model: TinyModel) -> None:
    from mask_guided_video.nodes.video import VideoNoise

    settings = {"seed": SEED, "width": 192, "height": 128, "mode": "plain", "window": 4, "stride": 2, "shared": 0.2}
    noise, latent = VideoNoise.execute(frames=22, batch_size=1, vae=minimax_vae(), **settings).args
    assert latent["samples"].shape == model.latents
    # The plain empty latent gets its sound where it is sampled.
    film = sampled_by_node(model, model.patcher, noise, latent)["samples"]
    assert [tuple(part.shape) for part in film.unbind()] == [model.latents, (1, 32, 2, 37)]
    assert all(part.isfinite().all() for part in film.unbind())
    with pytest.raises(ValueError, match="makes no video of 30 frames; the nearest shorter length is 22"):
        VideoNoise.execute(frames=30, batch_size=1, vae=minimax_vae(), **settings)


@pytest.mark.parametrize("mode", ["lamp", "variance_preserving"])
def test_shared_noise_shares_the_video_s(model: TinyModel, mode: str) -> None:
    from mask_guided_video.host.sampling.shared_noise import SharedNoise

    latents = model.empty()
    given = video_noise().generate_noise({"samples": latents})
    shared = SharedNoise(video_noise(), mode, 1.0).generate_noise({"samples": latents})
    video = shared.unbind()[0]
    assert torch.equal(shared.unbind()[1], given.unbind()[1])
    assert torch.equal(video, given.unbind()[0][:, :, :1].expand_as(video))


def test_paths_are_followed_in_the_model_s_own_time(model: TinyModel) -> None:
    """Masks of 22 frames and those of the 7 latent frames, pooled by hand, move the same noise."""
    from mask_guided_video.host.sampling.shared_noise import SharedNoise

    latents, masks = model.empty(), masks_of(model)
    groups = latent_frame_groups(22, 7, MiniMaxH3().latent_time)
    pooled = torch.stack([masks[:, group.start : group.stop].amax(dim=1) for group in groups], dim=1)
    made = [
        SharedNoise(video_noise(), "freetraj", model=model.patcher, masks=each).generate_noise({"samples": latents})
        for each in (masks, pooled)
    ]
    given = video_noise().generate_noise({"samples": latents})
    assert same(made[0], made[1]) and not same(made[0], given)
    assert torch.equal(made[0].unbind()[1], given.unbind()[1])
    with pytest.raises(ValueError, match=r"always 17 \* n \+ 5\); give 1 or 7 or 22 masks"):
        SharedNoise(video_noise(), "freetraj", model=model.patcher, masks=masks[:, :21]).generate_noise(
            {"samples": latents}
        )


def test_the_noised_first_frame_is_shared(model: TinyModel) -> None:
    from mask_guided_video.host.sampling.shared_noise import SharedNoise

    frame = some_latents(model).unbind()[0][:, :, :1]
    noise = SharedNoise(video_noise(), "first_frame", 0.5, model.patcher, frame).generate_noise(
        {"samples": model.empty()}
    )
    core = host_noise(model.empty())
    assert torch.equal(noise.unbind()[1], core.unbind()[1])
    assert noise.unbind()[0].isfinite().all() and not torch.equal(noise.unbind()[0], core.unbind()[0])


# --- sampling ---------------------------------------------------------------------------------------------------------


def sampled_by_node(model: TinyModel, patcher: Any, noise: Any, latent: dict[str, Any], denoise: float = 1.0) -> Any:
    from mask_guided_video.nodes.video import SampleVideo

    return SampleVideo.execute(patcher, *conditions(model), noise, latent, **SETTINGS, denoise=denoise).args[0]


@pytest.mark.parametrize("guided", [False, True])
def test_sample_video_is_the_host_s_sampling(model: TinyModel, guided: bool) -> None:
    patcher, latents = model.patcher, model.empty()
    if guided:
        patcher = patched(model, guide_of("minimax_h3", "separate"), spans_of("minimax_h3"))
    film = sampled_by_node(model, patcher, video_noise(), {"samples": latents})["samples"]
    assert same(film, host_sample(model, patcher, host_noise(latents), latents))
    assert same(latents, model.empty())


def test_sample_video_takes_a_mask_of_the_video_or_of_both(model: TinyModel) -> None:
    latents = some_latents(model)
    of_video = torch.ones(1, 1, *model.latents[2:])
    of_video[..., :6] = 0.0
    of_sound = torch.zeros(1, 1, *model.sound[2:])
    plain = sampled_by_node(model, model.patcher, video_noise(), {"samples": latents}, 0.6)["samples"]
    for mask in (of_video, nested(of_video, of_sound)):
        latent = {"samples": latents, "noise_mask": mask}
        video, sound = sampled_by_node(model, model.patcher, video_noise(), latent, 0.6)["samples"].unbind()
        given_video, given_sound = latents.unbind()
        torch.testing.assert_close(video[..., :6], given_video[..., :6], atol=1e-4, rtol=1e-4)
        assert relative(video[..., 6:], given_video[..., 6:]) > 0.05
        kept = bool(torch.isclose(sound, given_sound, atol=1e-4).all())
        assert kept == (mask is not of_video)
    assert not same(plain, latents)


def test_noise_of_other_streams_is_refused(model: TinyModel) -> None:
    @dataclass
    class Given:
        noise: Any
        seed: int = SEED

        def generate_noise(self, latent: dict[str, Any]) -> Any:
            return self.noise

    video, sound = model.noise().unbind()
    for noise, named in ((video, r"12\) but"), (nested(video, sound[..., :4]), r"4\) but")):
        with pytest.raises(
            ValueError, match=named + r" the latent .* \(1, 32, 2, 9\); connect noise and latent of the"
        ):
            sampled_by_node(model, model.patcher, Given(noise), {"samples": model.empty()})


@pytest.mark.parametrize("mode", ["same_noise", "fresh", "refine"])
def test_regenerate_makes_both_again(model: TinyModel, mode: str) -> None:
    latents = some_latents(model)
    film = regenerated(model, latents, mode)
    start = latents if mode == "refine" else model.empty()
    noise = host_noise(latents, SEED if mode == "same_noise" else SEED + 1)
    seed = {"seed": SEED if mode == "same_noise" else SEED + 1}
    import comfy.sample

    arguments = (model.patcher, noise, 2, 1.0, "euler", "simple", *conditions(model), start)
    expected = comfy.sample.sample(*arguments, denoise=0.5 if mode == "refine" else 1.0, disable_pbar=True, **seed)
    assert same(film, expected)


def regenerated(model: TinyModel, latents: Any, mode: str, mask: Tensor | None = None) -> Any:
    from mask_guided_video.nodes.regeneration import Regenerate

    lock = {"background_lock": mask is not None, "lock_grow": 0, "lock_blur": 0, "mask": mask}
    settings = {**SETTINGS, "mode": mode, "seed": SEED + 1, "strength": 0.5}
    latent = {"samples": latents}
    return Regenerate.execute(model.patcher, *conditions(model), video_noise(), latent, **settings, **lock).args[0][
        "samples"
    ]


def test_the_background_lock_keeps_the_sound(model: TinyModel) -> None:
    """Its mask is counted in the model's own time: what moves in frames 17 to 21 is free in latent frames 5 and 6."""
    mask, latents = torch.zeros(22, 64, 96), some_latents(model)
    mask[17:, :, 48:] = 1.0
    video, sound = regenerated(model, latents, "same_noise", mask).unbind()
    given_video, given_sound = latents.unbind()
    torch.testing.assert_close(sound, given_sound, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(video[:, :, :5], given_video[:, :, :5], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(video[..., :6], given_video[..., :6], atol=1e-4, rtol=1e-4)
    for frame in (5, 6):
        assert relative(video[:, :, frame, :, 6:], given_video[:, :, frame, :, 6:]) > 0.05


# --- the first frame --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "lamp"])
@pytest.mark.parametrize("match_statistics", [False, True])
def test_every_call_is_given_the_clean_frame(model: TinyModel, sampler: str, match_statistics: bool) -> None:
    frame = 1.7 * some_latents(model).unbind()[0][:, :, 2:3] + 0.3
    locked = lock_first_frame(model.patcher, frame, match_statistics)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.patcher.model.diffusion_model.register_forward_pre_hook(
        lambda _, args: seen.append((args[0][0].clone(), args[0][1].clone()))
    )
    try:
        film = sampled_with(model, locked, sampler)
        with_frame = list(seen)
        seen.clear()
        plain = sampled_with(model, model.patcher, sampler)
    finally:
        handle.remove()
    assert with_frame and all(torch.equal(video[:, :, :1], frame) for video, _ in with_frame)
    # The first call has the same noise around the frame, in the sound too.
    assert torch.equal(with_frame[0][0][:, :, 1:], seen[0][0][:, :, 1:])
    assert torch.equal(with_frame[0][1], seen[0][1])
    video, sound = film.unbind()
    assert torch.equal(video[:, :, :1], frame) and flat(film).isfinite().all()
    changes = (video - plain.unbind()[0])[:, :, 1:].abs().amax(dim=(0, 1, 3, 4))
    assert bool((changes > 1e-4).all()) and relative(sound, plain.unbind()[1]) > 1e-4


def sampled_with(model: TinyModel, patcher: Any, sampler: str, steps: int = 3) -> Any:
    """As SamplerCustom does."""
    import comfy.sample
    import comfy.samplers

    from mask_guided_video.nodes.first_frame import LampSampler

    chosen = LampSampler.execute(0.4).args[0] if sampler == "lamp" else comfy.samplers.sampler_object(sampler)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    latents = model.empty()
    arguments = (patcher, host_noise(latents), 1.0, chosen, sigmas, *conditions(model), latents)
    return comfy.sample.sample_custom(*arguments, disable_pbar=True, seed=SEED)


def test_a_film_that_is_noised_in_part_begins_with_the_frame(model: TinyModel) -> None:
    latents, frame = some_latents(model), some_latents(model, 41).unbind()[0][:, :, :1]
    before = flat(latents).clone()
    locked = lock_first_frame(model.patcher, frame)
    video, sound = host_sample(model, locked, host_noise(latents), latents, denoise=0.5).unbind()
    assert torch.equal(video[:, :, :1], frame) and torch.equal(flat(latents), before)
    assert sound.isfinite().all() and relative(sound, latents.unbind()[1]) > 0.01


def test_first_frame_lock_takes_a_latent_with_sound_and_refuses_other_channels(model: TinyModel) -> None:
    from mask_guided_video.nodes.first_frame import FirstFrameLock

    video, sound = some_latents(model).unbind()
    one = {"samples": nested(video[:, :, :1], sound[..., :1])}
    (locked,) = FirstFrameLock.execute(model.patcher, one).args
    assert torch.equal(sampled_with(model, locked, "euler").unbind()[0][:, :, :1], video[:, :, :1])
    with pytest.raises(ValueError, match="this model's latents have 24 channels"):
        FirstFrameLock.execute(model.patcher, {"samples": torch.zeros(1, 32, 1, 8, 12)})


@pytest.mark.parametrize("steps", [1, 3])
def test_lamp_s_sampler_leaves_the_sound_to_the_model(model: TinyModel, steps: int) -> None:
    """The video's frames take the statistics of the first one; sound takes plain steps."""
    video, sound = sampled_with(model, model.patcher, "lamp", steps).unbind()
    plain_video, plain_sound = sampled_with(model, model.patcher, "euler", steps).unbind()
    means = video.mean(dim=(3, 4))
    torch.testing.assert_close(means, means[:, :, :1].expand_as(means), atol=1e-4, rtol=1e-4)
    assert relative(video, plain_video) > 0.01
    # From the second step on the model hears of a changed video.
    assert (relative(sound, plain_sound) < 1e-5) == (steps == 1)


# --- guides, FreeLong, prompts ----------------------------------------------------------------------------------------


def test_free_long_s_node(model: TinyModel) -> None:
    from mask_guided_video.nodes.long_video import FreeLong

    def free_long(window: int) -> Any:
        names = {each.id: each.default for each in FreeLong.define_schema().inputs if hasattr(each, "default")}
        settings = {**{name: value for name, value in names.items() if value is not None}, "window": window}
        return FreeLong.execute(model=model.patcher, **settings).args[0]

    plain = sample(model)
    # Trained on more frames than these, and a window as long as the clip.
    assert torch.equal(sample(model, free_long(0)), plain) and torch.equal(sample(model, free_long(7)), plain)
    film = sample(model, free_long(3))
    assert film.isfinite().all() and relative(film, plain) > 1e-3


def test_prompts_over_time_are_refused_with_a_sentence(model: TinyModel) -> None:
    from mask_guided_video.nodes.prompt_schedule import PromptSchedule

    with pytest.raises(ValueError, match="MiniMax H3 lets text and video attend to each other in one sequence"):
        PromptSchedule.execute(model.patcher, None, "0: a ball\n9: a cube", 4)


def test_patch_attention_s_node(model: TinyModel) -> None:
    from mask_guided_video.nodes.guidance import MaskToAttentionBias, PatchAttention

    mask = masks_of(model)[0]
    defaults = {
        each.id: each.default
        for each in MaskToAttentionBias.define_schema().inputs
        if getattr(each, "default", None) is not None
    }
    guide, report = MaskToAttentionBias.execute(**{**defaults, "phrases": "", "mode": "separate"}, mask=mask).args
    assert report
    (patcher,) = PatchAttention.execute(model.patcher, guide, "").args
    film = sampled_by_node(model, patcher, video_noise(), {"samples": model.empty()})["samples"]
    plain = sampled_by_node(model, model.patcher, video_noise(), {"samples": model.empty()})["samples"]
    assert relative(film.unbind()[0], plain.unbind()[0]) > 1e-3


def test_preview_of_masks_that_do_not_fit_names_the_rule(model: TinyModel) -> None:
    from mask_guided_video.nodes.guidance import PreviewGuide

    guide = guide_of("minimax_h3", "separate", masks=masks_of(model)[:, :20])
    with pytest.raises(ValueError, match=r"20 mask frames .* \(22 frames of film, always 17 \* n \+ 5\); give 1 or 7"):
        PreviewGuide.execute(guide, model.patcher, {"samples": model.empty()}, 64)


# --- decoding ---------------------------------------------------------------------------------------------------------


def minimax_vae() -> Any:
    """A VAE that counts frames as MiniMax H3's does, whose picture's brightness is the number of its latent frame."""
    vae = make_vae("wan")

    class Counter(torch.nn.Module):
        def decode(self, latents: Tensor, **_: Any) -> Tensor:
            covered = torch.tensor(MiniMaxH3().latent_time.covered(latents.shape[2]))
            numbers = torch.arange(latents.shape[2]).repeat_interleave(covered) / 64.0
            return numbers.view(1, 1, -1, 1, 1).expand(1, 3, -1, 16 * latents.shape[3], 16 * latents.shape[4])

    vae.first_stage_model, vae.latent_channels = Counter(), 24
    vae.upscale_ratio = (lambda frames: max(1, (frames - 2) // 5 * 17 + 5), 16, 16)
    vae.upscale_index_formula = vae.downscale_index_formula = (4, 16, 16)
    vae.downscale_ratio = (lambda frames: max(1, (frames - 5) // 17 * 5 + 2) if frames > 1 else 1, 16, 16)
    vae.process_output = lambda pictures: pictures
    vae.patcher = replace_model(vae)
    return vae


def replace_model(vae: Any) -> Any:
    from comfy.model_patcher import ModelPatcher

    return ModelPatcher(vae.first_stage_model, vae.device, vae.device)


def test_save_long_video_writes_the_video_and_says_so_of_the_sound(
    model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import folder_paths

    from mask_guided_video.nodes.film_files import SaveLongVideo

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    with caplog.at_level(logging.INFO):
        answer = SaveLongVideo.execute({"samples": some_latents(model)}, minimax_vae(), "film", 24.0, 8, 2, 14)
    assert "the latents hold sound beside the video; the file is without it" in caplog.text
    (video,) = answer.args[0]
    assert video.get_dimensions() == (192, 128) and len(read_film(Path(video.get_stream_source()))) == 22
