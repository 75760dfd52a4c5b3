"""SAM 3 from folders: its tracker follows as transformers' own does, and text finds what the detector finds."""

from __future__ import annotations

import gc
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_memory_models import SIDE, tiny_film, tiny_sam3, tiny_sam3_tracker

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.prompts import ObjectPrompt
from mask_guided_video.perception.segmentation import sam3
from mask_guided_video.perception.segmentation.memory_propagation import MemoryModel

transformers = pytest.importorskip("transformers")
needs_sam3 = pytest.mark.skipif(not hasattr(transformers, "Sam3VideoModel"), reason="this transformers has no SAM 3")

BOX = ObjectPrompt(0, box=Box(6, 10, 30, 24))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(folder) -> int:
    """A tokenizer of CLIP's kind that knows single letters; returns how many tokens it has."""
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    return len(words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("sam3")
    tiny_sam3(write_tokenizer(target)).save_pretrained(target)
    return target


@pytest.fixture
def model(folder):
    return sam3.load_folder(folder)


def masks_of(model, film, frames: int = 6) -> list[torch.Tensor]:
    propagator = model.follow(film)
    first = propagator.prompt(0, {1: BOX})[1]
    return [first.mask, *(propagator.step(frame)[1].mask for frame in range(1, frames))]


@needs_sam3
def test_the_tracker_of_the_whole_model_equals_the_tracker_alone(model, tmp_path):
    from transformers import Sam3TrackerVideoModel

    alone = Sam3TrackerVideoModel(model.model.config.tracker_config)
    whole = model.model.state_dict()
    state = {}
    for name in alone.state_dict():
        beginnings = ("vision_encoder.backbone.", "detector_model.vision_encoder.backbone."), (
            "vision_encoder.neck.", "tracker_neck."), ("", "tracker_model.")  # fmt: skip
        ours, theirs = next(pair for pair in beginnings if name.startswith(pair[0]))
        state[name] = whole[theirs + name[len(ours) :]]
    alone.load_state_dict(state)
    alone.save_pretrained(tmp_path)
    opened = sam3.load_folder(tmp_path)
    assert type(opened) is MemoryModel and not getattr(opened, "takes_text", False)
    film = Film(tiny_film(6))
    for first, second in zip(masks_of(model, film), masks_of(opened, film), strict=True):
        assert (first.int() - second.int()).abs().max() <= 1
    assert not torch.equal(masks_of(model, film)[1], masks_of(model, film)[5])


@needs_sam3
def test_text_finds_what_the_detector_finds(model):
    film = Film(tiny_film(2))
    model.model.config.score_threshold_detection = 0.0
    model.model.config.det_nms_thresh = 1.0
    found = model.find(film, 1, ["cat"])
    tokens = model.tokenizer("cat", padding="max_length", max_length=32, return_tensors="pt")
    with torch.no_grad():
        pixels = model.prepare(film, 1)[None]
        output = model.model.detector_model(
            pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        )
    scores = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
    logits = torch.nn.functional.interpolate(output.pred_masks, (48, 80), mode="bilinear")[0]
    expected = [number for number in scores.argsort(descending=True).tolist() if (logits[number] > 0).any()]
    assert len(found) == len(expected) >= 3
    for prompt, number in zip(found, expected, strict=True):
        assert prompt.frame == 1 and prompt.label == "cat" and prompt.identity is None
        assert prompt.score == pytest.approx(float(scores[number]), abs=1e-5)
        assert ((logits[number] > 0) != prompt.mask).float().mean() < 0.01


@needs_sam3
def test_text_finds_each_object_once_and_only_sure_ones(model):
    film = Film(tiny_film(1))
    model.model.config.score_threshold_detection = 0.0
    loose = model.find(film, 0, ["cat", "dog"])
    assert {prompt.label for prompt in loose} <= {"cat", "dog"} and len(loose) >= 2
    for label in ("cat", "dog"):
        scores = [prompt.score for prompt in loose if prompt.label == label]
        assert scores == sorted(scores, reverse=True)
    model.model.config.score_threshold_detection = 1.0
    assert model.find(film, 0, ["cat"]) == []
    assert model.find(film, 0, []) == []


@needs_sam3
def test_overlapping_answers_are_dropped(model):
    scores = torch.tensor([0.9, 0.6, 0.8, 0.2])
    logits = torch.full((4, 4, 4), -1.0)
    logits[0, :2] = 1.0
    logits[1, :2, :3] = 1.0
    logits[2, 2:] = 1.0
    logits[3, :, 3] = 1.0
    assert model._distinct(scores, logits) == [0, 2]


@needs_sam3
def test_one_look_at_a_frame_serves_text_and_tracking(model, monkeypatch):
    asked = []
    prepare = MemoryModel.prepare
    monkeypatch.setattr(
        MemoryModel, "prepare", lambda self, film, frame: asked.append(frame) or prepare(self, film, frame)
    )
    film = Film(tiny_film(3))
    propagator = model.follow(film)
    model.find(film, 0, ["cat", "dog", "cat"])
    propagator.prompt(0, {1: BOX})
    propagator.step(1)
    model.find(film, 1, ["cat"])
    assert asked == [0, 1]
    assert len(model._seen) == 1
    del film, propagator
    gc.collect()
    assert len(model._seen) == 0


@needs_sam3
def test_what_text_found_can_be_followed_backwards(model):
    film = Film(tiny_film(4))
    model.model.config.score_threshold_detection = 0.0
    found = model.find(film, 3, ["cat"])[:2]
    propagator = model.follow(film, reverse=True)
    first = propagator.prompt(3, dict(enumerate(found)))
    assert all(torch.equal(first[number].mask > 127, prompt.mask) for number, prompt in enumerate(found))
    for frame in (2, 1, 0):
        assert set(propagator.step(frame)) == set(range(len(found)))


@needs_sam3
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder, dtype):
    model = sam3.load_folder(folder, dtype)
    assert next(model.model.parameters()).dtype == dtype
    model.model.config.score_threshold_detection = 0.0
    film = Film(tiny_film(3))
    found = model.find(film, 0, ["a very long phrase of many more letters than the text encoder can read at once"])
    assert found and all(0 < prompt.score <= 1 for prompt in found)
    assert all(mask.shape == (48, 80) for mask in masks_of(model, film, 3))


