"""The joint transformer: where its tokens are, measured by what moves, and what patches do to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.patch import guide_patches
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.torch_attention import OVERRIDE_KEY
from mask_guided_video.attention_patches.site import SITE_KEY, AttentionSite
from mask_guided_video.attention_patches.stack import PatchStack
from mask_guided_video.video_models.joint.config import JointConfig
from mask_guided_video.video_models.joint.transformer import (
    JointVideoTransformer,
    rotary_angles,
    rotate,
    token_positions,
)

TINY = JointConfig(width=24, depth=2, num_heads=2, text_channels=10, native_frames=3)
WORDS, FRAMES, HEIGHT, WIDTH = 5, 3, 4, 6
# Tokens along (T, H, W): patches are 2 x 2 cells.
GRID = (3, 2, 3)


@pytest.fixture(scope="module")
def network() -> JointVideoTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = JointVideoTransformer(TINY)
        for block in network.blocks:
            torch.nn.init.normal_(block.modulation, std=0.5)
    return network.eval().requires_grad_(False)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, FRAMES, HEIGHT, WIDTH, generator=generator)
    return latents, torch.full((2,), 499.5), torch.randn(2, WORDS, 10, generator=generator)


def calls(network: JointVideoTransformer, *inputs: Tensor, **options) -> list[tuple[AttentionSite, Tensor, Tensor]]:
    """Site, queries and keys of every attention call."""
    seen = []

    def record(func, q, k, v, heads, mask=None, **kwargs):
        seen.append((kwargs["transformer_options"][SITE_KEY], q, k))
        return func(q, k, v, heads, mask=mask, **kwargs)

    network(*inputs, {OVERRIDE_KEY: record, **options})
    return seen


def moved(first: Tensor, second: Tensor) -> list[int]:
    """Tokens that differ between two [B, heads, L, d]."""
    return (first != second).any(dim=3).any(dim=1).any(dim=0).nonzero()[:, 0].tolist()


def test_sites_describe_every_call(network, inputs) -> None:
    seen = calls(network, *inputs, cond_or_uncond=[1, 0], sigmas=torch.tensor([2.5]))
    assert [site.block for site, _, _ in seen] == ["joint.0", "joint.1"] == network.config.block_names
    for number, (site, query, key) in enumerate(seen):
        assert (site.kind, site.index, site.total, site.level, site.grid) == ("joint", number, 2, 0, GRID)
        assert site.rows.chunks == (1, 0) and site.rows.samples == 1 and site.rows.total == query.shape[0]
        assert site.frames == (0, 1, 2) and site.clip_frames == 3
        assert site.progress == pytest.approx(0.5) and site.sigma == 2.5
        assert query.shape == key.shape == (2, 2, WORDS + FRAMES * 2 * 3, 12)


@pytest.mark.parametrize("cell", [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 3, 0), (2, 3, 5)])
def test_a_cell_of_the_latents_moves_the_token_that_the_site_says(network, inputs, cell) -> None:
    frame, row, column = cell
    latents, *others = inputs
    changed = latents.clone()
    changed[:, :, frame, row, column] += 1.0
    (site, query, key), (_, other_query, other_key) = calls(network, *inputs)[0], calls(network, changed, *others)[0]
    place = site.video.start + (frame * GRID[1] + row // 2) * GRID[2] + column // 2
    assert moved(query, other_query) == moved(key, other_key) == [place]


@pytest.mark.parametrize("word", range(WORDS))
def test_a_word_moves_the_token_that_the_site_says(network, inputs, word: int) -> None:
    latents, times, text = inputs
    changed = text.clone()
    changed[:, word] += 1.0
    (site, query, key), (_, other_query, other_key) = (
        calls(network, latents, times, text)[0],
        calls(network, latents, times, changed)[0],
    )
    assert moved(query, other_query) == moved(key, other_key) == [site.text.start + word]


def test_a_word_reaches_the_prediction(network, inputs) -> None:
    latents, times, text = inputs
    changed = text.clone()
    changed[0, 2] += 1.0
    moved_by = (network(latents, times, text) - network(latents, times, changed)).abs().amax(dim=(1, 2, 3, 4))
    assert moved_by[0] > 1e-4 and moved_by[1] == 0.0


def test_a_cell_of_the_prediction_comes_from_its_token(network) -> None:
    """Each output token holds its own number in all channels, so that the layout of the latents shows."""
    numbers = torch.arange(FRAMES * GRID[1] * GRID[2], dtype=torch.float32)
    latents = network._latents(numbers[None, :, None].expand(1, -1, 16), GRID)
    assert latents.shape == (1, 4, FRAMES, HEIGHT, WIDTH)
    for frame, row, column in ((0, 0, 0), (0, 1, 3), (1, 2, 5), (2, 3, 0)):
        wanted = (frame * GRID[1] + row // 2) * GRID[2] + column // 2
        assert latents[0, :, frame, row, column].tolist() == [wanted] * 4


def test_only_distances_turn_the_video_and_the_text_stays() -> None:
    positions = token_positions((2, 3, 4), 0, torch.device("cpu"))
    assert positions[13].tolist() == [1.0, 0.0, 1.0]
    hidden = torch.randn(1, 1, 24, 12)[:, :, :1].expand(1, 1, 26, 12)
    turned = rotate(hidden, rotary_angles(positions, 12, 100.0), 2)[0, 0]
    assert torch.equal(turned[:2], hidden[0, 0, :2])
    video = turned[2:]
    torch.testing.assert_close(video.norm(dim=1), hidden[0, 0, 2:].norm(dim=1))
    # One frame, one row and one column further: the same product wherever it begins.
    torch.testing.assert_close(video[0] @ video[17], video[5] @ video[22])
    assert float((video[0] @ video[17] - video[0] @ video[18]).abs()) > 1e-4


def test_a_single_frame_is_told_its_place_in_the_clip() -> None:
    later = token_positions((1, 2, 2), 5, torch.device("cpu"))
    assert torch.equal(later, token_positions((8, 2, 2), 0, torch.device("cpu"))[20:24])


def patches(mode: str, strength: float = 1.0, **constants) -> list:
    """A guide on one object in the left third, whose words are tokens 1 and 2 of five."""
    masks = torch.zeros(1, FRAMES, HEIGHT, WIDTH)
    masks[..., :2] = 1.0
    guide = Guide(masks, make_mode(mode, end_percent=1.0, **constants), ("red ball",), strength=strength)
    spans = TextSpans(("red ball",), ((1, 2),), WORDS, ordinary=(0, 1, 2, 3))
    return list(guide_patches(guide.on_blocks(TINY.block_names), spans))


def guided(network: JointVideoTransformer, inputs: tuple[Tensor, ...], found: list, chunks: list[int]) -> Tensor:
    options = {OVERRIDE_KEY: PatchStack(found).override, "cond_or_uncond": chunks, "sigmas": torch.tensor([1.0])}
    return network(*inputs, options)


@pytest.mark.parametrize("mode", ["cross_text", "separate", "focus_fg", "dmg", "peekaboo", "direct_a_video"])
def test_strength_nothing_is_the_model_alone_bit_for_bit(network, inputs, mode: str) -> None:
    alone = network(*inputs, {"cond_or_uncond": [0, 1]})
    assert torch.equal(guided(network, inputs, patches(mode, 0.0), [0, 1]), alone)
    assert not torch.equal(guided(network, inputs, patches(mode, 1.0), [0, 1]), alone)


@pytest.mark.parametrize(("mode", "constants"), [("cross_text", {}), ("separate", {"rows": "conditional"})])
@pytest.mark.parametrize("chunks", [[0, 1], [1, 0]])
def test_unconditional_rows_are_untouched(network, inputs, mode: str, constants, chunks: list[int]) -> None:
    alone = network(*inputs, {"cond_or_uncond": chunks})
    out = guided(network, inputs, patches(mode, **constants), chunks)
    conditional, unconditional = chunks.index(0), chunks.index(1)
    assert torch.equal(out[unconditional], alone[unconditional])
    assert not torch.equal(out[conditional], alone[conditional])


def test_guided_words_equal_an_explicit_bias(network, inputs) -> None:
    """The reference writes the bias token by token, from the masks' cells."""
    bias = torch.zeros(WORDS + 18, WORDS + 18)
    for token in range(18):
        if token % 3 == 0:
            bias[WORDS + token, 1:3] = 3.0

    def biased(func, q, k, v, heads, mask=None, **kwargs):
        return func(q, k, v, heads, mask=bias, **kwargs)

    expected = network(*inputs, {OVERRIDE_KEY: biased, "cond_or_uncond": [0]})
    out = guided(network, inputs, patches("cross_text", gain=3.0), [0])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert float((out - network(*inputs)).abs().max()) > 1e-3


