"""Prompts over time through the stack, against direct implementations with whole masks; and on a tiny video model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import attention_calls
import pytest
import torch
from attention_calls import run, run_chained
from guides import plain_guide
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.latent_time import causal
from mask_guided_video.attention_patches.patch import Patch, Run
from mask_guided_video.attention_patches.prompt_schedule import PromptSchedule, PromptSchedulePatch, frame_weights
from mask_guided_video.attention_patches.site import AttentionSite, BatchRows

HEADS, DIM = 2, 8
LENGTHS = (5, 3, 4)
SCHEDULE = PromptSchedule((0, 4, 7), LENGTHS, 2)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}


def make_site(folded: str = "frames", grid: tuple[int, int, int] = (10, 2, 3), **changes: Any) -> AttentionSite:
    """Cross-attention of two chunks; ``before`` are tokens of no frame."""
    usual = {"text_tokens": sum(LENGTHS), "progress": 0.25}
    return attention_calls.make_site("cross", folded, grid, **{**usual, **changes})


def make_tensors(
    site: AttentionSite, extra: int = 0, text: int = sum(LENGTHS), dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """q, k and v; the keys of all frames of one clip are the same, as models have them."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(site.rows.total, site.video.stop + extra, HEADS * DIM, generator=generator)
    clips = site.rows.total // site.rows.folded_size
    k, v = (
        torch.randn(clips, text, HEADS * DIM, generator=generator).repeat_interleave(site.rows.folded_size, 0)
        for _ in range(2)
    )
    return [q.to(dtype), k.to(dtype), v.to(dtype)]


def direct(schedule: PromptSchedule, site: AttentionSite, qkv: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Row by row and query by query: softmax over each prompt's own keys, then the weighted mean; float64."""
    q, k, v = (tensor.unflatten(-1, (HEADS, DIM)).transpose(1, 2).double() for tensor in qkv)
    mask = torch.zeros(1, 1, 1, 1) if mask is None else mask
    logits = q @ k.transpose(2, 3) * DIM**-0.5 + mask.double().expand(q.shape[0], HEADS, q.shape[2], k.shape[2])
    plain = logits.softmax(dim=3) @ v
    each = [
        logits[..., schedule.span(prompt)].softmax(dim=3) @ v[:, :, schedule.span(prompt)]
        for prompt in range(len(schedule.starts))
    ]
    clip = schedule.weights(site.clip_frames, site.latent_time)
    group, cells = site.rows.samples * site.rows.folded_size, site.grid[1] * site.grid[2]
    for row in range(q.shape[0]):
        if site.rows.chunks[row // group] != 0:
            continue
        for query in range(q.shape[2]):
            if site.rows.folded == "frames":
                weight = clip[site.frames[row % site.grid[0]]]
            elif site.video.start <= query < site.video.stop:
                weight = clip[site.frames[(query - site.video.start) // cells]]
            else:
                weight = clip[list(site.frames)].mean(dim=0)
            plain[row, :, query] = sum(share * out[row, :, query] for share, out in zip(weight, each, strict=True))
    return plain.transpose(1, 2).flatten(2)


def greatest(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max())


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_of_a_fade() -> None:
    weights = frame_weights((0, 4), 4, 8)
    rise = torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], dtype=torch.float64)
    assert torch.equal(weights, torch.stack((1 - rise, rise), dim=1))


@pytest.mark.parametrize("overlap", [0, 1])
def test_prompts_change_at_once_without_overlap(overlap: int) -> None:
    weights = frame_weights((0, 2, 3), overlap, 5)
    assert weights.argmax(dim=1).tolist() == [0, 0, 1, 2, 2]
    assert set(weights.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("overlap", [0, 1, 2, 3, 7, 40])
@pytest.mark.parametrize("starts", [(0,), (0, 1), (0, 3, 4, 11)])
def test_weights_add_up_to_one(starts: tuple[int, ...], overlap: int) -> None:
    weights = frame_weights(starts, overlap, 16)
    assert float(weights.min()) >= 0.0 and weights.shape == (16, len(starts))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-15)


def test_latent_frames_have_the_mean_of_their_frames() -> None:
    # 13 frames: 0; 1 to 4; 5 to 8; 9 to 12. The second prompt holds in frames 7 to 12.
    weights = PromptSchedule((0, 7), (2, 2)).weights(4, latent_time=causal(4))
    assert weights[:, 1].tolist() == [0.0, 0.0, 0.5, 1.0]


def test_a_prompt_after_the_end_of_the_film() -> None:
    with pytest.raises(ValueError, match="begins at frame 7 but the film has 7 frames, 0 to 6"):
        PromptSchedule((0, 7), (2, 2)).weights(7)
    assert PromptSchedule((0, 6), (2, 2)).weights(7)[6].tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="begins at frame 9 but the film has 9 frames"):
        PromptSchedulePatch(PromptSchedule((0, 9), (2, 2))).check_run(Run(3, 8, 8, causal(4)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"starts": (0,), "lengths": (3, 4)}, "1 starts for 2 texts"),
        ({"starts": (), "lengths": ()}, "0 starts"),
        ({"starts": (3, 5), "lengths": (3, 4)}, "first prompt begins at frame 3"),
        ({"starts": (0, 5, 5), "lengths": (3, 4, 4)}, "frame 5 follows one of frame 5"),
        ({"starts": (0, 5), "lengths": (3, 0)}, "has 0 tokens"),
        ({"starts": (0, 5), "lengths": (3, 2), "overlap": -1}, "overlap is -1"),
    ],
)
def test_bad_schedules_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSchedule(**values)


