"""Mask guidance through the stack, against loops over single rows, and every promise it makes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import attention_calls
import pytest
import torch
from guides import plain_guide
from torch import Tensor

from mask_guided_video.attention_patches.checks import matches_block
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.guidance.plan import DENSE_PAIRS, PARTITION_TOKENS
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.explicit import explicit_attention
from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.site import (
    CONDITIONAL,
    SITE_KEY,
    UNCONDITIONAL,
    AttentionSite,
    BatchRows,
    Span,
)
from mask_guided_video.attention_patches.stack import PatchStack

HEADS, DIM = 2, 12
GRID = (3, 4, 5)
SPANS = TextSpans(("ball", "blue square"), ((2,), (4, 5)), 9)
SPANS_OF = {0: TextSpans((), ()), 1: TextSpans(("ball",), ((2,),), 9), 2: SPANS}
TOLERANCE = {torch.float32: 4e-6, torch.float16: 6e-3, torch.bfloat16: 4e-2}


def make_site(
    kind: str = "self", folded: str = "frames", grid: tuple[int, int, int] = GRID, **changes: Any
) -> AttentionSite:
    text = 4 if changes.get("text_first") else 9
    return attention_calls.make_site(kind, folded, grid, **{"text_tokens": text, "samples": 2, **changes})


def make_tensors(site: AttentionSite, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    return attention_calls.make_tensors(site, HEADS * DIM, dtype=dtype, seed=seed)


def make_masks(objects: int = 1, grid: tuple[int, int, int] = GRID, seed: int = 0) -> Tensor:
    return attention_calls.soft_masks(objects, grid, seed)


def run(guide: Guide, site: AttentionSite, qkv: Sequence[Tensor], mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    patch = GuidePatch(guide, kwargs.pop("spans", SPANS_OF[len(guide.masks)]))
    stack = PatchStack([patch]).chain(kwargs.pop("previous", None))
    options = {"optimized_attention_override": stack.override, SITE_KEY: site}
    return attention(*qkv, HEADS, mask, transformer_options=options)


def split(tensor: Tensor) -> Tensor:
    return attention_calls.split(tensor, HEADS)


def shares(masks: Tensor, hard: bool) -> Tensor:
    """[R + 1, T, h, w] memberships, cell by cell."""
    out = torch.zeros(masks.shape[0] + 1, *masks.shape[1:])
    for cell in torch.cartesian_prod(*(torch.arange(size) for size in masks.shape[1:])).tolist():
        values = masks[(slice(None), *cell)].tolist()
        if hard:
            owner = max((index for index, value in enumerate(values) if value >= 0.5), default=len(values))
            values = [float(index == owner) for index in range(len(values))]
        else:
            values = [value / max(sum(values), 1.0) for value in values]
        out[(slice(None), *cell)] = torch.tensor([*values, 1.0 - sum(values)])
    return out


def pair_bias(guide: Guide, own: Tensor, other: Tensor) -> float:
    """Bias between a query cell and a key cell from their memberships [R + 1]."""
    objects = other[:-1].clamp(min=1e-4).log()
    if guide.mode.name == "focus":
        return guide.own_strength * float(other[:-1].max().clamp(min=1e-4).log())
    if guide.mode.name == "focus_fg":
        inside = float(own[:-1].sum())
        return guide.own_strength * float((own[:-1] * objects).sum()) / inside if inside >= 0.5 else 0.0
    if guide.mode.name == "separate":
        apart = 1.0 - float((own * other).sum())
        return (-torch.inf if apart > 0.5 else 0.0) if guide.mode.hard else -guide.own_strength * apart
    return 0.0


def word_bias(guide: Guide, own: Tensor, spans: TextSpans, token: int) -> float:
    total = 0.0
    for share, positions in zip(own[:-1].tolist(), spans.positions, strict=True):
        if token not in positions:
            continue
        if guide.mode.name == "cross_text":
            total += guide.own_strength * share - (1000.0 * (1.0 - share) if guide.mode.hard else 0.0)
        elif guide.mode.name == "separate":
            total -= (1000.0 if guide.mode.hard else guide.own_strength) * (1.0 - share)
    return total


def reference(guide: Guide, site: AttentionSite, qkv: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """The guide's formulas, one batch row and one pair of tokens at a time; masks are on the token grid already."""
    members = shares(guide.masks, guide.mode.hard)[:, list(site.frames)]
    count, frames = members.shape[0], site.grid[0]
    folded = {
        "none": members.reshape(count, 1, -1),
        "frames": members.reshape(count, frames, -1),
        "positions": members.reshape(count, frames, -1).transpose(1, 2),
    }[site.rows.folded]
    q, k, v = (split(tensor) for tensor in qkv)
    bias = torch.zeros(len(q), 1, q.shape[2], k.shape[2])
    spans = SPANS_OF[len(guide.masks)]
    for row in range(len(q)):
        chunk = row // (site.rows.samples * site.rows.folded_size)
        conditional = site.rows.chunks[chunk] == CONDITIONAL
        if not conditional and (guide.mode.rows == "conditional" or site.kind == "cross"):
            continue
        cells = folded[:, row % site.rows.folded_size]
        for at in range(cells.shape[1]):
            query = site.video.start + at
            if site.kind != "cross":
                for to in range(cells.shape[1]):
                    bias[row, 0, query, site.video.start + to] = pair_bias(guide, cells[:, at], cells[:, to])
            if site.text is not None and conditional:
                for token in range(site.text.stop - site.text.start):
                    bias[row, 0, query, site.text.start + token] = word_bias(guide, cells[:, at], spans, token)
    out = explicit_attention(q, k, v, bias if mask is None else bias + mask)
    return out.transpose(1, 2).flatten(2)


