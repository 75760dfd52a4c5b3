"""LaVie's upscaler: its table of tensors, its sites, any size, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.attention_patches.kernels.torch_attention import OVERRIDE_KEY
from mask_guided_video.attention_patches.site import SITE_KEY
from mask_guided_video.video_models.lavie.config import UpscalerConfig
from mask_guided_video.video_models.lavie.sites import transformer_places
from mask_guided_video.video_models.lavie.upscaler import UpscalerUNet
from mask_guided_video.video_models.lavie.upscaler_layers import TemporalResNet

TINY = UpscalerConfig(
    block_out_channels=(8, 16, 24),
    attention_levels=(False, True, True),
    only_cross_attention=(True, True, False),
    layers_per_block=1,
    num_heads=2,
    cross_attention_dim=12,
    norm_num_groups=4,
)


@pytest.fixture(scope="module")
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UpscalerUNet(TINY).eval()


def inputs(*sizes: int, batch: int = 1):
    return torch.randn(batch, 7, *sizes), torch.full((batch,), 499.5), torch.randn(batch, 6, 12)


def test_names_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in UpscalerUNet().state_dict().items()}
    assert len(shapes) == 1158
    # Stable Diffusion's upscaler has the others.
    assert sum("temporal" in name for name in shapes) == 471
    expected = {
        "conv_in.weight": (256, 7, 3, 3),
        "class_embedding.weight": (1000, 1024),
        "temporal_rotary_emb.freqs": (16,),
        "down_temporal_blocks.3.resblocks_3d_t.conv1.weight": (1024, 1024, 5, 1, 1),
        "up_temporal_blocks.0.resblocks_3d_t.conv2.weight": (1024, 1024, 3, 1, 1),
        "mid_temporal_block.resblocks_3d_s.conv1.weight": (1024, 1024, 3, 3),
        "up_temporal_blocks.3.shift_conv.weight": (256, 256, 1, 1),
        "down_blocks.1.attentions.0.resblock_temporal.conv1.weight": (512, 512, 3, 1, 1),
        "down_blocks.1.attentions.0.proj_in.weight": (512, 512),
        "down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_k.weight": (512, 1024),
        "down_blocks.3.attentions.1.transformer_blocks.0.attn1.to_k.weight": (1024, 1024),
        "up_blocks.2.attentions.2.transformer_blocks.0.attn_temporal.rotary_emb.freqs": (16,),
        "mid_block.attentions.0.transformer_blocks.0.attn_temporal.time_rel_pos_bias.relative_attention_bias.weight": (
            32,
            8,
        ),
        "up_blocks.3.resnets.0.conv1.weight": (256, 768, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not any(name.startswith(("down_blocks.0.attentions", "up_blocks.3.attentions")) for name in shapes)


@pytest.mark.parametrize("sizes", [(1, 4, 4), (3, 5, 7), (8, 9, 2), (2, 1, 1)])
def test_any_size_comes_back_as_it_went_in(tiny, sizes: tuple[int, ...]) -> None:
    with torch.no_grad():
        out = tiny(*inputs(*sizes, batch=2), class_labels=torch.tensor([50, 20]))
    assert out.shape == (2, 4, *sizes) and bool(out.isfinite().all())


def test_noise_level_small_pictures_and_other_frames_matter(tiny) -> None:
    x, times, text = inputs(3, 4, 4)
    level = torch.tensor([50])
    with torch.no_grad():
        out = tiny(x, times, text, class_labels=level)
        assert not torch.allclose(out, tiny(x, times, text, class_labels=torch.tensor([51])), atol=1e-5)
        for channel, frame in ((6, 0), (0, 2)):
            other = x.clone()
            other[:, channel, frame] += 1.0
            changed = (tiny(other, times, text, class_labels=level) - out).abs().amax(dim=(0, 1, 3, 4))
            assert bool((changed > 1e-5).all())


def test_samples_of_a_batch_are_apart(tiny) -> None:
    x, times, text = inputs(3, 5, 4, batch=2)
    levels = torch.tensor([50, 120])
    with torch.no_grad():
        together = tiny(x, times, text, class_labels=levels)
        for row in range(2):
            alone = tiny(x[row : row + 1], times[:1], text[row : row + 1], class_labels=levels[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=0)


def test_sites_describe_every_call(tiny) -> None:
    seen = []

    def record(func, q, k, v, heads, mask=None, **kwargs):
        seen.append((kwargs["transformer_options"][SITE_KEY], q.shape, k.shape))
        return func(q, k, v, heads, mask=mask, **kwargs)

    options = {OVERRIDE_KEY: record, "cond_or_uncond": [1, 0], "sigmas": torch.tensor([2.5])}
    with torch.no_grad():
        tiny(*inputs(3, 8, 12, batch=4), class_labels=torch.full((4,), 50), transformer_options=options)
    sites = [site for site, _, _ in seen]
    blocks = ["down.1.0", "down.2.0", "mid.0", "up.0.0", "up.0.1", "up.1.0", "up.1.1"]
    assert [place.name for place in transformer_places(TINY)] == blocks
    text_only = {"down.1.0", "up.1.0", "up.1.1"}
    kinds = [("cross" if block in text_only else "self", "cross", "temporal") for block in blocks]
    assert [(site.block, site.kind) for site in sites] == [
        (block, kind) for block, of_block in zip(blocks, kinds, strict=True) for kind in of_block
    ]
    for kind, total in (("self", 4), ("cross", 10), ("temporal", 7)):
        of_kind = [site for site in sites if site.kind == kind]
        assert [site.index for site in of_kind] == list(range(total)) and {site.total for site in of_kind} == {total}
    for site, query, key in seen:
        assert site.rows.chunks == (1, 0) and site.rows.samples == 2 and site.rows.total == query[0] == key[0]
        assert site.level == (1 if site.block in text_only else 2)
        assert site.grid == ((3, 4, 6) if site.level == 1 else (3, 2, 3))
        if site.kind == "temporal":
            assert query[2] == key[2] == 3
        else:
            assert query[1] == site.grid[1] * site.grid[2]
            assert key[1] == (6 if site.kind == "cross" else query[1])


def test_convolutions_over_time_see_the_frames_beside() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = TemporalResNet(4, 5, None, 2, torch.nn)
    hidden = torch.randn(9, 4, 1, 1)
    other = hidden.clone()
    with torch.no_grad():
        # Norms over the whole clip off, so that only the convolutions reach other frames.
        layer.norm1 = layer.norm2 = torch.nn.Identity()
        other[0] += 1.0
        changed = (layer(other, None, 9) - layer(hidden, None, 9)).abs().amax(dim=(1, 2, 3)) > 0
    assert changed.tolist() == [True] * 4 + [False] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(1, 4, 3, 4, 4)},
            r"shape \(1, 4, 3, 4, 4\); it wants \[B, 7, T, H, W\]: 4 channels of latents",
        ),
        ({"x": torch.zeros(1, 7, 4, 4)}, r"shape \(1, 7, 4, 4\)"),
        ({"class_labels": None}, "was given no noise level"),
        ({"class_labels": torch.tensor([351])}, "noise level is 351; give a value from 0 to 350"),
        ({"class_labels": torch.tensor([-1])}, "noise level is -1"),
    ],
)
def test_wrong_input_is_named(tiny, change, message) -> None:
    x, times, text = inputs(3, 4, 4)
    values = {"x": x, "timesteps": times, "context": text, "class_labels": torch.tensor([20])} | change
    with pytest.raises(ValueError, match=message):
        tiny(**values)
