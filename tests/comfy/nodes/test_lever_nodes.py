"""Attention Energy, Crude Film and Dual Clock Sampler in ComfyUI: as stand-alone, and off means off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from native_models import sample as sample_tiny
from native_models import tiny
from torch import Tensor

from mask_guided_video.attention_patches.attention_energy import AttentionShare
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.host.sampling.attention_energy import install_energy
from mask_guided_video.host.sampling.first_frame_lock import as_film
from mask_guided_video.perception.tracks import Tracks
from mask_guided_video.video_models.sampling.levers import DescentSettings, DualClock, EnergyDescent, SamplingLevers

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

PROMPT = "a red ball moves left on sand"
FRAMES, CELLS, STEPS = 4, 8, 4
SETTINGS = {"until": 0.6, "step": 0.2, "iterations": 2, "enough": 0.0}


@pytest.fixture(scope="module")
def nodes() -> Any:
    from mask_guided_video.nodes import levers

    return levers


def masks() -> Tensor:
    found = torch.zeros(1, FRAMES, 32, 32)
    found[..., 8:24, 2:14] = 1.0
    return found


def guide(given: Tensor | None = None) -> Guide:
    return Guide(masks() if given is None else given, make_mode("dmg"), ("red ball",))


def energetic(nodes: Any, native: tuple[Any, Any, Any], given: Guide | None = None, **values: Any) -> Any:
    model, clip, _ = native
    return nodes.AttentionEnergy.execute(
        model, given or guide(), clip, PROMPT, **{**SETTINGS, "blocks": "all", **values}
    ).result[0]


def noise(seed: int = 5) -> Tensor:
    return torch.randn(1, 4, FRAMES, CELLS, CELLS, generator=torch.Generator().manual_seed(seed))


def sample(
    native: tuple[Any, Any, Any],
    model: Any,
    sampler: Any = None,
    callback: Any = None,
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """As SamplerCustom samples, scaled as the network sees it."""
    import comfy.sample
    import comfy.samplers

    clip = native[1]
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", STEPS)
    chosen = sampler if not isinstance(sampler or "ddim", str) else comfy.samplers.sampler_object(sampler or "ddim")
    film = comfy.sample.sample_custom(
        model,
        noise() if start is None else start,
        3.0,
        chosen,
        sigmas,
        *prompts,
        torch.zeros_like(noise()),
        noise_mask=mask,
        callback=callback,
        disable_pbar=True,
        seed=0,
    )
    return model.model.process_latent_in(film)


def alone(folder: Path, levers: SamplingLevers | None, share: bool = False, **options: Any) -> Tensor:
    from mask_guided_video.video_models.toybox import load_toybox

    with torch.inference_mode(False):
        model = load_toybox(folder=folder)
        if share:
            descent = EnergyDescent(
                AttentionShare(masks(), model.token_spans(PROMPT, ("red ball",))), DescentSettings(**SETTINGS)
            )
            levers = SamplingLevers(energy=descent)
        prompts = model.encode_prompt(PROMPT), model.encode_prompt("")
        return model.sample(noise(), *prompts, steps=STEPS, cfg=3.0, levers=levers, **options)


def test_energy_is_that_of_the_stand_alone_model(nodes: Any, native: tuple[Any, Any, Any], tiny_folder: Path) -> None:
    found = sample(native, energetic(nodes, native))
    plain = sample(native, native[0])
    assert float((found - plain).abs().max()) > 0.01
    torch.testing.assert_close(found, alone(tiny_folder, None, share=True), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "heun"])
def test_every_sampler_goes_on_with_what_was_reached(nodes: Any, native: tuple[Any, Any, Any], sampler: str) -> None:
    """Where the first step alone is preceded by a descent, the film is that of the reached latents as its noise."""
    seen: list[Tensor] = []

    def watch(apply: Any, args: dict[str, Any]) -> Tensor:
        seen.append(args["input"].detach()[:1].clone())
        return apply(args["input"], args["timestep"], **args["c"])

    watched = energetic(nodes, native, until=0.9, iterations=1)
    watched.set_model_unet_function_wrapper(watch)
    film = sample(native, watched, sampler)
    # The first call measures, the second one is the sampler's own; both see the same noise level.
    factor = (seen[0] / noise()).median()
    torch.testing.assert_close(seen[0], noise() * factor)
    assert float((seen[1] - seen[0]).abs().max()) > 0.01
    torch.testing.assert_close(film, sample(native, native[0], sampler, start=seen[1] / factor), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan", "mochi", "sd15"])
def test_other_families(name: str) -> None:
    """Their latents are changed, and nothing else; once the energy is off they sample as before."""
    model = tiny(name)
    frames, height, width = as_film(model.noise()).shape[2:]
    found = torch.zeros(1, frames, 2 * height, 2 * width)
    found[..., :height, :width] = 1.0
    share = AttentionShare(found, TextSpans(("word",), ((1,),)))
    weights = dict(model.patcher.model.named_parameters())
    energies: list[float] = []
    energetic_model = install_energy(
        model.patcher,
        EnergyDescent(share, DescentSettings(until=0.5, iterations=3, step=0.05, enough=0.0, least_fall=0.0)),
        lambda _, values: energies.extend(values),
    )
    plain = sample_tiny(model)
    film = sample_tiny(model, energetic_model)
    assert not torch.equal(film, plain)
    assert bool(torch.isfinite(film).all())
    assert min(energies[1:3]) < energies[0]
    assert torch.equal(sample_tiny(model), plain)
    assert all(weights[key] is value for key, value in model.patcher.model.named_parameters())


@pytest.mark.parametrize("off", [{"step": 0.0}, {"iterations": 0}, {"until": 1.0}, {"empty": True}])
def test_off_is_bit_for_bit_the_model(nodes: Any, native: tuple[Any, Any, Any], off: dict[str, Any]) -> None:
    given = guide(torch.zeros_like(masks())) if off.pop("empty", False) else None
    assert torch.equal(sample(native, energetic(nodes, native, given, **off)), sample(native, native[0]))


def test_a_cancelled_run_leaves_the_model_as_it_was(nodes: Any, native: tuple[Any, Any, Any]) -> None:
    model = native[0]
    before = {name: value for name, value in model.model.named_parameters()}
    film = sample(native, model)

    def cancel(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(native, energetic(nodes, native), callback=cancel)
    after = dict(model.model.named_parameters())
    assert all(after[name] is value for name, value in before.items())
    assert torch.equal(sample(native, model), film)


def test_a_noise_mask_is_refused(nodes: Any, native: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="noise mask"):
        sample(native, energetic(nodes, native), mask=torch.ones(1, 1, FRAMES, CELLS, CELLS))


def test_a_sampler_that_works_on_copies_is_refused(nodes: Any, native: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="uni_pc"):
        sample(native, energetic(nodes, native), "uni_pc")


def test_a_guide_without_words_is_refused(nodes: Any, native: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="no phrases"):
        energetic(nodes, native, Guide(masks(), make_mode("dmg")))


def test_the_dual_clock_is_that_of_the_stand_alone_model(
    nodes: Any, native: tuple[Any, Any, Any], tiny_folder: Path
) -> None:
    crude = noise(9)
    held = masks()[0]
    latent = {"samples": native[0].model.process_latent_out(crude)}
    (sampler,) = nodes.DualClockSampler.execute(latent, held, 0.95, 0.5).result
    mask = torch.nn.functional.avg_pool2d(held[:, None], 4)[:, 0].ge(0.5).float()[None, None]
    expected = alone(tiny_folder, SamplingLevers(dual_clock=DualClock(crude, mask, 0.95, 0.5)))
    found = sample(native, native[0], sampler)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    assert not torch.allclose(found, alone(tiny_folder, None), atol=0.01)


def test_a_crude_film_of_another_size_is_refused(nodes: Any, native: tuple[Any, Any, Any]) -> None:
    (sampler,) = nodes.DualClockSampler.execute({"samples": noise()[..., :4]}, masks()[0], 0.7, 0.5).result
    with pytest.raises(ValueError, match="same size"):
        sample(native, native[0], sampler)


def test_a_crude_film_has_the_object_at_its_targets(nodes: Any) -> None:
    film = torch.zeros(2, 8, 8, 3)
    here = torch.zeros(1, 2, 8, 8)
    here[..., 1:3, 1:3] = 1.0
    film[0, 1:3, 1:3] = film[1, 1:3, 1:3] = 1.0
    there = torch.zeros(1, 3, 8, 8)
    there[..., 4:6, 5:7] = 1.0
    image, mask = nodes.CrudeFilm.execute(film, Tracks.from_masks(here), Tracks.from_masks(there)).result
    assert image.shape == (3, 8, 8, 3)
    assert torch.equal(image[..., 0], there[0])
    assert torch.equal(mask, there[0])
    with pytest.raises(ValueError, match="1 tracks and 2 targets"):
        nodes.CrudeFilm.execute(film, Tracks.from_masks(here), Tracks.from_masks(torch.cat([there, there])))


def served(prompt: dict[str, Any], server: Any) -> dict[str, Tensor]:
    """The saved latents of a graph, by the numbers of its nodes."""
    from safetensors.torch import load_file

    run = server.run(prompt)
    assert run.succeeded, run.error
    return {
        number: load_file(server.path_of(output["latents"][0]))["latent_tensor"]
        for number, output in run.outputs.items()
        if "latents" in output
    }


def test_in_a_real_comfyui(server: Any) -> None:
    """Each by itself and both together; energy that is off gives the latents of the model alone."""
    noise = {
        "seed": 1, "frames": 4, "width": 32, "height": 32, "mode": "plain", "window": 16, "stride": 4, "shared": 0.2,
        "batch_size": 1, "vae": ["load", 2],
    }  # fmt: skip
    guiding = {
        "mask": ["mask", 0], "phrases": "red ball", "mode": "cross_text", "strength": 1.0, "start_percent": 0.0,
        "end_percent": 1.0, "blocks": "all", "rows": "both", "hard": False,
    }  # fmt: skip
    energy = {"model": ["load", 0], "guide": ["guide", 0], "clip": ["load", 1], "prompt": PROMPT, "blocks": "all"}
    prompt: dict[str, Any] = {
        "load": {"class_type": "MGV_LoadVideoModel", "inputs": {"model_name": "Toybox"}},
        "yes": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": PROMPT}},
        "no": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": ""}},
        "noise": {"class_type": "MGV_VideoNoise", "inputs": noise},
        "empty": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 32, "height": 32}},
        "part": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 16, "height": 24}},
        "mask": {
            "class_type": "MaskComposite",
            "inputs": {"destination": ["empty", 0], "source": ["part", 0], "x": 0, "y": 4, "operation": "add"},
        },
        "guide": {"class_type": "MGV_MaskToAttentionBias", "inputs": guiding},
        "on": {"class_type": "MGV_AttentionEnergy", "inputs": {**energy, **SETTINGS}},
        "off": {"class_type": "MGV_AttentionEnergy", "inputs": {**energy, **SETTINGS, "iterations": 0}},
        "clock": {
            "class_type": "MGV_DualClockSampler",
            "inputs": {"crude": ["noise", 1], "mask": ["mask", 0], "start": 0.9, "hold": 0.5},
        },
        "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "sigmas": {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["load", 0], "scheduler": "ddim_uniform", "steps": 4, "denoise": 1.0},
        },
    }
    for name, model, sampler in (
        ("plain", "load", "euler"),
        ("none", "off", "euler"),
        ("energy", "on", "euler"),
        ("dual", "load", "clock"),
        ("both", "on", "clock"),
    ):
        inputs = {
            "model": [model, 0], "add_noise": True, "noise_seed": 1, "cfg": 3.0, "positive": ["yes", 0],
            "negative": ["no", 0], "sampler": [sampler, 0], "sigmas": ["sigmas", 0], "latent_image": ["noise", 1],
        }  # fmt: skip
        prompt[f"{name} film"] = {"class_type": "SamplerCustom", "inputs": inputs}
        saving = {"samples": [f"{name} film", 0], "filename_prefix": f"levers/{name}"}
        prompt[name] = {"class_type": "SaveLatent", "inputs": saving}
    films = served(prompt, server)
    assert torch.equal(films["none"], films["plain"])
    for name in ("energy", "dual", "both"):
        assert bool(torch.isfinite(films[name]).all())
        assert float((films[name] - films["plain"]).abs().max()) > 0.01
    assert not torch.equal(films["both"], films["dual"])
