"""First Frame Lock, Shared Noise, LAMP Sampler and Histogram Match as nodes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from native_models import sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.guidance.regions import pool_time
from mask_guided_video.attention_patches.latent_time import causal
from mask_guided_video.perception.pictures.histogram_match import histogram_match
from mask_guided_video.video_models.sampling.noise import share_first_frame
from mask_guided_video.video_models.sampling.trajectory_noise import trajectory_noise

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

SIZE = (1, 4, 8, 24, 24)


@pytest.fixture(scope="module")
def nodes() -> Any:
    from mask_guided_video.nodes import first_frame

    return first_frame


def execute(node: Any, *args: Any, **inputs: Any) -> Any:
    return node.execute(*args, **inputs).result[0]


def plain(seed: int = 5) -> Any:
    from mask_guided_video.nodes.video import SeededVideoNoise

    return SeededVideoNoise(seed, "plain", 16, 4, 0.2)


def of_core(seed: int = 5) -> Any:
    """Core's own noise, which takes latents whose batch is the film."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(seed)


def share(nodes: Any, mode: str, amount: float = 0.2, noise: Any = None, **inputs: Any) -> Any:
    cutoffs = {
        name: inputs.pop(name, default) for name, default in (("spatial_cutoff", 0.25), ("temporal_cutoff", 0.1))
    }
    return execute(nodes.SharedNoise, noise or plain(), mode, amount, **cutoffs, **inputs)


def generated(noise: Any, size: tuple[int, ...] = SIZE) -> Tensor:
    return noise.generate_noise({"samples": torch.zeros(size)})


# --- First Frame Lock -------------------------------------------------------------------------------------------------


def test_a_picture_is_encoded_with_the_models_vae(nodes: Any, native: tuple[Any, Any, Any]) -> None:
    model, clip, vae = native
    picture = torch.rand(1, 32, 24, 4)
    latents = vae.encode(picture[..., :3])
    assert latents.shape == (1, 4, 1, 8, 6)
    by_image = execute(nodes.FirstFrameLock, model, image=picture, vae=vae)
    by_latent = execute(nodes.FirstFrameLock, model, first_frame={"samples": latents})
    films = [film_of(patcher, clip) for patcher in (by_image, by_latent)]
    assert torch.equal(*films) and torch.equal(films[0][:, :, :1], latents)
    assert not torch.equal(
        films[0],
        film_of(execute(nodes.FirstFrameLock, model, first_frame={"samples": latents}, match_statistics=True), clip),
    )


