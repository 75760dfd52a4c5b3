"""Levers of guided clips: what each gives the model, what auto takes, and that without them nothing changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mask_guided_video.recipes.guided_clips import levers as levers_module
from mask_guided_video.recipes.guided_clips.crude_film import ObjectNotFound
from mask_guided_video.recipes.guided_clips.levers import (
    LADDER,
    Attempt,
    LeverClip,
    LeverConstants,
    NotReached,
    attempts_summary,
)
from mask_guided_video.recipes.guided_clips.recipe import guided_clips
from mask_guided_video.recipes.guided_clips.settings import GuidedClipsSettings

PROMPT = "a red ball moves left on sand"


@pytest.fixture
def model(tiny_video_model):
    return tiny_video_model


def masks():
    found = torch.zeros(1, 4, 16, 16)
    found[..., 4:12, 2:8] = 1.0
    return found


def clip(model, seen=None, **values):
    def sample(noise, levers):
        if seen is not None:
            seen.append((noise, levers))
        prompts = model.encode_prompt(PROMPT), model.encode_prompt("")
        return model.sample(noise, *prompts, steps=4, levers=levers)

    spans = model.token_spans(PROMPT, ("red ball",))
    return LeverClip(model, sample, sample, model.noise(4, 16, 16, 1), masks(), spans, 1, **values)


class TestWithLevers:
    def test_each_lever_is_its_own_part_of_the_run(self, model):
        seen = []
        clip(model, seen).with_levers(())
        clip(model, seen).with_levers(("energy",))
        clip(model, seen).with_levers(("noise",))
        clip(model, seen).with_levers(("crude_film",))
        alone, energy, noise, first, crude = seen
        assert alone[1].energy is None and alone[1].dual_clock is None
        assert energy[1].energy is not None and energy[1].dual_clock is None
        assert torch.equal(energy[0], alone[0])
        assert not torch.equal(noise[0], alone[0])
        assert noise[1].energy is None
        # The crude film is made of a film that is sampled first.
        assert first[1].dual_clock is None
        assert crude[1].dual_clock is not None
        assert crude[1].dual_clock.mask.shape[1:] == (1, 4, *alone[0].shape[-2:])

    def test_the_mode_alone_is_bit_for_bit_the_film_without_levers(self, model):
        prompts = model.encode_prompt(PROMPT), model.encode_prompt("")
        expected = model.sample(model.noise(4, 16, 16, 1), *prompts, steps=4)
        latents, attempt = clip(model).with_levers(())
        assert torch.equal(latents, expected)
        assert 0.0 <= attempt.share <= 1.0 and 0.0 <= attempt.overlap <= 1.0

    def test_a_miss_ends_the_run_at_the_look(self, model):
        with pytest.raises(NotReached) as missed:
            clip(model).with_levers((), least=1.01)
        assert missed.value.args[0].levers == ()

    @pytest.mark.parametrize("names", [("nothing",), ("energy", "energy")])
    def test_wrong_names_are_refused(self, model, names):
        with pytest.raises(ValueError, match="lever"):
            clip(model).with_levers(names)


class Scripted(LeverClip):
    """A clip whose combinations reach what the test says."""

    def with_levers(self, levers, least=0.0):
        self.calls.append((levers, least))
        overlap = self.script[levers]
        if overlap is None:
            raise ObjectNotFound("the object was not found")
        attempt = Attempt(levers, 0.2, overlap)
        if overlap < least:
            raise NotReached(attempt)
        return torch.full((1,), overlap), attempt


def scripted(model, *overlaps):
    made = clip(model, constants=LeverConstants(enough=0.7))
    made = Scripted(**{name: getattr(made, name) for name in made.__dataclass_fields__})
    object.__setattr__(made, "script", dict(zip(LADDER, overlaps, strict=True)))
    object.__setattr__(made, "calls", [])
    return made


class TestChoice:
    def test_it_stays_with_the_first_that_is_enough(self, model):
        made = scripted(model, 0.75, 0.9, 0.9)
        latents, attempts = made.choose()
        assert [call[0] for call in made.calls] == [LADDER[0]]
        assert latents.item() == 0.75
        assert [attempt.taken for attempt in attempts] == [True]

    def test_it_goes_on_until_one_is(self, model):
        latents, attempts = scripted(model, 0.1, 0.8, 0.9).choose()
        assert latents.item() == pytest.approx(0.8)
        assert [attempt.taken for attempt in attempts] == [False, True]

    def test_where_none_is_enough_the_best_is_taken(self, model):
        made = scripted(model, 0.1, 0.6, 0.4)
        latents, attempts = made.choose()
        assert made.calls[-1] == (LADDER[1], 0.0)
        assert latents.item() == pytest.approx(0.6)
        assert [attempt.taken for attempt in attempts] == [False, True, False]

    def test_an_object_that_is_not_found_is_a_miss(self, model):
        latents, attempts = scripted(model, 0.1, None, None).choose()
        assert latents.item() == pytest.approx(0.1)
        assert [attempt.overlap for attempt in attempts] == [0.1, 0.0, 0.0]

    def test_nothing_to_choose_from_is_refused(self, model):
        with pytest.raises(ValueError, match="no levers"):
            clip(model).choose(())

    def test_the_sentence_says_what_was_tried_and_taken(self):
        tried = (Attempt((), 0.1, 0.25), Attempt(("energy", "crude_film"), 0.2, 0.75, taken=True))
        text = attempts_summary(tried, auto=True)
        assert "tried the mode alone (overlap 0.25" in text and text.endswith("took energy + crude_film.")


class TestRecipe:
    def settings(self, **values):
        given = {"phrases": ("red ball",), "steps": 3, "frames": 4, "colour_reference": "none"}
        return GuidedClipsSettings(PROMPT, **{**given, **values})

    def test_auto_says_what_it_took(self, model, tmp_path):
        result = guided_clips(model, self.settings(auto=True), masks(), tmp_path)
        attempts = result.report["levers"]["round 1"]
        assert sum(attempt["taken"] for attempt in attempts) == 1
        assert [tuple(attempt["levers"]) for attempt in attempts] == list(LADDER[: len(attempts)])
        assert any("auto" in note for note in result.report["notes"])

    def test_a_lever_changes_the_film_and_none_does_not(self, model, tmp_path):
        films = {}
        for name, values in (("none", {}), ("energy", {"levers": ("energy",)})):
            folder = tmp_path / name
            folder.mkdir()
            films[name] = guided_clips(model, self.settings(**values), masks(), folder).report
        assert "levers" not in films["none"]
        assert "levers" not in films["none"]["settings"]
        assert tuple(films["energy"]["settings"]["levers"]) == ("energy",)
        assert films["none"]["film"]["sha256"] != films["energy"]["film"]["sha256"]

    def test_levers_are_not_called_for_empty_masks(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr(levers_module.LeverClip, "choose", None)
        result = guided_clips(model, self.settings(auto=True), torch.zeros_like(masks()), tmp_path)
        assert result.report["levers"] == {}

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"levers": ("sideways",)}, "no lever 'sideways'"),
            ({"levers": ("energy",), "auto": True}, "one of them"),
            ({"auto": True, "phrases": ()}, "need words"),
            ({"auto": True, "steps": 1}, "at least 2"),
        ],
    )
    def test_what_cannot_be_is_refused(self, values, message):
        with pytest.raises(ValueError, match=message):
            self.settings(**values)

    def test_rounds_of_before_are_the_same_rounds(self):
        assert "auto" not in self.settings().round_settings()
        assert self.settings(auto=True).round_settings()["auto"] is True
        assert replace(self.settings(), levers=["noise"]).levers == ("noise",)
