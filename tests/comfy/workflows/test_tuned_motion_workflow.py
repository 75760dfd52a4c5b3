"""The bundled workflow of a tuned motion, and tuning, in a real ComfyUI."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from bundled_graphs import assert_well_formed, nodes_of, only, read, saved_latents

pytestmark = pytest.mark.comfy

NAME = "tuned_motion_toybox"
PLAIN, TUNED, FIRST = "plain", "tuned", "first"


@pytest.fixture(scope="module")
def host(server, root):
    if not (root / "toybox" / "motions" / "circle.safetensors").is_file():
        pytest.skip("this checkout has no Toybox motions")
    from mask_guided_video.recipes.films.files import write_film
    from mask_guided_video.toybox import unseen_motions, world

    server.empty_cache()
    given = server.folder / "input"
    for name in ("clips", "masks"):
        (given / name).mkdir(parents=True)
    for number, colour in enumerate(("red", "blue")):
        scene = unseen_motions.unseen_scene("zigzag", colour, "ball", "sea", np.random.default_rng(number))
        clip = world.render(scene)
        write_film(given / "clips" / f"{colour}.mp4", torch.from_numpy(clip.frames))
        np.save(given / "masks" / f"{colour}.npy", clip.masks)
        words = f"{unseen_motions.unseen_prompt(scene)}\n{colour} ball\nbackground: sea\n"
        (given / "clips" / f"{colour}.txt").write_text(words)
    return server


@pytest.fixture(scope="module")
def info(host):
    return host.get("/object_info")


@pytest.fixture(scope="module")
def prompt(info, to_prompt, toybox_folder):
    """The bundled graph with few steps; all latents are saved, those of the film under its samplers' models."""
    prompt = copy.deepcopy(to_prompt(read(NAME), info))
    for number in nodes_of(prompt, "MGV_SampleVideo"):
        inputs = prompt[number]["inputs"]
        inputs["steps"] = 3
        model = prompt[inputs["model"][0]]
        name = FIRST
        if model["class_type"] == "MGV_FirstFrameLock":
            patched = prompt[model["inputs"]["model"][0]]
            below = prompt[patched["inputs"]["model"][0]]["class_type"]
            name = TUNED if below == "MGV_LoadMotion" else PLAIN
        prompt[name] = {"class_type": "SaveLatent", "inputs": {"samples": [number, 0], "filename_prefix": name}}
    assert {FIRST, TUNED, PLAIN} <= prompt.keys()
    return prompt


def with_values(prompt, kind, **values):
    other = copy.deepcopy(prompt)
    for number in nodes_of(other, kind):
        other[number]["inputs"].update(values)
    return other


def latents(host, prompt, name):
    run = host.run(prompt)
    assert run.succeeded, run.error
    return saved_latents(host, run, name)


def test_form(info, named_values):
    assert_well_formed(NAME, info, named_values)
    kinds = [node["type"] for node in read(NAME)["nodes"]]
    assert kinds.count("MGV_LoadMotion") == 1 and kinds.count("MGV_FirstFrameLock") == 2


def test_films_begin_alike_and_go_on_differently(host, prompt):
    run = host.run(prompt)
    assert run.succeeded, run.error
    plain, tuned, first = (saved_latents(host, run, name) for name in (PLAIN, TUNED, FIRST))
    assert plain.shape == tuned.shape == (1, 4, 8, 16, 16) and first.shape == (1, 4, 1, 16, 16)
    assert torch.equal(plain[:, :, :1], first) and torch.equal(tuned[:, :, :1], first)
    assert float((plain - tuned)[:, :, 1:].abs().max()) > 0.05
    words = run.outputs[only(nodes_of(prompt, "PreviewAny"))]["text"][0]
    assert "circle.safetensors: lora of Toybox" in words and "masks: dmg" in words
    # Nothing is left in the model: at strength 0 the films are the same, to the bit.
    zero = with_values(prompt, "MGV_LoadMotion", strength=0.0)
    assert torch.equal(latents(host, zero, TUNED), plain)
    assert torch.equal(latents(host, prompt, TUNED), tuned)


def training(**values):
    settings = {
        **{"videos": "clips", "masks": "masks", "prompt": "", "phrases": "", "background_phrase": ""},
        **{"filename_prefix": "motion/zigzag", "architecture": "lora", "rank": 4, "modules": "self_queries, temporal"},
        **{"steps": 2, "batch": 2, "learning_rate": 0.01, "seed": 1, "mode": "dmg", "constants": "blocks=all"},
        **{"key_source": "mode's own", "first_frame": 1.0, "mask_drop": 0.1, "flip": 0.0, "prompt_dropout": 0.1},
        **{"frames": 8, "width": 64, "height": 64, "checkpointing": True},
    }
    return {
        "load": {"class_type": "MGV_LoadVideoModel", "inputs": {"model_name": "Toybox"}},
        "train": {
            "class_type": "MGV_TrainMotion",
            "inputs": {"model": ["load", 0], "clip": ["load", 1], "vae": ["load", 2], **settings, **values},
        },
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["train", 2]}},
        "curve": {"class_type": "PreviewImage", "inputs": {"images": ["train", 1]}},
    }


@pytest.mark.slow
def test_tuning_in_the_host(host):
    from mask_guided_video.video_models.motion.motion_files import read_motion

    run = host.run(training())
    assert run.succeeded, run.error
    assert "2 clips, 2 steps" in run.outputs["report"]["text"][0]
    assert len(run.outputs["curve"]["images"]) == 1
    motion = read_motion(host.folder / "models" / "loras" / "motion" / "zigzag_00001_.safetensors")
    assert motion.info.prompt == "a blue ball moves on the sea" and motion.info.background_phrase == "sea"
    # The new file is listed and loads.
    listed = host.get("/object_info/MGV_LoadMotion")["MGV_LoadMotion"]["input"]["required"]["motion_name"]
    assert any(
        "zigzag_00001_.safetensors" in name
        for name in (listed[0] if isinstance(listed[0], list) else listed[1]["options"])
    )
    wrong = host.run(training(frames=9))
    assert "has 8 frames at stride 1 and training takes 9" in wrong.error
