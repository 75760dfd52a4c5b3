"""Golden values of the additive mask modes on a 4x4 grid, against the published rules written out cell by cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attention_calls import make_site
from torch import Tensor

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.patch import guide_patches
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.site import (
    SITE_KEY,
    AttentionSite,
)
from mask_guided_video.attention_patches.stack import PatchStack

FRAMES, SIDE, TOKENS = 2, 4, 8
CELLS = SIDE * SIDE
# <begin> a ball and kite on grass <end>
BALL, KITE, GRASS = (2,), (4,), (6,)
SPANS = TextSpans(("ball", "kite"), (BALL, KITE), TOKENS, ordinary=(1, 2, 3, 4, 5, 6), background=GRASS)
# Which object has each cell: b the ball, k the kite, - none.
FILM = (
    "bb-- bb-- ---k ---k",
    "---- -bb- -bb- k---",
)
CLOSED = -math.inf


def owner(frame: int, cell: int) -> str:
    return FILM[frame].replace(" ", "")[cell]


def masks() -> Tensor:
    found = [[[float(owner(frame, cell) == name) for cell in range(CELLS)] for frame in range(FRAMES)] for name in "bk"]
    return torch.tensor(found).view(2, FRAMES, SIDE, SIDE)


def guide(mode: str, given: Tensor | None = None, strength: float = 1.0, frame_strength=(), keys="self", **constants):
    return Guide(
        masks() if given is None else given,
        phrases=("ball", "kite"),
        background_phrase="grass",
        mode=make_mode(mode, **constants),
        strength=strength,
        frame_strength=frame_strength,
        key_source=keys,
    )


def site(kind: str, folded: str = "frames", **changes) -> AttentionSite:
    usual = {"text_tokens": TOKENS, "block": "mid.0", "total": 4, "level": 0, "progress": 0.01, "sigma": 9.0}
    return make_site(kind, folded, (FRAMES, SIDE, SIDE), **{**usual, **changes})


def tensors(at: AttentionSite, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries and keys of one head; values that make the result the probabilities themselves."""
    queries = at.video.stop + (TOKENS if at.kind == "joint" else 0)
    keys = TOKENS if at.kind == "cross" else queries
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(at.rows.total, length, 8, generator=generator) for length in (queries, keys))
    return q, k, torch.eye(keys).expand(at.rows.total, -1, -1)


def probabilities(told: Guide, at: AttentionSite, spans: TextSpans | None = SPANS, plain: bool = False) -> Tensor:
    """[rows, queries, keys] with the patches of a guide, or without."""
    stack = PatchStack(guide_patches(told, spans))
    options = {} if plain else {"optimized_attention_override": stack.override, SITE_KEY: at}
    q, k, v = tensors(at)
    return attention(q, k, v, 1, transformer_options=options)


def dense(at: AttentionSite, bias: Callable[[int, int, int], float]) -> Tensor:
    """Softmax of the logits plus ``bias(row, query, key)``; rows that it closes completely go without."""
    q, k, _ = tensors(at)
    added = torch.tensor(
        [[[bias(row, query, key) for key in range(k.shape[1])] for query in range(q.shape[1])] for row in range(len(q))]
    )
    added = torch.where(torch.isinf(added).all(dim=2, keepdim=True), torch.zeros_like(added), added)
    return (q @ k.transpose(1, 2) / math.sqrt(8) + added).softmax(dim=2)


def agree(mode: str, at: AttentionSite, bias: Callable[[int, int, int], float], told: Guide | None = None) -> None:
    found = probabilities(told or guide(mode), at)
    torch.testing.assert_close(found, dense(at, bias), atol=2e-6, rtol=1e-5)


def frame_of(row: int) -> int:
    """Of a row where frames are folded."""
    return row % FRAMES


def words_of(name: str) -> tuple[int, ...]:
    return {"b": BALL, "k": KITE, "-": GRASS}[name]


# --- peekaboo ---------------------------------------------------------------------------------------------------------


def peekaboo_cross(row: int, query: int, key: int) -> float:
    name = owner(frame_of(row), query)
    if name != "-":
        return 0.0 if key in words_of(name) else CLOSED
    return CLOSED if key in BALL + KITE + (0,) else 0.0


