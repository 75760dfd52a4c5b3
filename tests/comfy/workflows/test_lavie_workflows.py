"""LaVie's workflows in a real ComfyUI: every node as bundled, with tiny random LaVie files and hollow checkpoints.

Only sizes, lengths and steps are smaller, and checkpoints have another ending; the U-Nets are narrow, text encoders and
VAEs as large as real ones.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from bundled_graphs import only
from hollow_checkpoints import save_picture_unet, save_sd1, save_sd1_folder, save_x4
from lavie_stages import stage_config, stage_state

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent.parent.parent
FILES = {"base": "lavie_base.pt", "interpolation": "lavie_interpolation.pt", "upscaling": "lavie_vsr.pt"}
CHECKPOINTS = {"v1-5-pruned-emaonly-fp16.safetensors": "sd1.ckpt", "x4-upscaler-ema.safetensors": "x4.ckpt"}
# Latents of 3 x 2 cells; more frames than the model was trained on where the graph is about long films.
SIZES = {"width": 24, "height": 16}
FOLDER = "diffusers/stable-diffusion-v1-4"
LENGTHS = {"lavie_16_frames": 4, "lavie_128_frames_free_long": 20, "lavie_interpolate_upscale": 3}


@pytest.fixture(scope="module")
def host(start_server, tmp_path_factory):
    """ComfyUI with the files of all stages in its model folders."""
    folder = tmp_path_factory.mktemp("lavie")
    models, checkpoints = folder / "models" / "diffusion_models", folder / "models" / "checkpoints"
    models.mkdir(parents=True)
    checkpoints.mkdir(parents=True)
    for stage, name in FILES.items():
        config = stage_config(stage, cross_attention_dim=1024 if stage == "upscaling" else 768)
        torch.save({"ema": stage_state(config)}, models / name)
        config.save((models / name).with_suffix(".json"))
    save_sd1(checkpoints / "sd1.ckpt")
    save_x4(checkpoints / "x4.ckpt")
    save_sd1_folder(folder / "models" / FOLDER)
    save_picture_unet(folder / "models" / FOLDER / "unet")
    # Without a VAE it is of no use here, and not listed.
    (folder / "models" / "diffusers" / "half" / "text_encoder").mkdir(parents=True)
    with start_server(folder, {"mask-guided-video": ROOT}) as running:
        yield running


@pytest.fixture(scope="module")
def graph(host, to_prompt):
    """A bundled workflow in the server's form, made small."""
    info = host.get("/object_info")

    def read(name):
        workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        prompt = to_prompt(workflow, info)
        for node in prompt.values():
            inputs = node["inputs"]
            if "sd_checkpoint" in inputs:
                inputs["sd_checkpoint"] = CHECKPOINTS[inputs["sd_checkpoint"]]
            if "steps" in inputs:
                inputs["steps"] = 2
            if node["class_type"] == "MGV_VideoNoise":
                inputs.update(SIZES, frames=LENGTHS[name])
            if node["class_type"] == "MGV_SaveLongVideo":
                inputs["frames_per_part"] = 4
        return prompt

    return read


def nodes_of(prompt, kind, **values):
    found = [number for number, node in prompt.items() if node["class_type"] == kind]
    return [number for number in found if all(prompt[number]["inputs"][key] == value for key, value in values.items())]


def film(host, run, number):
    """Frames [T, H, W, 3] of the file that a node saved, and how many there are a second."""
    import av

    entry = only(run.outputs[number]["images"])
    with av.open(str(host.path_of(entry))) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        rate = float(file.streams.video[0].average_rate)
    return torch.stack([torch.from_numpy(frame) for frame in frames]), rate


def finished(host, prompt):
    run = host.run(prompt)
    assert run.succeeded, run.error
    return run


def test_sixteen_frames(host, graph):
    prompt = graph("lavie_16_frames")
    run = finished(host, prompt)
    frames, rate = film(host, run, only(nodes_of(prompt, "SaveVideo")))
    assert frames.shape == (4, 16, 24, 3) and rate == 8 and frames.float().std() > 1
    assert len(run.outputs[only(nodes_of(prompt, "PreviewImage"))]["images"]) == 4


