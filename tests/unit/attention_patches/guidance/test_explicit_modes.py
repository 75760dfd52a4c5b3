"""TrailBlazer, FreeTraj and VideoGrain on a 4 x 4 grid against their formulas, written out token by token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_calls import lengths_of, make_site
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mask_guided_video.attention_patches.guidance import edits as probability_edit
from mask_guided_video.attention_patches.guidance.edits import EditJob, EditPart, ProbabilityEdit
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.freetraj import FreeTraj
from mask_guided_video.attention_patches.guidance.modes.mode import MaskMode
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.modes.trailblazer import TrailBlazer, trailing_tokens
from mask_guided_video.attention_patches.guidance.modes.videograin import VideoGrain
from mask_guided_video.attention_patches.guidance.patch import guide_patches
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.kernels.explicit import explicit_attention
from mask_guided_video.attention_patches.kernels.plain import plain_attention
from mask_guided_video.attention_patches.kernels.rows import RowSet
from mask_guided_video.attention_patches.patch import Attend
from mask_guided_video.attention_patches.site import AttentionSite, BatchRows, Span

GRID, TEXT = 4, 10
CELLS = GRID * GRID
# Begin, "a red ball on sand", end, padding; the object is "red ball".
SPANS = TextSpans(("red ball",), ((2, 3),), TEXT, ordinary=(1, 2, 3, 4, 5), background=(5,))
TWO = TextSpans(("ball", "cube"), ((2,), (4,)), TEXT, ordinary=(1, 2, 3, 4, 5), background=(5,))
# Rows and columns of the object's box in each frame; it is not in the last one.
PATH = ((0, 3, 0, 3), (1, 4, 0, 3), (1, 4, 1, 4), None)
FRAMES = len(PATH)
KINDS = {"self": "frames", "cross": "frames", "temporal": "positions"}


def masks_of(*paths: Any, pixels: int = 4) -> Tensor:
    """Boxes of whole cells, ``pixels`` wide each."""
    masks = torch.zeros(len(paths), len(paths[0]), GRID * pixels, GRID * pixels)
    for index, path in enumerate(paths):
        for frame, box in enumerate(path):
            if box is not None:
                top, bottom, left, right = (edge * pixels for edge in box)
                masks[index, frame, top:bottom, left:right] = 1.0
    return masks


def site_of(kind: str, folded: str | None = None, chunks: tuple[int, ...] = (0, 1), **changes: Any) -> AttentionSite:
    folded = KINDS.get(kind, "none") if folded is None else folded
    usual = {"text_tokens": TEXT, "block": "mid.0", "total": 1, "progress": 0.0, "sigma": 1.0}
    return make_site(kind, folded, (FRAMES, GRID, GRID), chunks=chunks, **{**usual, **changes})


def tensors(
    site: AttentionSite, heads: int = 2, dim: int = 8, seed: int = 0, dtype: Any = torch.float32
) -> list[Tensor]:
    """q, k and, so that results show the probabilities, the identity as v."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys = lengths_of(site)
    q, k = (torch.randn(site.rows.total, heads, length, dim, generator=generator) for length in (queries, keys))
    return [q.to(dtype), k.to(dtype), torch.eye(keys, dtype=dtype).expand(site.rows.total, heads, -1, -1)]


def attend(bias: Tensor | None = None, last: bool = True) -> Attend:
    return Attend(lambda q, k, v, site, bias: plain_attention(q, k, v, bias), bias, last)


def guided(
    mode: MaskMode, site: AttentionSite, qkv: list[Tensor], masks: Tensor, spans: TextSpans | None, **settings: Any
) -> Tensor:
    bias = settings.pop("bias", None)
    patches = guide_patches(Guide(masks, mode=mode, **settings), spans)
    assert len(patches) == 1 and patches[0].innermost and patches[0].acts_at(site)
    return patches[0](attend(bias), *qkv, site)


def logits_of(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])


def inside(box: Any, cell: int) -> bool:
    row, column = divmod(cell, GRID)
    return box is not None and box[0] <= row < box[1] and box[2] <= column < box[3]


def bump(box: Any, cell: int) -> float:
    """A Gaussian of a third of the box with a peak of 1, on cells of the box only; boxes are 3 cells wide: sigma 1."""
    if not inside(box, cell):
        return 0.0
    row, column = divmod(cell, GRID)
    return math.exp(-((row - box[0] - 1) ** 2) / 2) * math.exp(-((column - box[2] - 1) ** 2) / 2)