def test_peekaboo_words() -> None:
    agree("peekaboo", site("cross"), peekaboo_cross)
    ball, grass = (probabilities(guide("peekaboo"), site("cross"))[0, cell] for cell in (0, 3))
    assert ball.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    # Nobody sees the begin; end and padding belong to the background.
    assert [bool(share) for share in grass] == [False, True, False, True, False, True, True, True]


def test_peekaboo_lets_the_background_see_the_begin_when_asked() -> None:
    told = guide("peekaboo", begin_is_seen=True)
    agree(
        "",
        site("cross"),
        lambda *at: 0.0 if at[2] == 0 and owner(at[0] % 2, at[1]) == "-" else peekaboo_cross(*at),
        told,
    )


@pytest.mark.parametrize("folded", ["frames", "none", "positions"])
def test_peekaboo_regions(folded: str) -> None:
    def bias(row: int, query: int, key: int) -> float:
        places = {
            "frames": lambda token: (frame_of(row), token),
            "none": lambda token: divmod(token, CELLS),
            "positions": lambda token: (token, row % CELLS),
        }[folded]
        return 0.0 if owner(*places(query)) == owner(*places(key)) else CLOSED

    agree("peekaboo", site("temporal" if folded == "positions" else "self", folded), bias)


def test_peekaboo_acts_in_two_of_fifty_steps_in_the_middle_and_later_blocks() -> None:
    patch = guide_patches(guide("peekaboo"), SPANS)[-1]
    steps = [patch.acts_at(site("self", progress=1 - (981 - 20 * step) / 999)) for step in range(50)]
    assert steps == [True, True] + [False] * 48
    acting = [block for block in ("down.0.0", "mid.0", "up.1.2") if patch.acts_at(site("self", block=block))]
    assert acting == ["mid.0", "up.1.2"]


def test_peekaboo_samples_masks_with_strides() -> None:
    """A grid of half the size sees every other cell of the latents, not their average."""
    fine = torch.zeros(1, 1, 8, 8)
    fine[..., ::2, ::2] = masks()[0, 0]
    told = Guide(fine, phrases=("ball",), mode=make_mode("peekaboo"))
    found = told.pyramid().regions(4, 4, 1, level=1).objects
    torch.testing.assert_close(found, masks()[:1, :1])
    # An object that the strides step over keeps the cell that it covers most.
    missed = torch.zeros(1, 1, 8, 8)
    missed[..., 3, 5] = 1.0
    assert Guide(missed, mode=make_mode("peekaboo")).pyramid().regions(4, 4, 1, level=1).objects.nonzero().tolist() == [
        [0, 0, 1, 2]
    ]


# --- direct_a_video, motionbooth --------------------------------------------------------------------------------------


def share_of(frame: int, name: str) -> float:
    return sum(owner(frame, cell) == name for cell in range(CELLS)) / CELLS


def region_words(gain: float) -> Callable[[int, int, int], float]:
    def bias(row: int, query: int, key: int) -> float:
        if row >= FRAMES or key in (0, 7):
            return 0.0
        name = owner(frame_of(row), query)
        if key not in words_of(name):
            return CLOSED
        return gain * (1.0 - share_of(frame_of(row), name))

    return bias


@pytest.mark.parametrize(("mode", "gain", "late"), [("direct_a_video", 25.0, 0.06), ("motionbooth", 10.0, 0.31)])
def test_words_in_their_own_region(mode: str, gain: float, late: float) -> None:
    agree(mode, site("cross"), region_words(gain))
    # Amplified in the first steps only, suppressed in all.
    agree(mode, site("cross", progress=late - 0.01), region_words(gain))
    agree(mode, site("cross", progress=late), region_words(0.0))
    agree(mode, site("cross", progress=1.0), region_words(0.0))
    agree(mode, site("cross", block="down.0.0"), region_words(gain))
    plain = attention(*tensors(site("cross")), 1)
    assert torch.equal(probabilities(guide(mode), site("cross"))[FRAMES:], plain[FRAMES:])


