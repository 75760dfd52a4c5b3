"""Masks behind keys of other frames: they follow the frames that are looked at, in every kernel and mode."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_calls import run
from guides import plain_guide
from torch import Tensor
from whole_clips import (
    CELLS,
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
    make_masks,
    make_site,
    make_tensors,
    mask_bias,
)

from mask_guided_video.attention_patches.guidance import plan as guidance_plan
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.dynamic_masks import DynamicMasks
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.patch import GuidePatch, guide_patches
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.torch_attention import OVERRIDE_KEY, attention
from mask_guided_video.attention_patches.site import SITE_KEY
from mask_guided_video.attention_patches.stack import PatchStack
from mask_guided_video.video_models.lavie.config import LaVieConfig
from mask_guided_video.video_models.lavie.unet import LaVieUNet

MODES: dict[str, dict[str, Any]] = {
    "focus": {"mode": "focus", "strength": 0.7},
    "focus_fg": {"mode": "focus_fg", "strength": 1.0},
    "separate": {"mode": "separate", "strength": 4.0},
    "hard": {"mode": "separate", "hard": True},
}


@pytest.fixture(params=["explicit", "channels", "partition"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which biases are applied; by size alone these calls would all take the explicit one."""
    if request.param != "explicit":
        monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)
    monkeypatch.setattr(guidance_plan, "PARTITION_TOKENS", 1 if request.param == "partition" else 10**9)
    return request.param