def whole(site: AttentionSite, group: int, token: int) -> tuple[int, int]:
    """Frame and cell of a video token of a batch row."""
    if site.rows.folded == "frames":
        return group, token
    return (token, group) if site.rows.folded == "positions" else divmod(token, CELLS)


# --- TrailBlazer ------------------------------------------------------------------------------------------------------


def test_trailblazer_by_hand() -> None:
    """Equal logits: every probability is a tenth, and so is the largest one."""
    site = site_of("cross", chunks=(0,))
    q, k, v = tensors(site)
    out = guided(TrailBlazer(shrink=0.0), site, [q * 0.0, k, v], masks_of(PATH), SPANS)[0, 0].view(GRID, GRID, TEXT)
    around = 0.1 + 0.15 * 0.1 * math.exp(-0.5)
    corner = 0.1 + 0.15 * 0.1 * math.exp(-1.0)
    expected = torch.tensor(
        [
            [corner, around, corner, 0.0001],
            [around, 0.115, around, 0.0001],
            [corner, around, corner, 0.0001],
            [0.0001] * 4,
        ]
    )
    for word in (2, 3, 6, 7, 8, 9):
        torch.testing.assert_close(out[..., word], expected)
    for word in (0, 1, 4, 5):
        torch.testing.assert_close(out[..., word], torch.full((GRID, GRID), 0.1))


def test_trailblazer_shrinks_boxes_and_casts_them_to_whole_cells() -> None:
    """0.75 less 0.01 of the picture is 2.96 cells: the box is two cells wide, and both are as far from its middle."""
    site = site_of("cross", chunks=(0,))
    q, k, v = tensors(site)
    out = guided(TrailBlazer(), site, [q * 0.0, k, v], masks_of(PATH), SPANS)[0, 0].view(GRID, GRID, TEXT)
    expected = torch.full((GRID, GRID), 0.0001)
    expected[:2, :2] = 0.115
    torch.testing.assert_close(out[..., 2], expected)


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_trailblazer_words_token_by_token(kind: str) -> None:
    site, mode = site_of(kind), TrailBlazer(shrink=0.0, strengthen=0.3, weaken=0.2, trailing=2)
    q, k, v = tensors(site)
    out = guided(mode, site, [q, k, v], masks_of(PATH), SPANS)
    plain = logits_of(q, k).softmax(dim=-1)
    rows = range(3) if kind == "cross" else range(1)
    text = range(TEXT) if kind == "cross" else range(FRAMES * CELLS, FRAMES * CELLS + TEXT)
    peak = max(float(plain[row][..., text.start : text.stop].max()) for row in rows)
    expected = plain.clone()
    for row in rows:
        for query in range(site.video.stop):
            frame, cell = whole(site, row, query)
            for word in (2, 3, 6, 7):
                if PATH[frame] is not None:
                    weight = 1.0 if inside(PATH[frame], cell) else 0.2
                    value = plain[row, :, query, text[word]] * weight + 0.3 * peak * bump(PATH[frame], cell)
                    expected[row, :, query, text[word]] = value
    torch.testing.assert_close(out, expected)
    # The frame without the object and the unconditional half.
    alone = slice(3, None) if kind == "cross" else slice(1, None)
    assert torch.equal(out[alone], plain_attention(q, k, v)[alone])


def test_trailblazer_between_frames() -> None:
    site, mode = site_of("temporal"), TrailBlazer(shrink=0.0, temporal=True, strengthen=0.3, weaken=0.2)
    q, k, v = tensors(site)
    out = guided(mode, site, [q, k, v], masks_of(PATH), None)
    plain = logits_of(q, k).softmax(dim=-1)
    peak, expected = float(plain[:CELLS].max()), plain.clone()
    for cell in range(CELLS):
        for a in range(FRAMES - 1):
            for b in range(FRAMES):
                box = PATH[b] if inside(PATH[b], cell) else PATH[a]
                value = plain[cell, :, a, b] * (1.0 if inside(box, cell) else 0.2)
                if inside(box, cell):
                    value = value + 0.3 * peak * (bump(box, cell) - abs(a - b) / FRAMES)
                expected[cell, :, a, b] = value.abs()
    torch.testing.assert_close(out, expected)
    assert torch.equal(out[CELLS:], plain_attention(q, k, v)[CELLS:])