# --- attention --------------------------------------------------------------------------------------------------------

SITES = {
    "one row per frame": ({"folded": "frames"}, 0),
    "one row per frame, two samples": ({"folded": "frames", "samples": 2}, 0),
    "frames in the sequence": ({"folded": "none"}, 0),
    "two samples": ({"folded": "none", "samples": 2}, 0),
    "reference before, guides after": ({"folded": "none", "before": 4, "samples": 2}, 5),
    "latent frames": ({"folded": "none", "latent_time": causal(4)}, 0),
    "context window": ({"frames": (3, 4, 5, 6), "grid": (4, 2, 3), "clip_frames": 10}, 0),
    "window over the end": ({"folded": "none", "frames": (8, 9, 0, 1), "grid": (4, 2, 3), "clip_frames": 10}, 0),
    "window over the end, one row per frame": ({"frames": (6, 9, 0, 5), "grid": (4, 2, 3), "clip_frames": 10}, 0),
    "one frame": ({"folded": "none", "frames": (4,), "grid": (1, 2, 3), "clip_frames": 10}, 0),
}


def site_of(name: str) -> tuple[AttentionSite, int]:
    settings, after = SITES[name]
    settings = dict(settings)
    grid = settings.pop("grid", (10, 2, 3))
    frames, clip = settings.pop("frames", None), settings.pop("clip_frames", None)
    site = make_site(settings.pop("folded", "frames"), grid, **settings)
    return replace(site, frames=frames or site.frames, clip_frames=clip or site.clip_frames), after


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("mask", [None, "keys", "rows and keys", "all"])
def test_equals_a_direct_implementation(name: str, mask: str | None) -> None:
    site, after = site_of(name)
    qkv = make_tensors(site, after)
    sizes = {"keys": (1, 1, 1), "rows and keys": (qkv[0].shape[0], 1, 1)}
    sizes["all"] = (qkv[0].shape[0], HEADS, qkv[0].shape[1])
    bias = None if mask is None else torch.randn(*sizes[mask], 12, generator=torch.Generator().manual_seed(5))
    found = run([PromptSchedulePatch(SCHEDULE)], site, qkv, bias)
    expected = direct(SCHEDULE, site, qkv, bias)
    assert greatest(found, expected) < TOLERANCE[torch.float32]
    assert greatest(attention(*qkv, HEADS, bias), expected) > 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("folded", ["frames", "none"])
def test_half_precision(dtype: torch.dtype, folded: str) -> None:
    site = make_site(folded)
    qkv = make_tensors(site, dtype=dtype)
    found = run([PromptSchedulePatch(SCHEDULE)], site, qkv)
    assert found.dtype == dtype
    assert greatest(found, direct(SCHEDULE, site, qkv)) < TOLERANCE[dtype]


@pytest.mark.parametrize("folded", ["frames", "none"])
def test_frames_of_one_prompt_are_as_with_that_prompt_alone(folded: str) -> None:
    site = make_site(folded)
    q, k, v = make_tensors(site)
    found = run([PromptSchedulePatch(SCHEDULE)], site, (q, k, v))
    alone = attention(q, k[:, :5], v[:, :5], HEADS)
    third = attention(q, k[:, 8:], v[:, 8:], HEADS)
    # Fades reach from frame 3 to 4 and from 6 to 7.
    if folded == "frames":
        assert torch.equal(found[:3], alone[:3]) and torch.equal(found[8:10], third[8:10])
        assert not torch.equal(found[3], alone[3])
    else:
        assert greatest(found[0, :18], alone[0, :18]) < 1e-6 and greatest(found[0, 48:], third[0, 48:]) < 1e-6


@pytest.mark.parametrize("folded", ["frames", "none"])
def test_unconditional_rows_are_left_alone_to_the_bit(folded: str) -> None:
    site = make_site(folded)
    qkv = make_tensors(site)
    found, plain = run([PromptSchedulePatch(SCHEDULE)], site, qkv), attention(*qkv, HEADS)
    half = len(found) // 2
    assert torch.equal(found[half:], plain[half:]) and not torch.equal(found[:half], plain[:half])