# Every mode with every source by every kernel; each of the four meets both layouts, and objects that are in the first
# frame and that come later.
FOLLOWING = [
    pytest.param(
        source,
        mode,
        folded,
        first_frame,
        id=f"{mode}, {source}, {folded}, {'from the first' if first_frame else 'later'}",
    )
    for number, source in enumerate(SOURCES)
    for other, mode in enumerate(MODES)
    for folded in [("frames", "none")[(number + other) % 2]]
    for first_frame in [(number + other // 2) % 2 == 0]
]


@pytest.mark.parametrize(("source", "mode", "folded", "first_frame"), FOLLOWING)
def test_masks_follow_the_keys(source: str, mode: str, folded: str, first_frame: bool, kernel: str) -> None:
    masks, site = make_masks(first_frame), make_site(folded)
    guide = plain_guide(masks, end_percent=1.0, **MODES[mode])
    q, k, v = make_tensors(site, CELLS if folded == "frames" else FRAMES * CELLS)
    out = run([keys_patch(source), GuidePatch(guide)], site, (q, k, v))
    bias = looks(source) + mask_bias(masks, **MODES[mode])
    if folded == "none":
        expected = dense(q, k, v, bias)
    else:
        expected = dense(clips(q), clips(k), clips(v), bias).unflatten(1, (FRAMES, CELLS)).flatten(0, 1)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("before", "after"), [(0, 6), (7, 6)])
@pytest.mark.parametrize("mode", ["separate", "hard"])
@pytest.mark.parametrize("source", ["first", "first_prev_self"])
def test_masks_and_words_follow_the_keys_of_joint_attention(
    source: str, mode: str, before: int, after: int, kernel: str
) -> None:
    masks, site = make_masks(), make_site("none", before=before, after=after)
    guide = plain_guide(masks, ("ball", "cube"), end_percent=1.0, **MODES[mode])
    length, stop = before + FRAMES * CELLS + after, before + FRAMES * CELLS
    qkv = make_tensors(site, length)
    out = run([keys_patch(source), GuidePatch(guide, TextSpans(("ball", "cube"), ((1, 2), (4,))))], site, qkv)
    film = torch.zeros(length, length, dtype=torch.float64)
    film[slice(*site.video), slice(*site.video)] = looks(source) + mask_bias(masks, **MODES[mode])
    words = film.clone()
    for number, positions in enumerate(((1, 2), (4,))):
        for frame in range(FRAMES):
            share = masks[number, frame].flatten().double()
            if share.max() < 0.5:
                continue
            outside = -1000.0 * (share < 0.5) if mode == "hard" else -4.0 * (1.0 - share)
            for position in positions:
                words[before + frame * CELLS : before + (frame + 1) * CELLS, stop + position] += outside
    half = site.rows.total // 2
    conditional, unconditional = ([tensor[rows] for tensor in qkv] for rows in (slice(0, half), slice(half, None)))
    torch.testing.assert_close(out[:half].double(), dense(*conditional, words), atol=2e-5, rtol=0)
    torch.testing.assert_close(out[half:].double(), dense(*unconditional, film), atol=2e-5, rtol=0)


@pytest.mark.parametrize("folded", ["frames", "none"])
def test_masks_follow_the_frames_of_context_windows(folded: str) -> None:
    film = torch.zeros(1, 20, HEIGHT, WIDTH)
    for frame in range(20):
        film[0, frame, frame % HEIGHT, frame % WIDTH] = 1.0
    guide = plain_guide(film, mode="separate", strength=4.0, end_percent=1.0)
    for frames in ((6, 8, 10, 12), (18, 19, 0, 1)):
        site = replace(make_site(folded), frames=frames, clip_frames=20)
        q, k, v = make_tensors(site, CELLS if folded == "frames" else FRAMES * CELLS)
        out = run([keys_patch("first_self"), GuidePatch(guide)], site, (q, k, v))
        seen = torch.full((FRAMES, FRAMES), -torch.inf, dtype=torch.float64)
        for row in range(FRAMES):
            seen[row, row] = seen[row, 2 if 0 in frames else 0] = 0.0
        first = 2 if 0 in frames else 0
        seen[first, first] = math.log(2.0)
        pairs = seen.repeat_interleave(CELLS, 0).repeat_interleave(CELLS, 1)
        bias = pairs + mask_bias(film[:, list(frames)], "separate", 4.0)
        if folded == "none":
            expected = dense(q, k, v, bias)
        else:
            expected = dense(clips(q), clips(k), clips(v), bias).unflatten(1, (FRAMES, CELLS)).flatten(0, 1)
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("folded", ["frames", "none"])
@pytest.mark.parametrize("mode", ["focus_fg", "separate", "hard"])
def test_half_precision_with_masks(mode: str, folded: str, dtype: torch.dtype) -> None:
    masks, site = make_masks(), make_site(folded)
    guide = plain_guide(masks, end_percent=1.0, **MODES[mode])
    q, k, v = make_tensors(site, CELLS if folded == "frames" else FRAMES * CELLS, dtype=dtype)
    out = run([keys_patch("first_self"), GuidePatch(guide)], site, (q, k, v))
    bias = looks("first_self") + mask_bias(masks, **MODES[mode])
    if folded == "none":
        expected = dense(q, k, v, bias)
    else:
        expected = dense(clips(q), clips(k), clips(v), bias).unflatten(1, (FRAMES, CELLS)).flatten(0, 1)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=3 * TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("folded", ["frames", "none"])
def test_masks_of_another_stack_follow_the_keys_too(folded: str) -> None:
    masks, site = make_masks(), make_site(folded)
    guide = GuidePatch(plain_guide(masks, end_percent=1.0, **MODES["separate"]))
    qkv = make_tensors(site, CELLS if folded == "frames" else FRAMES * CELLS)
    one = run([keys_patch(), guide], site, qkv)
    two = (
        PatchStack([keys_patch()])
        .chain(PatchStack([guide]).override)
        .override(attention, *qkv, HEADS, transformer_options={SITE_KEY: site})
    )
    torch.testing.assert_close(two, one, atol=2e-6, rtol=0)


def test_masks_that_are_off_leave_the_keys_to_the_bit() -> None:
    for folded, length in (("frames", CELLS), ("none", FRAMES * CELLS)):
        site = make_site(folded)
        qkv = make_tensors(site, length)
        nothing = plain_guide(make_masks(), mode="separate", strength=0.0)
        out = run([keys_patch(), GuidePatch(nothing)], site, qkv)
        assert torch.equal(out, run([keys_patch()], site, qkv))


def test_plans_of_masks_know_whose_keys_they_are_for() -> None:
    masks, site = make_masks(), make_site()
    guide = GuidePatch(plain_guide(masks, end_percent=1.0, **MODES["separate"]))
    q, k, v = make_tensors(site, CELLS)
    for source in ("first_prev", "first_self"):
        expected = dense(clips(q), clips(k), clips(v), looks(source) + mask_bias(masks, **MODES["separate"]))
        out = run([keys_patch(source), guide], site, (q, k, v))
        torch.testing.assert_close(clips(out).double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("folded", ["frames", "none"])
def test_gradients_flow_back_through_keys_and_masks(folded: str) -> None:
    masks, site = make_masks(), make_site(folded)
    guide = GuidePatch(plain_guide(masks, end_percent=1.0, **MODES["separate"]))
    q, k, v = make_tensors(site, CELLS if folded == "frames" else FRAMES * CELLS)
    given = [tensor.requires_grad_() for tensor in (q, k, v)]
    bias = looks("first_prev") + mask_bias(masks, **MODES["separate"])
    whole = given if folded == "none" else [clips(tensor) for tensor in given]
    wanted = torch.randn(whole[0].shape, generator=torch.Generator().manual_seed(5))
    out = run([keys_patch("first_prev"), guide], site, given)
    ((out if folded == "none" else clips(out)) * wanted).sum().backward()
    found = [tensor.grad.clone() for tensor in given]
    for tensor in given:
        tensor.grad = None
    (dense(*whole, bias) * wanted).sum().backward()
    for tensor, gradient in zip(given, found, strict=True):
        torch.testing.assert_close(gradient, tensor.grad, atol=2e-5, rtol=0)


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", ["frames", "none"])
def test_keys_of_a_guide_reach_transformers_only_when_asked_for(folded: str) -> None:
    site = make_site(folded)
    qkv = make_tensors(site, CELLS if folded == "frames" else FRAMES * CELLS)
    rule = {"gamma_self": 8.0, "self_end_percent": 1.0, "end_percent": 1.0, "blocks": "all", "direction": "both"}
    own, chosen, none = (
        run(guide_patches(Guide(make_masks(), mode=DynamicMasks(**rule, keys=keys), key_source=source)), site, qkv)
        for keys, source in (("first_self", None), ("self", "first_self"), ("self", None))
    )
    assert not torch.allclose(chosen, none, atol=1e-3)
    assert torch.equal(own, none if folded == "none" else chosen)
    bias = looks("first_self") + mask_bias((make_masks() >= 0.5).float(), "separate", 8.0)
    if folded == "none":
        expected = dense(*qkv, bias)
    else:
        expected = dense(*(clips(tensor) for tensor in qkv), bias).unflatten(1, (FRAMES, CELLS)).flatten(0, 1)
    torch.testing.assert_close(chosen.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("source", ["first", "first_prev_self"])
@pytest.mark.parametrize("name", ["dmg", "peekaboo", "freetraj", "videograin", "through_the_mask"])
def test_modes_say_the_same_of_folded_frames_and_of_whole_clips(name: str, source: str) -> None:
    """What a mode says of a pair of cells does not depend on how frames lie in the batch."""
    own = {"videograin": {"finest_level": 0}, "dmg": {"gamma_self": 8.0, "self_end_percent": 1.0}}.get(name, {})
    mode = make_mode(name, start_percent=0.0, end_percent=1.0, blocks="all", **own)
    guide = Guide(make_masks(), phrases=("ball", "cube"), mode=mode, key_source=source)
    patches = guide_patches(guide, TextSpans(("ball", "cube"), ((1,), (2,)), 9))
    folded, whole = make_site(), make_site("none")
    q, k, v = make_tensors(folded, CELLS)
    one = clips(run(patches, folded, (q, k, v)))
    two = run(patches, whole, [clips(tensor) for tensor in (q, k, v)])
    conditional = slice(0, len(two) // 2)
    torch.testing.assert_close(one[conditional], two[conditional], atol=2e-6, rtol=0)
    unguided = clips(run([keys_patch(source)], folded, (q, k, v)))
    assert not torch.allclose(one[conditional], unguided[conditional], atol=1e-3)


# --- LaVie's interpolation, which chooses its keys itself -------------------------------------------------------------


def test_masks_reach_the_interpolation_models_own_keys() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LaVieConfig(
            stage="interpolation",
            in_channels=8,
            block_out_channels=(16,),
            attention_levels=(True,),
            layers_per_block=1,
            num_heads=2,
            cross_attention_dim=12,
            norm_num_groups=4,
        )
        unet = LaVieUNet(config)
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        latents, text = torch.randn(2, 8, FRAMES, HEIGHT, WIDTH), torch.randn(2, 6, 12)
    masks = make_masks()
    pairs = mask_bias(masks, "focus_fg", 1.0).view(FRAMES, CELLS, FRAMES, CELLS)
    of_rows = [torch.cat([pairs[row, :, 0], pairs[row, :, max(row - 1, 0)]], dim=1) for row in range(FRAMES)]
    biases = torch.stack(of_rows)[:, None].float()
    turn = iter(range(100))

    def with_bias(
        function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any
    ) -> Tensor:
        # Self-attention, cross-attention and time in turn.
        own = biases.repeat(2, 1, 1, 1) if next(turn) % 3 == 0 else mask
        return function(q, k, v, heads, mask=own, **kwargs)

    def predict(**options: Any) -> Tensor:
        with torch.no_grad():
            options = {"cond_or_uncond": [0, 1], "sigmas": torch.tensor([2.0]), **options}
            return unet(latents, torch.full((2,), 500), text, options)

    guide = plain_guide(masks, mode="focus_fg", strength=1.0, end_percent=1.0)
    plain = predict()
    guided = predict(**{OVERRIDE_KEY: PatchStack([GuidePatch(guide)]).override})
    torch.testing.assert_close(guided, predict(**{OVERRIDE_KEY: with_bias}), atol=1e-5, rtol=1e-4)
    assert float((guided - plain).abs().max()) > 1e-3
    kept = predict(**{OVERRIDE_KEY: PatchStack([keys_patch("first")]).override})
    assert torch.equal(kept, plain)
