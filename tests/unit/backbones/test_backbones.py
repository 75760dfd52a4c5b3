"""What backbones know of calls, blocks, grids, windows and schedules, without ComfyUI."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mask_guided_video.attention_patches.site import SITE_KEY, AttentionSite, BatchRows, CallSize, Span
from mask_guided_video.backbones.block_sites import BlockMarkers, ExpectedCall, SiteSequence
from mask_guided_video.backbones.families.ltx import LTXVideo
from mask_guided_video.backbones.families.unet import unet_grid, unet_transformers
from mask_guided_video.backbones.family import patched_grid
from mask_guided_video.backbones.host_hooks import (
    prompt_name,
    prompt_names,
    schedule_progress,
    split_frames,
)
from mask_guided_video.backbones.registry import FAMILIES, family_of
from mask_guided_video.video_models.sampling.window_frames import (
    KEPT_FRAMES_KEY,
    KeptFrames,
    window_frames,
)

SITE = AttentionSite(
    kind="self",
    block="block.0",
    index=0,
    total=1,
    level=0,
    grid=(1, 2, 3),
    frames=(0,),
    clip_frames=1,
    video=Span(0, 6),
    text=None,
    rows=BatchRows(),
    progress=0.0,
    sigma=1.0,
)
CROSS = replace(SITE, kind="cross")


# --- the calls of a block ---------------------------------------------------------------------------------------------


def told(expected: list[str] | None = None, found: list[str] | None = None) -> Any:
    """What a sequence tells of its calls, in lists."""
    return SimpleNamespace(
        expected=[].append if expected is None else expected.append, found=[].append if found is None else found.append
    )


def sequence(*expected: ExpectedCall) -> tuple[SiteSequence, list[str]]:
    found: list[str] = []
    return SiteSequence(expected, told(found=found)), found


def test_calls_are_told_apart_by_order_where_lengths_are_equal() -> None:
    sites, found = sequence(ExpectedCall(6, 6, SITE), ExpectedCall(6, 6, CROSS))
    assert sites(CallSize(6, 6, 8), {}) is SITE and sites(CallSize(6, 6, 8), {}) is CROSS
    assert sites(CallSize(6, 6, 8), {}) is None and len(found) == 2


def test_calls_are_told_apart_by_width_where_a_block_has_several() -> None:
    wide, narrow = ExpectedCall(6, 6, SITE, width=8), ExpectedCall(6, 6, None, width=4)
    sites, _ = sequence(narrow, wide)
    # The first one is left out.
    assert sites(CallSize(6, 6, 8), {}) is SITE
    sites, _ = sequence(wide, narrow)
    assert sites(CallSize(6, 6, 4), {}) is None and sites(CallSize(6, 6, 8), {}) is None


def test_a_call_that_is_left_out_is_passed_over() -> None:
    sites, _ = sequence(ExpectedCall(6, 6, SITE), ExpectedCall(6, 9, None), ExpectedCall(6, 4, CROSS))
    assert sites(CallSize(6, 4, 8), {}) is CROSS
    # What is passed over does not come back.
    assert sites(CallSize(6, 6, 8), {}) is None


def test_calls_of_other_lengths_and_calls_left_alone_are_no_sites() -> None:
    sites, found = sequence(ExpectedCall(6, 9, None), ExpectedCall(6, 4, CROSS))
    assert all(sites(CallSize(*lengths, 8), {}) is None for lengths in ((5, 9), (6, 9), (4, 6)))
    assert not found
    assert sites(CallSize(6, 4, 8), {}) is CROSS and found == ["cross"]


def test_calls_of_the_running_block_where_the_host_names_it() -> None:
    calls = [(block, kind) for block in range(3) for kind in ("self", "cross")]
    numbered = [replace(SITE, index=block, kind=kind) for block, kind in calls]
    keys = {"self": 6, "cross": 4}
    sites, _ = sequence(*(ExpectedCall(6, keys[site.kind], site, site.index) for site in numbered))

    def found(block: int, kind: str) -> tuple[int, str] | None:
        site = sites(CallSize(6, keys[kind], 8), {"block_index": block})
        return None if site is None else (site.index, site.kind)

    # One block runs twice, the next one not at all, in the last one self-attention is left out.
    assert [found(0, "self"), found(0, "cross"), found(0, "self"), found(0, "cross")] == [calls[0], calls[1]] * 2
    assert found(2, "cross") == (2, "cross") and found(2, "cross") == (2, "cross")
    # A block that is not among them has no calls of its own: the order decides.
    assert found(7, "self") is None


def test_a_sequence_tells_which_kinds_of_attention_to_expect() -> None:
    kinds: list[str] = []
    calls = [ExpectedCall(6, 6, SITE), ExpectedCall(6, 6, SITE), ExpectedCall(6, 9, None), ExpectedCall(6, 4, CROSS)]
    SiteSequence(calls, told(expected=kinds))
    assert sorted(kinds) == ["cross", "self"]


# --- markers around blocks --------------------------------------------------------------------------------------------


def block(seen: list[Any]) -> Any:
    def run(args: dict[str, Any]) -> dict[str, Any]:
        seen.append(args["transformer_options"][SITE_KEY])
        return {"img": args["img"] + 1}

    return run


def run_block(options: dict[str, Any], seen: list[Any]) -> dict[str, Any]:
    marker = options["patches_replace"]["dit"][("double_block", 0)]
    return marker({"img": 1, "transformer_options": options}, {"original_block": block(seen)})


def makers(made: list[Any]) -> dict[Any, Any]:
    def make(args: Any) -> SiteSequence:
        made.append(args["img"])
        return SiteSequence([ExpectedCall(6, 6, SITE)], told())

    return {("double_block", 0): make}


def test_a_marked_block_finds_a_sequence_of_its_own() -> None:
    options: dict[str, Any] = {"other": 1}
    made: list[Any] = []
    seen: list[Any] = []
    BlockMarkers().hang(options, makers(made))
    assert run_block(options, seen) == {"img": 2} and run_block(options, seen) == {"img": 2}
    assert made == [1, 1] and seen[0] is not seen[1]
    assert all(sites(CallSize(6, 6, 8), {}) is SITE for sites in seen[:2])
    # The options of the call stay free of the block's.
    assert SITE_KEY not in options


def test_markers_call_another_packs_function_around_the_marked_block() -> None:
    calls: list[str] = []

    def other(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        calls.append("other")
        out = extra["original_block"]({**args, "img": 10})
        return {"img": out["img"] * 2}

    mine = {("double_block", 0): other, ("double_block", 7): other}
    given = {"patches_replace": {"dit": mine, "attn1": {"kept": other}}}
    options, made, seen = dict(given), [], []
    BlockMarkers().hang(options, makers(made))
    assert run_block(options, seen) == {"img": 22} and calls == ["other"] and made == [10]
    # What the other pack has hung in stays its own.
    assert given["patches_replace"]["dit"] is mine and mine[("double_block", 0)] is other
    assert options["patches_replace"]["dit"][("double_block", 7)] is other
    assert options["patches_replace"]["attn1"] == {"kept": other}


def test_markers_are_made_once_until_they_are_released() -> None:
    markers = BlockMarkers()
    hung = []
    for _ in range(2):
        options: dict[str, Any] = {}
        markers.hang(options, makers([]))
        hung.append(options["patches_replace"]["dit"][("double_block", 0)])
    assert hung[0] is hung[1] and copy.deepcopy(markers) is markers
    markers.release()
    markers.hang(options, makers([]))
    # Hung over an own marker, there is one around it, which is the inner one's previous.
    assert options["patches_replace"]["dit"][("double_block", 0)] is not hung[0]


def test_a_blocks_result_is_let_go_when_the_next_block_begins() -> None:
    """The host holds on to it until it gets the next one: the film would lie in memory twice."""
    kept = {}

    def other(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        kept["result"] = extra["original_block"](args)
        return kept["result"]

    options: dict[str, Any] = {"patches_replace": {"dit": {("double_block", 0): other}}}
    BlockMarkers().hang(options, makers([]))
    first = run_block(options, [])
    assert first == {"img": 2}
    assert run_block(options, []) == {"img": 2} and first == {}
    # What another pack keeps is its own.
    assert kept["result"] == {"img": 2}


# --- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "pads", "grid", "filled"),
    [
        ((60, 104), True, (30, 52), None),
        ((15, 13), True, (8, 7), (7.5, 6.5)),
        ((15, 13), False, (7, 6), None),
        ((1, 2), True, (1, 1), (0.5, 1.0)),
    ],
)
def test_grids_of_patches(size: tuple[int, int], pads: bool, grid: tuple[int, int], filled: Any) -> None:
    found = patched_grid((1, 16, 21, *size), (1, 2, 2), pads=pads)
    assert (found.frames, found.rows, found.columns) == (21, *grid) and found.filled == filled
    assert found.tokens == 21 * grid[0] * grid[1]


def test_grid_of_wan_at_832_x_480_x_81_has_32760_tokens() -> None:
    assert patched_grid((1, 16, 21, 60, 104), (1, 2, 2)).tokens == 32760


@pytest.mark.parametrize(
    ("level", "grid", "filled"), [(0, (9, 13), None), (1, (5, 7), (4.5, 6.5)), (2, (3, 4), (2.25, 3.25))]
)
def test_grids_of_a_u_net_round_up(level: int, grid: tuple[int, int], filled: Any) -> None:
    found = unet_grid(level, 16, 9, 13)
    assert (found.frames, found.rows, found.columns) == (16, *grid) and found.filled == filled


def test_guide_pictures_of_ltx_are_no_frames_of_the_film() -> None:
    family, latents = LTXVideo(), (1, 128, 9, 4, 5)
    assert family.film_frames(None, latents, {}) == 9
    assert family.film_frames(None, latents, {"keyframe_idxs": torch.zeros(1, 3, 40)}) == 7
    assert family.grids(None, latents, {"keyframe_idxs": torch.zeros(1, 3, 40)})[0].tokens == 7 * 20


class SpatialTransformer:
    """The parts by which one is known."""

    def __init__(self, depth: int = 1, has_time: bool = False) -> None:
        self.transformer_blocks = [object()] * depth
        self.proj_in = object()
        if has_time:
            self.time_stack = [object()] * depth


class Downsample:
    """A layer of this name."""


class Upsample:
    """A layer of this name."""


class ResBlock:
    """A layer without attention."""


def test_transformers_of_a_u_net_are_named_by_side_level_and_number() -> None:
    res, attention = ResBlock, SpatialTransformer
    network = SimpleNamespace(
        input_blocks=[[res()], [res(), attention()], [res(), attention()], [Downsample()], [res(), attention(2)]],
        middle_block=[res(), attention(2), res()],
        output_blocks=[[res(), attention(2)], [res(), attention(2), Upsample()], [res(), attention()]],
    )
    found = unet_transformers(network)
    assert [
        transformer.name for transformer in found
    ] == "down.0.0 down.0.1 down.1.0 mid.0 up.0.0 up.0.1 up.1.0".split()
    assert [transformer.level for transformer in found] == [0, 0, 1, 1, 1, 1, 0]
    hosts = [("input", 1), ("input", 2), ("input", 4), ("middle", 0), ("output", 0), ("output", 1), ("output", 2)]
    assert [transformer.host for transformer in found] == hosts
    assert found[0].block_name(0) == "down.0.0" and found[2].block_name(1) == "down.1.0.1"
    assert family_of(network).name == "SD1.5 / SDXL"
    network.middle_block[1] = attention(2, has_time=True)
    assert family_of(network).name == "Stable Video Diffusion"


def test_networks_of_other_makings_belong_to_no_family() -> None:
    assert family_of(torch.nn.Linear(1, 1)) is None
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_frames_of_windows() -> None:
    assert window_frames({}, 3) == (0, 1, 2)
    assert window_frames({"context_window": SimpleNamespace(index_list=[6, 0, 1])}, 3) == (6, 0, 1)
    assert window_frames({"ad_params": {"sub_idxs": [4, 5]}}, 2) == (4, 5)
    assert window_frames({"ad_params": {"sub_idxs": None}}, 2) == (0, 1)
    assert window_frames({"ad_params": None, "context_window": None}, 1) == (0,)
    # Core's own windows are inside of those that another pack names.
    both = {"context_window": SimpleNamespace(index_list=[1]), "ad_params": {"sub_idxs": [7]}}
    assert window_frames(both, 1) == (1,)
    # Guide frames at the end are no part of the film.
    assert window_frames({"context_window": SimpleNamespace(index_list=[2, 3, 9])}, 2) == (2, 3)
    guided = SimpleNamespace(index_list=[2, 3], guide_frames_indices=[0, 1], causal_anchor_index=1)
    assert window_frames({"context_window": guided}, 3) == window_frames({"context_window": guided}, 5) == (1, 2, 3)
    with pytest.raises(ValueError, match="names 3 frames but the model is given 6"):
        window_frames({"context_window": guided}, 6)


def test_an_anchor_stands_before_the_frames_of_a_window() -> None:
    window = SimpleNamespace(index_list=[4, 5], causal_anchor_index=3)
    assert window_frames({"context_window": window}, 3) == (3, 4, 5)
    # The host says so of windows that begin with the clip.
    window.causal_anchor_index = -1
    assert window_frames({"context_window": window}, 2) == (4, 5)


@pytest.mark.parametrize(
    ("kept", "plain", "with_pictures"),
    [
        (KeptFrames(latents=(0,)), (0, 4, 5, 6), (0, 4, 5, 6)),
        (KeptFrames(conditions=(0,)), (3, 4, 5, 6), (0, 4, 5, 6)),
        (KeptFrames(latents=(0, 2), conditions=(1,)), (0, 4, 2, 6), (0, 1, 2, 6)),
        (KeptFrames(latents=(-1,)), (3, 4, 5, 8), (3, 4, 5, 8)),
        # The host itself fails for a frame that no window has room for.
        (KeptFrames(latents=(7,)), (3, 4, 5, 6), (3, 4, 5, 6)),
    ],
)
def test_kept_frames_stand_at_their_place_of_every_window(
    kept: KeptFrames, plain: tuple[int, ...], with_pictures: tuple[int, ...]
) -> None:
    window = SimpleNamespace(index_list=[4, 5, 6], causal_anchor_index=3, total_frames=9)
    options = {"context_window": window, KEPT_FRAMES_KEY: kept}
    assert window_frames(options, 4) == plain
    assert window_frames(options, 4, has_pictures=True) == with_pictures
    assert window_frames({KEPT_FRAMES_KEY: kept}, 4) == (0, 1, 2, 3)


def test_windows_with_fewer_frames_than_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match="names 2 frames but the model is given 3"):
        window_frames({"ad_params": {"sub_idxs": [0, 1]}}, 3)


# --- schedule and prompts ---------------------------------------------------------------------------------------------


class Flow:
    """A schedule of flow matching with a shift, as ComfyUI has it."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        left = 1.0 - percent
        return self.shift * left / (1.0 + (self.shift - 1.0) * left)


