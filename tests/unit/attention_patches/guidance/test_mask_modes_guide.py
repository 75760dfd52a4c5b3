"""Guides in a mode: what they accept, how masks come to cells, constants as text, and the promises of every mode."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from attention_calls import make_site, make_tensors

from mask_guided_video.attention_patches.frame_keys import FirstFrameKeysPatch
from mask_guided_video.attention_patches.guidance.boxes import box_masks, mask_boxes
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import (
    MODES,
    PLAIN,
    make_mode,
    mode_constants,
)
from mask_guided_video.attention_patches.guidance.patch import GuidePatch, guide_patches
from mask_guided_video.attention_patches.guidance.regions import pool_space
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.latent_time import causal
from mask_guided_video.attention_patches.patch import Run
from mask_guided_video.attention_patches.site import (
    CONDITIONAL,
    SITE_KEY,
    AttentionSite,
    BatchRows,
)
from mask_guided_video.attention_patches.stack import PatchStack
from mask_guided_video.prompt_text.token_places import NOT_OF_PROMPT, locate_phrases
from mask_guided_video.recipes.given.constants import read_constants

FRAMES, SIDE, TOKENS = 3, 4, 6
SPANS = TextSpans(("ball",), ((2,),), TOKENS, ordinary=(1, 2, 3, 4), background=(4,))
KINDS = [("self", "frames"), ("self", "none"), ("cross", "frames"), ("temporal", "positions"), ("joint", "none")]


def site(kind: str, folded: str, **changes) -> AttentionSite:
    usual = {"grid": (FRAMES, SIDE, SIDE), "clip_frames": FRAMES, "text_tokens": TOKENS}
    return make_site(kind, folded, **{**usual, "block": "up.1.0", "progress": 0.01, "sigma": 9.0, **changes})


def tensors(at: AttentionSite, dtype=torch.float32):
    return make_tensors(at, 16, dtype=dtype, seed=5)


def masks(frames: int = FRAMES) -> torch.Tensor:
    given = torch.zeros(1, frames, SIDE, SIDE)
    given[:, :, 1:3, :2] = 1.0
    return given


def run(told: Guide, at: AttentionSite, dtype=torch.float32, spans: TextSpans | None = SPANS) -> torch.Tensor:
    stack = PatchStack(guide_patches(told, spans))
    options = {"optimized_attention_override": stack.override, SITE_KEY: at}
    return attention(*tensors(at, dtype), 2, transformer_options=options)


def guide(mode: str = "dmg", given: torch.Tensor | None = None, **settings) -> Guide:
    return Guide(
        masks() if given is None else given,
        phrases=("ball",),
        background_phrase="grass",
        mode=make_mode(mode, blocks="all"),
        **settings,
    )


@pytest.mark.parametrize("mode", MODES)
def test_promises(mode: str) -> None:
    """Nothing asked for is nothing done, to the bit; and what is done is finite in every precision, always the same."""
    changed = 0
    for kind, folded in KINDS:
        at = site(kind, folded)
        plain = attention(*tensors(at), 2)
        nothing = [guide(mode, strength=0.0), guide(mode, torch.zeros(1, 3, 4, 4))]
        for told, spans in [
            *((told, SPANS) for told in nothing),
            (Guide(torch.zeros(0, 3, 4, 4), mode=make_mode(mode)), None),
        ]:
            assert not told.is_active
            assert torch.equal(run(told, at, spans=spans), plain), (mode, kind)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for given in (masks(), torch.ones(1, 3, 4, 4)):
                out = run(guide(mode, given), at, dtype)
                assert bool(torch.isfinite(out).all()), (mode, kind, dtype)
        out = run(guide(mode), at)
        assert torch.equal(out, run(guide(mode), at))
        changed += not torch.equal(out, plain)
    assert changed


@pytest.mark.parametrize("mode", MODES)
def test_an_object_without_words_beside_one_that_has_them(mode: str) -> None:
    """Its region counts, nothing breaks, and its lack of words is not a lack of all words."""
    other = torch.zeros(1, FRAMES, SIDE, SIDE)
    other[:, :, 1:3, 2:] = 1.0
    both = torch.cat([masks(), other])
    spans = replace(SPANS, phrases=("ball", ""), positions=((2,), ()))
    changed = 0
    for kind, folded in KINDS:
        at = site(kind, folded)
        out = run(replace(guide(mode, both[:1]), masks=both, phrases=("ball", "")), at, spans=spans)
        assert bool(torch.isfinite(out).all()), (mode, kind)
        changed += not torch.equal(out, attention(*tensors(at), 2))
    assert changed


@pytest.mark.parametrize("mode", MODES)
def test_frames_without_an_object_are_left_alone(mode: str) -> None:
    given = masks()
    given[:, 1] = 0.0
    for kind in ("self", "cross"):
        at = site(kind, "frames")
        out, plain = run(guide(mode, given, key_source="self"), at), attention(*tensors(at), 2)
        assert torch.equal(out[1], plain[1]) and torch.equal(out[4], plain[4]), (mode, kind)


@pytest.mark.parametrize("mode", MODES)
def test_conditional_rows_only(mode: str) -> None:
    told = Guide(
        masks(),
        phrases=("ball",),
        background_phrase="",
        mode=make_mode(mode, rows="conditional", cross_rows="conditional", blocks="all"),
    )
    for kind, folded in KINDS:
        at = site(kind, folded)
        out, plain = run(told, at), attention(*tensors(at), 2)
        half = len(out) // 2
        assert torch.equal(out[half:], plain[half:]), (mode, kind)


def test_unguided_ends_keep_the_masks_of_a_window() -> None:
    """In a context window of frames 1 and 2 the masks are those frames'."""
    given = masks()
    given[:, 0] = 0.0
    given[:, 2] = given[:, 2].flip(-1)
    at = site("self", "frames", grid=(2, SIDE, SIDE), frames=(1, 2), rows=BatchRows((CONDITIONAL,), 1, "frames", 2))
    whole = site("self", "frames", rows=BatchRows((CONDITIONAL,), 1, "frames", 3))
    q, k, v = tensors(whole)
    stack = PatchStack(guide_patches(guide(given=given, key_source="self"), SPANS))

    def out(here: AttentionSite, part: slice) -> torch.Tensor:
        options = {"optimized_attention_override": stack.override, SITE_KEY: here}
        return attention(q[part], k[part], v[part], 2, transformer_options=options)

    torch.testing.assert_close(out(at, slice(1, 3)), out(whole, slice(0, 3))[1:], atol=1e-6, rtol=1e-5)