CASES = [
    ("focus", "self", "frames"),
    ("focus", "self", "none"),
    ("focus_fg", "self", "frames"),
    ("focus_fg", "self", "none"),
    ("separate", "self", "frames"),
    ("separate", "self", "none"),
    ("separate", "temporal", "positions"),
    ("separate", "cross", "frames"),
    ("separate", "cross", "none"),
    ("separate", "joint", "none"),
    ("cross_text", "cross", "frames"),
    ("cross_text", "cross", "none"),
    ("cross_text", "joint", "none"),
    ("focus", "joint", "none"),
    ("focus_fg", "joint", "none"),
]


# Hard masks of two objects are compared by the other kernels, below.
@pytest.mark.parametrize(("objects", "hard"), [(1, True), (2, False)], ids=["one hard object", "two soft ones"])
@pytest.mark.parametrize(("mode", "kind", "folded"), CASES)
def test_modes_equal_the_reference(mode: str, kind: str, folded: str, objects: int, hard: bool) -> None:
    guide = plain_guide(make_masks(objects), mode=mode, hard=hard)
    site = make_site(kind, folded, samples=1)
    qkv = make_tensors(site)
    out, expected = run(guide, site, qkv), reference(guide, site, qkv)
    torch.testing.assert_close(out, expected, atol=TOLERANCE[torch.float32], rtol=1e-5)
    assert not torch.allclose(out, attention(*qkv, HEADS), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("mode", "kind", "folded"), CASES)
def test_half_precision_is_within_rounding(mode: str, kind: str, folded: str, dtype: torch.dtype) -> None:
    guide = plain_guide(make_masks(2), mode=mode)
    site = make_site(kind, folded, samples=1, chunks=(CONDITIONAL,))
    qkv = make_tensors(site, dtype)
    out, expected = run(guide, site, qkv), reference(guide, site, qkv)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("mode", "kind", "folded"), CASES)