@pytest.mark.parametrize("shape", [(1, 4, 1, 2, 2), (2, 4, 3, 4, 6), (1, 4, 9, 6, 2)])
def test_any_size_comes_back_as_it_went_in(network, shape) -> None:
    out = network(torch.randn(shape), torch.full((shape[0],), 10.0), torch.randn(shape[0], 4, 10))
    assert out.shape == shape and bool(out.isfinite().all())


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 4, 8, 8), r"\(1, 4, 8, 8\); this model wants \[B, 4, T, H, W\]"),
        ((1, 3, 2, 8, 8), r"\(1, 3, 2, 8, 8\)"),
        ((1, 4, 0, 8, 8), r"\(1, 4, 0, 8, 8\)"),
        ((1, 4, 2, 7, 8), r"7 x 8 cells; this model wants multiples of 2 x 2"),
    ],
)
def test_wrong_shapes_are_named(network, shape, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        network(torch.randn(shape), torch.zeros(1), torch.randn(1, 4, 10))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 190, "num_heads": 4}, "width is 190 with 4 heads"),
        ({"width": 16, "num_heads": 4}, "at least 6"),
        ({"depth": 0}, "depth is 0"),
        ({"patch": (2, 2, 2)}, r"patch is \(2, 2, 2\)"),
        ({"prediction_type": "x"}, "'x'; choose epsilon"),
        ({"beta_schedule": "cosine"}, "'cosine'; choose linear"),
    ],
)
def test_config_refuses_what_cannot_work(values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointConfig(**values)


def test_config_is_read_back(tmp_path) -> None:
    TINY.save(tmp_path / "config.json")
    assert JointConfig.load(tmp_path / "config.json") == TINY