def test_golden_gain_of_direct_a_video() -> None:
    """4 of 16 cells are the ball's: its word gains 25 * (1 - 1/4) = 18.75 over begin and end."""
    at = site("cross")
    q, k, v = tensors(at)
    stack = PatchStack(guide_patches(guide("direct_a_video"), SPANS))
    options = {"optimized_attention_override": stack.override, SITE_KEY: at}
    found = attention(torch.zeros_like(q), k, v, 1, transformer_options=options)[0]
    total = math.exp(18.75) + 2.0
    assert found[0].tolist() == pytest.approx([1 / total, 0, math.exp(18.75) / total, 0, 0, 0, 0, 1 / total], rel=1e-4)
    # The background, 10 of 16 cells: 25 * (1 - 10/16) = 9.375.
    total = math.exp(9.375) + 2.0
    assert found[3].tolist() == pytest.approx([1 / total, 0, 0, 0, 0, 0, math.exp(9.375) / total, 1 / total], rel=1e-4)


def test_words_of_no_phrase() -> None:
    """Closed as published; or the background's; or free."""
    at = site("cross")
    free = guide("motionbooth", other_words="free")
    agree("", at, lambda *a: 0.0 if a[2] in (1, 3, 5) else region_words(10.0)(*a), free)

    def background(row: int, query: int, key: int) -> float:
        return region_words(10.0)(row, query, 6 if key in (1, 3, 5) else key)

    agree("", at, background, guide("motionbooth", other_words="background"))
    # Without a background phrase the background sees begin and end only.
    found = probabilities(guide("direct_a_video"), at, replace(SPANS, background=()))[0, 3]
    assert [bool(share) for share in found] == [True, False, False, False, False, False, False, True]


def test_masks_of_direct_a_video_take_every_cell_that_interpolation_touches() -> None:
    thin = torch.zeros(1, 1, 8, 8)
    thin[..., 1, 4] = 0.4
    thin[..., 6, 1] = 1.0
    found = Guide(thin, phrases=("ball",), mode=make_mode("direct_a_video")).pyramid().regions(4, 4, 1).objects[0, 0]
    assert found.nonzero().tolist() == [[0, 2], [3, 0]]


# --- through_the_mask -------------------------------------------------------------------------------------------------


def space_time(frame: int, query: int, other: int, key: int) -> float:
    return 0.0 if owner(frame, query) == owner(other, key) else CLOSED


def test_through_the_mask_sees_its_object_over_space_and_time() -> None:
    agree("through_the_mask", site("self", "none"), lambda row, q, k: space_time(*divmod(q, CELLS), *divmod(k, CELLS)))


def test_through_the_mask_joins_frames_that_are_apart() -> None:
    at = site("self")
    q, k, _ = tensors(at)
    values = torch.randn(4, CELLS, 8, generator=torch.Generator().manual_seed(3))
    stack = PatchStack(guide_patches(guide("through_the_mask"), SPANS))
    options = {"optimized_attention_override": stack.override, SITE_KEY: at}
    found = attention(q, k, values, 1, transformer_options=options)
    for row in range(4):
        chunk = row - row % FRAMES
        for cell in range(CELLS):
            seen = [
                (chunk + frame, key)
                for frame in range(FRAMES)
                for key in range(CELLS)
                if owner(frame, key) == owner(frame_of(row), cell)
            ]
            keys = torch.stack([k[place] for place in seen])
            weights = (keys @ q[row, cell] / math.sqrt(8)).softmax(dim=0)
            expected = weights @ torch.stack([values[place] for place in seen])
            torch.testing.assert_close(found[row, cell], expected, atol=2e-6, rtol=1e-5)


def test_through_the_mask_words_in_boxes() -> None:
    """The ball is an L, so that its box is more than itself, and reaches over the kite's."""
    film = ("b--- b--- bbk- ----", "---- ---- ---- ----")
    given = torch.tensor(
        [
            [[float(film[frame].replace(" ", "")[cell] == name) for cell in range(CELLS)] for frame in range(2)]
            for name in "bk"
        ]
    ).view(2, 2, 4, 4)
    given[1, 0, 1, 1] = 1.0  # of the kite: its box is now rows 1-2, columns 1-2

    def in_ball(cell: int) -> bool:
        return cell // 4 <= 2 and cell % 4 <= 1

    def in_kite(cell: int) -> bool:
        return cell // 4 in (1, 2) and cell % 4 in (1, 2)

    def bias(row: int, query: int, key: int) -> float:
        seen = (BALL if in_ball(query) else ()) + (KITE if in_kite(query) else ())
        return 0.0 if frame_of(row) or key in seen else CLOSED

    agree("", site("cross"), bias, guide("through_the_mask", given))


