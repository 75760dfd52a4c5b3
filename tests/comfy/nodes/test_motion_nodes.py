"""Motion files on native models, and tuning in a graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's input folder with two clips and their masks, and a folder of LoRA files."""
    import folder_paths

    from mask_guided_video.recipes.films.files import write_film

    for name in ("clips", "masks"):
        (tmp_path / "input" / name).mkdir(parents=True)
    for number in range(2):
        pictures = torch.rand(8, 16, 16, 3, generator=torch.Generator().manual_seed(number))
        write_film(tmp_path / "input" / "clips" / f"{number}.mp4", pictures)
        drawn = np.zeros((8, 16, 16), dtype=bool)
        drawn[:, 4:12, 4:12] = True
        np.save(tmp_path / "input" / "masks" / f"{number}.npy", drawn)
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def train(native, **values):
    from mask_guided_video.nodes.motion import TrainMotion

    settings = {
        **{"videos": "clips", "masks": "masks", "prompt": "a red ball moves left", "phrases": "red ball"},
        **{"background_phrase": "", "filename_prefix": "motion/test", "architecture": "lora", "rank": 4},
        **{
            "modules": "self_queries, temporal, cross_queries",
            "steps": 3,
            "batch": 2,
            "learning_rate": 0.05,
            "seed": 1,
        },
        **{"mode": "dmg", "constants": "blocks=all, end_percent=1", "key_source": "mode's own", "first_frame": 1.0},
        **{"mask_drop": 0.1, "flip": 0.5, "prompt_dropout": 0.1, "frames": 8, "width": 16, "height": 16},
        "checkpointing": False,
    }
    return TrainMotion.execute(*native, **{**settings, **values}).args


def load(model, name, strength=1.0, any_base=False):
    from mask_guided_video.nodes.motion import LoadMotion

    return LoadMotion.execute(model, name, strength, any_base).args


def film(native, model, steps=3):
    from mask_guided_video.host.sampling.comfy_video_model import ComfyVideoModel

    made = ComfyVideoModel(model, *native[1:])
    prompts = made.encode_prompt("a red ball moves left"), made.encode_prompt("")
    return made.sample(made.noise(8, 16, 16, 4), *prompts, steps=steps, cfg=3.0)


@pytest.fixture
def tuned(native, folders):
    """What Train Motion returns, and the file that it wrote."""
    model, loss, report = train(native)
    return model, loss, report, folders / "loras" / "motion" / "test_00001_.safetensors"


def test_tuning_in_a_graph(native, tuned):
    before = film(native, native[0])
    model, loss, report, path = tuned
    assert path.is_file() and "2 clips, 3 steps" in report and "test_00001_" in report
    assert loss.shape == (1, 400, 760, 3) and 0.0 <= float(loss.min()) < float(loss.max()) <= 1.0
    after = film(native, model)
    assert not torch.allclose(after, before, atol=1e-3)
    # The model that was tuned on is untouched, and the file gives what the node gave.
    assert torch.equal(film(native, native[0]), before)
    loaded, words = load(native[0], "motion/test_00001_.safetensors")
    torch.testing.assert_close(film(native, loaded), after, rtol=0, atol=1e-5)
    assert "prompt: a red ball moves left (objects: red ball)" in words
    assert "masks: dmg (blocks=all, end_percent=1.0)" in words


