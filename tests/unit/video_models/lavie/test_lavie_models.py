"""LaVie's three models opened by themselves, with parts of Stable Diffusion."""

from __future__ import annotations

import pytest
import torch
from tiny_lavie_files import CONFIGS, tiny_unet, write_unet
from tiny_stable_diffusion import tiny_clip, tiny_vae, write_checkpoint, write_folder

from mask_guided_video.recipes.model_sets import load_lavie_set, load_model_set
from mask_guided_video.video_models.lavie.models import open_interpolator, open_lavie, open_upscaler
from mask_guided_video.video_models.sampling.denoising import Conditions, sample_latents

OPENERS = {"base": open_lavie, "interpolation": open_interpolator, "upscaling": open_upscaler}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Files of the three stages, Stable Diffusion 1 as a folder and a checkpoint, the x4 upscaler's parts."""
    root = tmp_path_factory.mktemp("models")
    found = {stage: write_unet(root / f"lavie_{stage}.pt", stage) for stage in CONFIGS}
    clip, vae = tiny_clip(), tiny_vae()
    found["parts"] = write_folder(root / "sd1", clip, vae)
    found["checkpoint"] = write_checkpoint(root / "sd1.safetensors", clip, vae)
    found["x4"] = write_folder(root / "x4", tiny_clip(128, activation="gelu"), tiny_vae(3, scaling_factor=0.08333))
    return found


def parts_of(places, stage: str):
    return places["x4" if stage == "upscaling" else "parts"]


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_weights_are_those_of_the_file(places, stage: str) -> None:
    before = torch.random.get_rng_state()
    opened = OPENERS[stage](places[stage], parts_of(places, stage))
    expected = tiny_unet(stage).state_dict()
    found = opened.unet.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert opened.unet.config == CONFIGS[stage] and not opened.unet.training
    # No random start of layers: whoever seeded before gets the same numbers.
    assert torch.equal(before, torch.random.get_rng_state())


def test_text_to_video_from_folder_and_checkpoint(places) -> None:
    one = open_lavie(places["base"], places["parts"])
    other = open_lavie(places["base"], places["checkpoint"], tokenizer=places["parts"] / "tokenizer")
    assert one.geometry.spatial_factor == 8 and (one.geometry.height, one.geometry.width) == (320, 512)
    films = []
    for model in (one, other):
        prompts = model.encode_prompt("a red ball"), model.encode_prompt("")
        latents = model.sample(model.noise(3, 16, 24, 1), *prompts, steps=2, cfg=7.5)
        films.append(model.decode(latents))
    assert films[0].shape == (3, 16, 24, 3) and bool(films[0].isfinite().all())
    assert torch.equal(*films)


def test_half_precision(places) -> None:
    model = open_lavie(places["base"], places["parts"], dtype=torch.bfloat16)
    assert model.unet.dtype == torch.bfloat16 and model.text.encoder.dtype == torch.float32
    prompts = model.encode_prompt("a red ball"), model.encode_prompt("")
    latents = model.sample(model.noise(2, 16, 16, 1), *prompts, steps=2)
    assert latents.dtype == torch.float32 and bool(latents.isfinite().all())


@pytest.mark.parametrize(
    ("opener", "stage", "message"),
    [
        ("base", "interpolation", "lavie_interpolation.pt is LaVie's interpolation model.*base model is wanted"),
        ("base", "upscaling", "lavie_upscaling.pt is LaVie's upscaler.*lavie_base.pt"),
        ("interpolation", "base", "lavie_base.pt is LaVie's base model.*interpolation model is wanted"),
        ("upscaling", "base", "lavie_base.pt is LaVie's base model.*upscaler is wanted"),
    ],
)
def test_another_stages_file_is_refused(places, opener: str, stage: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPENERS[opener](places[stage], parts_of(places, opener))


@pytest.mark.parametrize(("stage", "parts"), [("base", "x4"), ("interpolation", "x4"), ("upscaling", "parts")])
def test_parts_of_another_stage_are_refused(places, stage: str, parts: str) -> None:
    wanted = "x4 upscaler" if stage == "upscaling" else "Stable Diffusion 1"
    with pytest.raises(ValueError, match=f"text encoder of .* wants .*; give .*{wanted}"):
        OPENERS[stage](places[stage], places[parts])


def test_a_cut_file_is_named(places, tmp_path) -> None:
    path = tmp_path / "lavie_base.pt"
    path.write_bytes(places["base"].read_bytes()[:20000])
    with pytest.raises(RuntimeError, match="lavie_base.pt"):
        open_lavie(path, places["parts"])


def test_channels_that_do_not_fit_are_refused_before_work(places) -> None:
    model = open_lavie(places["base"], places["parts"])
    text = model.encode_prompt("")
    conditions = Conditions(text, text, 1.0, channels=torch.zeros(1, 4, 2, 2, 2))
    with pytest.raises(ValueError, match="takes 4 channels and would be given 8"):
        sample_latents(model.unet, torch.zeros(1, 4, 2, 2, 2), conditions, model.device, steps=1)


def test_a_set_around_a_file(places) -> None:
    models = load_model_set(str(places["base"]), "cpu", places["parts"])
    assert models.name == "lavie_base.pt" and models.model.geometry.native_frames == 16
    assert models.detector is not None and models.tracker is not None
    with pytest.raises(ValueError, match="--parts PATH"):
        load_lavie_set(places["base"], None)
    with pytest.raises(ValueError, match="'toybox' has its own"):
        load_model_set("toybox", parts=places["parts"])
    with pytest.raises(ValueError, match="choose one of toybox, toybox-joint, or give a file"):
        load_model_set("lavie")
    with pytest.raises(FileNotFoundError, match="missing.pt"):
        load_model_set("missing.pt", parts=places["parts"])