@pytest.mark.parametrize("hard", [False, True])
def test_channels_and_chained_overrides_equal_the_explicit_bias(mode: str, kind: str, folded: str, hard: bool) -> None:
    # With another override behind it the patch must keep the batch whole: channels instead of the CPU's short cut.
    guide = plain_guide(make_masks(2), mode=mode, hard=hard, rows="conditional")
    site = make_site(kind, folded, samples=1)
    qkv = make_tensors(site)

    def previous(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
        assert (q.shape[0], q.shape[-2]) == (site.rows.total, qkv[0].shape[1])
        return func(q, k, v, heads, **kwargs)

    out = run(guide, site, qkv, previous=previous)
    torch.testing.assert_close(out, reference(guide, site, qkv), atol=TOLERANCE[torch.float32], rtol=1e-5)
    half = len(out) // 2
    assert torch.equal(out[half:], attention(*qkv, HEADS)[half:])


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("mode", "kind"), [("focus_fg", "self"), ("separate", "self"), ("separate", "joint")])
def test_long_sequences_use_the_large_kernels(mode: str, kind: str, hard: bool) -> None:
    grid = (2, 20, 27)
    for folded in ("none", "frames") if kind == "self" else ("none",):
        site = make_site(kind, folded, grid=grid, samples=1)
        tokens = site.video.stop
        assert tokens >= PARTITION_TOKENS and tokens**2 > DENSE_PAIRS
        masks = make_masks(2, grid)
        guide = plain_guide(masks, mode=mode, hard=hard)
        qkv = make_tensors(site)
        out = run(guide, site, qkv)
        # Whole rows of the explicit bias are slow in Python: compare with the same guide on the whole-batch route.
        whole = run(guide, site, qkv, previous=lambda func, *args, **kwargs: func(*args, **kwargs))
        torch.testing.assert_close(out, whole, atol=TOLERANCE[torch.float32], rtol=1e-5)
        assert not torch.allclose(out, attention(*qkv, HEADS), atol=1e-3)


