"""Strength over the schedule: the curve itself, and that a guide with it is the guide with that strength."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from attention_calls import make_site, make_tensors

from mask_guided_video.attention_patches.errors import GuideError
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import MODES, make_mode
from mask_guided_video.attention_patches.guidance.patch import guide_patches, idle_steps
from mask_guided_video.attention_patches.guidance.strength_curve import StrengthCurve
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.patch import Run
from mask_guided_video.attention_patches.site import SITE_KEY
from mask_guided_video.attention_patches.stack import PatchStack

SPANS = TextSpans(("ball",), ((2,),), 6, ordinary=(1, 2, 3, 4), background=(4,))
KINDS = [("self", "frames"), ("self", "none"), ("cross", "frames"), ("temporal", "positions"), ("joint", "none")]
RISING = StrengthCurve(((0.0, 0.0), (0.5, 2.0)), smooth=False)


def test_lines():
    curve = StrengthCurve(((0.25, 1.0), (0.5, 3.0), (1.0, 0.0)), smooth=False)
    assert [curve.at(x) for x in (-1.0, 0.0, 0.25, 0.375, 0.5, 0.75, 1.0, 2.0)] == [1, 1, 1, 2, 3, 1.5, 0, 0]
    assert curve.highest == 3.0


def test_a_smooth_curve_passes_its_points_and_overshoots_none():
    curve = StrengthCurve(((0.0, 0.0), (0.25, 0.0), (0.5, 1.0), (1.0, 0.25)))
    assert [curve.at(x) for x, _ in curve.points] == [y for _, y in curve.points]
    values = [curve.at(step / 200) for step in range(201)]
    assert 0.0 <= min(values) and max(values) <= 1.0
    assert values[:51] == [0.0] * 51
    assert values[50:101] == sorted(values[50:101]) and values[100:] == sorted(values[100:], reverse=True)


def test_a_smooth_curve_through_even_points_is_the_hermite_cubic():
    """By hand: secants 2 and 1, slopes 2, 1.5, 1; in the middle of the first half (0 + 1) / 2 + 0.5 * (2 - 1.5) / 8."""
    curve = StrengthCurve(((0.0, 0.0), (0.5, 1.0), (1.0, 1.5)))
    assert curve.at(0.25) == pytest.approx(0.5 + 0.5 * (2.0 - 1.5) / 8)
    assert curve.at(0.75) == pytest.approx(1.25 + 0.5 * (1.5 - 1.0) / 8)


@pytest.mark.parametrize("smooth", [False, True])
def test_points_alone_and_jumps(smooth):
    assert StrengthCurve(((0.5, 2.0),), smooth).at(0.1) == 2.0
    jump = StrengthCurve(((0.0, 1.0), (0.5, 1.0), (0.5, 0.0), (1.0, 0.0)), smooth)
    assert [jump.at(x) for x in (0.0, 0.4999, 0.5, 1.0)] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "points,message",
    [
        ((), "has 0 points; give 1 to 4096"),
        (((0.0, 1.0), (0.5, -0.1)), "a strength curve is -0.1; give a value from 0"),
        (((0.0, 11.0),), "a strength curve is 11"),
        (((0.0, float("nan")),), "a strength curve is nan"),
        (((1.5, 1.0),), "x of a strength curve is 1.5"),
        (((0.5, 1.0), (0.25, 1.0)), "0.25 comes after 0.5; give points in rising order"),
    ],
)
def test_what_is_refused(points, message):
    with pytest.raises(GuideError, match=message):
        StrengthCurve(points)


def site(kind, folded, progress):
    return make_site(kind, folded, (3, 4, 4), text_tokens=6, block="up.1.0", progress=progress, sigma=9.0, level=1)


def run(told, at):
    stack = PatchStack(guide_patches(told, SPANS))
    options = {"optimized_attention_override": stack.override, SITE_KEY: at}
    return attention(*make_tensors(at, 16, dtype=torch.float32, seed=5), 2, transformer_options=options)


def guide(mode, **settings):
    masks = torch.zeros(1, 3, 4, 4)
    masks[:, :, 1:3, :2] = 1.0
    chosen = make_mode(mode, blocks="all", start_percent=0.0, end_percent=1.0)
    return Guide(masks, chosen, ("ball",), "grass", key_source="self", **settings)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_is_guided_with_the_strength_of_that_step(mode):
    """Bit for bit as by a guide of that strength; at 0 bit for bit the model alone; at 1 as without a curve."""
    changed = 0
    for kind, folded in KINDS:
        for progress, factor in ((0.0, 0.0), (0.125, 0.5), (0.25, 1.0), (0.375, 1.5), (0.75, 2.0)):
            at = site(kind, folded, progress)
            out = run(guide(mode, strength=0.5, strength_curve=RISING), at)
            assert torch.equal(out, run(guide(mode, strength=0.5 * factor), at)), (mode, kind, progress)
            plain = attention(*make_tensors(at, 16, dtype=torch.float32, seed=5), 2)
            assert factor or torch.equal(out, plain)
            changed += not torch.equal(out, plain)
        at = site(kind, folded, 0.25)
        always = StrengthCurve(((0.0, 1.0), (1.0, 1.0)))
        assert torch.equal(run(guide(mode, strength_curve=always), at), run(guide(mode), at))
    assert changed


def test_one_patch_follows_the_curve_from_step_to_step():
    """What it remembers of one step is not used in another."""
    (patch,) = guide_patches(guide("focus", strength_curve=RISING), SPANS)
    stack = PatchStack([patch])

    def through(at):
        options = {"optimized_attention_override": stack.override, SITE_KEY: at}
        return attention(*make_tensors(at, 16, dtype=torch.float32, seed=5), 2, transformer_options=options)

    for progress in (0.1, 0.2, 0.0, 0.3, 0.1):
        at = site("self", "none", progress)
        assert torch.equal(through(at), run(guide("focus", strength_curve=RISING), at))


def test_a_curve_of_zeros_asks_for_nothing():
    flat = StrengthCurve(((0.0, 0.0),))
    told = guide("dmg", strength_curve=flat)
    assert not told.is_active and guide("dmg", strength_curve=RISING).is_active
    assert replace(told, strength_curve=None).is_active


def test_the_mode_rests_outside_of_its_part_of_the_schedule():
    mode = make_mode("dmg", start_percent=0.2, end_percent=0.6)
    told = replace(guide("dmg", strength_curve=RISING), mode=mode)
    assert [told.factor_at(progress) for progress in (0.1, 0.25, 0.6, 0.7)] == [0.0, 1.0, 2.0, 0.0]


def test_a_run_whose_steps_are_all_at_zero_says_so(caplog):
    late = StrengthCurve(((0.0, 0.0), (0.9, 0.0), (1.0, 1.0)))
    told = guide("dmg", strength_curve=late)
    (sentence,) = idle_steps(told, (0.0, 0.3, 0.6))
    assert "strength curve of mode dmg is 0 at each of the 3 steps" in sentence
    assert idle_steps(told, (0.0, 0.95)) == []
    with caplog.at_level(logging.WARNING):
        guide_patches(told, SPANS)[-1].check_run(Run(3, 4, 4, progress=(0.0, 0.3, 0.6)))
    assert "strength curve" in caplog.text
