"""A share of attention as the strength of a guide: seen in the probabilities themselves, whatever the model's scale."""

from __future__ import annotations

import math

import pytest
import torch
from attention_calls import make_site
from torch import Tensor

from mask_guided_video.attention_patches.errors import GuideError
from mask_guided_video.attention_patches.guidance.attention_share import (
    MAX_GAIN,
    STEPS,
    ShareGoal,
    key_levels,
    level_sums,
    sampled_queries,
    share_of,
    solve_gain,
)
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.site import CONDITIONAL, SITE_KEY, UNCONDITIONAL, AttentionSite
from mask_guided_video.attention_patches.stack import PatchStack

FRAMES, SIDE, TOKENS, HEADS, WIDTH = 2, 4, 8, 3, 8
BALL, KITE = (2,), (4, 5)
SPANS = TextSpans(("ball", "kite"), (BALL, KITE), TOKENS, ordinary=(1, 2, 3, 4, 5, 6))


def masks() -> Tensor:
    """The ball has the left column, the kite the two right ones."""
    found = torch.zeros(2, FRAMES, SIDE, SIDE)
    found[0, :, :, 0], found[1, :, :, 2:] = 1.0, 1.0
    return found


def told(mode: str, share: float | None, among: str = "kind", strength: float = 1.0, **constants) -> Guide:
    goal = None if share is None else ShareGoal(share, among)
    return Guide(masks(), make_mode(mode, **constants), ("ball", "kite"), strength=strength, goal=goal)


def site(kind: str, folded: str = "none", **changes) -> AttentionSite:
    usual = {"text_tokens": TOKENS, "block": "mid.0", "total": 4, "level": 0, "progress": 0.01, "sigma": 9.0}
    return make_site(kind, folded, (FRAMES, SIDE, SIDE), **{**usual, **changes})


def tensors(at: AttentionSite, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries and keys; values that make the result of every head its probabilities."""
    queries = at.video.stop + (TOKENS if at.kind == "joint" else 0)
    keys = TOKENS if at.kind == "cross" else queries
    generator = torch.Generator().manual_seed(3)
    shape = at.rows.total, HEADS
    q, k = (torch.randn(*shape, length, WIDTH, generator=generator).to(dtype) for length in (queries, keys))
    # Kernels want values as wide as queries, or wider ones only at the end of the chain: here there is none behind.
    return scale * q, k, torch.eye(keys, dtype=dtype).expand(*shape, -1, -1)


def probabilities(patch: GuidePatch | None, at: AttentionSite, scale: float = 1.0, others=(), **given) -> Tensor:
    """[rows, heads, queries, keys] of one call; ``others`` are patches behind the guide's."""
    options = {SITE_KEY: at}
    if patch is not None:
        options["optimized_attention_override"] = PatchStack([patch, *others]).override
    q, k, v = tensors(at, scale, **given)
    return attention(q, k, v, HEADS, transformer_options=options, skip_reshape=True, skip_output_reshape=True)


def cells(region: int) -> Tensor:
    """Numbers of the cells of an object over both frames, or of the background (2)."""
    owner = torch.cat((masks(), 1.0 - masks().sum(dim=0, keepdim=True))).flatten(1)
    return owner[region].nonzero()[:, 0]


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_one_query_has_a_closed_form(share):
    q, k = torch.tensor([[[2.0]]]), torch.tensor([[[0.0], [1.0], [-1.0]]])
    levels = key_levels(torch.tensor([0.0, 0.0, 1.0]))
    sums = level_sums(q, k, levels)
    before = math.exp(-2.0) / (math.exp(-2.0) + 1.0 + math.exp(2.0))
    found = solve_gain(sums, levels.closeness, torch.ones(1), share)
    wanted = math.log(share / (1.0 - share)) - math.log(before / (1.0 - before))
    assert float(found.before) == pytest.approx(before, rel=1e-5)
    assert float(found.gain) == pytest.approx(wanted, abs=1e-4)
    assert float(found.reached) == pytest.approx(share, abs=1e-5)
    # A query of half the weight needs twice the gain.
    assert float(solve_gain(sums, levels.closeness, torch.tensor([0.5]), share).gain) == pytest.approx(
        2.0 * wanted, abs=1e-4
    )


def test_sums_and_shares_against_the_softmax_written_out():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 7, 4, generator=generator)
    bias = torch.randn(1, 5, 7, generator=generator)
    closeness = torch.tensor([0.0, 1.0, 0.625, 0.0, 1.0, 0.25, 0.0])
    counted = torch.tensor([True, True, True, False, True, True, True])
    weights, gain = torch.tensor([1.0, 1.0, 0.5, 1.0, 0.75]), torch.tensor([1.5, 3.0])
    levels = key_levels(closeness, counted)
    sums = level_sums(q, k, levels, bias)
    logits = q @ k.transpose(1, 2) / 2.0 + bias
    logits = logits + gain[:, None, None] * weights[None, :, None] * closeness
    shares = logits[..., counted].softmax(dim=2)[..., (closeness >= 0.5)[counted]].sum(dim=2)
    torch.testing.assert_close(share_of(sums, levels.closeness, weights, gain), shares.mean(dim=1))
    assert sums.shape == (2, 5, 4)