@needs_sam3
@pytest.mark.parametrize("name", ["sam3", "sam3_tracker"])
def test_parts_say_what_is_missing(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "part")
    path = tmp_path / "part" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": name}))
    with pytest.raises(ValueError, match=f"only .* of SAM 3 .type '{name}'.*choose .*'sam3_video'"):
        sam3.load_folder(tmp_path / "part")


@needs_sam3
def test_without_its_tokenizer_the_error_names_it(folder, tmp_path):
    target = tmp_path / "bare"
    shutil.copytree(folder, target)
    for path in target.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(target))} has no tokenizer.json or vocab.json"):
        sam3.load_folder(target)


def test_an_old_transformers_is_named(folder_without_weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="4.57.6"))
    with pytest.raises(ImportError, match="SAM 3 needs transformers 5 or newer; found 4.57.6"):
        sam3.load_folder(folder_without_weights)


@pytest.fixture
def folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video"}))
    return tmp_path


@needs_sam3
def test_missing_weights_and_other_models_are_told(folder_without_weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        sam3.load_folder(folder_without_weights)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="type 'bert'.*'sam3_video'"):
        sam3.load_folder(tmp_path)


@needs_sam3
def test_processor_files_are_used_and_checked(tmp_path):
    from transformers import Sam2VideoVideoProcessor

    tiny_sam3_tracker().save_pretrained(tmp_path)
    assert list(sam3.load_folder(tmp_path).processor.image_mean) == [0.5, 0.5, 0.5]
    size = {"height": SIDE, "width": SIDE}
    Sam2VideoVideoProcessor(size=size, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    assert list(sam3.load_folder(tmp_path).processor.image_mean) == [0.1, 0.2, 0.3]
    Sam2VideoVideoProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="32 x 32 pixels but the model wants 64 x 64"):
        sam3.load_folder(tmp_path)


def test_broken_weights_are_no_empty_answer(model):
    with torch.no_grad():
        for parameter in model.model.detector_model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the segmenter answers with NaN"):
        model.find(Film(tiny_film(2)), 0, ["ball"])