def test_trailblazer_several_objects_share_what_trails() -> None:
    site, mode = site_of("cross", chunks=(0,)), TrailBlazer(shrink=0.0, strengthen=0.0, weaken=0.5, trailing=1)
    other = ((0, 1, 3, 4),) * FRAMES
    q, k, v = tensors(site)
    out = guided(mode, site, [q * 0.0, k, v], masks_of(PATH, other), TWO)[0, 0].view(GRID, GRID, TEXT)
    in_first, in_second = (torch.tensor([inside(box, cell) for cell in range(CELLS)]) for box in (PATH[0], other[0]))
    for word, here in ((2, in_first), (4, in_second), (6, in_first | in_second), (3, torch.ones(CELLS) > 0)):
        torch.testing.assert_close(out[..., word].flatten(), torch.where(here, 0.1, 0.05))


def test_trailing_tokens_follow_each_stretch_of_words() -> None:
    assert trailing_tokens((1, 2, 3), 8, 15) == (4, 5, 6, 7)
    assert trailing_tokens((1, 2, 6, 7), 10, 2) == (3, 4, 8, 9)
    assert trailing_tokens((1, 2, 4), 6, 3) == (3, 5)
    assert trailing_tokens((1, 2), 3, 15) == () and trailing_tokens((), 3, 15) == ()


# --- FreeTraj ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["self", "temporal", "joint", "whole"])
def test_freetraj_between_regions(kind: str) -> None:
    site = site_of("self", "none") if kind == "whole" else site_of(kind)
    q, k, v = tensors(site)
    out = guided(FreeTraj(), site, [q, k, v], masks_of(PATH), None)
    logits = logits_of(q, k)
    expected = logits.clone()
    groups = site.rows.folded_size
    for row in range(site.rows.total):
        for query in range(site.video.stop):
            frame, cell = whole(site, row % groups, query)
            for key in range(site.video.stop):
                other_frame, other_cell = whole(site, row % groups, key)
                same = inside(PATH[frame], cell) == inside(PATH[other_frame], other_cell)
                if PATH[frame] is not None and not same:
                    expected[row, :, query, key] *= 0.01
    torch.testing.assert_close(out, expected.softmax(dim=-1))
    assert not torch.allclose(out, logits.softmax(dim=-1), atol=0.01)


def test_freetraj_leaves_rows_alone_in_which_all_is_of_one_region() -> None:
    plain = {}
    for kind in ("self", "temporal"):
        site = site_of(kind)
        qkv = tensors(site)
        out, plain[kind] = guided(FreeTraj(), site, qkv, masks_of(PATH), None), plain_attention(*qkv)
        groups = site.rows.folded_size
        # The last frame has no object; the last cell of the first row never has one.
        alone = 3
        assert torch.equal(out[alone::groups], plain[kind][alone::groups])
        assert not torch.allclose(out[1::groups], plain[kind][1::groups], atol=0.01)


def test_freetraj_exact_by_hand() -> None:
    """Inside all tokens are equally likely, and the two words gain 0.25 / (9 / 16) / 2 times the Gaussian."""
    site = site_of("cross")
    q, k, v = tensors(site)
    out = guided(FreeTraj(), site, [q, k, v], masks_of(PATH), SPANS)
    logits, boost = logits_of(q, k), 0.25 / (9 / 16) / 2
    assert float(out[0, 0, 5, 2]) == pytest.approx(0.1 + boost)
    assert float(out[0, 0, 1, 2]) == pytest.approx(0.1 + boost * math.exp(-0.5))
    assert float(out[0, 0, 0, 3]) == pytest.approx(0.1 + boost * math.exp(-1.0))
    torch.testing.assert_close(out[0, :, 5, 4:], torch.full((2, 6), 0.1))
    hidden = logits.clone()
    hidden[..., 2:4] = -math.inf
    for row in (0, 4):
        for cell in (3, 7, 11, 12):
            torch.testing.assert_close(out[row, :, cell], hidden[row, :, cell].softmax(dim=-1))
    # Both halves have boxes; the last frame has no object.
    torch.testing.assert_close(out[4, :, 5, 4:], torch.full((2, 6), 0.1))
    assert torch.equal(out[3::4], plain_attention(q, k, v)[3::4])