def test_patches_of_a_guide() -> None:
    told = replace(guide(), mode=make_mode("dmg", keys="first_self"))
    kinds = [type(patch) for patch in guide_patches(told, SPANS)]
    assert kinds == [FirstFrameKeysPatch, GuidePatch] and told.keys == "first_self"
    assert [type(patch) for patch in guide_patches(guide(), SPANS)] == [GuidePatch]
    assert [type(patch) for patch in guide_patches(guide(key_source="self"), SPANS)] == [GuidePatch]
    # Strength 0 hangs no keys either.
    assert [type(patch) for patch in guide_patches(guide(strength=0.0), SPANS)] == [GuidePatch]
    patch = guide_patches(told, SPANS)[-1]
    assert copy.deepcopy(patch) is patch
    # Those that take the kernel's place, and those that join frames.
    assert {name for name in MODES if guide_patches(guide(name), SPANS)[-1].innermost} == {
        "trailblazer", "freetraj", "videograin", "through_the_mask"
    }  # fmt: skip


def test_published_blocks_of_a_unet_are_all_of_a_transformer() -> None:
    told, unet, transformer = (
        Guide(masks(), mode=make_mode("peekaboo")),
        ["down.0.0", "mid.0"],
        ["block.0", "block.1"],
    )
    assert told.on_blocks(unet) is told and told.on_blocks(transformer).mode.blocks == "all"
    # Blocks that someone chose are that someone's.
    chosen = Guide(masks(), mode=make_mode("peekaboo", blocks="middle"))
    assert chosen.on_blocks(transformer) is chosen


