"""Windows of frames: the rule, and attention within them against a loop over single queries."""

from __future__ import annotations

from dataclasses import replace

import attention_calls
import pytest
import torch
from torch import Tensor

from mask_guided_video.attention_patches.kernels.explicit import explicit_attention
from mask_guided_video.attention_patches.kernels.torch_attention import torch_attention
from mask_guided_video.attention_patches.local_windows import (
    BLOCK_FRAMES,
    Bounds,
    centred_windows,
    frame_tokens,
    part_of_keys,
    shifted_windows,
    window_blocks,
    write_windows,
)
from mask_guided_video.attention_patches.patch import Attend
from mask_guided_video.attention_patches.site import AttentionSite, Span

TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
HEADS, DIM = 2, 8


def make_site(
    folded: str = "positions", grid: tuple[int, int, int] = (21, 2, 3), before: int = 0, after: int = 0
) -> AttentionSite:
    kind = attention_calls.film_kind(folded, after)
    return attention_calls.make_site(kind, folded, grid, before=before, text_tokens=after)


def make_tensors(site: AttentionSite, length: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """With the heads apart."""
    length = length or attention_calls.lengths_of(site)[0]
    qkv = attention_calls.make_tensors(site, HEADS * DIM, length, dtype=dtype, seed=length)
    return [attention_calls.split(tensor, HEADS) for tensor in qkv]


def make_attend(bias: Tensor | None = None, last: bool = True, seen: list | None = None) -> Attend:
    def kernel(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, bias: Tensor | None) -> Tensor:
        if seen is not None:
            seen.append((q.shape[2], k.shape[2], site))
        return torch_attention(q, k, v, q.shape[1], bias, skip_reshape=True, skip_output_reshape=True)

    return Attend(kernel, bias, last)


def windowed(attend: Attend, qkv: list[Tensor], site: AttentionSite, bounds: Bounds) -> Tensor:
    """Result of the video queries."""
    q, k, v = qkv
    out = torch.full_like(q, 77.0)
    write_windows(attend, q, k, v, site, window_blocks(bounds, frame_tokens(site)), out)
    video = torch.zeros(q.shape[2], dtype=torch.bool)
    video[slice(*site.video)] = True
    assert bool((out[:, :, ~video] == 77.0).all())
    return out[:, :, video]


def dense(bounds: Bounds, site: AttentionSite, length: int) -> Tensor:
    """[video queries, keys] bias that closes what is outside of the windows."""
    size = frame_tokens(site)
    bias = torch.zeros(len(bounds) * size, length)
    begin = site.video.start
    for frame, (first, last) in enumerate(bounds):
        rows = bias[frame * size : (frame + 1) * size]
        rows[:, begin : begin + first * size] = -torch.inf
        rows[:, begin + last * size : begin + len(bounds) * size] = -torch.inf
    return bias


def test_the_rule_for_a_long_clip() -> None:
    bounds = shifted_windows(128, 16)
    for frame, window in {0: (0, 15), 7: (0, 15), 8: (0, 16), 64: (56, 72), 119: (111, 127), 120: (112, 127)}.items():
        assert bounds[frame] == (window[0], window[1] + 1)
    assert set(bounds[120:]) == {(112, 128)}
    assert sum(last - first for first, last in bounds) == 2160


def test_the_rule_for_short_clips() -> None:
    assert sum(last - first for first, last in shifted_windows(24, 16)) == 392
    assert shifted_windows(16, 16) == ((0, 16),) * 16
    inclusive = [(0, 3), (0, 3), (0, 4), (1, 5), (2, 6), (3, 7), (4, 7), (4, 7)]
    assert shifted_windows(8, 4) == tuple((first, last + 1) for first, last in inclusive)
    assert shifted_windows(1, 16) == ((0, 1),)
    assert shifted_windows(5, 16) == ((0, 5),) * 5
    assert shifted_windows(4, 1) == ((0, 1), (1, 2), (2, 3), (3, 4))


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 16, 17])
def test_windows_hold_their_own_frame_and_are_never_short(window: int) -> None:
    every = [
        (frames, *place)
        for frames in (1, 2, 15, 16, 17, 18, 33, 64)
        for place in enumerate(shifted_windows(frames, window))
    ]
    for frames, frame, (first, last) in every:
        assert 0 <= first <= frame < last <= frames
        assert min(window, frames) <= last - first <= 2 * (window // 2) + 1 or last - first == min(window, frames)


def test_centred_windows_are_cut_at_the_ends() -> None:
    assert centred_windows(6, 2) == ((0, 2), (0, 3), (1, 4), (2, 5), (3, 6), (4, 6))
    assert centred_windows(3, 1) == ((0, 1), (1, 2), (2, 3))
    assert centred_windows(3, 9) == ((0, 3),) * 3


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 40, 128])
@pytest.mark.parametrize("size", [1, 6])
def test_blocks_cover_each_frame_once_and_stay_small(frames: int, size: int) -> None:
    bounds = shifted_windows(frames, 16)
    blocks = window_blocks(bounds, size)
    assert [frame for block in blocks for frame in range(frames)[block.queries]] == list(range(frames))
    for block in blocks:
        keys = block.keys.stop - block.keys.start
        assert keys <= (2 * BLOCK_FRAMES if size == 1 else 17)
        closed = torch.zeros(1, dtype=torch.bool) if block.closed is None else block.closed
        assert size == 1 or block.closed is None
        for row, frame in enumerate(range(frames)[block.queries]):
            seen = range(*bounds[frame])
            of_row = closed[row] if closed.ndim == 2 else closed.expand(keys)
            assert [block.keys.start + key for key in (~of_row).nonzero()[:, 0].tolist()] == list(seen)