def test_what_cannot_be_reached_is_clamped():
    sums, closeness = torch.full((3, 2, 2), -torch.inf), torch.tensor([0.0, 1.0])
    # Head 0: no wanted key; head 1: no other one; head 2: out of reach.
    sums[0, :, 0], sums[1, :, -1] = 0.0, 0.0
    sums[2, :, 0], sums[2, :, -1] = 1000.0, 0.0
    found = solve_gain(sums, closeness, torch.ones(2), 0.5)
    assert found.gain.tolist() == [0.0, 0.0, 0.0] and found.reached.tolist() == [0.0, 1.0, 0.0]
    sums[2, :, 0] = MAX_GAIN + 1.0
    found = solve_gain(sums, closeness, torch.ones(2), 0.5)
    assert float(found.gain[2]) == MAX_GAIN and float(found.reached[2]) == pytest.approx(1.0 / (1.0 + math.e), abs=1e-5)


def test_closeness_of_soft_masks_is_rounded_and_half_stays_wanted():
    closeness = torch.linspace(0.0, 1.0, 1001)
    levels = key_levels(closeness)
    assert len(levels.closeness) == STEPS + 1
    assert torch.equal(levels.closeness[levels.level] >= 0.5, closeness >= 0.5)
    assert float((levels.closeness[levels.level] - closeness).abs().max()) <= 0.5 / STEPS + 1e-6


def test_samples_are_spread_over_the_region():
    weights = torch.zeros(40, 100)
    weights[10:30, 50:], weights[0, 0] = 1.0, 0.4
    chosen = sampled_queries(weights, 64)
    assert {row for row, _ in chosen} <= set(range(10, 30)) and chosen[0][0] == 10 and chosen[-1][0] == 29
    assert sum(len(queries) for _, queries in chosen) == 64
    assert all(queries.min() >= 50 and queries.max() == 99 for _, queries in chosen)
    assert sampled_queries(torch.zeros(3, 4)) == []


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(GuideError, match="share is .*; give a value from 0"):
        ShareGoal(share)
    with pytest.raises(GuideError, match="share_among is 'text'"):
        ShareGoal(0.5, "text")


# --- in attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_words_get_their_share_whatever_the_scale_of_the_logits(kind, scale):
    at = site(kind)
    patch = GuidePatch(told("cross_text", 0.6), SPANS)
    shares = probabilities(patch, at, scale)
    text = shares[..., at.text_keys(shares.shape[-1]).start : at.text_keys(shares.shape[-1]).stop]
    for region, words in enumerate((BALL, KITE)):
        own = text[0][:, cells(region) + at.video.start]
        reached = (own[..., list(words)].sum(dim=2) / own.sum(dim=2)).mean(dim=1)
        torch.testing.assert_close(reached, torch.full((HEADS,), 0.6), rtol=0.0, atol=2e-3)
    # The background's queries are left alone.
    plain = probabilities(None, at, scale)
    ground = cells(2) + at.video.start
    torch.testing.assert_close(shares[:, :, ground], plain[:, :, ground])