def test_folders_of_parts_are_listed_and_load(host, graph):
    choices = host.get("/object_info/MGV_LoadVideoModel")["MGV_LoadVideoModel"]["input"]["optional"]["sd_checkpoint"]
    assert choices[1]["options"] == ["none", "sd1.ckpt", "x4.ckpt", FOLDER]
    prompt = graph("lavie_16_frames")
    prompt[only(nodes_of(prompt, "MGV_LoadVideoModel"))]["inputs"]["sd_checkpoint"] = FOLDER
    frames, _ = film(host, finished(host, prompt), only(nodes_of(prompt, "SaveVideo")))
    assert frames.shape == (4, 16, 24, 3) and frames.float().std() > 1


def test_a_whole_folder_of_stable_diffusion_1_makes_clips(host, graph):
    """MODEL, CLIP and VAE of one folder, in the graph for LaVie."""
    choices = host.get("/object_info/MGV_LoadVideoModel")["MGV_LoadVideoModel"]["input"]["required"]["model_name"]
    assert FOLDER in choices[1]["options"]
    prompt = graph("lavie_16_frames")
    prompt[only(nodes_of(prompt, "MGV_LoadVideoModel"))]["inputs"].update(model_name=FOLDER, sd_checkpoint="none")
    frames, _ = film(host, finished(host, prompt), only(nodes_of(prompt, "SaveVideo")))
    assert frames.shape == (4, 16, 24, 3) and frames.float().std() > 1


def test_long_film_with_free_long(host, graph):
    prompt = graph("lavie_128_frames_free_long")
    save = only(nodes_of(prompt, "MGV_SaveLongVideo"))
    frames, rate = film(host, finished(host, prompt), save)
    assert frames.shape == (20, 16, 24, 3) and rate == 8
    # FreeLong acts, and at strength 0 does not.
    plain = copy.deepcopy(prompt)
    free_long = only(nodes_of(prompt, "MGV_FreeLong"))
    plain[only(nodes_of(prompt, "MGV_SampleVideo"))]["inputs"]["model"] = prompt[free_long]["inputs"]["model"]
    without, _ = film(host, finished(host, plain), save)
    idle = copy.deepcopy(prompt)
    idle[free_long]["inputs"]["strength"] = 0.0
    asleep, _ = film(host, finished(host, idle), save)
    assert not torch.equal(frames, without) and torch.equal(asleep, without)


def test_all_three_stages(host, graph):
    prompt = graph("lavie_interpolate_upscale")
    run = finished(host, prompt)
    save = {prompt[number]["inputs"]["filename_prefix"]: number for number in nodes_of(prompt, "SaveVideo")}
    base, _ = film(host, run, save["video/lavie_1_base"])
    between, rate = film(host, run, save["video/lavie_2_interpolated"])
    large, large_rate = film(host, run, only(nodes_of(prompt, "MGV_SaveLongVideo")))
    assert base.shape == (3, 16, 24, 3)
    assert between.shape == (9, 16, 24, 3) and large.shape == (9, 64, 96, 3)
    assert rate == large_rate == 24
    for frames in (base, between, large):
        assert frames.float().std() > 1


@pytest.mark.parametrize(
    "loaded,chosen,message",
    [
        (
            "lavie_interpolation.pt",
            "lavie_base.pt",
            "the model is LaVie's base model, but here the interpolation model",
        ),
        ("lavie_vsr.pt", "lavie_interpolation.pt", "x4.ckpt holds the text encoder h but LaVie's interpolation model"),
        ("lavie_base.pt", "lavie_vsr.pt", "sd1.ckpt holds the text encoder l but LaVie's upscaler reads h"),
    ],
)
def test_wrong_choices_are_named(host, graph, loaded, chosen, message):
    prompt = graph("lavie_interpolate_upscale")
    prompt[only(nodes_of(prompt, "MGV_LoadVideoModel", model_name=loaded))]["inputs"]["model_name"] = chosen
    run = host.run(prompt)
    assert not run.succeeded and message in run.error


def test_without_a_checkpoint_the_text_encoder_is_missed(host, graph):
    prompt = graph("lavie_16_frames")
    prompt[only(nodes_of(prompt, "MGV_LoadVideoModel"))]["inputs"]["sd_checkpoint"] = "none"
    run = host.run(prompt)
    assert not run.succeeded and "clip input is invalid: None" in run.error