class Discrete:
    """A schedule of noise levels whose first percent is infinite, as ComfyUI has it."""

    def percent_to_sigma(self, percent: float) -> torch.Tensor:
        if percent <= 0.0:
            return torch.tensor(999999999.9)
        return torch.tensor(0.0 if percent >= 1.0 else 14.6 * (1.0 - percent) ** 3)


@pytest.mark.parametrize(
    ("indices", "leading", "here", "frames"),
    [
        ((0, 1, 2), 0, 0, (0, 1, 2)),
        ((0, 1, 2), 1, 1, (0, 1)),
        ((3, 4), 1, 0, (2, 3)),
        ((0, 1, 5), 2, 2, (3,)),
        ((0,), 1, 1, ()),
    ],
)
def test_reference_pictures_before_the_film_are_no_frames_of_it(
    indices: tuple[int, ...], leading: int, here: int, frames: tuple[int, ...]
) -> None:
    assert split_frames(indices, leading) == (here, frames)


def test_a_window_with_a_reference_picture_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="closed loop"):
        split_frames((5, 6, 0, 1), 1)


@pytest.mark.parametrize("sampling", [Flow(1.0), Flow(8.0), Discrete()])
def test_progress_is_the_percent_of_the_noise_level(sampling: Any) -> None:
    for percent in (0.05, 0.2, 0.5, 0.52, 0.9):
        assert schedule_progress(sampling, float(sampling.percent_to_sigma(percent))) == pytest.approx(
            percent, abs=1e-6
        )
    assert schedule_progress(sampling, 0.0) == 1.0
    # The first step, whatever its level, is within start_percent 0.
    assert schedule_progress(sampling, 1.0 if isinstance(sampling, Flow) else 14.6) == pytest.approx(0.0, abs=1e-6)


def test_prompts_are_named_by_what_they_are_made_of() -> None:
    first, second = torch.randn(2, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    assert prompt_name(first) == prompt_name(first.clone()) != prompt_name(second)
    assert prompt_name(first) != prompt_name(first.reshape(1, 4, 5))
    conds = {
        "positive": [{"cross_attn": first, "uuid": "a"}, {"cross_attn": second, "uuid": "b"}, {"uuid": "c"}],
        "negative": None,
    }
    assert prompt_names(conds) == {"a": prompt_name(first), "b": prompt_name(second)}