def test_through_the_mask_acts_in_the_first_blocks() -> None:
    patch = guide_patches(guide("through_the_mask"), SPANS)[-1]
    assert [patch.acts_at(site("self", index=index, total=16)) for index in (0, 5, 6)] == [True, True, False]
    blocks = [site("self", "none", block=f"block.{index}", index=index, total=40) for index in range(40)]
    assert [patch.acts_at(block) for block in blocks] == [True] * 10 + [False] * 30
    fewer = guide_patches(guide("through_the_mask", first_blocks=2), SPANS)[-1]
    assert [fewer.acts_at(block) for block in blocks[:3]] == [True, True, False]
    assert not patch.acts_at(site("temporal", "positions"))


# --- dmg, the reconstruction ------------------------------------------------------------------------------------------


def sides(gap: float, held: str = "bk-") -> Callable[[int, int, int], float]:
    def bias(row: int, query: int, key: int) -> float:
        name = owner(frame_of(row), query)
        return -gap if name in held and owner(frame_of(row), key) != name else 0.0

    return bias


@pytest.mark.parametrize(("direction", "held"), [("both", "bk-"), ("fg_only", "bk"), ("bg_only", "-")])
def test_dmg_holds_sides_apart(direction: str, held: str) -> None:
    agree("", site("self"), sides(8.0, held), guide("dmg", direction=direction, blocks="all", gamma_self=8.0))


def test_dmg_takes_all_objects_as_one_when_asked() -> None:
    def bias(row: int, query: int, key: int) -> float:
        return -5.0 if (owner(frame_of(row), query) == "-") != (owner(frame_of(row), key) == "-") else 0.0

    agree("", site("self"), bias, guide("dmg", per_object=False, blocks="all", gamma_self=5.0))


def test_dmg_over_time() -> None:
    def bias(row: int, query: int, key: int) -> float:
        return -4.0 if owner(query, row % CELLS) != owner(key, row % CELLS) else 0.0

    agree("", site("temporal", "positions"), bias, guide("dmg", gamma_temporal=4.0, blocks="all"))


def dmg_words(
    gamma: float, beta: float, strict: bool = False, background: bool = True
) -> Callable[[int, int, int], float]:
    def bias(row: int, query: int, key: int) -> float:
        name, ordinary = owner(frame_of(row), query), 1 <= key <= 6
        if row >= FRAMES:
            return 0.0
        for other, span in (("b", BALL), ("k", KITE)):
            if key in span:
                return beta if name == other else -gamma
        if background and name == "-" and ordinary and key not in GRASS:
            return -gamma
        return -gamma if strict and name != "-" and ordinary else 0.0

    return bias


OPEN = {"blocks": "all", "gamma_cross": 6.0, "beta": 2.0, "beta_decay_percent": 0.0}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_dmg_words(strict: bool, background: bool) -> None:
    told = guide("dmg", text_rule="strict" if strict else "exclude", **OPEN)
    found = probabilities(told, site("cross"), SPANS if background else replace(SPANS, background=()))
    expected = dense(site("cross"), dmg_words(6.0, 2.0, strict, background))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_dmg_raises_words_less_and_less() -> None:
    told = guide("dmg", **OPEN | {"beta_decay_percent": 0.4, "end_percent": 1.0, "cross_end_percent": 1.0})
    for progress, beta in ((0.0, 2.0), (0.1, 1.5), (0.3, 0.5), (0.4, 0.0), (0.9, 0.0)):
        agree("", site("cross", progress=progress), dmg_words(6.0, beta), told)


