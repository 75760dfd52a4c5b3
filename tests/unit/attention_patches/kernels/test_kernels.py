"""Each kernel against the explicit dense-bias reference."""

from __future__ import annotations

import pytest
import torch
from region_kernels import partition_attention, region_attention
from torch import Tensor

from mask_guided_video.attention_patches.kernels.channels import region_channels
from mask_guided_video.attention_patches.kernels.explicit import explicit_attention
from mask_guided_video.attention_patches.kernels.partition import partition_sides
from mask_guided_video.attention_patches.kernels.plain import plain_attention

TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)


def tensors(
    batch: int, heads: int, queries: int, keys: int, dim: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + queries + dim)
    shapes = [(batch, length, heads, dim) for length in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]


def memberships(batch: int, length: int, regions: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, length, regions, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def test_explicit_attention_literal() -> None:
    q = torch.tensor([[[[2.0], [0.0]]]])
    k = torch.tensor([[[[0.0], [1.0]]]])
    v = torch.tensor([[[[1.0], [3.0]]]])
    out = explicit_attention(q, k, v)
    # Row 0: weights 1 / (1 + e^2) and e^2 / (1 + e^2); row 1: equal weights.
    torch.testing.assert_close(out.flatten(), torch.tensor([2.7615942, 2.0]))
    bias = torch.tensor([[[[0.0, -2.0]]]])
    torch.testing.assert_close(explicit_attention(q, k, v, bias).flatten(), torch.tensor([2.0, 1.2384058]))


def test_explicit_attention_log_mask_weights() -> None:
    # Equal logits, m = 1, .5, .25, 0: the weights follow the mask, its floor and nothing else.
    q, k, v = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 4, 4), torch.eye(4)[None, None]
    bias = torch.tensor([1.0, 0.5, 0.25, 1e-4]).log()[None, None, None]
    expected = torch.tensor([0.571396, 0.285698, 0.142849, 0.000057])
    torch.testing.assert_close(explicit_attention(q, k, v, bias).flatten(), expected, atol=1e-6, rtol=0)
    regions = region_attention(q, k, v, torch.ones(1, 1, 1), bias.reshape(1, 4, 1))
    torch.testing.assert_close(regions.flatten(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_elements", [1, 50, 300, 2**24])
def test_explicit_attention_chunks_agree(max_elements: int) -> None:
    q, k, v = tensors(2, 3, 10, 7, 8)
    bias = torch.randn(2, 3, 10, 7, generator=torch.Generator().manual_seed(1))
    asked = []

    def part(heads: slice, queries: slice) -> Tensor:
        asked.append((heads, queries))
        return bias[:, heads, queries]

    expected = plain_attention(q, k, v, bias)
    torch.testing.assert_close(explicit_attention(q, k, v, bias, max_elements=max_elements), expected)
    torch.testing.assert_close(explicit_attention(q, k, v, part, max_elements=max_elements), expected)
    assert max((h.stop - h.start) * (s.stop - s.start) for h, s in asked) * 14 <= max(max_elements, 14)


def test_explicit_attention_closed_row_keeps_normal_attention() -> None:
    q, k, v = tensors(1, 2, 4, 5, 8)
    bias = torch.zeros(1, 1, 4, 5)
    bias[:, :, 2] = -torch.inf
    bias[:, :, 1, 0] = -torch.inf
    out, plain = explicit_attention(q, k, v, bias), explicit_attention(q, k, v)
    assert torch.equal(out[:, :, 2], plain[:, :, 2])
    assert not torch.allclose(out[:, :, 1], plain[:, :, 1])


def test_explicit_attention_edits_probabilities() -> None:
    q, k, v = tensors(1, 2, 4, 5, 8)

    def first_key_only(probabilities: Tensor, heads: slice, queries: slice) -> Tensor:
        return torch.eye(5)[0].expand_as(probabilities)

    out = explicit_attention(q, k, v, edit=first_key_only, max_elements=12)
    torch.testing.assert_close(out, v[:, :, :1].expand(-1, -1, 4, -1))


# Every number of regions at every size of heads, with and without channels that are left over; types take turns.
@pytest.mark.parametrize(
    ("regions", "dim", "dtype"),
    [
        (regions, dim, DTYPES[(number + other) % len(DTYPES)])
        for number, regions in enumerate((1, 2, 5, 9))
        for other, dim in enumerate((8, 20, 40, 64))
    ],
)
def test_region_channels_equal_dense_bias(dtype: torch.dtype, dim: int, regions: int) -> None:
    q, k, v = tensors(3, 2, 17, 13, dim, dtype)
    query, key = memberships(3, 17, regions), -8.0 * memberships(3, 13, regions, seed=1)
    out = region_attention(q, k, v, query, key, strength=1.5)
    expected = explicit_attention(q, k, v, 1.5 * (query @ key.transpose(1, 2))[:, None])
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_region_channels_share_one_table_and_many_pieces() -> None:
    q, k, v = tensors(5, 4, 300, 300, 24)
    query, key = memberships(1, 300, 2), -3.0 * memberships(1, 300, 2, seed=1)
    expected = explicit_attention(q, k, v, (query @ key.transpose(1, 2))[:, None])
    torch.testing.assert_close(region_attention(q, k, v, query, key), expected, atol=2e-6, rtol=2e-6)


def test_region_channels_keep_the_given_bias() -> None:
    q, k, v = tensors(3, 2, 9, 11, 16)
    query, key = memberships(3, 9, 2), memberships(3, 11, 2, seed=1)
    for shape in ((1, 1, 1, 11), (3, 1, 9, 11), (1, 2, 9, 11), (3, 2, 9, 11)):
        bias = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        expected = explicit_attention(q, k, v, bias + 4.0 * (query @ key.transpose(1, 2))[:, None])
        torch.testing.assert_close(
            region_attention(q, k, v, query, key, 4.0, bias=bias), expected, atol=2e-6, rtol=2e-6
        )


def test_region_strength_zero_is_the_plain_call() -> None:
    q, k, v = tensors(2, 2, 9, 9, 16)
    assert torch.equal(
        region_attention(q, k, v, memberships(2, 9, 2), memberships(2, 9, 2), 0.0), plain_attention(q, k, v)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [60.0, 1e4, 1e12])
def test_region_channels_are_finite_and_leave_a_masked_row_alone(dtype: torch.dtype, strength: float) -> None:
    q, k, v = tensors(1, 2, 6, 6, 40, dtype)
    query = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]])
    # Region 1 sees no key at all; region 0 sees the first three.
    key = torch.tensor([[[0.0, -1.0]] * 3 + [[-1.0, -1.0]] * 3])
    out = region_attention(q, k, v, query, key, strength)
    plain, own = plain_attention(q, k, v), plain_attention(q[:, :, :3], k[:, :, :3], v[:, :, :3])
    assert bool(torch.isfinite(out).all())
    torch.testing.assert_close(out[:, :, 3:], plain[:, :, 3:], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(out[:, :, :3], own, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_region_channels_literal() -> None:
    queries, keys = region_channels(
        torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[3.0], [1.0]]]), 2.0, 60, torch.float32
    )
    assert queries.shape == keys.shape == (1, 2, 4)
    # 60 + 4 channels: the root is 8, a power of two; keys are shifted so that the highest is 0.
    assert queries[0].tolist() == [[8.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert keys[0].tolist() == [[0.0, 0.0, 0.0, 0.0], [-4.0, 0.0, 0.0, 0.0]]


def test_half_precision_channels_carry_their_rounding() -> None:
    logits = torch.tensor([[[0.0], [-9.2103]]])
    queries, keys = region_channels(torch.ones(1, 1, 1), logits, 1.0, 40, torch.bfloat16)
    gained = (queries.double() @ keys.double().transpose(1, 2)).flatten() / 48**0.5
    assert abs(float(gained[1]) + 9.2103) < 2e-4


def partition_bias(query_region: Tensor, key_regions: Tensor) -> Tensor:
    chosen = key_regions.transpose(1, 2).float()
    rows = [
        torch.stack([torch.ones_like(own[0]) if region < 0 else own[region] for region in regions.tolist()])
        for regions, own in zip(query_region, chosen, strict=True)
    ]
    return torch.stack(rows).log()[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_partition_equals_dense_bias_with_another_mask_in_every_row(dtype: torch.dtype) -> None:
    q, k, v = tensors(4, 3, 40, 40, 16, dtype)
    labels = torch.zeros(4, 40, dtype=torch.long)
    labels[0, :5], labels[1, 7:30], labels[2, ::3] = 1, 1, 2
    labels[1, 33:], labels[3, :11] = 2, -1
    keys = torch.nn.functional.one_hot(labels.clamp(min=0), 3).bool()
    out = partition_attention(q, k, v, labels, keys)
    expected = explicit_attention(q, k, v, partition_bias(labels, keys))
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_partition_with_one_side_empty_is_the_plain_call() -> None:
    q, k, v = tensors(2, 2, 12, 12, 16)
    for label in (0, 1):
        labels = torch.full((1, 12), label)
        out = partition_attention(q, k, v, labels, torch.nn.functional.one_hot(labels, 2).bool())
        assert torch.equal(out, plain_attention(q, k, v))


def test_partition_region_without_keys_keeps_normal_attention() -> None:
    q, k, v = tensors(1, 2, 12, 12, 16)
    labels = torch.tensor([[0] * 8 + [1] * 4])
    keys = torch.zeros(1, 12, 2, dtype=torch.bool)
    keys[:, :8, 0] = True
    out, plain = partition_attention(q, k, v, labels, keys), plain_attention(q, k, v)
    torch.testing.assert_close(out[:, :, 8:], plain[:, :, 8:])
    torch.testing.assert_close(out[:, :, :8], plain_attention(q[:, :, :8], k[:, :, :8], v[:, :, :8]))


def test_partition_keeps_the_given_bias_and_shares_keys() -> None:
    q, k, v = tensors(2, 2, 10, 14, 16)
    labels = torch.tensor([[0, 1, 0, 1, 0, 1, 1, 1, -1, -1]]).expand(2, -1)
    keys = torch.zeros(2, 14, 2, dtype=torch.bool)
    keys[:, :5, 0], keys[:, 5:10, 1], keys[:, 10:] = True, True, True
    for shape in ((1, 1, 1, 14), (2, 2, 10, 14), (1, 2, 10, 14), (1, 1, 10, 1)):
        bias = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        expected = explicit_attention(q, k, v, bias + partition_bias(labels, keys))
        torch.testing.assert_close(partition_attention(q, k, v, labels, keys, bias=bias), expected)


def test_partition_sides_literal() -> None:
    region = torch.tensor([1, 0, 1, -1])
    keys = torch.tensor([[True, False], [False, True], [False, True], [True, True]])
    free, first, second = partition_sides(region, keys)
    assert free.queries.tolist() == [3] and free.keys is None
    assert first.queries.tolist() == [1] and first.keys.tolist() == [0, 3]
    assert second.queries.tolist() == [0, 2] and second.keys.tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_rows_are_independent_to_the_bit(dtype: torch.dtype) -> None:
    # The promise that untouched rows are bit-identical rests on this property of the plain kernel.
    for length in (2, 16, 65, 300):
        q, k, v = tensors(5, 3, length, length, 24, dtype)
        full = plain_attention(q, k, v)
        for rows in ([0], [1, 3], [2, 3, 4]):
            assert torch.equal(full[rows], plain_attention(q[rows], k[rows], v[rows]))
        assert torch.equal(full[:, 1:2], plain_attention(q[:, 1:2], k[:, 1:2], v[:, 1:2]))


def test_kernels_are_differentiable() -> None:
    for kernel in ("region", "partition"):
        q, k, v = (tensor.clone().requires_grad_() for tensor in tensors(1, 2, 8, 8, 16))
        labels = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
        hot = torch.nn.functional.one_hot(labels, 2)
        if kernel == "region":
            out = region_attention(q, k, v, hot.float(), hot.float(), 4.0)
        else:
            out = partition_attention(q, k, v, labels, hot.bool())
        out.square().sum().backward()
        assert all(bool(torch.isfinite(tensor.grad).all()) and bool(tensor.grad.any()) for tensor in (q, k, v))
