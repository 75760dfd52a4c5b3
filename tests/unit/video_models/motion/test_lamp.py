"""LAMP's layers: the formula, their number, that they start as nothing, and that files fit or say why not."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_lavie_files import tiny_unet
from tiny_picture_unet import tiny_picture_unet
from torch import nn

from mask_guided_video.video_models.lavie.config import LaVieConfig
from mask_guided_video.video_models.lavie.files import infer_config, make_unet, unet_state
from mask_guided_video.video_models.motion.lamp import (
    PREFIX,
    GatedTimeConvolution,
    changed_parameters,
    check_tensors,
    convolution_places,
    expected_shapes,
    fill_layers,
    new_layers,
    start_layers,
    with_lamp,
    with_layers,
)


def picture_model(seed=0):
    state = unet_state(tiny_picture_unet(seed).state_dict())
    unet = make_unet(infer_config(state)).eval().requires_grad_(False)
    unet.load_state_dict(state)
    return unet


def random_tensors(unet, seed=1, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in expected_shapes(unet).items()}


def latents(unet, frames=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, 4, unet.config.cross_attention_dim, generator=generator)
    return torch.randn(1, unet.config.in_channels, frames, 6, 4, generator=generator), torch.tensor([500.0]), text


def predict(unet, frames=3):
    with torch.no_grad():
        return unet(*latents(unet, frames))


def untrained(unet, seed=5):
    layers = new_layers(unet)
    start_layers(layers, torch.Generator().manual_seed(seed))
    return with_layers(unet, layers)


def test_the_gated_convolution_by_hand():
    """One channel, four frames of one cell: y + sigmoid(2 y - 1) * (3 y_{t-2} + 5 y_{t-1} + 7 y_t + 11), no frame
    before the first.
    """
    layer = GatedTimeConvolution(1)
    with torch.no_grad():
        layer.conv1d.weight.copy_(torch.tensor([[[3.0, 5.0, 7.0]]]))
        layer.conv1d.bias.fill_(11.0)
        layer.conv_gate.weight.zero_()
        layer.conv_gate.weight[0, 0, 1, 1] = 2.0
        layer.conv_gate.bias.fill_(-1.0)
        found = layer(torch.tensor([1.0, 2.0, -1.0, 0.5]).view(4, 1, 1, 1), frames=4).flatten()

    def gate(value):
        return 1 / (1 + math.exp(-(2 * value - 1)))

    sums = [7 + 11, 5 + 14 + 11, 3 + 10 - 7 + 11, 6 - 5 + 3.5 + 11]
    expected = [y + gate(y) * total for y, total in zip((1.0, 2.0, -1.0, 0.5), sums, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_clips_of_a_batch_and_cells_stay_apart():
    layer = GatedTimeConvolution(2)
    nn.init.normal_(layer.conv1d.weight, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(2 * 3, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer.conv_gate.weight.zero_()
        both = layer(hidden, frames=3)
        assert torch.allclose(both[3:], layer(hidden[3:], frames=3))
        # A later frame, and another cell, change nothing.
        hidden[2, :, 1, 1] += 1
        changed = (layer(hidden, frames=3) - both).abs().amax(dim=1) > 0
    expected = torch.zeros(6, 4, 5, dtype=torch.bool)
    expected[2, 1, 1] = True
    assert torch.equal(changed, expected)


def test_the_gate_is_half_open_at_the_start():
    layer = GatedTimeConvolution(3)
    layer.reset()
    hidden = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(hidden, frames=4), hidden)
    assert torch.equal(torch.sigmoid(layer.conv_gate(hidden)), torch.full((4, 1, 2, 2), 0.5))


def test_how_many_stable_diffusion_1_has():
    """66 convolutions; 191.4 M numbers in those over time, 0.53 M in gates, 12.4 M in queries, 49.6 M over time."""
    unet = make_unet(LaVieConfig(picture_model=True), device="meta")
    assert len(list(convolution_places(unet))) == 66
    shapes = expected_shapes(unet)
    counts = dict.fromkeys(("conv1d", "conv_gate", "to_q", "attn_temp"), 0)
    for name, shape in shapes.items():
        kind = next(kind for kind in ("conv1d", "conv_gate", "attn_temp", "to_q") if f".{kind}." in name)
        counts[kind] += shape.numel()
    assert round(counts["conv1d"] / 1e6, 1) == 191.4
    assert round(counts["conv_gate"] / 1e6, 2) == 0.53
    assert round(counts["to_q"] / 1e6, 1) == 12.4
    assert round(counts["attn_temp"] / 1e6, 1) == 49.6
    assert round(sum(counts.values()) / 1e6) == 254
    # The projections around transformers have none.
    assert not any("proj_" in name for name in shapes)
    assert sum(name.endswith(".diff") for name in shapes) == 16


def test_untrained_one_frame_is_the_base_models_picture():
    from diffusers import UNet2DConditionModel

    base: UNet2DConditionModel = tiny_picture_unet()
    unet = untrained(picture_model())
    for name, parameter in unet.named_parameters():
        if name.endswith("attn_temp.to_out.0.bias"):
            assert bool(parameter.any())
            nn.init.zeros_(parameter)
    clip, time, text = latents(unet, frames=1)
    with torch.no_grad():
        expected = base(clip[:, :, 0], time, text).sample
        torch.testing.assert_close(unet(clip, time, text)[:, :, 0], expected, rtol=1e-4, atol=1e-5)
        longer, _, _ = latents(unet, frames=3)
        one_by_one = torch.stack([base(longer[:, :, n], time, text).sample for n in range(3)], dim=2)
        assert (unet(longer, time, text) - one_by_one).abs().max() > 0.01


def test_the_small_offset_at_the_start_is_the_outputs_bias():
    unet = picture_model()
    assert not torch.equal(predict(untrained(unet)), predict(unet))
    assert torch.equal(predict(untrained(unet)), predict(untrained(unet)))


@pytest.mark.parametrize("stage", ["base", "picture"])
def test_a_file_changes_a_copy_alone(stage):
    unet = picture_model() if stage == "picture" else tiny_unet(stage)
    before, state = predict(unet), {name: value.clone() for name, value in unet.state_dict().items()}
    tensors = random_tensors(unet)
    tuned = with_lamp(unet, tensors)
    after = predict(tuned)
    assert (after - before).abs().max() > 0.05 and after.isfinite().all()
    assert torch.equal(predict(unet), before)
    assert unet.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())
    # What is not tuned is in memory once.
    assert tuned.conv_in.weight is unet.conv_in.weight
    name, written = next(iter(changed_parameters(unet).items()))
    torch.testing.assert_close(tuned.get_parameter(name), state[name] + tensors[written])
    assert torch.equal(predict(with_lamp(unet, tensors, strength=0.0)), before)
    half = predict(with_lamp(unet, tensors, strength=0.5))
    assert 0 < (half - before).abs().mean() < (after - before).abs().mean()
    with pytest.raises(ValueError, match="has LAMP's layers already"):
        with_layers(tuned, new_layers(unet))


def test_attention_over_time_comes_last_and_knows_no_positions():
    """After the feed-forward; its norm stays as made."""
    unet = with_lamp(picture_model(), random_tensors(picture_model()))
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    assert block.attn_temp.rotary_emb is None and block.attn_temp.time_rel_pos_bias is None
    order = []
    for name in ("attn1", "attn2", "ff", "attn_temp"):
        getattr(block, name).register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        unet(*latents(unet))
    assert order == ["attn1", "attn2", "ff", "attn_temp"]
    assert torch.equal(block.norm_temp.weight, torch.ones(64)) and not block.norm_temp.bias.any()


def test_half_precision():
    unet = picture_model().to(torch.bfloat16)
    tuned = with_lamp(unet, random_tensors(unet))
    clip, time, text = latents(tuned)
    with torch.no_grad():
        assert tuned(clip.bfloat16(), time, text.bfloat16()).isfinite().all()


def test_files_of_other_models():
    unet = picture_model()
    tensors = random_tensors(unet)
    check_tensors(unet, tensors, "x")
    name = f"{PREFIX}conv_in_over_time.conv1d.weight"
    with pytest.raises(ValueError, match=r"bird.safetensors lacks 1 tensors.*conv_in_over_time.conv1d.weight"):
        check_tensors(unet, {key: value for key, value in tensors.items() if key != name}, "bird.safetensors")
    with pytest.raises(ValueError, match="has 1 unknown ones"):
        check_tensors(unet, {**tensors, "extra": torch.zeros(1)}, "x")
    with pytest.raises(ValueError, match=r"shape \(1,\) where this model wants \(32, 32, 3\)"):
        check_tensors(unet, {**tensors, name: torch.zeros(1)}, "x")
    with pytest.raises(ValueError, match="NaN"):
        with_lamp(unet, {**tensors, name: torch.full((32, 32, 3), math.nan)})
    with pytest.raises(ValueError, match="lacks .* tensors that this model's LAMP layers have"):
        with_lamp(tiny_unet("base"), tensors)


def test_layers_can_be_filled_with_what_others_made():
    layers = new_layers(picture_model())
    tensors = random_tensors(picture_model())
    fill_layers(layers, tensors, strength=2.0)
    convolution = layers["conv_out_over_time"]
    assert torch.equal(convolution.conv1d.weight, 2 * tensors[f"{PREFIX}conv_out_over_time.conv1d.weight"])
    assert torch.equal(convolution.conv_gate.weight, tensors[f"{PREFIX}conv_out_over_time.conv_gate.weight"])