def test_dmg_ends_each_part_by_itself() -> None:
    ends = {"self_end_percent": 0.2, "cross_end_percent": 0.5, "temporal_end_percent": 0.7, "end_percent": 0.9}
    patch = guide_patches(guide("dmg", gamma_temporal=4.0, gamma_self=8.0, blocks="all", **ends), SPANS)[-1]
    calls = {"self": site("self"), "cross": site("cross"), "temporal": site("temporal", "positions")}
    acting = [
        {kind for kind, at in calls.items() if patch.acts_at(replace(at, progress=progress))}
        for progress in (0.2, 0.5, 0.7, 0.8)
    ]
    assert acting == [{"self", "cross", "temporal"}, {"cross", "temporal"}, {"temporal"}, set()]


def test_dmg_in_one_sequence_of_film_and_text() -> None:
    """Joint attention: film with film, film with words; queries of the text are free, begin and end too."""
    at = site("joint", "none")

    def bias(row: int, query: int, key: int) -> float:
        if query >= FRAMES * CELLS:
            return 0.0
        frame, cell = divmod(query, CELLS)
        if key < FRAMES * CELLS:
            return 0.0 if owner(frame, cell) == owner(*divmod(key, CELLS)) else -8.0
        return dmg_words(6.0, 2.0)(frame, cell, key - FRAMES * CELLS) if row == 0 else 0.0

    agree("", at, bias, guide("dmg", **OPEN, gamma_self=8.0))