def film_of(model: Any, clip: Any) -> Tensor:
    from mask_guided_video.host.sampling.comfy_sampling import SamplerSettings, sample_film

    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red ball moves left", "")]
    return sample_film(model, *prompts, plain(), {"samples": torch.zeros(1, 4, 4, 8, 6)}, SamplerSettings(3))["samples"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "neither of first_frame and image"),
        ({"first_frame": {"samples": torch.zeros(1, 4, 1, 8, 6)}, "image": torch.zeros(1, 32, 24, 3)}, "both of"),
        ({"image": torch.zeros(1, 32, 24, 3)}, "vae is not; connect the VAE"),
        ({"image": torch.zeros(3, 32, 24, 3), "vae": "any"}, "3 pictures; give one alone"),
        ({"image": torch.full((1, 32, 24, 3), math.nan), "vae": "any"}, "NaN or infinite"),
        ({"first_frame": {"samples": torch.zeros(1, 4, 6, 8, 6)}}, "6 frames; give one frame alone"),
        ({"first_frame": {"samples": torch.full((1, 4, 1, 8, 6), math.inf)}}, "NaN or infinite"),
        ({"first_frame": {"samples": torch.zeros(1, 4, 1, 8, 6)}, "switch": 2.0}, "switch is 2.0"),
    ],
)
def test_first_frames_that_cannot_be(nodes: Any, native: tuple[Any, Any, Any], inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nodes.FirstFrameLock.execute(native[0], **inputs)


# --- Shared Noise -----------------------------------------------------------------------------------------------------


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def test_lamps_noise_has_its_spread_and_correlation(nodes: Any) -> None:
    noise = generated(share(nodes, "lamp"), (1, 16, 4, 128, 128))
    for frame in (1, 2, 3):
        assert noise[:, :, frame].std().item() == pytest.approx(0.825, abs=0.003)
    for pair in ((1, 2), (1, 3), (2, 3)):
        assert correlation(*(noise[:, :, frame] for frame in pair)) == pytest.approx(0.059, abs=0.006)
    # 0.2 / 0.825
    assert correlation(noise[:, :, 0], noise[:, :, 1]) == pytest.approx(0.2425, abs=0.006)
    assert torch.equal(noise[:, :, 0], generated(plain(), (1, 16, 4, 128, 128))[:, :, 0])


def test_full_variance(nodes: Any) -> None:
    noise = generated(share(nodes, "variance_preserving"), (1, 16, 3, 128, 128))
    assert noise[:, :, 1:].std().item() == pytest.approx(1.0, abs=0.005)
    assert correlation(noise[:, :, 1], noise[:, :, 2]) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(generated(share(nodes, "variance_preserving", 0.0)), generated(plain()))
    same = generated(share(nodes, "variance_preserving", 1.0))
    assert torch.equal(same, same[:, :, :1].expand_as(same))


@pytest.mark.parametrize("name", ["toybox", "sd15", "wan", "svd"])
def test_the_first_frame_noised_as_far_as_the_schedule_goes(
    nodes: Any, native: tuple[Any, Any, Any], name: str
) -> None:
    model = native[0] if name == "toybox" else tiny(name).patcher
    size = {"toybox": (2, 4, 5, 8, 6), "sd15": (5, 4, 8, 6), "svd": (5, 4, 8, 6), "wan": (1, 16, 5, 8, 6)}[name]
    raw = torch.randn(1, size[1], *([1] if len(size) == 5 else []), 8, 6) * 5.0
    shared = generated(share(nodes, "first_frame", noise=of_core(), model=model, first_frame={"samples": raw}), size)
    noise = generated(of_core(), size)
    assert shared.shape == size
    noise, shared = (part if len(size) == 5 else part.transpose(0, 1)[None] for part in (noise, shared))
    clean = model.model.process_latent_in(raw if len(size) == 5 else raw[:, :, None])
    # Highest noise levels: of LaVie's schedule, of Stable Diffusion's, of flow matching, of SVD's.
    sigma = {"toybox": 157.407, "sd15": 14.6146, "wan": None, "svd": 700.0}[name]
    signal = 0.0 if sigma is None else 1.0 / math.sqrt(sigma**2 + 1.0)
    source = signal * clean + math.sqrt(1.0 - signal**2) * noise[:, :, :1]
    torch.testing.assert_close(shared[:, :, 1:], 0.2 * source + 0.8 * noise[:, :, 1:], atol=2e-5, rtol=1e-4)
    assert torch.equal(shared[:, :, :1], noise[:, :, :1])
    if name == "sd15":
        assert float((shared - share_first_frame(noise, 0.2, False))[:, :, 1:].abs().max()) > 1e-3


def masks_right(frames: int = 8) -> Tensor:
    """A box that moves to the right."""
    masks = torch.zeros(frames, 48, 48)
    for frame in range(frames):
        masks[frame, 16:32, 4 * frame : 4 * frame + 16] = 1.0
    return masks


@pytest.mark.parametrize("size", [SIZE, (8, 4, 24, 24)])
def test_noise_moves_along_the_paths(nodes: Any, size: tuple[int, ...]) -> None:
    cutoffs = {"spatial_cutoff": 0.7, "temporal_cutoff": 0.9}
    noise = share(nodes, "freetraj", noise=of_core(), mask=masks_right(), **cutoffs)
    given, base = generated(noise, size), generated(of_core(), size)
    assert given.shape == size and torch.equal(given, generated(noise, size))
    film, base = (part if len(size) == 5 else part.transpose(0, 1)[None] for part in (given, base))
    # The pieces are drawn where the film's own noise ended.
    generator = torch.Generator().manual_seed(5)
    torch.randn(SIZE, generator=generator)
    torch.testing.assert_close(film, trajectory_noise(base, masks_right()[None], generator, **cutoffs))
    boxes = [film[:, :, frame, 8:16, 2 * frame : 2 * frame + 8] for frame in (2, 5)]
    assert correlation(*boxes) > 0.15
    assert abs(correlation(film[:, :, 2, 16:], film[:, :, 5, 16:])) < 0.1


def test_paths_of_tracks_and_of_models_whose_latent_frames_stand_for_several(nodes: Any) -> None:
    from mask_guided_video.nodes.object_masks import MaskToTracks

    masks = masks_right(9)
    tracks = execute(MaskToTracks, masks, "ball")
    wan = tiny("wan").patcher
    by_mask = generated(share(nodes, "freetraj", mask=masks, model=wan), (1, 16, 3, 24, 24))
    pooled = pool_time(masks[None], 3, "max", causal(4))[0]
    assert torch.equal(by_mask, generated(share(nodes, "freetraj", mask=pooled, model=wan), (1, 16, 3, 24, 24)))
    with pytest.raises(ValueError, match="9 mask frames"):
        generated(share(nodes, "freetraj", mask=masks, model=wan), (1, 16, 8, 24, 24))
    with pytest.raises(ValueError, match="48 x 48 pixels but the video's latents 12 x 24: they would be distorted"):
        generated(share(nodes, "freetraj", mask=masks, model=wan), (1, 16, 3, 24, 12))
    by_tracks = share(nodes, "freetraj", tracks=tracks, model=wan)
    assert torch.equal(generated(by_tracks, (1, 16, 3, 24, 24)), by_mask)


def test_masks_without_an_object_leave_the_noise(nodes: Any) -> None:
    assert torch.equal(generated(share(nodes, "freetraj", mask=torch.zeros(8, 48, 48))), generated(plain()))


def test_seed_and_batch_are_those_of_the_noise(nodes: Any) -> None:
    noise = share(nodes, "lamp", noise=plain(9))
    assert noise.seed == 9 and not torch.equal(generated(noise), generated(share(nodes, "lamp")))
    both = generated(noise, (3, *SIZE[1:]))
    picked = noise.generate_noise({"samples": torch.zeros(1, *SIZE[1:]), "batch_index": [2]})
    torch.testing.assert_close(picked, both[2:])
    twice = generated(share(nodes, "variance_preserving", noise=noise))
    assert torch.equal(twice, share_first_frame(generated(noise), 0.2, True))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"mode": "magic"}, "'magic'; choose one of lamp, variance_preserving, first_frame, freetraj"),
        ({"mode": "first_frame"}, "connect the model and first_frame"),
        ({"mode": "freetraj"}, "connect tracks or mask"),
        ({"mode": "freetraj", "tracks": "any", "mask": torch.zeros(1, 4, 4)}, "both of tracks and mask"),
        ({"mode": "freetraj", "mask": torch.full((8, 4, 4), math.nan)}, "NaN"),
    ],
)
def test_noise_that_cannot_be(nodes: Any, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        share(nodes, **inputs)


def test_values_that_only_show_with_the_film(nodes: Any) -> None:
    with pytest.raises(ValueError, match="amount is 1.5"):
        generated(share(nodes, "lamp", 1.5))
    wan = tiny("wan").patcher
    with pytest.raises(ValueError, match="16 channels; encode the picture"):
        generated(share(nodes, "first_frame", model=wan, first_frame={"samples": torch.zeros(1, 4, 1, 24, 24)}))
    frame = {"samples": torch.zeros(1, 16, 1, 8, 8)}
    with pytest.raises(ValueError, match="8 x 8 cells but the video of 16 channels and 9 x 8 cells"):
        generated(share(nodes, "first_frame", model=wan, first_frame=frame), (1, 16, 3, 8, 9))


# --- LAMP Sampler and Histogram Match ---------------------------------------------------------------------------------


def test_the_sampler_goes_into_the_hosts_own_node(nodes: Any, native: tuple[Any, Any, Any]) -> None:
    from comfy_extras.nodes_custom_sampler import BasicScheduler, SamplerCustom

    model, clip, vae = native
    picture = torch.rand(1, 32, 24, 3)
    locked = execute(nodes.FirstFrameLock, model, image=picture, vae=vae)
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red ball moves left", "")]
    sigmas = BasicScheduler().get_sigmas(locked, "ddim_uniform", 4, 1.0)[0]
    films = [
        SamplerCustom().sample(
            locked,
            True,
            3,
            4.0,
            *prompts,
            execute(nodes.LampSampler, switch),
            sigmas,
            {"samples": torch.zeros(1, 4, 4, 8, 6)},
        )[0]["samples"]
        for switch in (0.6, 1.0)
    ]
    assert all(torch.equal(film[:, :, :1], vae.encode(picture)) for film in films)
    assert not torch.equal(*films)
    own = films[0].std(dim=(-2, -1))
    torch.testing.assert_close(own[:, :, 1:], own[:, :, :1].expand(-1, -1, 3), atol=1e-3, rtol=1e-3)


def test_colours_of_the_first_frame_or_of_a_reference(nodes: Any) -> None:
    film = torch.rand(35, 6, 8, 4, generator=torch.Generator().manual_seed(2)) ** 2
    given = film.clone()
    reference = torch.rand(1, 5, 5, 3)
    for inputs, wanted in (({}, film[0, ..., :3]), ({"reference": reference}, reference[0])):
        matched = execute(nodes.HistogramMatch, film, **inputs)
        assert torch.equal(matched[..., :3], histogram_match(film[..., :3], wanted))
        assert torch.equal(matched[..., 3], film[..., 3])
    assert torch.equal(film, given)
    with pytest.raises(ValueError, match="reference holds 2 pictures"):
        execute(nodes.HistogramMatch, film, reference=film[:2])
    with pytest.raises(ValueError, match="NaN or infinite values in frame 1"):
        execute(nodes.HistogramMatch, torch.stack([torch.zeros(4, 4, 3), torch.full((4, 4, 3), math.nan)]))


def test_a_tiny_film_of_an_image_model(nodes: Any) -> None:
    """Stable Diffusion's latents of four axes go through all of it."""
    model = tiny("sd15")
    frame = torch.randn(1, 4, 8, 12)
    locked = execute(nodes.FirstFrameLock, model.patcher, first_frame={"samples": frame})
    noise = generated(share(nodes, "lamp", noise=of_core()), model.latents)
    assert torch.equal(sample(model, locked, noise=noise)[:1], frame)
