"""The share of the words' attention inside a mask, and its energy: by hand, and as a patch that changes nothing."""

from __future__ import annotations

import math

import pytest
import torch

from mask_guided_video.attention_patches.attention_energy import AttentionShare, mass_share, word_mass
from mask_guided_video.attention_patches.errors import GuideError
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.torch_attention import torch_attention
from mask_guided_video.attention_patches.patch import Run
from mask_guided_video.attention_patches.site import AttentionSite, BatchRows, Span
from mask_guided_video.attention_patches.stack import PatchStack

SPANS = TextSpans(("ball",), ((1,),), 3)


def site(rows: BatchRows, grid=(2, 1, 2), kind="cross", **values) -> AttentionSite:
    tokens = grid[1] * grid[2] * (1 if rows.folded == "frames" else grid[0])
    given = {"kind": kind, "block": "mid.0", "index": 0, "total": 1, "level": 0, "grid": grid}
    given |= {"frames": tuple(range(grid[0])), "clip_frames": grid[0], "video": Span(0, tokens), "text": None}
    given |= {"rows": rows, "progress": 0.0, "sigma": 1.0}
    return AttentionSite(**(given | values))


def measured(patch, where, q, k, bias=None):
    heads = q.shape[1]
    stack = PatchStack([patch])
    options = {"attention_site": where}
    flat = [tensor.transpose(1, 2).flatten(2) for tensor in (q, k, k)]
    with patch.recording(maps=True) as record:
        out = stack.override(torch_attention, *flat, heads, mask=bias, transformer_options=options)
    return record, out, torch_attention(*flat, heads, mask=bias)


