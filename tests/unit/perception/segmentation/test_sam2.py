"""SAM 2, SAM 2.1 and EdgeTAM from folders and from original files, and what is said of files that do not fit."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_memory_models import SIDE, tiny_edgetam, tiny_film, tiny_sam2

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.prompts import ObjectPrompt
from mask_guided_video.perception.segmentation import edgetam, sam2
from mask_guided_video.perception.segmentation.sam2_format import (
    HieraSize,
    config_of_original,
    is_original,
    to_original,
    to_transformers,
)
from mask_guided_video.weight_files.reading import read_state

transformers = pytest.importorskip("transformers")

BOX = ObjectPrompt(0, box=Box(6, 10, 30, 24))
# That of the tiny model.
SIZE = HieraSize(1, (4, 2, 2, 2), (3,))


def masks_of(model, frames: int = 4) -> torch.Tensor:
    propagator = model.follow(Film(tiny_film(frames)))
    first = propagator.prompt(0, {1: BOX})[1]
    return torch.stack([first.mask, *(propagator.step(frame)[1].mask for frame in range(1, frames))])


@pytest.fixture(scope="module", params=["2.1", "2"])
def model(request):
    return tiny_sam2(request.param)


def test_names_go_there_and_back(model):
    original = to_original(model.state_dict())
    assert is_original(original) and not is_original(model.state_dict())
    assert "sam_prompt_encoder.point_embeddings.3.weight" in original
    again = to_transformers(original)
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_the_version_and_all_sizes_are_read_from_an_original_file(model):
    found = config_of_original(to_original(model.state_dict()), SIZE, SIDE).to_dict()
    expected = model.config.to_dict()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_an_original_file_answers_like_the_folder(model, tmp_path, ending):
    from safetensors.torch import save_file

    model.save_pretrained(tmp_path / "folder")
    path = tmp_path / f"sam2.1_hiera_tiny.{ending}"
    original = {name: value.contiguous().clone() for name, value in to_original(model.state_dict()).items()}
    if ending == "pt":
        torch.save({"model": original}, path)
    else:
        save_file(original, path)
    folder = sam2.load_folder(tmp_path / "folder")
    assert sam2.claims(read_state(path))
    opened = sam2.model_of_original(read_state(path), path, SIZE, SIDE)
    file = type(folder)(opened, opened, folder.session_class, folder.processor)
    assert (masks_of(folder).int() - masks_of(file).int()).abs().max() <= 1
    assert masks_of(file).float().std() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("maskmem_tpos_enc"), "lacks the tensor 'maskmem_tpos_enc'"),
        (
            lambda state: state.pop("memory_encoder.fuser.layers.1.gamma"),
            "memory_encoder.fuser.layers.1.gamma is missing .1 tensors",
        ),
        (lambda state: state.update(head=torch.zeros(1)), "head is unknown"),
        (
            lambda state: state.update({"no_obj_ptr": torch.zeros(1, 5)}),
            r"no_obj_ptr is \[1, 5\] instead of \[1, 128\]",
        ),
    ],
    ids=["config", "missing", "unknown", "size"],
)
def test_tensors_that_do_not_fit_are_named(model, change, message):
    state = to_original(model.state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=f"^broken.pt .*{message}"):
        sam2.model_of_original(state, "broken.pt", SIZE, SIDE)


def test_an_unknown_size_is_told(model):
    with pytest.raises(ValueError, match=r"width 8 with \[1, 1, 2, 1\] blocks is not a published SAM 2"):
        sam2.load_state(to_original(model.state_dict()), "odd.pt")


def test_other_files_are_not_claimed():
    assert not sam2.claims({"image_encoder.blocks.0.norm1.weight": torch.zeros(1)})
    assert not sam2.claims({})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_folder_opens_in_the_wanted_type(tmp_path, dtype):
    model = tiny_sam2().half()
    model.save_pretrained(tmp_path)
    opened = sam2.load_folder(tmp_path, dtype)
    assert {parameter.dtype for parameter in opened.model.parameters()} == {dtype}
    assert masks_of(opened).shape == (4, 48, 80)


def test_a_folder_with_processor_files_uses_them(tmp_path):
    from transformers import Sam2VideoVideoProcessor

    tiny_sam2().save_pretrained(tmp_path)
    assert list(sam2.load_folder(tmp_path).processor.image_mean) == list(sam2.IMAGE_MEAN)
    Sam2VideoVideoProcessor(size={"height": SIDE, "width": SIDE}, image_std=[0.3, 0.3, 0.3]).save_pretrained(tmp_path)
    assert list(sam2.load_folder(tmp_path).processor.image_std) == [0.3, 0.3, 0.3]


def test_sam2_for_pictures_only_is_told(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_sam2().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "sam2"}))
    assert masks_of(sam2.load_folder(tmp_path)).shape == (4, 48, 80)
    weights = tmp_path / "model.safetensors"
    state = {name: value for name, value in load_file(weights).items() if not name.startswith("memory")}
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=f"{re.escape(str(tmp_path))} .*single pictures.*sam2_video"):
        sam2.load_folder(tmp_path)


def test_other_folders_and_broken_ones_are_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    with pytest.raises(ValueError, match="type 'sam'.*'sam2_video'"):
        sam2.load_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam2_video"}))
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        sam2.load_folder(tmp_path)
    tiny_sam2().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="broken or cut short"):
        sam2.load_folder(tmp_path)


@pytest.mark.parametrize(
    ("family", "load", "since"),
    [("SAM 2", sam2.load_folder, "4.56"), ("EdgeTAM", edgetam.load_folder, "4.57")],
)
def test_an_old_transformers_is_named(tmp_path, monkeypatch, family, load, since):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="4.50.0"))
    with pytest.raises(ImportError, match=f"{family} needs transformers {since} or newer; found 4.50.0"):
        load(tmp_path)


def test_edgetam_from_a_folder(tmp_path):
    pytest.importorskip("timm")
    from safetensors.torch import save_file

    model = tiny_edgetam()
    # Saving as transformers 4 does it asks the network for the default picture encoder.
    model.config.to_json_file(tmp_path / "config.json", use_diff=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened = edgetam.load_folder(tmp_path)
    direct = type(opened)(model, model, opened.session_class, opened.processor)
    assert opened.corrected_by_boxes is False
    assert (masks_of(opened).int() - masks_of(direct).int()).abs().max() <= 1
    assert masks_of(opened).float().std() > 0


def test_edgetam_without_timm_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"EdgeTAM needs the package timm; run: .*install\.py"):
        edgetam.load_folder(tmp_path)