def test_strength_of_latent_frames_is_the_mean_of_their_frames() -> None:
    told = guide(given=masks(9), frame_strength=(1, 2, 2, 4, 4, 0, 0, 0, 0), strength=0.5)
    patch = guide_patches(told, SPANS)[-1]
    assert patch._frame_strength(site("self", "none", latent_time=causal(4)), (0, 1, 2)).tolist() == [0.5, 1.5, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": torch.zeros(3, 4)}, "masks have shape"),
        ({"masks": torch.full((1, 3, 4, 4), 2.0)}, "from 2 to 2; scale them to 0..1"),
        ({"phrases": ("a", "b")}, "2 phrases for 1 masks"),
        ({"strength": 11.0}, "strength is 11; give a value from 0 .no guidance. to 10"),
        ({"frame_strength": (1.0, 2.0)}, "2 values of frame_strength for 3 mask frames"),
        ({"frame_strength": (1.0, -2.0, 1.0)}, "frame_strength is -2"),
        ({"key_source": "last"}, "key_source is 'last'; choose one of self, first"),
        ({"time_pooling": "middle"}, "time_pooling is 'middle'"),
        ({"phrases": (), "background_phrase": "grass"}, "'grass' is given without phrases"),
    ],
)
def test_bad_guides(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guide(**{"masks": masks(), "mode": make_mode("dmg"), "phrases": ("ball",), **settings})


def test_bad_bindings() -> None:
    with pytest.raises(ValueError, match="2 phrases were found in the prompt but the guide has 1 masks"):
        guide_patches(guide(), TextSpans(("a", "b"), ((1,), (2,))))
    with pytest.raises(ValueError, match="mode motionbooth steers the words of the objects"):
        guide_patches(guide("motionbooth"))
    with pytest.raises(ValueError, match="3 mask frames do not fit a clip of 5 frames"):
        guide_patches(guide(), SPANS)[-1].check_run(Run(5, 8, 8))
    with pytest.raises(ValueError, match="a text of 6 tokens but the positive prompt has 7"):
        guide_patches(guide(), SPANS)[-1].check_run(Run(3, 8, 8, prompts={"": 7}))


def test_constants_by_name() -> None:
    # Graphs are made with the first one.
    assert next(iter(MODES)) == "dmg" and all(mode.name == name for name, mode in MODES.items())
    assert {"focus", "focus_fg", "separate", "cross_text"} <= set(PLAIN) <= set(MODES)
    assert mode_constants("peekaboo")["end_percent"] == 0.04
    assert make_mode("direct_a_video", gain=5).gain == 5
    with pytest.raises(ValueError, match="mode is 'magic'; choose one of dmg, focus"):
        make_mode("magic")
    with pytest.raises(ValueError, match="mode motionbooth has no constant 'gamma'; it has start_percent=0.0, end"):
        make_mode("motionbooth", gamma=3)
    for constants, message in (
        ({"gamma_self": -1}, "gamma_self is -1; give a value from 0 to 1000"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"direction": "up"}, "direction is 'up'; choose one of both, fg_only, bg_only"),
        ({"masks": "gray"}, "masks is 'gray'"),
        ({"mask_rule": "cubic"}, "mask_rule is 'cubic'; choose one of area, strided"),
        ({"start_percent": 0.9, "end_percent": 0.4}, "start_percent 0.9 and end_percent 0.4"),
        ({"blocks": " , "}, "blocks is ' , '"),
        ({"rows": "left"}, "rows is 'left'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_mode("dmg", **constants)
    with pytest.raises(ValueError, match="first_blocks is -1"):
        make_mode("through_the_mask", first_blocks=-1)
    with pytest.raises(ValueError, match="other_words is 'gone'; choose one of closed"):
        make_mode("direct_a_video", other_words="gone")


def test_constants_as_text() -> None:
    text = "gamma_cross=20, beta = 3\n# a remark, with = and ,\nblocks=mid,up; per_object=False, masks=soft"
    assert read_constants("dmg", text) == {
        "gamma_cross": 20.0, "beta": 3.0, "blocks": "mid,up", "per_object": False, "masks": "soft"
    }  # fmt: skip
    assert read_constants("through_the_mask", "first_blocks=4") == {"first_blocks": 4}
    assert read_constants("dmg", " \n ") == {}
    for given, message in (
        ("gama=1", "mode dmg has no constant 'gama'; it has start_percent"),
        ("20", "constants has '20' without '='"),
        ("beta=x", "constant beta is 'x'; write a number such as"),
        ("beta=inf", "constant beta is 'inf'"),
        ("beta=1, beta=2", "constants has 'beta' twice"),
        ("per_object=1", "constant per_object is '1'; write true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            read_constants("dmg", given)
    with pytest.raises(ValueError, match="constant first_blocks is '1.5'; write a whole number"):
        read_constants("through_the_mask", "first_blocks=1.5")


def test_boxes() -> None:
    given = torch.zeros(1, 3, 4, 8)
    given[0, 0, 1:3, 2:5] = 1.0
    given[0, 1, 3, 7] = 0.5
    given[0, 2] = 0.4
    assert mask_boxes(given)[0].tolist() == [[0.25, 0.25, 0.625, 0.75], [0.875, 0.75, 1.0, 1.0], [0, 0, 0, 0]]
    ell = torch.zeros(1, 1, 4, 4)
    ell[0, 0, 0:3, 1] = 1.0
    ell[0, 0, 2, 1:3] = 1.0
    expected = torch.zeros(4, 4)
    expected[0:3, 1:3] = 1.0
    assert torch.equal(box_masks(ell)[0, 0], expected)
    assert not bool(box_masks(torch.zeros(1, 1, 4, 4)).any())


def test_rules_from_pixels_to_cells() -> None:
    given = torch.zeros(1, 1, 4, 4)
    given[0, 0, 0, 0], given[0, 0, 3, 2], given[0, 0, 1, 3] = 1.0, 1.0, 0.4
    found = {
        rule: pool_space(given, 2, 2, None, rule, level=1)[0, 0]
        for rule in ("area", "strided", "nearest", "maxpool", "bilinear_gt0")
    }
    torch.testing.assert_close(found["area"], torch.tensor([[0.25, 0.1], [0.0, 0.25]]))
    assert found["strided"].tolist() == [[1, 0], [0, 0]]
    assert found["nearest"].tolist() == [[1, 0], [0, 0]]
    torch.testing.assert_close(found["maxpool"], torch.tensor([[1.0, 0.4], [0.0, 1.0]]))
    assert found["bilinear_gt0"].tolist() == [[1, 1], [0, 1]]
    # The picture fills 3 of 4 columns of cells; the last one goes on as the picture ends.
    edge = torch.zeros(1, 1, 4, 6)
    edge[..., 5] = 1.0
    for rule in ("nearest", "maxpool", "bilinear_gt0"):
        assert pool_space(edge, 2, 4, (2.0, 3.0), rule)[0, 0, 0].tolist()[3] == 1.0


def test_words_of_a_prompt() -> None:
    prompt = "a red ball on red sand"
    ids = [NOT_OF_PROMPT, *range(5), 1, NOT_OF_PROMPT, NOT_OF_PROMPT]
    known = {"a": 0, "red": 1, "ball": 2, "on": 3, "sand": 4}
    ids = [NOT_OF_PROMPT, *(known[word] for word in prompt.split()), NOT_OF_PROMPT, NOT_OF_PROMPT]

    def tokenize(text: str) -> list[int]:
        return [known[word] for word in text.split() if word in known]

    spans = locate_phrases(ids, [prompt], [tokenize], ["red ball"], "red sand")
    assert (spans.positions, spans.background, spans.ordinary) == (((2, 3),), (5, 6), (1, 2, 3, 4, 5, 6))
    # What two claim is the object's.
    assert locate_phrases(ids, [prompt], [tokenize], ["red"], "red sand").background == (6,)
    with pytest.raises(ValueError, match="'blue sky' does not occur"):
        locate_phrases(ids, [prompt], [tokenize], ["red ball"], "blue sky")
    assert spans.begin == (0,)
    twice = spans.repeated(18)
    assert (twice.background, twice.begin, twice.length) == ((5, 6, 14, 15), (0, 9), 18)
    part = spans.in_part(6, (3, 9))
    assert (part.positions, part.background, part.ordinary) == (((0,),), (2, 3), (0, 1, 2, 3))
    with pytest.raises(ValueError, match="token position 9 of the phrase 'background' lies outside"):
        replace(spans, background=(9,))