def test_text_that_was_repeated_to_a_common_length() -> None:
    site = make_site("none")
    q, k, v = make_tensors(site)
    once = run([PromptSchedulePatch(SCHEDULE)], site, (q, k, v))
    twice = run([PromptSchedulePatch(SCHEDULE)], site, (q, k.repeat(1, 2, 1), v.repeat(1, 2, 1)))
    assert torch.equal(once[0], twice[0]) and greatest(once[1], twice[1]) < 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "self"},
        {"kind": "temporal"},
        {"kind": "joint"},
        {"rows": BatchRows((1, 1), 1, "frames", 10)},
        {"rows": BatchRows((0, 1), 1, "frames", 10, ("another", "negative"))},
    ],
)
def test_other_calls_go_through_to_the_bit(changes: dict[str, Any]) -> None:
    site = replace(make_site(), **changes)
    qkv = make_tensors(site)
    patch = PromptSchedulePatch(replace(SCHEDULE, prompts=frozenset({"joined"})))
    assert not patch.acts_at(site)
    assert torch.equal(run([patch], site, qkv), attention(*qkv, HEADS))


def test_one_prompt_changes_nothing() -> None:
    site = make_site()
    assert not PromptSchedulePatch(PromptSchedule((0,), (12,), 8)).acts_at(site)


def test_only_the_rows_of_the_joined_text_are_changed() -> None:
    site = make_site("none", rows=BatchRows((0, 0, 1), 2, "none", 1, ("another", "joined", "negative")))
    qkv = make_tensors(site)
    patch = PromptSchedulePatch(replace(SCHEDULE, prompts=frozenset({"joined"})))
    found, plain = run([patch], site, qkv), attention(*qkv, HEADS)
    assert torch.equal(found[:2], plain[:2]) and torch.equal(found[4:], plain[4:])
    joined = replace(site, rows=BatchRows((0,), 2))
    assert greatest(found[2:4], direct(SCHEDULE, joined, [tensor[2:4] for tensor in qkv])) < 2e-6


def test_another_text_is_refused() -> None:
    site = make_site("none")
    with pytest.raises(ValueError, match="of 12 text tokens but the model sees 13"):
        run([PromptSchedulePatch(SCHEDULE)], site, make_tensors(site, text=13))
    patch = PromptSchedulePatch(replace(SCHEDULE, prompts=frozenset({"joined"})))
    with pytest.raises(ValueError, match="schedule of 3 prompts, but their joined text is not among"):
        patch.check_run(Run(9, 8, 8, prompts={"another": 12}))
    patch.check_run(Run(9, 8, 8, prompts={"another": 12, "joined": 12}))
    patch.check_run(Run(9, 8, 8))


def test_copies_share_their_plans_and_release_drops_them() -> None:
    patch = PromptSchedulePatch(SCHEDULE)
    run([patch], make_site(), make_tensors(make_site()))
    assert copy.deepcopy({"patch": patch})["patch"] is patch and len(patch._plans) == 1
    patch.release()
    assert not patch._plans


# --- beside other patches ---------------------------------------------------------------------------------------------


def guide_patch(mode: str = "cross_text") -> Patch:
    """An object in the left third whose words stand in the first and in the third prompt."""
    masks = torch.zeros(1, 10, 8, 12)
    masks[:, :, :, :4] = 1.0
    guide = plain_guide(masks, mode=mode, strength=2.0, end_percent=1.0)
    return GuidePatch(guide, TextSpans(("ball",), ((1, 2, 9),), 12))


@pytest.mark.parametrize("folded", ["frames", "none"])
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("guide_first", [False, True])
@pytest.mark.parametrize("mode", ["cross_text", "separate"])
def test_words_are_guided_in_either_order(folded: str, chained: bool, guide_first: bool, mode: str) -> None:
    site = make_site(folded, samples=2)
    qkv = make_tensors(site)
    patches = [guide_patch(mode), PromptSchedulePatch(SCHEDULE)]
    found = (run_chained if chained else run)(patches if guide_first else patches[::-1], site, qkv)
    inside = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    share = inside * 2.0 if mode == "cross_text" else (1.0 - inside) * -2.0
    bias = torch.zeros(qkv[0].shape[0], 1, qkv[0].shape[1], 12)
    bias[: qkv[0].shape[0] // 2, 0, :, [1, 2, 9]] = share.repeat(qkv[0].shape[1] // 6)[:, None]
    assert greatest(found, direct(SCHEDULE, site, qkv, bias)) < 5e-6
    assert greatest(found, direct(SCHEDULE, site, qkv)) > 1e-2


def test_free_long_beside_it_changes_nothing_here() -> None:
    site = make_site("none")
    qkv = make_tensors(site)
    alone = run([PromptSchedulePatch(SCHEDULE)], site, qkv)
    assert torch.equal(run([FreeLongPatch(FreeLong(4)), PromptSchedulePatch(SCHEDULE)], site, qkv), alone)
    assert torch.equal(run_chained([PromptSchedulePatch(SCHEDULE), FreeLongPatch(FreeLong(4))], site, qkv), alone)
