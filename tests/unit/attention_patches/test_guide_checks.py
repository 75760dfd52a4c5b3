"""Checks that all guides and recipes share: blocks, shapes of masks, and steps."""

import dataclasses
import logging

import pytest
import torch
from guides import plain_guide

from mask_guided_video.attention_patches.checks import check_blocks, check_shape
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.patch import guide_patches, guided_steps, idle_steps
from mask_guided_video.attention_patches.patch import Run
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.prompts import ObjectPrompt, fit_prompt
from mask_guided_video.perception.tracks import Tracks
from mask_guided_video.recipes.guided_clips.recipe import guided_clips
from mask_guided_video.recipes.guided_clips.settings import GuidedClipsSettings
from mask_guided_video.recipes.long_video.recipe import long_video
from mask_guided_video.recipes.long_video.settings import LongVideoSettings
from mask_guided_video.recipes.mask_metrics.recipe import measure_masks
from mask_guided_video.recipes.mask_refine.recipe import mask_refine
from mask_guided_video.recipes.mask_refine.settings import MaskRefineSettings
from mask_guided_video.training.motion.examples import ExampleMaker
from mask_guided_video.training.motion.settings import MotionSettings

PROMPT = "a red ball moves left on sand"
NO_BLOCK = "blocks has 'foo', which fits no block of this model .*up.0.0"
MASKS = torch.ones(1, 4, 16, 16)
TALL = torch.ones(1, 4, 32, 16)


class Unused:
    """A model that must not be asked to work."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        assert name not in ("sample", "decode", "decode_parts"), f"{name} before the check"
        return getattr(self.model, name)


def test_blocks():
    names = ["down.0.0", "mid.0", "up.1.0"]
    check_blocks("all", names)
    check_blocks("mid, up.?.0", names)
    with pytest.raises(ValueError, match="'left', which fits no block of this model .down.0.0, mid.0, up.1.0."):
        check_blocks("mid,left", names)


def test_shapes():
    check_shape("the masks are", (32, 32), (64, 64))
    check_shape("the masks are", (100, 100), (100, 125))
    with pytest.raises(ValueError, match="the masks are 64 x 128 pixels but the film 64 x 64: they would be distorted"):
        check_shape("the masks are", (128, 64), (64, 64))


def test_a_block_that_the_model_lacks_is_refused_before_any_work(tiny_video_model, tmp_path):
    model = Unused(tiny_video_model)
    assert "mid.0" in model.block_names
    with pytest.raises(ValueError, match=NO_BLOCK):
        mask_refine(model, None, None, MaskRefineSettings(PROMPT, ("red ball",), blocks="mid,foo"), MASKS)
    with pytest.raises(ValueError, match=NO_BLOCK):
        guided_clips(model, GuidedClipsSettings(PROMPT, constants="blocks=foo"), MASKS, tmp_path)
    with pytest.raises(ValueError, match=NO_BLOCK):
        long_video(model, LongVideoSettings(PROMPT, blocks="foo"), tmp_path)
    with pytest.raises(ValueError, match=NO_BLOCK):
        ExampleMaker(model, [], MotionSettings(prompt=PROMPT, constants={"blocks": "foo"}))


def test_masks_of_another_shape_are_refused_before_any_work(tiny_video_model, tmp_path):
    model = Unused(tiny_video_model)
    film = Film(torch.zeros(4, 16, 16, 3))
    tracks = Tracks.from_masks(TALL, ("ball",))
    for work in (
        lambda: mask_refine(model, None, None, MaskRefineSettings(PROMPT, ("red ball",)), TALL),
        lambda: guided_clips(model, GuidedClipsSettings(PROMPT), TALL, tmp_path),
        lambda: measure_masks(film, tracks, tracks),
        lambda: fit_prompt(ObjectPrompt(0, mask=TALL[0, 0]), 4, 16, 16),
    ):
        with pytest.raises(ValueError, match="16 x 32 pixels but the film.* distorted"):
            work()


def guide(**values):
    return plain_guide(MASKS, **{"start_percent": 0.2, "end_percent": 0.5, **values})


def test_steps_that_are_not_guided_are_told():
    assert idle_steps(guide(), [0.0, 0.3, 0.9]) == [] and idle_steps(guide(strength=0.0), [0.9]) == []
    assert idle_steps(guide(), []) == [] and idle_steps(guide(start_percent=0.0), [-1e-6]) == []
    (told,) = idle_steps(guide(), [0.0, 0.6])
    assert told.startswith("mode focus_fg acts from 0.2 to 0.5 of the schedule, where none of the 2 steps")


def test_progress_of_steps_is_what_attention_sees(tiny_video_model):
    seen = []

    def spy(attend, q, k, v, site):
        if site.progress not in seen:
            seen.append(site.progress)
        return attend(q, k, v, site)

    words = tiny_video_model.encode_prompt(PROMPT)
    for sampler, start in (("ddim", 0.0), ("euler", 0.0), ("ddim", 0.5)):
        seen.clear()
        noise = tiny_video_model.noise(4, 16, 16, 0)
        tiny_video_model.sample(
            noise, words, words, steps=4, sampler=sampler, patches=(spy,), start_percent=start, latents=noise
        )
        assert tiny_video_model.step_progress(4, sampler, start) == pytest.approx(seen)
    with pytest.raises(ValueError, match="steps is 2000"):
        tiny_video_model.step_progress(2000)


def test_the_reports_say_that_no_step_is_guided(tiny_video_model, tmp_path):
    """peekaboo's published end lies before the second of 12 steps, and the first is later than its beginning."""
    settings = GuidedClipsSettings(PROMPT, steps=2, mode="peekaboo", rounds=2)
    notes = guided_clips(tiny_video_model, settings, MASKS[:, :1], tmp_path).report["notes"]
    assert [note.startswith("mode peekaboo acts from 0 to 0.04") for note in notes].count(True) == 1
    settings = MaskRefineSettings(PROMPT, ("red ball",), steps=2, start_percent=0.9, end_percent=0.95)
    result = mask_refine(tiny_video_model, None, None, settings, MASKS)
    assert "none of the 2 steps" in result.report["notes"][0] and torch.equal(result.first, result.second)
    refined = dataclasses.replace(settings, regenerate="refine", refine_strength=0.1, end_percent=1.0)
    assert mask_refine(tiny_video_model, None, None, refined, MASKS).report["notes"] == []