def test_partition_serves_hard_separate_by_smaller_calls() -> None:
    grid = (1, 32, 32)
    site = make_site(grid=grid, samples=1, chunks=(CONDITIONAL,))
    masks = torch.zeros(1, *grid)
    masks[..., 4:20, 6:26] = 1.0
    sizes = []

    def func(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        sizes.append((q.shape[-2], k.shape[-2]))
        return attention(q, k, v, heads, mask, **kwargs)

    stack = PatchStack([GuidePatch(plain_guide(masks, mode="separate", hard=True))])
    q, k, v = make_tensors(site)
    stack.override(func, q, k, v, HEADS, transformer_options={SITE_KEY: site})
    assert set(sizes) == {(320, 320), (704, 704)}


# --- promises ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["focus", "focus_fg", "separate", "cross_text"])
@pytest.mark.parametrize("kind", ["self", "cross", "temporal", "joint"])
def test_strength_zero_and_empty_masks_are_bit_identical(mode: str, kind: str) -> None:
    folded = {"temporal": "positions", "joint": "none"}.get(kind, "frames")
    site = make_site(kind, folded)
    qkv = make_tensors(site)
    plain = attention(*qkv, HEADS)
    assert torch.equal(run(plain_guide(make_masks(2), mode=mode, strength=0.0), site, qkv), plain)
    assert torch.equal(run(plain_guide(torch.zeros(2, *GRID), mode=mode), site, qkv), plain)
    assert torch.equal(run(plain_guide(torch.full((2, *GRID), 0.4), mode=mode), site, qkv), plain)
    assert torch.equal(run(plain_guide(torch.zeros(0, *GRID), mode=mode), site, qkv), plain)


@pytest.mark.parametrize("mode", ["focus", "focus_fg", "separate"])
@pytest.mark.parametrize("hard", [False, True])
def test_all_ones_mask_changes_nothing(mode: str, hard: bool) -> None:
    for kind, folded in (("self", "frames"), ("self", "none"), ("temporal", "positions")):
        site = make_site(kind, folded)
        qkv = make_tensors(site)
        out = run(plain_guide(torch.ones(1, *GRID), mode=mode, hard=hard), site, qkv)
        assert torch.equal(out, attention(*qkv, HEADS))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mode", ["focus", "focus_fg", "separate", "cross_text"])
def test_empty_frame_is_left_alone(mode: str, hard: bool) -> None:
    masks = make_masks(2)
    masks[:, 1] = 0.0
    kind = "cross" if mode == "cross_text" else "self"
    site = make_site(kind)
    qkv = make_tensors(site)
    out, plain = (
        tensor.unflatten(0, (4, 3))
        for tensor in (run(plain_guide(masks, mode=mode, hard=hard), site, qkv), attention(*qkv, HEADS))
    )
    assert torch.equal(out[:, 1], plain[:, 1])
    conditional = slice(0, 2) if kind == "cross" else slice(None)
    assert not torch.allclose(out[conditional, 0], plain[conditional, 0], atol=1e-3)
    # In a sequence over the whole clip the rows of that frame keep their attention, too.
    whole = make_site(kind, "none")
    qkv = make_tensors(whole)
    out = run(plain_guide(masks, mode=mode, hard=hard), whole, qkv)
    torch.testing.assert_close(
        out[:, 20:40], attention(*qkv, HEADS)[:, 20:40], atol=TOLERANCE[torch.float32], rtol=1e-5
    )


def test_absent_object_leaves_its_words_alone() -> None:
    masks = make_masks(2)
    masks[1, 1] = 0.0
    site = make_site("cross", samples=1, chunks=(CONDITIONAL,))
    qkv = make_tensors(site)
    both = run(plain_guide(masks, mode="separate"), site, qkv)
    first = run(plain_guide(masks[:1], mode="separate"), site, qkv)
    torch.testing.assert_close(both[1], first[1])
    assert not torch.allclose(both[0], first[0], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["focus", "focus_fg", "separate", "cross_text"])
def test_extreme_strength_is_finite(mode: str, dtype: torch.dtype) -> None:
    for kind, folded in (("self", "frames"), ("temporal", "positions"), ("cross", "frames"), ("joint", "none")):
        site = make_site(kind, folded, samples=1)
        qkv = [4.0 * tensor for tensor in make_tensors(site, dtype)]
        for masks in (
            make_masks(2),
            torch.ones(2, *GRID),
            torch.nn.functional.pad(torch.ones(2, 3, 1, 1), (2, 2, 1, 2)),
        ):
            for hard in (False, True):
                guide = plain_guide(masks, mode=mode, strength=1000.0, hard=hard)
                assert bool(torch.isfinite(run(guide, site, qkv)).all())
                assert bool(torch.isfinite(run(guide, site, qkv, previous=lambda f, *a, **k: f(*a, **k))).all())


def test_strength_is_monotone() -> None:
    masks = torch.zeros(1, *GRID)
    masks[..., :2, :2] = 1.0
    site = make_site(samples=1, chunks=(CONDITIONAL,))
    q, k, _ = make_tensors(site)
    v = masks[0].reshape(3, 20, 1).expand(-1, -1, HEADS * DIM).contiguous()
    for mode in ("focus_fg", "separate"):
        held = [
            float(run(plain_guide(masks, mode=mode, strength=g), site, (q, k, v))[:, 0].mean()) for g in (0, 0.5, 1, 4)
        ]
        assert held == sorted(held) and held[0] < held[-1]


@pytest.mark.parametrize("chunks", [(CONDITIONAL, UNCONDITIONAL), (UNCONDITIONAL, CONDITIONAL), (0, 1, 0)])
@pytest.mark.parametrize(("mode", "kind", "folded"), CASES)
def test_unconditional_rows_are_bit_identical(mode: str, kind: str, folded: str, chunks: tuple[int, ...]) -> None:
    site = make_site(kind, folded, chunks=chunks)
    qkv = make_tensors(site)
    guide = plain_guide(make_masks(2), mode=mode, rows="conditional")
    out, plain = (t.unflatten(0, (len(chunks), -1)) for t in (run(guide, site, qkv), attention(*qkv, HEADS)))
    for index, chunk in enumerate(chunks):
        assert torch.equal(out[index], plain[index]) == (chunk == UNCONDITIONAL)
    # With both, words of the conditional prompt still mean nothing in unconditional rows.
    out = run(replace(guide, mode=replace(guide.mode, rows="both")), site, qkv).unflatten(0, (len(chunks), -1))
    changes = kind != "cross" and mode != "cross_text"
    assert torch.equal(out[chunks.index(UNCONDITIONAL)], plain[chunks.index(UNCONDITIONAL)]) != changes


def test_only_unconditional_chunk() -> None:
    site = make_site(chunks=(UNCONDITIONAL,))
    qkv = make_tensors(site)
    for guide in (plain_guide(make_masks(), rows="conditional"), plain_guide(make_masks(2), mode="cross_text")):
        assert torch.equal(run(guide, site, qkv), attention(*qkv, HEADS))


@pytest.mark.parametrize(("mode", "kind", "folded"), CASES)
def test_incoming_mask_is_added(mode: str, kind: str, folded: str) -> None:
    site = make_site(kind, folded, samples=1)
    qkv = make_tensors(site)
    queries, keys = qkv[0].shape[1], qkv[1].shape[1]
    guide = plain_guide(make_masks(2), mode=mode)
    for shape in ((1, HEADS, queries, keys), (site.rows.total, 1, 1, keys), (site.rows.total, HEADS, queries, keys)):
        mask = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        expected = reference(guide, site, qkv, mask)
        torch.testing.assert_close(run(guide, site, qkv, mask), expected, atol=TOLERANCE[torch.float32], rtol=1e-5)


def test_samples_and_frames_keep_their_places() -> None:
    site = make_site(samples=2)
    qkv = make_tensors(site)
    guide = plain_guide(make_masks())
    together = run(guide, site, qkv).unflatten(0, (2, 2, 3))
    alone = replace(site, rows=BatchRows((CONDITIONAL,), 1, "frames", 3))
    for chunk in range(2):
        for sample in range(2):
            part = [tensor.unflatten(0, (2, 2, 3))[chunk, sample] for tensor in qkv]
            assert torch.equal(run(guide, alone, part), together[chunk, sample])


def test_context_windows_take_their_frames() -> None:
    masks = make_masks(1, (7, 4, 5))
    for frames in ((0, 1, 2), (4, 5, 6), (5, 6, 0)):
        site = make_site(frames=frames, clip_frames=7, samples=1)
        qkv = make_tensors(site)
        out = run(plain_guide(masks), site, qkv)
        torch.testing.assert_close(out, reference(plain_guide(masks), site, qkv), atol=4e-6, rtol=1e-5)


def test_mask_frames_against_clip_frames() -> None:
    site = make_site()
    qkv = make_tensors(site)
    one = make_masks(1, (1, 4, 5))
    repeated = run(plain_guide(one.expand(-1, 3, -1, -1)), site, qkv)
    assert torch.equal(run(plain_guide(one), site, qkv), repeated)
    pixels = make_masks(1, (9, 4, 5))
    pooled = torch.stack([pixels[:, 0], pixels[:, 1:5].amax(1), pixels[:, 5:].amax(1)], 1)
    assert torch.equal(run(plain_guide(pixels), site, qkv), run(plain_guide(pooled), site, qkv))
    for frames in (2, 4, 8, 12):
        with pytest.raises(ValueError, match=f"{frames} mask frames do not fit a clip of 3 frames"):
            run(plain_guide(make_masks(1, (frames, 4, 5))), site, qkv)


def test_pixels_finer_than_tokens_and_thin_objects() -> None:
    masks = torch.zeros(1, 3, 64, 80)
    masks[:, :, 30, 40] = 1.0
    site = make_site(samples=1, chunks=(CONDITIONAL,))
    qkv = make_tensors(site)
    cell = torch.zeros(1, *GRID)
    cell[..., 1, 2] = 1.0
    expected = reference(plain_guide(cell), site, qkv)
    torch.testing.assert_close(run(plain_guide(masks), site, qkv), expected, atol=4e-6, rtol=1e-5)


def test_schedule_and_blocks() -> None:
    site = make_site()
    qkv = make_tensors(site)
    plain = attention(*qkv, HEADS)

    def acts(progress: float = 0.1, **settings: Any) -> bool:
        return not torch.equal(run(plain_guide(make_masks(), **settings), replace(site, progress=progress), qkv), plain)

    assert [acts(progress) for progress in (-0.01, 0.0, 0.3, 0.52, 0.53, 1.0)] == [True] * 4 + [False] * 2
    assert [acts(p, start_percent=0.2, end_percent=0.4) for p in (0.19, 0.2, 0.4, 0.41)] == [False, True, True, False]
    patterns = ("all", "mid,up", "down", "down.1.*", "down.1", "down.2.*", "up, down.1.0", "down.?.0", "dow")
    assert [acts(blocks=pattern) for pattern in patterns] == [True, False, True, True, True, False, True, True, False]
    assert matches_block("mid.0", "mid") and matches_block("double.7", "double.[5-9]")
    assert not matches_block("down.11.0", "down.1")


def test_modes_act_at_their_kinds_only() -> None:
    acting = {
        "focus": {"self", "joint"},
        "focus_fg": {"self", "joint"},
        "separate": {"self", "temporal", "joint", "cross"},
        "cross_text": {"cross", "joint"},
    }
    for mode, kinds in acting.items():
        patch = GuidePatch(plain_guide(make_masks(2), mode=mode), SPANS)
        for kind in ("self", "cross", "temporal", "joint"):
            assert patch.acts_at(make_site(kind)) == (kind in kinds)
    assert not GuidePatch(plain_guide(make_masks(2), mode="separate")).acts_at(make_site("cross"))


def test_repeated_text_guides_every_copy() -> None:
    site = replace(make_site("cross", samples=1, chunks=(CONDITIONAL,)), text=Span(0, 18))
    q, k, v = make_tensors(site)
    guide = plain_guide(make_masks(2), mode="cross_text")
    once = run(guide, replace(site, text=Span(0, 9)), (q, k[:, :9], v[:, :9]))
    twice = run(guide, site, (q, k[:, :9].repeat(1, 2, 1), v[:, :9].repeat(1, 2, 1)))
    torch.testing.assert_close(once, twice)


def test_joint_site_with_text_first_and_rows_of_text_free() -> None:
    site = make_site("joint", "none", text_first=True, samples=1, chunks=(CONDITIONAL,))
    qkv = make_tensors(site)
    guide = plain_guide(make_masks(2), mode="separate", hard=True)
    spans = TextSpans(("ball", "square"), ((1,), (2,)), 4)
    out, plain = run(guide, site, qkv, spans=spans), attention(*qkv, HEADS)
    torch.testing.assert_close(out[:, :4], plain[:, :4], atol=4e-6, rtol=1e-5)
    assert not torch.allclose(out[:, 4:], plain[:, 4:], atol=1e-3)


def test_keys_that_an_earlier_patch_appends_are_free() -> None:
    site = make_site(samples=1, chunks=(CONDITIONAL,))
    q, k, v = make_tensors(site)
    extra = torch.randn(3, 6, HEADS * DIM, generator=torch.Generator().manual_seed(9))
    guide = plain_guide(make_masks(), mode="focus")
    out = run(guide, site, (q, torch.cat((k, extra), 1), torch.cat((v, extra), 1)))
    bias = guide.masks[0].reshape(3, 1, 1, 20).clamp(min=1e-4).log().expand(-1, -1, 20, -1)
    bias = torch.nn.functional.pad(bias, (0, 6))
    keys, values = (split(torch.cat((tensor, extra), 1)) for tensor in (k, v))
    expected = explicit_attention(split(q), keys, values, bias)
    torch.testing.assert_close(split(out), expected, atol=4e-6, rtol=1e-5)


def test_two_guides_stacked_in_one_stack_or_two() -> None:
    site = make_site(samples=1)
    qkv = make_tensors(site)
    guides = [
        plain_guide(make_masks(seed=1), mode="focus"),
        plain_guide(make_masks(seed=2), mode="separate", hard=True),
    ]
    first, second = (GuidePatch(guide) for guide in guides)
    stacks = (
        PatchStack([first, second]),
        PatchStack([second, first]),
        PatchStack([first]).chain(PatchStack([second]).override),
        PatchStack([second]).chain(PatchStack([first]).override),
    )
    outs = []
    for stack in stacks:
        options = {"optimized_attention_override": stack.override, SITE_KEY: site}
        outs.append(attention(*qkv, HEADS, transformer_options=options))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], atol=4e-6, rtol=1e-5)
    assert not torch.allclose(outs[0], run(guides[0], site, qkv), atol=1e-3)


