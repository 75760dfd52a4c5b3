"""Every mode of guidance in the recipes that take one, on a tiny random model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mask_guided_video.attention_patches.guidance.attention_share import ShareGoal
from mask_guided_video.attention_patches.guidance.modes.registry import MODES, PLAIN
from mask_guided_video.recipes.guided_clips.recipe import guided_clips
from mask_guided_video.recipes.guided_clips.settings import GuidedClipsSettings
from mask_guided_video.recipes.mask_refine.recipe import mask_refine
from mask_guided_video.recipes.mask_refine.settings import MaskRefineSettings

PROMPT = "a red ball moves left and right on sand"
# Published ends and blocks leave nothing to do in two steps of a tiny model.
WHOLE = {"end_percent": 1.0, "blocks": "all"}


def moving_masks(frames: int = 4) -> Tensor:
    masks = torch.zeros(1, frames, 16, 16)
    for frame in range(frames):
        masks[0, frame, 3:12, frame : frame + 8] = 1.0
    return masks


def refined(model: Any, **changes: Any) -> Any:
    settings = MaskRefineSettings(PROMPT, ("red ball",), steps=2, background_phrase="sand", **changes)
    return mask_refine(model, None, None, settings, moving_masks())


@pytest.mark.parametrize("mode", MODES)
def test_refine_takes_every_mode(tiny_video_model: Any, mode: str) -> None:
    result = refined(tiny_video_model, mode=mode, **WHOLE)
    assert result.report["guided"] and result.report["settings"]["mode"] == mode
    # The first film is made without guidance, from the same noise.
    assert not torch.equal(result.first, result.second) and bool(torch.isfinite(result.second).all())
    idle = refined(tiny_video_model, mode=mode, strength=0.0, **WHOLE)
    assert not idle.report["guided"] and torch.equal(idle.first, idle.second)


@pytest.mark.parametrize("mode", PLAIN)
def test_guide_takes_the_plain_modes(tiny_video_model: Any, tmp_path: Any, mode: str) -> None:
    def film(strength: float) -> Tensor:
        settings = GuidedClipsSettings(
            PROMPT, ("red ball",), "sand", steps=2, mode=mode, strength=strength, constants=WHOLE
        )
        folder = tmp_path / f"{strength:g}"
        return torch.cat(list(guided_clips(tiny_video_model, settings, moving_masks(), folder).rounds[0].parts()))

    for strength in (0.0, 1.0):
        (tmp_path / f"{strength:g}").mkdir()
    assert not torch.equal(film(1.0), film(0.0))


# What these close they close whatever the share.
ONLY_CLOSE = ("peekaboo", "through_the_mask")
# Of these each head takes a part, here all of it or nothing.
EDITS = ("trailblazer", "videograin", "freetraj")
# Published parts of the schedule and strengths leave nothing to raise in two steps of a tiny model.
RAISING = {
    "direct_a_video": {"amplify_percent": 1.0},
    "motionbooth": {"amplify_percent": 1.0},
    "trailblazer": {"strengthen": 5.0, "trailing": 0},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_share_is_a_strength_of_every_mode(tiny_video_model: Any, mode: str) -> None:
    # Wanted is more than any head of a random model has.
    constants = RAISING.get(mode, {})
    asked = refined(tiny_video_model, mode=mode, goal=ShareGoal(0.9), constants=constants, **WHOLE)
    told = [note for note in asked.report["notes"] if "share of attention on its own" in note]
    assert not torch.equal(asked.first, asked.second) and bool(torch.isfinite(asked.second).all())
    assert bool(told) == (mode not in ONLY_CLOSE)
    assert asked.report["settings"]["goal"] == {"share": 0.9, "among": "kind"}
    own = refined(tiny_video_model, mode=mode, constants=constants, **WHOLE)
    assert mode in EDITS or torch.equal(own.second, asked.second) == (mode in ONLY_CLOSE)
    idle = refined(tiny_video_model, mode=mode, goal=ShareGoal(0.0), **WHOLE)
    assert torch.equal(idle.first, idle.second)


@pytest.mark.parametrize(
    ("mode", "strength", "constant", "found", "factor"),
    [
        ("focus", 2.0, "exponent", 2.0, 1.0),
        ("separate", None, "gap", 8.0, 1.0),
        ("separate", 4.0, "gap", 4.0, 1.0),
        ("separate", 0.0, "gap", 8.0, 0.0),
        ("cross_text", 5.0, "gain", 5.0, 1.0),
        ("dmg", 2.0, "beta", 4.0, 2.0),
    ],
)
def test_strengths_are_in_the_unit_of_the_mode(
    mode: str, strength: float | None, constant: str, found: float, factor: float
) -> None:
    guide = MaskRefineSettings(PROMPT, ("red ball",), mode=mode, strength=strength).guide(moving_masks(), ("red ball",))
    assert getattr(guide.mode, constant) == found and guide.strength == factor


def test_constants_and_the_modes_own_schedule() -> None:
    settings = MaskRefineSettings(PROMPT, ("red ball",), mode="peekaboo", constants="begin_is_seen=true")
    assert settings.guide(moving_masks(), ("red ball",)).mode.begin_is_seen
    told = settings.to_dict()
    assert (told["start_percent"], told["end_percent"], told["blocks"], told["rows"]) == (0.0, 0.04, "mid,up", "both")
    assert MaskRefineSettings(PROMPT, ("red ball",)).to_dict()["end_percent"] == 0.52
    for changes, message in (
        ({"mode": "dmg", "hard": True}, "mode dmg has no constant 'hard'"),
        ({"mode": "dmg", "strength": 11.0}, "strength is 11; give a value from 0 .no guidance. to 10"),
        ({"mode": "separate", "strength": -1.0}, "strength is -1; give a value from 0 .no guidance. to 1000"),
        ({"mode": "dmg", "constants": {"gap": 1.0}}, "mode dmg has no constant 'gap'"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskRefineSettings(PROMPT, ("red ball",), **changes)
