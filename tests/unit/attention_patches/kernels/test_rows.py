"""Row sets and the pieces that work is cut into."""

from __future__ import annotations

import torch

from mask_guided_video.attention_patches.kernels.rows import (
    COPY_BYTES_CPU,
    COPY_SHARE,
    RowSet,
    bias_part,
    copy_budget,
    empty_result,
    pieces,
    query_blocks,
)


def test_evenly_spaced_rows_are_views() -> None:
    batch = torch.arange(20)
    for rows in ([3], [0, 1, 2, 3], [1, 4, 7, 10], [2, 7, 12]):
        row_set = RowSet.of(rows)
        assert row_set.step > 0 and len(row_set) == len(rows)
        assert batch[row_set.part(0, len(rows))].tolist() == rows
        assert batch[row_set.part(len(rows) // 2, len(rows))].tolist() == rows[len(rows) // 2 :]
    for rows in ([0, 1, 3], [4, 2, 0], [1, 1, 1]):
        row_set = RowSet.of(rows)
        assert row_set.step == 0
        assert batch[row_set.part(1, 3)].tolist() == rows[1:3]


def test_pieces_cover_all_rows_and_heads_once_within_the_budget() -> None:
    for batch, heads, length, dim in ((3, 4, 2000, 40), (16, 8, 512, 40), (1, 2, 10, 8), (200, 8, 16, 40)):
        q = torch.empty(batch, heads, length, dim)
        done = torch.zeros(batch, heads)
        copied = 4 * length * (dim + 8)
        for begin, end, of_heads in pieces(q, q, batch, copied):
            done[begin:end, of_heads] += 1
            taken = (end - begin) * (of_heads.stop - of_heads.start)
            assert taken == 1 or taken * copied <= copy_budget(q, q)
        assert bool((done == 1).all())


def test_budget_is_a_share_of_large_tensors() -> None:
    large, small = torch.empty(64, 8, 1024, 40), torch.empty(1, 1, 8, 8)
    assert copy_budget(large, large) == COPY_SHARE * 4 * large.numel()
    assert copy_budget(small, small) == COPY_BYTES_CPU / 4


def test_query_blocks_cover_the_queries() -> None:
    q = torch.empty(1, 1, 50000, 40)
    blocks = list(query_blocks(q, q, 96, 2 * 50000 * 48))
    assert len(blocks) > 1 and blocks[0].start == 0 and blocks[-1].stop == 50000
    assert all(first.stop == second.start for first, second in zip(blocks, blocks[1:], strict=False))
    sizes = [block.stop - block.start for block in blocks]
    assert max(sizes) - min(sizes) < len(blocks)
    short = torch.empty(1, 1, 100, 40)
    assert list(query_blocks(short, short, 96, 2 * 100 * 48)) == [slice(0, 100)]


def test_bias_parts_follow_the_axes_that_are_there() -> None:
    assert bias_part(None, slice(0, 1)) is None
    assert bias_part(torch.zeros(1, 1, 5, 7), slice(2, 3), slice(1, 2)).shape == (1, 1, 5, 7)
    bias = torch.arange(6).reshape(3, 2, 1, 1)
    assert bias_part(bias, slice(1, 3), slice(1, 2)).flatten().tolist() == [3, 5]
    assert bias_part(bias, torch.tensor([2, 0])).flatten().tolist() == [4, 5, 0, 1]


def test_joining_heads_of_the_result_costs_no_copy() -> None:
    out = empty_result(torch.empty(2, 3, 5, 8), torch.empty(2, 3, 7, 4))
    assert out.shape == (2, 3, 5, 4)
    assert out.transpose(1, 2).flatten(2).data_ptr() == out.data_ptr()