def test_a_guide_says_it_once(caplog):
    (patch,) = guide_patches(Guide(MASKS, mode=make_mode("peekaboo")))
    run = Run(len(MASKS[0]), *MASKS.shape[2:])
    with caplog.at_level(logging.WARNING):
        patch.check_run(dataclasses.replace(run, progress=[0.1, 0.9]))
        patch.check_run(dataclasses.replace(run, progress=[0.0, 0.9]))
    assert len(caplog.records) == 1 and "it does nothing here" in caplog.text


def test_the_masks_of_an_object_without_words_act(tiny_video_model, tmp_path):
    """One of two objects has no phrase: the words of the other are found, and both are guided."""
    masks = torch.zeros(2, 1, 16, 16)
    masks[0, :, :, :8] = masks[1, :, :, 8:] = 1
    films = {}
    for phrases in (("red ball", ""), ("red ball",)):
        settings = GuidedClipsSettings(PROMPT, phrases, steps=2, mode="dmg", constants="blocks=all, end_percent=1")
        result = guided_clips(tiny_video_model, settings, masks[: len(phrases)], tmp_path, fresh=True)
        films[phrases] = result.report["film"]["sha256"]
    assert len(set(films.values())) == 2


def test_guided_steps_cover_the_schedule_up_to_the_next_step():
    four = [0.0, 0.25, 0.5, 0.75]
    assert guided_steps(guide(start_percent=0.0, end_percent=0.52), four) == (1, 3, 0.75)
    # An end of 4 % is a quarter of the schedule where there are four steps.
    assert guided_steps(guide(start_percent=0.0, end_percent=0.04), four) == (1, 1, 0.25)
    assert guided_steps(guide(start_percent=0.6, end_percent=1.0), four) == (4, 4, 0.25)
    assert guided_steps(guide(), [0.0, 0.6]) == guided_steps(guide(strength=0.0), four) == (0, 0, 0.0)
    assert guided_steps(guide(), []) == (0, 0, 0.0)