def biases(site: AttentionSite, length: int) -> list[Tensor | None]:
    shapes = [(1, HEADS, length, length), (1, 1, 1, length), (site.rows.total, 1, length, 1)]
    generator = torch.Generator().manual_seed(5)
    return [None, *(torch.randn(shape, generator=generator) for shape in shapes)]


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize(
    ("folded", "before", "after"), [("positions", 0, 0), ("positions", 1, 2), ("none", 0, 0), ("none", 2, 5)]
)
def test_windows_equal_a_dense_mask(folded: str, before: int, after: int, window: int) -> None:
    site = make_site(folded, before=before, after=after)
    qkv = make_tensors(site)
    length = qkv[1].shape[2]
    bounds = shifted_windows(site.grid[0], window)
    closed = dense(bounds, site, length)
    for bias in biases(site, length):
        given = torch.zeros(1, 1, length, length) if bias is None else bias.expand(-1, -1, length, length)
        q, k, v = qkv
        expected = explicit_attention(q[:, :, slice(*site.video)], k, v, closed + given[:, :, slice(*site.video)])
        torch.testing.assert_close(windowed(make_attend(bias), qkv, site, bounds), expected, atol=4e-6, rtol=4e-6)


def test_keys_that_an_earlier_patch_appends_are_seen_by_all() -> None:
    site = make_site("none")
    q, k, v = make_tensors(site)
    more = [torch.cat((tensor, tensor[:, :, :4] * 2.0), dim=2) for tensor in (k, v)]
    bounds = shifted_windows(21, 4)
    expected = explicit_attention(q, *more, dense(bounds, site, more[0].shape[2])[None, None])
    torch.testing.assert_close(windowed(make_attend(), [q, *more], site, bounds), expected, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("folded", ["positions", "none"])
def test_half_precision_is_finite_and_near(folded: str, dtype: torch.dtype) -> None:
    site = make_site(folded)
    q, k, v = (4.0 * tensor for tensor in make_tensors(site, dtype=dtype))
    bounds = shifted_windows(21, 4)
    bias = torch.full((1, 1, q.shape[2], q.shape[2]), -20.0, dtype=dtype)
    out = windowed(make_attend(bias), [q, k, v], site, bounds)
    assert out.dtype == dtype and bool(out.isfinite().all())
    expected = explicit_attention(q, k, v, dense(bounds, site, q.shape[2])[None, None])
    # The values are four times as large.
    torch.testing.assert_close(out, expected, atol=4 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_rows_whose_window_is_closed_by_the_given_bias_are_finite() -> None:
    site = make_site("positions")
    qkv = make_tensors(site, dtype=torch.float16)
    bias = torch.zeros(1, 1, 21, 21, dtype=torch.float16)
    bias[..., :12] = torch.finfo(torch.float16).min
    out = windowed(make_attend(bias), qkv, site, shifted_windows(21, 4))
    assert bool(out.isfinite().all())


def test_values_may_have_another_width() -> None:
    site = make_site("positions")
    q, k, v = make_tensors(site)
    out = q.new_zeros(*q.shape[:3], 2 * DIM)
    bounds = shifted_windows(21, 4)
    write_windows(make_attend(), q, k, torch.cat((v, -v), dim=3), site, window_blocks(bounds, 1), out)
    torch.testing.assert_close(out[..., DIM:], -windowed(make_attend(), [q, k, v], site, bounds))


def test_no_call_meets_more_keys_than_its_windows_hold() -> None:
    for folded, size in (("positions", 1), ("none", 6)):
        seen: list = []
        site = make_site(folded, grid=(64, 2, 3))
        qkv = make_tensors(site)
        windowed(make_attend(seen=seen), qkv, site, shifted_windows(64, 16))
        assert sum(queries for queries, _, _ in seen) == 64 * size
        assert max(keys for _, keys, _ in seen) <= (32 if size == 1 else 17 * size)
        assert all(found is site for _, _, found in seen)


def test_sites_of_blocks_describe_their_tensors() -> None:
    for folded, size in (("positions", 1), ("none", 6)):
        seen: list = []
        frames = tuple(range(30, 51))
        site = replace(make_site(folded, before=2, after=3), frames=frames, clip_frames=90)
        qkv = make_tensors(site)
        windowed(make_attend(last=False, seen=seen), qkv, site, shifted_windows(21, 4))
        asked = []
        for queries, keys, found in seen:
            asked += found.query_frames
            assert len(found.query_frames) * size == queries and found.video == Span(0, queries)
            assert found.grid == (len(found.frames), 2, 3)
            assert found.key_video == Span(2, 2 + size * found.grid[0])
            assert found.text == Span(found.key_video.stop, keys)
            assert found.clip_frames == 90 and set(found.query_frames) <= set(found.frames) <= set(frames)
        assert tuple(asked) == frames


def test_text_before_the_video_keeps_its_place() -> None:
    site = replace(make_site("none", before=5), kind="joint", text=Span(0, 5))
    part = part_of_keys(site, site.video.stop, range(4, 9), slice(4, 5))
    assert part.site.text == Span(0, 5) and part.site.key_video == Span(5, 5 + 5 * 6)
    keys = torch.arange(site.video.stop)
    assert part.take(keys, 0).tolist() == [*range(5), *range(5 + 24, 5 + 54)]


def test_every_other_frame_of_the_keys() -> None:
    site = make_site("none", before=1, after=2, grid=(5, 1, 2))
    part = part_of_keys(site, 13, range(0, 5, 2))
    assert part.take(torch.arange(13), 0).tolist() == [0, 1, 2, 5, 6, 9, 10, 11, 12]
    assert part.site.frames == (0, 2, 4) and part.site.query_frames == (0, 1, 2, 3, 4)
    assert part.site.text == Span(7, 9) and part.site.grid == (3, 1, 2)


def test_frames_of_the_keys_in_any_order_and_more_than_once() -> None:
    site = replace(make_site("none", before=1, after=2, grid=(5, 1, 2)), frames=(7, 8, 9, 10, 11), clip_frames=20)
    part = part_of_keys(site, 13, (0, 0, 2, 3, 1), slice(3, 4))
    assert part.take(torch.arange(13), 0).tolist() == [0, 1, 2, 1, 2, 5, 6, 7, 8, 3, 4, 11, 12]
    assert part.site.frames == (7, 7, 9, 10, 8) and part.site.query_frames == (10,)
    assert part.site.key_video == Span(1, 11) and part.site.text == Span(11, 13)


def test_keys_that_lie_together_are_not_copied() -> None:
    keys = torch.randn(1, 2, 13, 4)
    for before, after, frames in ((0, 3, range(5)), (3, 0, range(5)), (1, 2, range(5))):
        part = part_of_keys(make_site("none", before=before, after=after, grid=(5, 1, 2)), 13, frames)
        assert part.take(keys, 2).data_ptr() == keys.data_ptr()
    alone = part_of_keys(make_site("none", grid=(5, 1, 2)), 10, (1, 2))
    assert alone.take(keys[:, :, :10], 2).data_ptr() == keys[:, :, 2:].data_ptr()