def test_freetraj_clean_token_by_token() -> None:
    site, two = site_of("cross"), (PATH, ((2, 3, 2, 4),) * FRAMES)
    q, k, v = tensors(site)
    out = guided(FreeTraj(cross="clean", boost=0.0), site, [q, k, v], masks_of(*two), TWO)
    expected = logits_of(q, k)
    for row in range(site.rows.total):
        for cell in range(CELLS):
            here = [inside(path[row % FRAMES], cell) for path in two]
            for token in range(TEXT):
                own = {2: here[0], 4: here[1]}.get(token, False)
                absent = token == 2 and PATH[row % FRAMES] is None
                hidden = not own if any(here) else token in (2, 4) and not absent
                if hidden:
                    expected[row, :, cell, token] = -math.inf
    torch.testing.assert_close(out, expected.softmax(dim=-1))


def test_freetraj_exact_in_joint_attention_keeps_what_the_text_has_together() -> None:
    site, mode = site_of("joint", chunks=(0,)), FreeTraj(coefficient=1.0, boost=0.0)
    q, k, v = tensors(site)
    out, plain = guided(mode, site, [q, k, v], masks_of(PATH), SPANS), plain_attention(q, k, v)
    text = slice(FRAMES * CELLS, None)
    torch.testing.assert_close(out[0, :, 5, : text.start], plain[0, :, 5, : text.start])
    mass = plain[0, :, 5, text].sum(dim=-1, keepdim=True)
    torch.testing.assert_close(out[0, :, 5, text], (mass / TEXT).expand(-1, TEXT))
    # Rows that are text.
    torch.testing.assert_close(out[0, :, text], plain[0, :, text])


@pytest.mark.parametrize("cross", ["exact", "clean"])
def test_freetraj_without_words_in_the_text_changes_no_row(cross: Any) -> None:
    site, nothing = site_of("cross"), TextSpans(("red ball",), ((),), TEXT)
    qkv = tensors(site)
    patch = guide_patches(Guide(masks_of(PATH), mode=FreeTraj(cross=cross)), nothing)[0]
    assert torch.equal(patch(attend(), *qkv, site), plain_attention(*qkv))


# --- VideoGrain -------------------------------------------------------------------------------------------------------


def test_videograin_by_hand() -> None:
    """Logits 0, 1, 2, 3; the second token is the region's: a quarter of the keys."""
    site = replace(site_of("cross", chunks=(0,)), text=Span(0, 4))
    spans = TextSpans(("ball",), ((1,),), 4)
    q, k = torch.ones(FRAMES, 1, CELLS, 1), torch.arange(4.0)[:, None].expand(FRAMES, 1, 4, 1)
    v = torch.eye(4).expand(FRAMES, 1, 4, 4)
    out = guided(VideoGrain(), site, [q, k, v], masks_of(PATH), spans)
    # ((999 - 1) / 1000)^5 * 3 / 4
    weight = 0.742530
    pulled = torch.tensor([0.0, 1.0 + weight * 2.0, 2.0 - weight * 2.0, 3.0 - weight * 3.0])
    torch.testing.assert_close(out[0, 0, 5], pulled.softmax(dim=0), atol=1e-5, rtol=1e-5)
    # Without a phrase the background has no words.
    torch.testing.assert_close(out[0, 0, 3], torch.arange(4.0).softmax(dim=0))
    assert torch.equal(out[3], plain_attention(q, k, v)[3])


def test_videograin_weight_falls_with_the_fifth_power() -> None:
    mode = VideoGrain()
    assert mode.weight_at(0.0) == pytest.approx(0.998**5)
    # At t = 700: 0.699^5, a sixth.
    assert mode.weight_at(1.0 - 700 / 999) == pytest.approx(0.1669, abs=1e-4)
    assert mode.weight_at(1.0) == 0.0 and mode.weight_at(1.5) == 0.0 and mode.weight_at(-1.0) == mode.weight_at(0.0)
    early, late = (site_of("self", progress=progress) for progress in (0.1, 0.2))
    assert mode.phase(early) != mode.phase(late)