def test_dmg_with_soft_masks() -> None:
    soft = torch.rand(2, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 0.5
    soft[:, :, 0, 0] = torch.tensor([[0.6, 0.3], [0.3, 0.6]])
    members = torch.cat((soft, 1 - soft.sum(dim=0, keepdim=True))).flatten(2)

    def bias(row: int, query: int, key: int) -> float:
        same = float(members[:, frame_of(row), query] @ members[:, frame_of(row), key])
        return -8.0 * (1.0 - same)

    # An object is there when a pixel of it reaches one half: the ball in frame 0, the kite in frame 1.
    given = soft.clone()
    members = members.clone()
    for index, frame in ((0, 1), (1, 0)):
        members[index, frame] = 0.0
        members[2, frame] = 1.0 - members[1 - index, frame]
    agree("", site("self"), bias, guide("dmg", given, masks="soft", blocks="all", gamma_self=8.0))


def test_dmg_leaves_frames_alone_that_an_object_fills() -> None:
    given = torch.zeros(2, FRAMES, SIDE, SIDE)
    given[0, 0] = 1.0
    given[0, 1, :2] = 1.0
    for at in (site("self"), site("cross")):
        found, plain = (
            probabilities(guide("dmg", given, **OPEN | {"gamma_self": 8.0}), at, plain=plain) for plain in (False, True)
        )
        assert torch.equal(found[0], plain[0]) and not torch.allclose(found[1], plain[1])


def test_keys_of_the_first_frame_come_with_its_regions() -> None:
    """The ball of every frame looks at the ball of the first frame, wherever it stands now."""
    at = site("self")
    q, k, _ = tensors(at)
    values = torch.randn(4, CELLS, 8, generator=torch.Generator().manual_seed(3))
    for source, frames in (("first", (0,)), ("first_self", (0, None))):
        told = guide("dmg", keys=source, blocks="all", gamma_self=8.0)
        stack = PatchStack(guide_patches(told, SPANS))
        options = {"optimized_attention_override": stack.override, SITE_KEY: at}
        found = attention(q, k, values, 1, transformer_options=options)
        for row in range(4):
            chunk, here = row - row % FRAMES, frame_of(row)
            seen = [(here if frame is None else frame, key) for frame in frames for key in range(CELLS)]
            keys = torch.stack([k[chunk + frame, key] for frame, key in seen])
            for cell in range(CELLS):
                bias = torch.tensor([0.0 if owner(*place) == owner(here, cell) else -8.0 for place in seen])
                weights = (keys @ q[row, cell] / math.sqrt(8) + bias).softmax(dim=0)
                expected = weights @ torch.stack([values[chunk + frame, key] for frame, key in seen])
                torch.testing.assert_close(found[row, cell], expected, atol=2e-6, rtol=1e-5)


def test_an_object_that_the_first_frame_lacks_looks_as_it_likes() -> None:
    given = masks()
    given[:, 0] = 0.0
    given[1, 0] = masks()[1, 0]  # the kite alone is in the first frame
    told = guide("dmg", given, keys="first", blocks="all", gamma_self=1000.0)
    plain = guide("dmg", given, keys="first", blocks="all", gamma_self=0.0)
    found, free = (probabilities(at, site("self")) for at in (told, plain))
    ball = torch.tensor([owner(1, cell) == "b" for cell in range(CELLS)])
    torch.testing.assert_close(found[1][ball], free[1][ball], atol=2e-6, rtol=1e-5)
    assert not torch.allclose(found[1][~ball], free[1][~ball])


# --- strength over time -----------------------------------------------------------------------------------------------


def test_strength_and_frame_strength_are_factors() -> None:
    told = guide("dmg", strength=0.5, frame_strength=(1.0, 3.0), blocks="all", gamma_self=4.0)
    agree("", site("self"), lambda row, q, k: (0.5, 1.5)[frame_of(row)] * sides(4.0)(row, q, k), told)
    told = guide("direct_a_video", frame_strength=(0.0, 1.0))
    found, plain = (probabilities(told, site("cross"), plain=plain) for plain in (False, True))
    assert torch.equal(found[0], plain[0]) and not torch.allclose(found[1], plain[1])


def test_unconditional_words_are_guided_only_when_asked_and_only_in_a_text_as_long() -> None:
    for mode, both in (("dmg", False), ("peekaboo", True), ("through_the_mask", True), ("motionbooth", False)):
        found, plain = (probabilities(guide(mode, blocks="all"), site("cross"), plain=plain) for plain in (False, True))
        assert torch.equal(found[FRAMES:], plain[FRAMES:]) is not both, mode
    longer = replace(SPANS, length=TOKENS - 1, ordinary=(1, 2, 3, 4, 5), background=(5,))
    found, plain = (probabilities(guide("peekaboo"), site("cross"), longer, plain=plain) for plain in (False, True))
    assert torch.equal(found[FRAMES:], plain[FRAMES:]) and not torch.allclose(found[:FRAMES], plain[:FRAMES])


def test_rows_that_are_closed_stay_free_at_any_strength() -> None:
    """The kite is not in the first frame: its queries find no key of their own, whatever the strength."""
    given = masks()
    given[1, 0] = 0.0
    for strength in (0.3, 1.0, 4.0):
        told, plain = (guide(mode, given, strength, (), "first", blocks="all") for mode in ("peekaboo", "motionbooth"))
        found, free = (probabilities(each, site("self", progress=0.01)) for each in (told, plain))
        kite = torch.tensor([owner(1, cell) == "k" for cell in range(CELLS)])
        torch.testing.assert_close(found[1][kite], free[1][kite], atol=2e-6, rtol=1e-5)
        ball = torch.tensor([owner(1, cell) == "b" for cell in range(CELLS)])
        assert not torch.allclose(found[1][ball], free[1][ball])


def test_one_patch_through_the_whole_schedule() -> None:
    """What was made for one step is not taken for another in which the rule is another."""
    for mode, early, late, settings in (
        ("direct_a_video", region_words(25.0), region_words(0.0), {}),
        ("dmg", dmg_words(6.0, 2.0), dmg_words(6.0, 1.0), OPEN | {"beta_decay_percent": 0.4, "end_percent": 1.0}),
    ):
        stack = PatchStack(guide_patches(guide(mode, **settings), SPANS))
        for progress, bias in ((0.0, early), (0.2, late), (0.0, early)):
            at = site("cross", progress=progress)
            options = {"optimized_attention_override": stack.override, SITE_KEY: at}
            found = attention(*tensors(at), 1, transformer_options=options)
            torch.testing.assert_close(found, dense(at, bias), atol=2e-6, rtol=1e-5)


def test_film_and_words_in_one_sequence_are_left_alone_together() -> None:
    at = site("joint", "none")
    told = guide("through_the_mask", rows="conditional", cross_rows="both")
    found, plain = (probabilities(told, at, plain=plain) for plain in (False, True))
    assert torch.equal(found[1], plain[1]) and not torch.allclose(found[0], plain[0])