def test_copies_share_tables_and_release_drops_them() -> None:
    patch = GuidePatch(plain_guide(make_masks()))
    stack = PatchStack([patch])
    assert copy.deepcopy(patch) is patch
    site = make_site()
    qkv = make_tensors(site)
    options = copy.deepcopy({"optimized_attention_override": stack.override})
    first = attention(*qkv, HEADS, transformer_options={**options, SITE_KEY: site})
    assert len(patch._plans) == 1
    attention(*qkv, HEADS, transformer_options={**options, SITE_KEY: replace(site, progress=0.2, sigma=3.0)})
    assert len(patch._plans) == 1
    stack.release()
    assert not patch._plans
    assert torch.equal(attention(*qkv, HEADS, transformer_options={**options, SITE_KEY: site}), first)


def test_inputs_are_not_changed() -> None:
    masks = make_masks()
    guide, before = plain_guide(masks), masks.clone()
    site = make_site()
    qkv = make_tensors(site)
    copies = [tensor.clone() for tensor in qkv]
    run(guide, site, qkv)
    assert torch.equal(masks, before)
    assert all(torch.equal(tensor, copied) for tensor, copied in zip(qkv, copies, strict=True))


def test_site_that_does_not_fit_is_named() -> None:
    site = make_site()
    qkv = make_tensors(site)
    with pytest.raises(
        ValueError, match=r"attention self in block 'down.1.0' has 12 rows and 20 video tokens, but grid"
    ):
        run(plain_guide(make_masks()), replace(site, grid=(3, 5, 5)), qkv)
    with pytest.raises(ValueError, match="has 3 frames but names 2 of the clip"):
        run(plain_guide(make_masks()), replace(site, frames=(0, 1)), qkv)