def pull(row: Tensor, own: list[bool], strength: float) -> Tensor:
    weight = strength * (1.0 - sum(own) / len(own))
    up, down = row + weight * (row.max() - row), row - weight * (row - row.min())
    return torch.where(torch.tensor(own), up, down)


@pytest.mark.parametrize("folded", ["frames", "none"])
def test_videograin_over_all_frames(folded: str) -> None:
    """Queries of a frame meet the cells of all frames, also where the model attends frame by frame."""
    site, progress = replace(site_of("self", folded), progress=0.1), 0.1
    q, k, _ = tensors(site)
    v = torch.randn(q.shape, generator=torch.Generator().manual_seed(3))
    out = guided(VideoGrain(), site, [q, k, v], masks_of(PATH), None)
    strength = 0.3 * ((999 * (1.0 - progress) - 1) / 1000) ** 5
    flat = [tensor[: tensor.shape[0] // 2].transpose(0, 1).flatten(1, 2) for tensor in (q, k, v)]
    logits = (flat[0] @ flat[1].transpose(1, 2)) / math.sqrt(8)
    region = [inside(PATH[at // CELLS], at % CELLS) for at in range(FRAMES * CELLS)]
    expected = []
    for query in range((FRAMES - 1) * CELLS):
        own = [other == region[query] for other in region]
        rows = torch.stack([pull(row, own, strength) for row in logits[:, query]])
        expected.append((rows.softmax(dim=-1)[:, None] @ flat[2])[:, 0])
    found = out[: out.shape[0] // 2].transpose(0, 1).flatten(1, 2)
    torch.testing.assert_close(found[:, : len(expected)], torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)
    plain = plain_attention(q, k, v)
    half = out.shape[0] // 2
    assert torch.equal(out[half:], plain[half:])
    if folded == "frames":
        assert torch.equal(out[3], plain[3])
    else:
        torch.testing.assert_close(out[0, :, -CELLS:], plain[0, :, -CELLS:])


def test_videograin_words_with_a_background() -> None:
    site = replace(site_of("cross"), progress=0.05)
    q, k, v = tensors(site)
    out = guided(VideoGrain(cross_strength=0.7), site, [q, k, v], masks_of(PATH), SPANS)
    logits, strength = logits_of(q, k), 0.7 * ((999 * 0.95 - 1) / 1000) ** 5
    for row in range(3):
        for cell in range(CELLS):
            own = [token in ((2, 3) if inside(PATH[row], cell) else (5,)) for token in range(TEXT)]
            for head in range(2):
                expected = pull(logits[row, head, cell], own, strength).softmax(dim=0)
                torch.testing.assert_close(out[row, head, cell], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(out[3:], plain_attention(q, k, v)[3:])


def test_videograin_pulls_video_and_words_apart_in_joint_attention() -> None:
    site = site_of("joint", chunks=(0,))
    q, k, v = tensors(site)
    out = guided(VideoGrain(self_strength=0.0), site, [q, k, v], masks_of(PATH), SPANS)
    logits, strength, text = logits_of(q, k), 0.998**5, slice(FRAMES * CELLS, None)
    own = [token in (2, 3) for token in range(TEXT)]
    expected = logits[0, 1, 5].clone()
    expected[text] = pull(expected[text], own, strength)
    torch.testing.assert_close(out[0, 1, 5], expected.softmax(dim=0))
    torch.testing.assert_close(out[0, :, text], plain_attention(q, k, v)[0, :, text])


@pytest.mark.parametrize(("level", "folded", "acts"), [(0, "frames", False), (1, "frames", True), (0, "none", True)])
def test_videograin_leaves_the_finest_level_of_several(level: int, folded: str, acts: bool) -> None:
    patch = guide_patches(Guide(masks_of(PATH), mode=VideoGrain()))[0]
    assert patch.acts_at(site_of("self", folded, level=level)) == acts


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor has that is made, views of others apart."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, each.untyped_storage().nbytes() // each.element_size())
        return out


def test_videograin_never_holds_all_pairs_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 frames of 16 x 16 cells: 2048 tokens, four million pairs for each of two heads."""
    frames, size = 8, 16
    monkeypatch.setattr(probability_edit, "EDIT_ELEMENTS_CPU", 2**16)
    site = replace(
        site_of("self", chunks=(0,)),
        **{"grid": (frames, size, size), "frames": tuple(range(frames)), "clip_frames": frames},
        **{"video": Span(0, size * size), "rows": BatchRows((0,), 1, "frames", frames)},
    )
    masks = masks_of(((0, 3, 0, 3),) * frames, pixels=size // GRID)
    q, k, v = (torch.randn(frames, 2, size * size, 8) for _ in range(3))
    patch = guide_patches(Guide(masks, mode=VideoGrain()))[0]
    with Largest() as largest:
        out = patch(attend(), q, k, v, site)
    pairs = (frames * size * size) ** 2
    # No more than the clip itself or a chunk, whichever is larger.
    assert largest.elements <= max(q.numel(), 2**16) < pairs / 40
    monkeypatch.undo()
    torch.testing.assert_close(out, patch(attend(), q, k, v, site), atol=1e-5, rtol=1e-5)


# --- promises of single calls -----------------------------------------------------------------------------------------

MODES: dict[str, Callable[[], MaskMode]] = {
    "trailblazer": TrailBlazer,
    "trailblazer over time": lambda: TrailBlazer(temporal=True),
    "freetraj": FreeTraj,
    "freetraj clean": lambda: FreeTraj(cross="clean"),
    "videograin": VideoGrain,
}
CALLS = [
    (name, kind)
    for name in MODES
    for kind in ("self", "cross", "temporal", "joint")
    if guide_patches(Guide(masks_of(PATH), mode=MODES[name]()), SPANS)[0].acts_at(site_of(kind))
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_results_are_finite_in_every_precision(name: str, kind: str, dtype: torch.dtype) -> None:
    site = site_of(kind)
    q, k, v = tensors(site, dtype=dtype)
    out = guided(MODES[name](), site, [30.0 * q, 30.0 * k, 100.0 * v], masks_of(PATH), SPANS, strength=10.0)
    assert out.dtype == dtype and bool(out.isfinite().all())


@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_chunks_and_heads_agree(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(kind)
    qkv = tensors(site, heads=3)
    out = guided(MODES[name](), site, qkv, masks_of(PATH), SPANS)
    monkeypatch.setattr(probability_edit, "EDIT_ELEMENTS_CPU", 150)
    torch.testing.assert_close(guided(MODES[name](), site, qkv, masks_of(PATH), SPANS), out)


@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_padding_stays_closed(name: str, kind: str) -> None:
    """The bias that comes with a call is added after logits are changed."""
    site = site_of(kind)
    q, k, v = tensors(site)
    bias = torch.zeros(1, 1, 1, k.shape[2])
    bias[..., -1] = torch.finfo(torch.float32).min
    out = guided(MODES[name](), site, [q, k, v], masks_of(PATH), None if kind == "self" else SPANS, bias=bias)
    plain = plain_attention(q, k, v, bias)
    assert bool((plain[..., -1] == 0.0).all()) and not torch.equal(out, plain)
    if not name.startswith("trailblazer") and not (name.startswith("freetraj") and kind in ("cross", "joint")):
        assert bool((out[..., -1] == 0.0).all())


@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_strength_goes_from_nothing_to_the_rule(name: str, kind: str) -> None:
    """Among the tokens of all frames: where a model attends frame by frame, VideoGrain joins them at any strength."""
    site = site_of(kind, "none" if kind == "self" else None)
    qkv = tensors(site)
    films = {
        strength: guided(MODES[name](), site, qkv, masks_of(PATH), SPANS, strength=strength)
        for strength in (1e-6, 0.5, 1.0)
    }
    plain = plain_attention(*qkv)
    distances = {strength: float((film - plain).abs().mean()) for strength, film in films.items()}
    assert distances[1e-6] < 1e-3 * distances[1.0] and distances[1e-6] < distances[0.5]
    zero = guide_patches(Guide(masks_of(PATH), mode=MODES[name](), strength=0.0), SPANS)[0]
    assert not zero.acts_at(site) and torch.equal(zero(attend(), *qkv, site), plain)


@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_strength_of_a_frame_is_that_frames_alone(name: str, kind: str) -> None:
    """A frame of strength 0 is as without guidance."""
    if kind == "temporal":
        site = site_of(kind)
        tokens = (slice(None), slice(None), 1)
    else:
        site = site_of(kind) if kind == "joint" else site_of(kind, "frames")
        tokens = (slice(0, 1), slice(None), slice(CELLS, 2 * CELLS)) if kind == "joint" else (slice(1, 2),)
    qkv = tensors(site)
    out = guided(MODES[name](), site, qkv, masks_of(PATH), SPANS, frame_strength=(1.0, 0.0, 1.0, 1.0))
    torch.testing.assert_close(out[tokens], plain_attention(*qkv)[tokens])
    assert not torch.allclose(out, plain_attention(*qkv), atol=1e-3)


@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_training_goes_through(name: str, kind: str) -> None:
    site = site_of(kind)
    qkv = [tensor.clone().requires_grad_() for tensor in tensors(site)]
    out = guided(MODES[name](), site, qkv, masks_of(PATH), SPANS)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for tensor in qkv:
        assert bool(tensor.grad.isfinite().all()) and bool(tensor.grad.any())


@pytest.mark.parametrize("last", [False, True])
def test_where_somebody_reads_the_site_the_whole_batch_is_asked(last: bool) -> None:
    site, asked = site_of("self"), []

    def continuation(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, bias: Tensor | None) -> Tensor:
        asked.append(q.shape[0])
        return plain_attention(q, k, v, bias)

    qkv = tensors(site)
    patch = guide_patches(Guide(masks_of(PATH), mode=FreeTraj()))[0]
    out = patch(Attend(continuation, None, last), *qkv, site)
    torch.testing.assert_close(out, guided(FreeTraj(), site, qkv, masks_of(PATH), None))
    # The two rows without an object and both sides of the six others, or all at once.
    assert sum(asked) == (2 + 2 * 6 if last else 8)


@pytest.mark.parametrize(
    ("name", "constants", "said"),
    [
        ("trailblazer", {"weaken": 2.0}, "weaken is 2"),
        ("trailblazer", {"shrink": 0.7}, "shrink is 0.7"),
        ("freetraj", {"coefficient": -0.1}, "coefficient is -0.1"),
        ("freetraj", {"cross": "published"}, "cross is 'published'; choose one of exact, clean"),
        ("videograin", {"power": math.nan}, "power is nan"),
        ("videograin", {"gamma": 1.0}, "mode videograin has no constant 'gamma'"),
    ],
)
def test_bad_constants_are_named(name: str, constants: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_mode(name, **constants)


def test_trailblazer_needs_words() -> None:
    with pytest.raises(ValueError, match="trailblazer"):
        guide_patches(Guide(masks_of(PATH), mode=TrailBlazer()))
    assert guide_patches(Guide(masks_of(PATH), mode=TrailBlazer(temporal=True)))


# --- the explicit kernel ----------------------------------------------------------------------------------------------


def test_logits_are_edited_before_the_bias_and_probabilities_after_the_softmax() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    bias = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(4))
    out = explicit_attention(
        q,
        k,
        v,
        bias,
        edit_logits=lambda s, heads, queries: 2.0 * s,
        edit=lambda p, heads, queries: p**2,
        max_elements=7,
    )
    expected = (2.0 * logits_of(q, k) + bias).softmax(dim=-1) ** 2 @ v
    torch.testing.assert_close(out, expected)


def test_the_peak_is_that_of_the_guided_rows_of_a_sample() -> None:
    """Two samples of three rows; the last row of each is not guided and has the largest probability of all."""
    q = torch.ones(6, 1, 1, 1)
    k = torch.tensor([[0.0, row] for row in (1.0, 2.0, 9.0, 3.0, 0.0, 9.0)])[:, None, :, None]
    v, seen = torch.eye(2).expand(6, 1, 2, 2), {}

    def look(probabilities: Tensor, part: EditPart) -> Tensor:
        seen.update(zip(part.groups.tolist(), part.peaks.flatten().tolist(), strict=True))
        return probabilities

    rows = RowSet.of([0, 1, 3, 4])
    edit = ProbabilityEdit((0, 1), probabilities=look, peak_keys=slice(1, 2))
    EditJob(rows, torch.tensor([0, 1, 10, 11]), 3, edit).write(q, k, v, torch.zeros(6, 1, 1, 2), None, plain_attention)
    largest = [1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(-3.0))]
    assert seen == pytest.approx({0: largest[0], 1: largest[0], 10: largest[1], 11: largest[1]})