def test_among_all_keys_the_text_of_a_joint_model_is_raised_as_a_whole():
    at = site("joint")
    shares = probabilities(GuidePatch(told("cross_text", 0.4, "all"), SPANS), at)
    own = shares[0][:, cells(1) + at.video.start][..., [at.text.start + word for word in KITE]]
    torch.testing.assert_close(own.sum(dim=2).mean(dim=1), torch.full((HEADS,), 0.4), rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("kind", ["self", "joint"])
@pytest.mark.parametrize("mode", ["separate", "focus_fg", "dmg"])
def test_regions_get_their_share_of_the_video(kind, mode):
    at = site(kind)
    constants = {"gamma_self": 4.0} if mode == "dmg" else {}
    patch = GuidePatch(told(mode, 0.7, **constants), SPANS)
    shares = probabilities(patch, at)
    video = shares[..., at.video.start : at.video.stop]
    for region in (0, 1):
        own = video[0][:, cells(region) + at.video.start]
        reached = (own[..., cells(region)].sum(dim=2) / own.sum(dim=2)).mean(dim=1)
        torch.testing.assert_close(reached, torch.full((HEADS,), 0.7), rtol=0.0, atol=2e-3)
    words = [share for share in patch.shares if share.kind == "words"]
    assert not words or kind == "joint"


@pytest.mark.parametrize("folded", ["none", "frames"])
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_a_share_that_is_there_already_changes_no_bit(kind, folded):
    at = site(kind, folded)
    mode = "separate" if kind == "self" else "cross_text"
    patch = GuidePatch(told(mode, 0.01), SPANS)
    assert torch.equal(probabilities(patch, at), probabilities(None, at))
    patch.release()
    assert patch.shares and all(share.gain == (0.0, 0.0) and share.reached == share.before for share in patch.shares)
    assert torch.equal(probabilities(GuidePatch(told(mode, 0.0), SPANS), at), probabilities(None, at))


def test_strength_is_a_factor_on_what_is_found():
    at = site("cross")
    own = cells(0)

    def odds(strength: float) -> Tensor:
        shares = probabilities(GuidePatch(told("cross_text", 0.6, strength=strength), SPANS), at)
        return torch.logit(shares[0][:, own][..., BALL[0]].double())

    free, half, whole, double = odds(0.0), odds(0.5), odds(1.0), odds(2.0)
    torch.testing.assert_close(half - free, (whole - free) / 2.0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(double - free, 2.0 * (whole - free), rtol=1e-3, atol=1e-3)


def test_what_a_mode_closes_stays_closed():
    at = site("cross")
    shares = probabilities(GuidePatch(told("cross_text", 0.6, hard=True), SPANS), at)
    assert float(shares[0][:, cells(2)][..., [*BALL, *KITE]].max()) < 1e-6
    # The share is counted with the kite's words hidden from the ball.
    assert float(shares[0][:, cells(0)][..., BALL[0]].mean()) == pytest.approx(0.6, abs=2e-3)


def test_each_branch_finds_its_own_gains_and_keeps_them_for_the_run():
    at = site("cross", chunks=(CONDITIONAL, UNCONDITIONAL))
    patch = GuidePatch(told("cross_text", 0.6, cross_rows="both"), SPANS)
    shares = probabilities(patch, at)
    own = shares[:, :, cells(0)][..., BALL[0]].mean(dim=2)
    torch.testing.assert_close(own, torch.full((2, HEADS), 0.6), rtol=0.0, atol=2e-3)
    # The same gains at another scale: no longer that share.
    again = probabilities(patch, at, 4.0)[:, :, cells(0)][..., BALL[0]].mean(dim=2)
    assert float((again - 0.6).abs().max()) > 0.02
    patch.release()
    renewed = probabilities(patch, at, 4.0)[:, :, cells(0)][..., BALL[0]].mean(dim=2)
    torch.testing.assert_close(renewed, torch.full((2, HEADS), 0.6), rtol=0.0, atol=2e-3)


def test_unconditional_rows_are_left_alone():
    at = site("cross", chunks=(UNCONDITIONAL, CONDITIONAL))
    shares = probabilities(GuidePatch(told("cross_text", 0.6), SPANS), at)
    assert torch.equal(shares[0], probabilities(None, at)[0]) and not torch.equal(shares[1], probabilities(None, at)[1])


def test_behind_another_patch_the_batch_stays_whole():
    at = site("cross", chunks=(UNCONDITIONAL, CONDITIONAL))
    q, k, v = tensors(at)

    def after(attend, q, k, v, site):
        assert q.shape[0] == site.rows.total
        return attend(q, k, v, site)

    stack = PatchStack([GuidePatch(told("cross_text", 0.6), SPANS), after])
    options = {SITE_KEY: at, "optimized_attention_override": stack.override}
    shares = attention(q, k, v, HEADS, transformer_options=options, skip_reshape=True, skip_output_reshape=True)
    torch.testing.assert_close(shares, probabilities(GuidePatch(told("cross_text", 0.6), SPANS), at))
    assert torch.equal(shares[0], probabilities(None, at)[0])


def test_a_region_that_comes_later_is_found_later():
    """Context windows: the kite is in the second window only."""
    moved = masks()
    moved[1, 0] = 0.0
    guide = Guide(moved, make_mode("cross_text"), ("ball", "kite"), goal=ShareGoal(0.6))
    patch = GuidePatch(guide, SPANS)
    for frame in (0, 1):
        at = make_site(
            "cross",
            "none",
            (1, SIDE, SIDE),
            text_tokens=TOKENS,
            frames=(frame,),
            clip_frames=2,
            block="mid.0",
            total=4,
            level=0,
            progress=0.01,
            sigma=9.0,
        )
        shares = probabilities(patch, at)
        one = torch.arange(SIDE * SIDE).view(SIDE, SIDE)
        if frame:
            own = shares[0][:, one[:, 2:].flatten()][..., list(KITE)].sum(dim=2)
            torch.testing.assert_close(own.mean(dim=1), torch.full((HEADS,), 0.6), rtol=0.0, atol=2e-3)
    patch.release()
    assert sorted({share.region for share in patch.shares}) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    at = site("cross")
    shares = probabilities(GuidePatch(told("cross_text", 0.6), SPANS), at, 4.0, dtype=dtype).float()
    assert bool(torch.isfinite(shares).all())
    assert float(shares[0][:, cells(0)][..., BALL[0]].mean()) == pytest.approx(0.6, abs=0.02)


def test_modes_that_only_close_have_nothing_to_find():
    at = site("self")
    given, plain = (GuidePatch(told("peekaboo", share, blocks="all"), SPANS) for share in (0.6, None))
    assert torch.equal(probabilities(given, at), probabilities(plain, at))
    given.release()
    assert given.shares == () and given.shares_told() == []


@pytest.mark.parametrize(
    ("mode", "kind", "constants"),
    [
        ("videograin", "self", {"self_strength": 1.0}),
        ("videograin", "cross", {}),
        ("trailblazer", "cross", {"strengthen": 2.0}),
        ("freetraj", "cross", {"boost": 3.0, "cross": "clean"}),
        ("freetraj", "self", {}),
        ("freetraj", "joint", {"cross": "clean"}),
    ],
)
@pytest.mark.parametrize("alone", [True, False], ids=["last", "before another patch"])
def test_of_edits_each_head_takes_the_part_that_makes_the_share(mode, kind, constants, alone):
    at = site(kind, level=1)
    free, full = probabilities(None, at), probabilities(GuidePatch(told(mode, None, **constants), SPANS), at)

    def mean_share(shares: Tensor) -> Tensor:
        found = []
        for region, words in enumerate((BALL, KITE)):
            own = shares[0][:, cells(region) + at.video.start]
            text, video = at.text_keys(own.shape[2]), at.video_keys(own.shape[2])
            counted, wanted = (
                (video, cells(region) + video.start)
                if kind == "self"
                else (text, [text.start + word for word in words])
            )
            found.append((own[..., wanted].sum(dim=2) / own[..., counted.start : counted.stop].sum(dim=2)).mean(dim=1))
        return torch.stack(found).mean(dim=0)

    low, high = mean_share(free), mean_share(full)
    assert bool((high > low + 0.02).all())
    goal = float((low.max() + high.min()) / 2.0) if low.max() < high.min() else float((low + high).mean() / 2.0)
    patch = GuidePatch(told(mode, goal, **constants), SPANS)
    shares = probabilities(patch, at, others=() if alone else (lambda attend, *rest: attend(*rest),))
    part = ((goal - low) / (high - low)).clamp(0.0, 1.0)
    expected = free + part[None, :, None, None] * (full - free)
    rows = at.rows.chunks.index(CONDITIONAL)
    torch.testing.assert_close(shares[rows], expected[rows], rtol=1e-3, atol=1e-4)
    patch.release()
    assert [round(share.before, 3) for share in patch.shares if share.conditional]


def test_what_is_told():
    patch = GuidePatch(told("cross_text", 0.6), SPANS)
    shares = probabilities(None, site("cross"))[0][:, cells(0)][..., BALL[0]].mean()
    probabilities(patch, site("cross"))
    patch.release()
    ball, kite = patch.shares_told()
    assert ball.startswith(
        f"ball, share of attention on its own words: {100 * float(shares):.1f} % before, 60 % wanted"
    )
    assert kite.startswith("kite, ") and "60.0 % reached in 1 calls (least in cross mid.0: 60.0 %; gain " in kite
