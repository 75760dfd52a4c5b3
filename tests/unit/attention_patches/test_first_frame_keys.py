"""Keys of other frames, through the stack, against explicit biases over all pairs of tokens of the clip."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_calls import run
from guides import plain_guide
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from whole_clips import (
    CELLS,
    COUNTS,
    FRAMES,
    HEADS,
    HEIGHT,
    SOURCES,
    TOLERANCE,
    WIDTH,
    clips,
    dense,
    keys_patch,
    looks,
    make_site,
    make_tensors,
)

from mask_guided_video.attention_patches import patch as contract
from mask_guided_video.attention_patches.frame_keys import (
    FirstFrameKeys,
    folded_site,
    key_places,
    keys_of_frames,
)
from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.patch import check_site
from mask_guided_video.attention_patches.site import (
    CONDITIONAL,
    SITE_KEY,
    UNCONDITIONAL,
    AttentionSite,
    BatchRows,
    Span,
)
from mask_guided_video.attention_patches.stack import PatchStack


def test_places_of_the_frames_that_are_looked_at() -> None:
    assert key_places("self", range(3)) == ((0,), (1,), (2,))
    assert key_places("first", range(3)) == ((0,), (0,), (0,))
    assert key_places("first_prev", range(4)) == ((0, 0), (0, 0), (0, 1), (0, 2))
    assert key_places("first_self", range(3)) == ((0, 0), (0, 1), (0, 2))
    assert key_places("first_prev_self", range(4)) == ((0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 2, 3))
    for source, counts in COUNTS.items():
        places = key_places(source, range(4))
        assert [[row.count(frame) for frame in range(4)] for row in places] == counts


def test_windows_without_the_first_frame_of_the_clip_have_a_first_frame_of_their_own() -> None:
    assert key_places("first", (6, 7, 8)) == ((0,), (0,), (0,))
    assert key_places("first_prev_self", (6, 8, 10)) == ((0, 0, 0), (0, 0, 1), (0, 1, 2))
    # A window of a loop: the clip's first frame stands third, and nothing before it.
    assert key_places("first_prev", (8, 9, 0, 1)) == ((2, 0), (2, 0), (2, 2), (2, 2))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("source", SOURCES)
def test_folded_frames_equal_a_bias_over_all_pairs(source: str, dtype: torch.dtype) -> None:
    site = make_site()
    q, k, v = make_tensors(site, CELLS, dtype=dtype)
    out = run([keys_patch(source)], site, (q, k, v))
    expected = dense(clips(q), clips(k), clips(v), looks(source)).unflatten(1, (FRAMES, CELLS)).flatten(0, 1)
    assert out.dtype == dtype and out.shape == q.shape
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=0)


# Every source beside every kind of other tokens; types take turns.
@pytest.mark.parametrize(
    ("source", "before", "after", "dtype"),
    [
        (source, *others, list(TOLERANCE)[(number + place) % len(TOLERANCE)])
        for number, source in enumerate(SOURCES)
        for place, others in enumerate([(0, 0), (0, 6), (7, 0), (7, 6)])
    ],
)
def test_whole_clips_equal_a_bias_over_all_pairs(source: str, before: int, after: int, dtype: torch.dtype) -> None:
    site = make_site("none", before=before, after=after)
    length = before + FRAMES * CELLS + after
    qkv = make_tensors(site, length, dtype=dtype)
    bias = torch.zeros(length, length, dtype=torch.float64)
    bias[slice(*site.video), slice(*site.video)] = looks(source)
    out = run([keys_patch(source)], site, qkv)
    torch.testing.assert_close(out.double(), dense(*qkv, bias), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("source", SOURCES)
def test_other_keys_of_folded_frames_stay_their_own(source: str) -> None:
    before, after = 2, 3
    site = make_site(key_video=Span(before, before + CELLS))
    q, k, v = make_tensors(site, CELLS, before + CELLS + after)
    out = run([keys_patch(source)], site, (q, k, v))
    for row in range(len(q)):
        first = row - row % FRAMES
        frames = [frame for frame, count in enumerate(COUNTS[source][row % FRAMES]) for _ in range(count)]
        keys, values = (
            torch.cat([t[row, :before], *(t[first + frame, before:-after] for frame in frames), t[row, -after:]])[None]
            for t in (k, v)
        )
        expected = dense(q[row : row + 1], keys, values, torch.zeros(1))
        torch.testing.assert_close(out[row : row + 1].double(), expected, atol=4e-6, rtol=0)


@pytest.mark.parametrize("folded", ["frames", "none"])
@pytest.mark.parametrize("shape", [(8, 1), (1, HEADS), (1, 1)])
def test_a_bias_that_came_with_the_call_goes_with_its_keys(folded: str, shape: tuple[int, int]) -> None:
    site = replace(make_site(folded), rows=BatchRows((CONDITIONAL,), 8 if folded == "none" else 2, folded, FRAMES))
    if folded == "none":
        site = replace(site, rows=BatchRows((CONDITIONAL,), 8, "none"))
    length = CELLS if folded == "frames" else FRAMES * CELLS
    q, k, v = make_tensors(site, length)
    given = torch.randn(*shape, length, length, generator=torch.Generator().manual_seed(3))
    out = run([keys_patch("first_prev")], site, (q, k, v), given)
    if folded == "none":
        expected = dense(q, k, v, looks("first_prev") + given)
    else:
        # Key tokens of frame f keep what the bias says in f's own row.
        of_row = given.double().expand(8, -1, -1, -1).unflatten(0, (2, FRAMES))
        pairs = torch.cat([of_row[:, frame] for frame in range(FRAMES)], dim=3).repeat(1, 1, FRAMES, 1)
        expected = dense(clips(q), clips(k), clips(v), looks("first_prev") + pairs)
        expected = expected.unflatten(1, (FRAMES, CELLS)).flatten(0, 1)
    torch.testing.assert_close(out.double(), expected, atol=4e-6, rtol=0)


@pytest.mark.parametrize("shape", [(4, 1), (1, HEADS)])
def test_a_bias_on_text_is_kept(shape: tuple[int, int]) -> None:
    before, after = 3, 6
    length = before + FRAMES * CELLS + after
    site = make_site("none", before=before, after=after)
    qkv = make_tensors(site, length)
    given = torch.randn(*shape, length, length, generator=torch.Generator().manual_seed(3))
    bias = torch.zeros(length, length, dtype=torch.float64)
    bias[slice(*site.video), slice(*site.video)] = looks("first_self")
    out = run([keys_patch()], site, qkv, given)
    torch.testing.assert_close(out.double(), dense(*qkv, bias + given), atol=4e-6, rtol=0)


def test_keys_of_other_rows_stand_between_the_rows_own_others() -> None:
    tokens = 10 * torch.arange(3)[:, None] + torch.arange(5)
    rows = torch.tensor([[0, 0], [0, 1], [2, 1]])
    found = keys_of_frames(tokens[:, None, :, None], 2, slice(1, 4), rows)
    assert found[:, 0, :, 0].tolist() == [
        [0, 1, 2, 3, 1, 2, 3, 4],
        [10, 1, 2, 3, 11, 12, 13, 14],
        [20, 21, 22, 23, 11, 12, 13, 24],
    ]
    # One row for all of them has the same frame behind itself.
    assert keys_of_frames(tokens[:1, None, None], 3, slice(1, 4), rows).flatten().tolist() == [0, 1, 2, 3, 1, 2, 3, 4]


def test_text_behind_the_film_moves_with_longer_keys() -> None:
    site = replace(make_site(before=2), kind="joint", text=Span(2 + CELLS, 6 + CELLS))
    longer = folded_site(site, key_places("first_prev", range(FRAMES)), 6 + CELLS)
    assert longer.key_video == Span(2, 2 + 2 * CELLS) and longer.text == Span(2 + 2 * CELLS, 6 + 2 * CELLS)
    assert longer.video == site.video
    early = folded_site(replace(site, text=Span(0, 2)), key_places("first_prev", range(FRAMES)), 6 + CELLS)
    assert early.text == Span(0, 2)


# --- when nothing is to be done ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"source": "self"}, {}),
        ({"start_percent": 0.2}, {}),
        ({"end_percent": 0.05}, {}),
        ({"blocks": "mid,up"}, {}),
        ({"blocks": "down.0"}, {}),
        ({"rows": "conditional"}, {"rows": BatchRows((UNCONDITIONAL, UNCONDITIONAL), 2, "frames", FRAMES)}),
        ({}, {"kind": "cross", "text": Span(0, CELLS)}),
        ({}, {"grid": (1, HEIGHT, WIDTH), "frames": (2,), "rows": BatchRows((0, 1), 8, "frames", 1)}),
        ({}, {"kind": "temporal", "grid": (CELLS, 2, 2), "rows": BatchRows((0, 1), 2, "positions", 4)}),
        ({}, {"query_frames": (1,)}),
        ({}, {"key_frames": ((0,),) * FRAMES}),
    ],
)
def test_calls_that_are_none_of_its_business_go_through_to_the_bit(settings: Any, changes: Any) -> None:
    site = replace(make_site(), **changes)
    patch = keys_patch(**settings)
    qkv = make_tensors(site, CELLS)
    assert not patch.acts_at(site)
    assert torch.equal(run([patch], site, qkv), attention(*qkv, HEADS))


def test_whole_clips_may_be_left_alone() -> None:
    patch = keys_patch(whole_clips=False)
    for after in (0, 6):
        site = make_site("none", after=after)
        qkv = make_tensors(site, FRAMES * CELLS + after)
        assert not patch.acts_at(site) and torch.equal(run([patch], site, qkv), attention(*qkv, HEADS))
    site = make_site()
    qkv = make_tensors(site, CELLS)
    assert torch.equal(run([patch], site, qkv), run([keys_patch()], site, qkv))


@pytest.mark.parametrize("folded", ["frames", "none"])
def test_unconditional_rows_are_left_alone_to_the_bit(folded: str) -> None:
    site = make_site(folded, after=5 if folded == "none" else 0)
    length = CELLS if folded == "frames" else FRAMES * CELLS + 5
    qkv = make_tensors(site, length)
    half = site.rows.total // 2
    plain, both = attention(*qkv, HEADS), run([keys_patch()], site, qkv)
    one = run([keys_patch(rows="conditional")], site, qkv)
    assert torch.equal(one[half:], plain[half:]) and not torch.allclose(both[half:], plain[half:], atol=1e-2)
    torch.testing.assert_close(one[:half], both[:half], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "last"}, "source is 'last'; choose one of self, first, first_prev, first_self, first_prev_self"),
        ({"source": "first", "rows": "all"}, "rows is 'all'; choose one of conditional, both"),
        ({"source": "first", "start_percent": 0.6, "end_percent": 0.5}, "start_percent 0.6 and end_percent 0.5 are no"),
        ({"source": "first", "end_percent": 1.5}, "end_percent 1.5 are not a part of the schedule"),
        ({"source": "first", "blocks": " , "}, "blocks is ' , '; write 'all' or"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FirstFrameKeys(**settings)


def test_sites_that_do_not_fit_their_tensors_are_refused() -> None:
    site = make_site()
    with pytest.raises(ValueError, match="has 16 rows and 15 video tokens, but grid"):
        run([keys_patch()], replace(site, grid=(FRAMES, HEIGHT, WIDTH + 1)), make_tensors(site, CELLS))
    with pytest.raises(ValueError, match=r"has frames \(0, 1, 2, 3\) but takes its keys from \(\(9,\),"):
        check_site(torch.zeros(site.rows.total, 1, CELLS, 1), replace(site, key_frames=((9,),) * FRAMES))


# --- what follows sees, and what it costs -----------------------------------------------------------------------------


def calls_of(patches: Sequence[Any], site: AttentionSite, qkv: Sequence[Tensor]) -> list[tuple[int, int, Any, Any]]:
    """Rows x queries, rows x keys, site and mask of each attention call that is made."""
    seen: list[tuple[int, int, Any, Any]] = []

    def record(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any) -> Tensor:
        q, k = (tensor if tensor.ndim == 4 else tensor[:, None] for tensor in (q, k))
        seen.append((q.shape[2], k.shape[2], kwargs["transformer_options"][SITE_KEY], mask))
        plain = q if q.shape[1] == heads else q[:, 0]
        return attention(plain, k if k.shape[1] == heads else k[:, 0], v, heads, mask=mask, **kwargs)

    PatchStack(patches).override(record, *qkv, HEADS, transformer_options={SITE_KEY: site})
    return seen


@pytest.mark.parametrize(
    ("source", "frames"), [("first", 1), ("first_prev", 2), ("first_self", 2), ("first_prev_self", 3)]
)
def test_folded_frames_take_one_call_and_say_whose_keys_it_has(source: str, frames: int) -> None:
    site = replace(make_site(), frames=(0, 4, 8, 12), clip_frames=16)
    ((queries, keys, seen, mask),) = calls_of([keys_patch(source)], site, make_tensors(site, CELLS))
    assert (queries, keys, mask) == (CELLS, frames * CELLS, None)
    assert seen.key_video == Span(0, frames * CELLS) and seen.video == Span(0, CELLS)
    assert seen.frames == site.frames and seen.grid == site.grid and seen.rows == site.rows
    expected = {"first": (0,), "first_prev": (0, 8), "first_self": (0, 12), "first_prev_self": (0, 8, 12)}[source]
    assert seen.key_frames[3] == expected and len(seen.key_frames) == FRAMES


@pytest.mark.parametrize(
    ("source", "turns"), [("first", 1), ("first_prev", 3), ("first_self", 4), ("first_prev_self", 4)]
)
def test_whole_clips_take_a_call_for_each_frame_that_looks_elsewhere(source: str, turns: int) -> None:
    before, after = 7, 6
    site = make_site("none", before=before, after=after)
    made = calls_of([keys_patch(source)], site, make_tensors(site, before + FRAMES * CELLS + after))
    film, others = made[:turns], made[turns:]
    most = len(source.split("_"))
    assert {keys for _, keys, _, _ in film} == {before + most * CELLS + after}
    assert sum(queries for queries, _, _, _ in film) == FRAMES * CELLS
    assert [seen.query_frames for _, _, seen, _ in film][-1][-1] == 3
    for _, keys, seen, mask in film:
        assert mask is None and seen.text == Span(keys - after, keys)
        assert seen.key_video == Span(before, keys - after) and seen.grid[0] == len(seen.frames) == most
    assert [(queries, seen.query_frames, seen.video) for queries, _, seen, _ in others] == [
        (before, (), Span(0, 0)),
        (after, (), Span(0, 0)),
    ]
    assert all(seen.text == site.text and seen.key_video == site.video for _, _, seen, _ in others)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that is made, attention's own left out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("folded", ["frames", "none"])
@pytest.mark.parametrize("guided", [False, True])
def test_no_tensor_grows_with_the_pairs_of_tokens(folded: str, guided: bool) -> None:
    frames, height, width = 4, 32, 32
    tokens = height * width * (1 if folded == "frames" else frames)
    rows = BatchRows((CONDITIONAL,), 1, folded, frames if folded == "frames" else 1)
    site = replace(make_site(folded), grid=(frames, height, width), video=Span(0, tokens), rows=rows)
    qkv = make_tensors(site, tokens)
    masks = torch.zeros(1, frames, height, width)
    masks[:, :, 8:20, 8:20] = 1.0
    guide = GuidePatch(plain_guide(masks, mode="separate", strength=4.0, end_percent=1.0))
    override = PatchStack([keys_patch("first_prev_self"), *([guide] if guided else [])]).override

    def cheap(q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
        return q if kwargs["skip_reshape"] else q.unflatten(-1, (heads, -1)).transpose(1, 2)

    with Largest() as largest:
        override(cheap, *qkv, HEADS, transformer_options={SITE_KEY: site})
    # Keys of three frames for each frame, and at most a third more for channels.
    assert largest.elements <= 3 * qkv[1].numel() * 4 / 3


def test_tables_are_made_once_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    patch, site = keys_patch(), make_site()
    qkv = make_tensors(site, CELLS)
    first = run([patch], site, qkv)
    assert copy.deepcopy(patch) is patch and len(patch._plans) == 1
    assert torch.equal(run([patch], replace(site, progress=0.7, sigma=1.0), qkv), first) and len(patch._plans) == 1
    monkeypatch.setattr(contract, "MAX_PLANS", 2)
    for start in range(3):
        run([patch], replace(site, frames=tuple(range(start, start + 4)), clip_frames=9), qkv)
    assert len(patch._plans) <= 2
    PatchStack([patch]).release()
    assert not patch._plans


def test_tables_know_their_frames() -> None:
    patch, site = keys_patch("first"), make_site()
    qkv = make_tensors(site, CELLS)
    for frames in ((0, 1, 2, 3), (8, 9, 0, 1)):
        window = replace(site, frames=frames, clip_frames=10)
        assert torch.equal(run([patch], window, qkv), run([keys_patch("first")], window, qkv))


def test_the_outer_one_of_two_chooses() -> None:
    for folded, length in (("frames", CELLS), ("none", FRAMES * CELLS)):
        site = make_site(folded)
        qkv = make_tensors(site, length)
        both = run([keys_patch("first"), keys_patch("first_prev_self")], site, qkv)
        assert torch.equal(both, run([keys_patch("first")], site, qkv))


# --- together with FreeLong -------------------------------------------------------------------------------------------

LONG = FreeLongPatch(FreeLong(window=2, strength=0.8))


def test_free_long_is_not_disturbed_where_frames_are_folded_into_the_batch() -> None:
    over_time = replace(
        make_site(), kind="temporal", rows=BatchRows((0, 1), 2, "positions", CELLS), video=Span(0, FRAMES)
    )
    for site, length, own in ((make_site(), CELLS, keys_patch()), (over_time, FRAMES, LONG)):
        qkv = make_tensors(site, length)
        alone = run([own], site, qkv)
        assert not torch.allclose(alone, attention(*qkv, HEADS), atol=1e-3)
        assert torch.equal(run([keys_patch(), LONG], site, qkv), alone)
        assert torch.equal(run([LONG, keys_patch()], site, qkv), alone)


@pytest.mark.parametrize("after", [0, 6])
def test_before_free_long_the_keys_win_in_their_steps_and_blocks(after: int) -> None:
    site = make_site("none", after=after)
    qkv = make_tensors(site, FRAMES * CELLS + after)
    keys = keys_patch(end_percent=0.5, blocks="down")
    assert torch.equal(run([keys, LONG], site, qkv), run([keys], site, qkv))
    for changes in ({"progress": 0.6}, {"block": "up.0"}):
        other = replace(site, **changes)
        assert torch.equal(run([keys, LONG], other, qkv), run([LONG], other, qkv))


@pytest.mark.parametrize("after", [0, 6])
def test_behind_free_long_the_whole_clip_looks_at_the_keys_and_windows_at_themselves(after: int) -> None:
    site = make_site("none", after=after)
    length = FRAMES * CELLS + after
    qkv = make_tensors(site, length)
    keys = keys_patch("first_prev")

    def whole_clip(q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
        """FreeLong's calls, with those over the whole clip written out."""
        if q.shape[-2] != length:
            return attention(q, k, v, heads, **kwargs)
        bias = torch.zeros(length, length, dtype=torch.float64)
        bias[slice(*site.video), slice(*site.video)] = looks("first_prev")
        q, k, v = (t if t.ndim == 3 else t.transpose(1, 2).flatten(2) for t in (q, k, v))
        return dense(q, k, v, bias).float().unflatten(2, (heads, -1)).transpose(1, 2)

    together = run([LONG, keys], site, qkv)
    expected = PatchStack([LONG]).override(whole_clip, *qkv, HEADS, transformer_options={SITE_KEY: site})
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(together, run([LONG], site, qkv), atol=1e-3)
    assert not torch.allclose(together, run([keys], site, qkv), atol=1e-3)