def test_a_loaded_motion_is_what_stand_alone_models_make_of_it(native, tuned, tiny_folder):
    from mask_guided_video.video_models.motion.motion_files import apply_motion, read_motion
    from mask_guided_video.video_models.toybox import load_toybox

    alone = load_toybox(folder=tiny_folder)
    own = apply_motion(alone, read_motion(tuned[3]), 0.7)
    prompts = own.encode_prompt("a red ball moves left"), own.encode_prompt("")
    expected = own.sample(own.noise(8, 16, 16, 4), *prompts, steps=3, cfg=3.0)
    found = film(native, load(native[0], "motion/test_00001_.safetensors", 0.7)[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    plain = alone.sample(alone.noise(8, 16, 16, 4), *prompts, steps=3, cfg=3.0)
    assert not torch.allclose(expected, plain, atol=1e-2)


def test_cores_own_loader_reads_the_file(native, tuned):
    from comfy.sd import load_lora_for_models

    core = load_lora_for_models(native[0], None, load_file(tuned[3]), 1.0, 0.0)[0]
    ours = load(native[0], "motion/test_00001_.safetensors")[0]
    assert torch.equal(film(native, core), film(native, ours))


def test_strength_zero_and_wrong_bases(native, tuned, tiny_folder):
    from mask_guided_video.host.models.lavie_models import native_model
    from mask_guided_video.video_models.lavie.config import LaVieConfig
    from mask_guided_video.video_models.lavie.files import unet_state

    name, before = "motion/test_00001_.safetensors", film(native, native[0])
    assert torch.equal(film(native, load(native[0], name, 0.0)[0]), before)
    state = unet_state(load_file(tiny_folder / "unet.safetensors"))
    config = LaVieConfig.load(tiny_folder / "config.json")
    for key in state:
        if key.endswith("attn1.to_q.weight"):
            state[key] = state[key] * 1.5
    other = native_model(state, config)
    with pytest.raises(ValueError, match="tuned on LaVie, and this model has other weights"):
        load(other, name)
    assert load(other, name, any_base=True)[0].patches
    from mask_guided_video.video_models.lavie.unet import LaVieUNet

    smaller = LaVieConfig(
        **{**config.__dict__, "block_out_channels": (16,), "attention_levels": (True,)},
    )
    with pytest.raises(ValueError, match="this model is built otherwise: it lacks"):
        load(native_model(unet_state(LaVieUNet(smaller).state_dict()), smaller), name, any_base=True)


def test_tuning_while_a_motion_is_in_the_weights(native, tuned):
    # Patches are in the weights now, and other clones of the model must not be tuned on them.
    film(native, tuned[0])
    from mask_guided_video.host.motion.motion_files import own_weights

    clean = {name: value.clone() for name, value in own_weights(native[0]).items()}
    with pytest.raises(ValueError, match="has LoRA or motion patches"):
        train((tuned[0], *native[1:]))
    again = train(native, filename_prefix="")
    assert "written" not in again[2]
    assert all(torch.equal(value, clean[name]) for name, value in own_weights(native[0]).items())
    torch.testing.assert_close(film(native, again[0]), film(native, tuned[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"videos": "../elsewhere"}, "no folder '../elsewhere' in ComfyUI's input folder"),
        ({"videos": "none"}, "no folder"),
        ({"masks": "clips", "phrases": ""}, "has masks but no phrase"),
        ({"phrases": "dog"}, "dog"),
        ({"constants": "gamma=3"}, "has no constant 'gamma'"),
        ({"frames": 9}, "has 8 frames at stride 1 and training takes 9"),
        ({"modules": "nothing"}, "no layers that fit modules nothing"),
    ],
)
def test_wrong_input_of_tuning(native, folders, values, message):
    if values.get("videos") == "none":
        values = {**values, "videos": "missing"}
    with pytest.raises(ValueError, match=message):
        train(native, **values)


def test_cancelling(native, folders, monkeypatch):
    import comfy.model_management as management

    monkeypatch.setattr(management, "processing_interrupted", lambda: True)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        train(native)
    assert not (folders / "loras").exists()
    monkeypatch.undo()
    management.interrupt_current_processing(False)


def test_files_that_hold_no_motion(native, folders):
    from safetensors.torch import save_file

    (folders / "loras").mkdir()
    save_file({"diffusion_model.x.lora_A.weight": torch.zeros(1, 1)}, folders / "loras" / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is not a motion file"):
        load(native[0], "other.safetensors")


def test_missing_packages_are_named(native, folders, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"needs the package peft; run: .*install\.py motion-tuning"):
        train(native)