def one_dimension(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of one head whose logits are those given, [rows, Lq, Lk]."""
    keys = torch.eye(logits.shape[2]).expand(logits.shape[0], 1, -1, -1)
    return logits[:, None] * math.sqrt(logits.shape[2]), keys.contiguous()


class TestFormula:
    def test_mass_is_the_softmax_of_the_words(self):
        logits = torch.tensor([[[0.0, math.log(2.0), 0.0], [0.0, 0.0, 0.0]]])
        mass = word_mass(*one_dimension(logits), [(1,), (0, 2)])
        assert torch.allclose(mass, torch.tensor([[[[0.5, 0.5], [1 / 3, 2 / 3]]]]))

    def test_share_is_mass_inside_over_mass(self):
        mass = torch.tensor([[[[[3.0, 1.0], [0.0, 0.0]]]]])
        inside = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        assert mass_share(mass, inside).tolist() == [[[[0.75, 0.0]]]]

    def test_energy_and_its_gradient_by_hand(self):
        # Two cells, the left one is the mask; the word's mass is 1/2 there and 1/3 on the right: the share is 3/5.
        logits = torch.tensor([[[0.0, math.log(2.0), 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
        patch = AttentionShare(torch.tensor([[[[1.0, 0.0]]]]), SPANS)
        record, _, _ = measured(patch, site(BatchRows(), grid=(1, 1, 2)), *one_dimension(logits))
        energy = record.energy()
        assert energy.tolist() == pytest.approx([(1 - 0.6) ** 2])
        (slope,) = torch.autograd.grad(energy.sum(), logits)
        # dE/da = -2 (1 - s) * b / (a + b)^2 for the mass a inside; da/dlogit = a (1 - a).
        inner = -2 * 0.4 * (1 / 3) / (5 / 6) ** 2
        outer = -2 * 0.4 * -(1 / 2) / (5 / 6) ** 2
        assert slope[0, 0, 1].item() == pytest.approx(inner * 0.5 * 0.5, rel=1e-4)
        assert slope[0, 1, 1].item() == pytest.approx(outer * (1 / 3) * (2 / 3), rel=1e-4)


@pytest.mark.parametrize("folded", ["none", "frames", "positions"])
def test_the_way_frames_are_folded_does_not_matter(folded):
    generator = torch.Generator().manual_seed(0)
    samples, heads, frames, cells = 2, 3, 2, 6
    logits = torch.randn(samples, heads, frames, cells, 4, generator=generator)
    keys = torch.randn(samples, heads, 3, 4, generator=generator)
    masks = (torch.rand(1, frames, 2, 3, generator=generator) > 0.5).float()
    masks[:, :, 0, 0] = 1.0
    patch = AttentionShare(masks, SPANS)
    if folded == "none":
        q, k, rows = logits.flatten(2, 3), keys, BatchRows(samples=samples)
    elif folded == "frames":
        q = logits.transpose(1, 2).flatten(0, 1)
        k, rows = keys.repeat_interleave(frames, 0), BatchRows(samples=samples, folded=folded, folded_size=frames)
    else:
        q = logits.permute(0, 3, 1, 2, 4).flatten(0, 1)
        k, rows = keys.repeat_interleave(cells, 0), BatchRows(samples=samples, folded=folded, folded_size=cells)
    tokens = {"none": frames * cells, "frames": cells, "positions": frames}[folded]
    where = site(rows, grid=(frames, 2, 3), video=Span(0, tokens))
    record, _, _ = measured(patch, where, q, k)
    expected = torch.zeros(samples, heads, frames)
    for sample in range(samples):
        for head in range(heads):
            for frame in range(frames):
                mass = (logits[sample, head, frame] @ keys[sample, head].T / 2.0).softmax(-1)[:, 1]
                expected[sample, head, frame] = mass[masks[0, frame].flatten() > 0].sum() / mass.sum()
    assert torch.allclose(record.shares[0], expected, atol=1e-6)


def test_only_conditional_rows_count_and_calls_go_on_unchanged():
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(4, 1, 4, 8, generator=generator), torch.randn(4, 1, 3, 8, generator=generator)
    patch = AttentionShare(torch.tensor([[[[1.0, 0.0]]]]), SPANS)
    both = site(BatchRows((0, 1), samples=2))
    record, out, plain = measured(patch, both, q, k)
    assert torch.equal(out, plain)
    changed = q.clone()
    changed[2:] += 1.0
    again, _, _ = measured(patch, both, changed, k)
    assert torch.equal(record.shares[0], again.shares[0])
    assert record.shares[0].shape == (2, 1, 2)


def test_nothing_is_measured_without_recording():
    patch = AttentionShare(torch.ones(1, 1, 2, 2), SPANS)
    assert not patch.acts_at(site(BatchRows()))
    with patch.recording() as record:
        assert patch.acts_at(site(BatchRows()))
        assert not patch.acts_at(site(BatchRows(), kind="self"))
        with pytest.raises(GuideError, match="no attention call"):
            record.energy()


def test_joint_calls_count_the_mass_among_the_text():
    generator = torch.Generator().manual_seed(2)
    tensor = torch.randn(1, 2, 7, 8, generator=generator)
    patch = AttentionShare(torch.tensor([[[[1.0, 0.0]]]]), SPANS)
    where = site(BatchRows(), kind="joint", video=Span(3, 7), text=Span(0, 3))
    record, _, _ = measured(patch, where, tensor, tensor)
    mass = word_mass(tensor[:, :, 3:], tensor[:, :, :3], [(1,)])[..., 0].unflatten(-1, (2, 2))
    assert torch.allclose(record.shares[0], mass[..., 0] / mass.sum(-1))


def test_padding_that_the_model_does_not_read_has_no_mass():
    q, k = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 3, 8)
    k[..., 2, :] = 50.0
    bias = torch.zeros(1, 1, 1, 3)
    bias[..., 2] = float("-inf")
    record, _, _ = measured(AttentionShare(torch.tensor([[[[1.0, 0.0]]]]), SPANS), site(BatchRows()), q, k, bias)
    assert torch.allclose(record.maps[0], torch.full_like(record.maps[0], 0.5))


def test_masks_of_odd_sizes_and_frames_without_the_object():
    masks = torch.zeros(1, 2, 7, 5)
    masks[0, 1, :, :2] = 1.0
    q, k = torch.zeros(1, 1, 12, 8), torch.zeros(1, 1, 3, 8)
    where = site(BatchRows(), grid=(2, 3, 2), video=Span(0, 12))
    record, _, _ = measured(AttentionShare(masks, SPANS), where, q, k)
    # Even attention: the share is the mask's part of the picture, of the one frame that holds it.
    assert record.shares[0].shape == (1, 1, 1)
    assert record.share().item() == pytest.approx(2 / 5, abs=1e-6)


def test_empty_masks_measure_nothing():
    patch = AttentionShare(torch.zeros(1, 2, 4, 4), SPANS)
    record, out, plain = measured(patch, site(BatchRows()), torch.ones(1, 1, 4, 8), torch.ones(1, 1, 3, 8))
    assert not patch.has_objects
    assert record.shares == []
    assert torch.equal(out, plain)


def test_objects_without_words_are_left_out():
    masks = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    spans = TextSpans(("ball", ""), ((1,), ()), 3)
    q, k = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 3, 8)
    record, _, _ = measured(AttentionShare(masks, spans), site(BatchRows()), q, k)
    assert record.shares[0].shape == (1, 1, 2)
    assert record.share().item() == pytest.approx(0.5)
    # Only the object without words is there.
    assert not AttentionShare(masks * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), spans).has_objects


def test_masks_that_do_not_fit_the_clip_are_refused_before_the_first_step():
    with pytest.raises(GuideError, match="3 .*frames|frames.* 3"):
        AttentionShare(torch.ones(1, 3, 4, 4), SPANS).check_run(Run(8, 4, 4))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(GuideError, match="1 phrases and 2 masks"):
        AttentionShare(torch.ones(2, 1, 2, 2), SPANS)
    with pytest.raises(GuideError, match="no object has words"):
        AttentionShare(torch.ones(1, 1, 2, 2), TextSpans(("",), ((),)))
