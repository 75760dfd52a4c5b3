"""The U-Net against literal values and against the published file's table of tensors."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.attention_patches.frame_keys import key_places
from mask_guided_video.attention_patches.kernels.torch_attention import OVERRIDE_KEY, attention
from mask_guided_video.attention_patches.site import SITE_KEY, Span
from mask_guided_video.video_models.lavie import layers as lavie_layers
from mask_guided_video.video_models.lavie.blocks import joint_group_norm
from mask_guided_video.video_models.lavie.config import LaVieConfig
from mask_guided_video.video_models.lavie.layers import (
    RelativePositionBias,
    RotaryEmbedding,
    SelfAttention,
    TemporalAttention,
)
from mask_guided_video.video_models.lavie.unet import LaVieUNet

INTERPOLATION = LaVieConfig(
    stage="interpolation",
    in_channels=8,
    block_out_channels=(16, 32),
    attention_levels=(True, False),
    layers_per_block=1,
    num_heads=2,
    cross_attention_dim=12,
    norm_num_groups=4,
    native_frames=61,
)
TINY = LaVieConfig(
    block_out_channels=(16, 32),
    attention_levels=(True, False),
    layers_per_block=1,
    num_heads=2,
    cross_attention_dim=12,
    norm_num_groups=4,
    native_frames=4,
)


def expected_tensors() -> dict[str, tuple[int, ...]]:
    """Names and shapes of ``lavie_base.pt``, written down from its description, not from the code under test."""
    table: dict[str, tuple[int, ...]] = {}

    def both(name: str, *shape: int) -> None:
        table[f"{name}.weight"] = shape
        table[f"{name}.bias"] = shape[:1]

    def resnet(name: str, channels: int, out: int) -> None:
        both(f"{name}.norm1", channels)
        both(f"{name}.conv1", out, channels, 3, 3)
        both(f"{name}.time_emb_proj", out, 1280)
        both(f"{name}.norm2", out)
        both(f"{name}.conv2", out, out, 3, 3)
        if channels != out:
            both(f"{name}.conv_shortcut", out, channels, 1, 1)

    def transformer(name: str, width: int) -> None:
        both(f"{name}.norm", width)
        both(f"{name}.proj_in", width, width, 1, 1)
        both(f"{name}.proj_out", width, width, 1, 1)
        block = f"{name}.transformer_blocks.0"
        for layer, source in (("attn1", width), ("attn2", 768), ("attn_temp", width)):
            table[f"{block}.{layer}.to_q.weight"] = (width, width)
            table[f"{block}.{layer}.to_k.weight"] = (width, source)
            table[f"{block}.{layer}.to_v.weight"] = (width, source)
            both(f"{block}.{layer}.to_out.0", width, width)
        table[f"{block}.attn_temp.time_rel_pos_bias.relative_attention_bias.weight"] = (32, 8)
        table[f"{block}.attn_temp.rotary_emb.freqs"] = (16,)
        for norm in ("norm1", "norm2", "norm3", "norm_temp"):
            both(f"{block}.{norm}", width)
        both(f"{block}.ff.net.0.proj", 8 * width, width)
        both(f"{block}.ff.net.2", width, 4 * width)

    both("conv_in", 320, 4, 3, 3)
    both("time_embedding.linear_1", 1280, 320)
    both("time_embedding.linear_2", 1280, 1280)
    both("conv_norm_out", 320)
    both("conv_out", 4, 320, 3, 3)
    down = [(320, 320), (640, 640), (1280, 1280), (1280, 1280)]
    entering = [320, 320, 640, 1280]
    for level, (width, _) in enumerate(down):
        resnet(f"down_blocks.{level}.resnets.0", entering[level], width)
        resnet(f"down_blocks.{level}.resnets.1", width, width)
        if level < 3:
            transformer(f"down_blocks.{level}.attentions.0", width)
            transformer(f"down_blocks.{level}.attentions.1", width)
            both(f"down_blocks.{level}.downsamplers.0.conv", width, width, 3, 3)
    resnet("mid_block.resnets.0", 1280, 1280)
    resnet("mid_block.resnets.1", 1280, 1280)
    transformer("mid_block.attentions.0", 1280)
    up = [(1280, (2560, 2560, 2560)), (1280, (2560, 2560, 1920)), (640, (1920, 1280, 960)), (320, (960, 640, 640))]
    for number, (width, channels) in enumerate(up):
        for layer in range(3):
            resnet(f"up_blocks.{number}.resnets.{layer}", channels[layer], width)
            if number > 0:
                transformer(f"up_blocks.{number}.attentions.{layer}", width)
        if number < 3:
            both(f"up_blocks.{number}.upsamplers.0.conv", width, width, 3, 3)
    return table


def test_the_full_model_has_exactly_the_published_tensors() -> None:
    with torch.device("meta"):
        state = LaVieUNet().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == expected_tensors()
    assert len(shapes) == 830
    assert sum(value.numel() for value in state.values()) == 909_124_356


def test_the_interpolation_model_has_the_same_without_positions_and_with_twice_the_input() -> None:
    table = {
        name: shape for name, shape in expected_tensors().items() if "rel_pos" not in name and "rotary" not in name
    }
    table["conv_in.weight"] = (320, 8, 3, 3)
    with torch.device("meta"):
        state = LaVieUNet(LaVieConfig(stage="interpolation", in_channels=8)).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == table
    assert len(table) == 798
    assert sum(value.numel() for value in state.values()) == 909_131_524


def test_relative_position_buckets() -> None:
    bias = RelativePositionBias(32, 32, 8, torch.nn)
    past = bias.bucket(-torch.arange(34)).tolist()
    assert past[:28] == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        8,
        9,
        9,
        10,
        10,
        11,
        11,
        12,
        12,
        12,
        12,
        13,
        13,
        13,
        14,
        14,
        14,
        14,
        15,
    ]
    assert past[28:] == [15] * 6
    future = bias.bucket(torch.arange(1, 34)).tolist()
    assert future == [16 + bucket for bucket in past[1:]]


def test_rotary_rotates_pairs_of_the_first_channels_only() -> None:
    rotary = RotaryEmbedding(32)
    torch.testing.assert_close(
        rotary.freqs[:5], torch.tensor([1, 0.562341, 0.316228, 0.177828, 0.1]), atol=1e-6, rtol=0
    )
    head = torch.zeros(3, 40)
    head[:, 0:32:2] = 1.0
    head[:, 32:] = 7.0
    turned = rotary(head)
    expected = torch.tensor([-0.416147, 0.909297, 0.431463, 0.902131])
    torch.testing.assert_close(turned[2, :4], expected, atol=1e-5, rtol=0)
    assert torch.equal(turned[:, 32:], head[:, 32:])


@pytest.mark.parametrize(
    ("with_bias", "expected"),
    [
        (False, [2.162527, 2.300589, 2.978216, 3.727888]),
        (True, [2.643998, 2.918139, 3.530603, 3.685250]),
    ],
)
def test_temporal_attention_literal(with_bias: bool, expected: list[float]) -> None:
    config = LaVieConfig(block_out_channels=(32,), attention_levels=(True,), num_heads=1)
    layer = TemporalAttention(32, config, torch.nn, attention)
    with torch.no_grad():
        for linear in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]):
            linear.weight.copy_(torch.eye(32))
        layer.to_out[0].bias.zero_()
        table = layer.time_rel_pos_bias.relative_attention_bias.weight
        table.copy_(0.1 * torch.arange(32.0)[:, None] if with_bias else torch.zeros(32, 1))
    hidden = torch.zeros(1, 4, 32)
    hidden[0, :, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        out = layer(hidden, {})
    torch.testing.assert_close(out[0, :, 0], torch.tensor(expected), atol=2e-6, rtol=0)


def test_group_norm_statistics_span_the_frames() -> None:
    norm = torch.nn.GroupNorm(1, 1, eps=1e-5)
    hidden = torch.tensor([[0.0, 2.0], [4.0, 6.0]]).view(2, 1, 1, 2)
    joint = joint_group_norm(norm, hidden, 2).flatten()
    torch.testing.assert_close(joint, torch.tensor([-1.341639, -0.447213, 0.447213, 1.341639]), atol=1e-5, rtol=0)
    apart = joint_group_norm(norm, hidden, 1).flatten()
    torch.testing.assert_close(apart, torch.tensor([-0.999995, 0.999995] * 2), atol=1e-5, rtol=0)


def test_sites_describe_every_call() -> None:
    unet = LaVieUNet(TINY)
    seen = []

    def record(func, q, k, v, heads, mask=None, **kwargs):
        seen.append((kwargs["transformer_options"][SITE_KEY], q.shape, k.shape))
        return func(q, k, v, heads, mask=mask, **kwargs)

    frames, height, width = 3, 5, 7
    options = {OVERRIDE_KEY: record, "cond_or_uncond": [1, 0], "sigmas": torch.tensor([2.5])}
    with torch.no_grad():
        unet(torch.randn(4, 4, frames, height, width), torch.full((4,), 499.5), torch.randn(4, 6, 12), options)
    assert [site.block for site, _, _ in seen[::3]] == ["down.0.0", "mid.0", "up.1.0", "up.1.1"]
    for number, (site, query, key) in enumerate(seen):
        assert site.kind == ("self", "cross", "temporal")[number % 3]
        assert (site.index, site.total) == (number // 3, 4)
        assert site.rows.chunks == (1, 0) and site.rows.samples == 2
        assert site.rows.total == query[0]
        assert site.progress == pytest.approx(0.5) and site.sigma == 2.5
        assert site.frames == (0, 1, 2) and site.clip_frames == 3
        assert site.level == (1 if site.block == "mid.0" else 0)
        assert site.grid == ((3, 3, 4) if site.level else (3, 5, 7))
        length = query[2] if site.kind == "temporal" else query[1]
        assert length == (frames if site.kind == "temporal" else site.grid[1] * site.grid[2])
        assert site.text == (Span(0, 6) if site.kind == "cross" else None)
        assert key[0] == query[0]


def test_frames_of_the_interpolation_model_see_the_first_one_and_the_one_before() -> None:
    layer = SelfAttention(8, 8, 2, torch.nn, attention)
    hidden = torch.randn(2 * 4, 3, 8)
    with torch.no_grad():
        out = layer(hidden, key_places("first_prev", range(4)), {}).unflatten(0, (2, 4))
        clips = hidden.unflatten(0, (2, 4))
        for frame, before in enumerate((0, 0, 1, 2)):
            seen = torch.cat([clips[:, 0], clips[:, before]], dim=1)
            expected = layer.to_out[0](attention(layer.to_q(clips[:, frame]), layer.to_k(seen), layer.to_v(seen), 2))
            torch.testing.assert_close(out[:, frame], expected, atol=1e-6, rtol=0)


def test_sites_of_the_interpolation_model_name_the_frames_that_are_looked_at() -> None:
    unet = LaVieUNet(INTERPOLATION)
    seen = []

    def record(func, q, k, v, heads, mask=None, **kwargs):
        seen.append((kwargs["transformer_options"][SITE_KEY], q.shape, k.shape))
        return func(q, k, v, heads, mask=mask, **kwargs)

    options = {OVERRIDE_KEY: record, "cond_or_uncond": [0], "sigmas": torch.tensor([2.5]), SITE_KEY: "of another call"}
    with torch.no_grad():
        out = unet(torch.randn(1, 8, 5, 4, 6), torch.tensor([10]), torch.randn(1, 6, 12), options)
    assert out.shape == (1, 4, 5, 4, 6)
    assert [site.kind for site, _, _ in seen] == ["self", "cross", "temporal"] * 4
    assert [site.block for site, _, _ in seen[::3]] == ["down.0.0", "mid.0", "up.1.0", "up.1.1"]
    for site, query, key in seen[::3]:
        assert site.key_frames == ((0, 0), (0, 0), (0, 1), (0, 2), (0, 3))
        assert site.video == Span(0, query[1]) and site.key_video == Span(0, key[1]) and key[1] == 2 * query[1]
    assert {site.key_frames for site, _, _ in seen if site.kind != "self"} == {None}


def temporal_layer(positions: bool) -> TemporalAttention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TemporalAttention(16, TINY, torch.nn, attention, positions=positions)


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("cells", [1, 3, 7, 20])
def test_cells_in_turns_give_what_all_at_once_give(monkeypatch, positions: bool, cells: int) -> None:
    layer = temporal_layer(positions)
    hidden = torch.randn(20, 6, 16)
    turns = []
    plain = layer._project
    with torch.no_grad():
        expected = layer(hidden, {})
        of_one = lavie_layers.TEMPORAL_BYTES // layer._cells_at_a_time(hidden)
        monkeypatch.setattr(lavie_layers, "TEMPORAL_BYTES", of_one * cells)
        monkeypatch.setattr(layer, "_project", lambda part: turns.append(len(part)) or plain(part))
        out = layer(hidden, {})
    assert turns == [cells] * (20 // cells) + [20 % cells] * (20 % cells > 0)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("positions", [True, False])
def test_an_override_gets_all_cells_in_one_call(monkeypatch, positions: bool) -> None:
    layer, rows = temporal_layer(positions), []

    def record(func, q, k, v, heads, mask=None, **kwargs):
        rows.append(q.shape[0])
        return func(q, k, v, heads, mask=mask, **kwargs)

    hidden = torch.randn(20, 6, 16)
    with torch.no_grad():
        expected = layer(hidden, {})
        of_one = lavie_layers.TEMPORAL_BYTES // layer._cells_at_a_time(hidden)
        monkeypatch.setattr(lavie_layers, "TEMPORAL_BYTES", of_one * 7)
        out = layer(hidden, {OVERRIDE_KEY: record})
    assert rows == [20]
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def test_a_cell_that_takes_more_than_all_memory_is_taken_alone(monkeypatch) -> None:
    monkeypatch.setattr(lavie_layers, "TEMPORAL_BYTES", 1)
    layer = temporal_layer(False)
    assert layer._cells_at_a_time(torch.randn(2, 6, 16)) == 1
    with torch.no_grad():
        assert layer(torch.randn(0, 6, 16), {}).shape == (0, 6, 16)


@pytest.mark.parametrize("shape", [(1, 8, 1, 4, 4), (2, 8, 3, 5, 7), (1, 8, 61, 2, 3)])
def test_any_size_is_interpolated(shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        out = LaVieUNet(INTERPOLATION)(torch.randn(shape), torch.full((shape[0],), 10.0), torch.randn(shape[0], 6, 12))
    assert out.shape == (shape[0], 4, *shape[2:]) and bool(out.isfinite().all())


@pytest.mark.parametrize("shape", [(1, 4, 1, 4, 4), (2, 4, 3, 5, 7), (1, 4, 9, 2, 3)])
def test_any_size_comes_back_as_it_went_in(shape: tuple[int, ...]) -> None:
    unet = LaVieUNet(TINY)
    with torch.no_grad():
        out = unet(torch.randn(shape), torch.full((shape[0],), 10.0), torch.randn(shape[0], 6, 12))
    assert out.shape == shape and bool(out.isfinite().all())


@pytest.mark.parametrize(
    ("config", "shape", "wanted"),
    [
        (TINY, (1, 4, 8, 8), r"\(1, 4, 8, 8\); this model wants \[B, 4, T, H, W\]\."),
        (TINY, (1, 8, 2, 8, 8), r"wants \[B, 4, T, H, W\]\."),
        (TINY, (1, 4, 0, 8, 8), r"\(1, 4, 0, 8, 8\)"),
        (INTERPOLATION, (1, 4, 2, 8, 8), r"wants \[B, 8, T, H, W\]: noisy latents and, after them, those of the given"),
    ],
)
def test_wrong_shapes_are_named(config: LaVieConfig, shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        LaVieUNet(config)(torch.randn(shape), torch.zeros(1), torch.randn(1, 6, 12))


def test_config_refuses_what_cannot_work(tmp_path) -> None:
    with pytest.raises(ValueError, match="heads"):
        LaVieConfig(block_out_channels=(30,), attention_levels=(True,))
    with pytest.raises(ValueError, match="unknown keys sizes"):
        LaVieConfig.from_dict({"sizes": 3})
    TINY.save(tmp_path / "config.json")
    assert LaVieConfig.load(tmp_path / "config.json") == TINY