# --- the guide --------------------------------------------------------------------------------------------------------


def test_defaults_per_mode() -> None:
    masks = make_masks()
    strengths = {
        mode: plain_guide(masks, mode=mode).own_strength for mode in ("focus", "focus_fg", "separate", "cross_text")
    }
    assert strengths == {"focus": 1.0, "focus_fg": 1.0, "separate": 8.0, "cross_text": 3.0}
    guide = plain_guide(masks[0])
    assert guide.masks.shape == (1, *GRID) and guide.mode.name == "focus_fg" and guide.mode.rows == "both"
    assert math.isclose(guide.mode.end_percent, 0.52)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "blur"}, "mode is 'blur'; choose one of dmg, focus, focus_fg, separate, cross_text"),
        ({"rows": "none"}, "rows is 'none'; choose one of conditional, both"),
        ({"strength": -1.0}, "strength is -1; give a value from 0"),
        ({"strength": 1001.0}, "strength is 1001"),
        ({"strength": math.nan}, "strength is nan"),
        ({"start_percent": 0.6}, "start_percent 0.6 and end_percent 0.52"),
        ({"end_percent": 1.5}, "end_percent 1.5"),
        ({"blocks": " , "}, "blocks is ' , '"),
        ({"levels": (-1,)}, "mode focus_fg has no constant 'levels'"),
        ({"phrases": ("a", "b")}, "2 phrases for 1 masks"),
        ({"time_pooling": "median"}, "time_pooling is 'median'"),
        ({"masks": torch.full((1, 1, 2, 2), torch.nan)}, "masks hold NaN"),
        ({"masks": torch.full((1, 1, 2, 2), 255.0)}, "mask values reach from 255 to 255"),
        ({"masks": torch.zeros(2, 2)}, r"masks have shape \(2, 2\)"),
        ({"masks": torch.zeros(1, 0, 2, 2)}, r"masks have shape \(1, 0, 2, 2\)"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain_guide(**{"masks": make_masks(), **settings})


def test_spans_must_fit_the_masks() -> None:
    with pytest.raises(ValueError, match="2 phrases were found in the prompt but the guide has 1 masks"):
        GuidePatch(plain_guide(make_masks()), SPANS)
    with pytest.raises(ValueError, match="cross_text steers the words"):
        GuidePatch(plain_guide(make_masks(), mode="cross_text"))
