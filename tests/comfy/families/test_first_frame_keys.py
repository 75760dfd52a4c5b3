"""Keys of other frames on tiny models of every family, against attention over all pairs of tokens of the film.

The reference counts the attention calls of each model by the table of ``dense_reference`` and writes self-attention of
the whole film out: which frames a frame looks at is a bias of log n for keys that are there n times, and the bias of
masks is that of the pairs, whichever frames these are of.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_reference import CALLS, Calls, DenseGuide, DenseReference
from evolved import WINDOWS, load_pack, tiny_sd15, with_motion_model
from family_rows import rows
from half_precision import ROUNDING, in_half
from native_guides import first_predictions, guide_of, patched, relative, spans_of
from native_models import BUILDERS, TinyModel, sample, tiny
from tiny_cogvideox import CALLS as COGVIDEOX
from tiny_cogvideox import SPANS, cogvideox
from tiny_cogvideox import guide_of as guide_of_cogvideox
from torch import Tensor

from mask_guided_video.attention_patches.frame_keys import FirstFrameKeys, FirstFrameKeysPatch
from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.guidance import plan as guidance_plan
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

FAMILIES = sorted(BUILDERS)
# Of each way in which frames lie in the batch or in the sequence.
KINDS = ("sd15", "svd", "wan", "hunyuan_reference", "mochi")
SOURCES = ("first", "first_prev", "first_self", "first_prev_self")
EXACT, CLEAR = 1e-4, 1e-3


def looked_at(source: str, frame: int) -> list[int]:
    """The frames that a frame looks at, as the source names them."""
    return [{"first": 0, "prev": max(frame - 1, 0), "self": frame}[name] for name in source.split("_")]


class WholeFilm(DenseReference):
    """Writes out self-attention; other calls get the explicit biases of the guide.

    Args:
        model: the tiny model.
        source: of the keys.
        guide: of masks, or none.
    """

    def __init__(
        self,
        model: TinyModel,
        source: str,
        guide: Guide | None = None,
        spans: TextSpans | None = None,
        calls: Calls | None = None,
        rows: str = "both",
    ) -> None:
        calls = calls or CALLS[model.name]
        latents = model.latents[-2:]
        guides = [] if guide is None else [DenseGuide(guide, calls, latents, spans)]
        self.__dict__.update(vars(DenseReference(tiny("wan"), guides)), order=calls.each, guides=guides)
        self.calls, self.source, self.rows = calls, source, rows
        whole = replace(calls, per_frame=False)
        self.pairs = [] if guide is None else [DenseGuide(guide, whole, latents, spans)]

    def attend(self, function: Any, previous: Any, *args: Any, **kwargs: Any) -> Tensor:
        call = self.order[self.count]
        if call[0] not in "SJ":
            return super().attend(function, previous, *args, **kwargs)
        self.count += 1
        named = {**dict(zip(("q", "k", "v", "heads", "mask"), args, strict=False)), **kwargs}
        q, k, v = (named[name] for name in "qkv")
        if not named.get("skip_reshape"):
            q, k, v = (tensor.unflatten(2, (named["heads"], -1)).transpose(1, 2) for tensor in (q, k, v))
        frames = self.calls.frames if self.calls.per_frame else 1
        # [films, heads, tokens of the film, d]
        q, k, v = (
            t.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3).to(torch.float32).double() for t in (q, k, v)
        )
        bias = torch.stack([self.bias(call, chunk, prompt) for chunk, prompt in self.of_chunks()]).double()
        # Where guides ask apart these are the queries before theirs.
        bias = bias.repeat_interleave(len(q) // len(bias), dim=0)[:, None, : q.shape[2]]
        given = named.get("mask")
        if given is not None:
            bias = bias + (given[None, None] if given.ndim == 2 else given[:, None] if given.ndim == 3 else given)
        out = ((q @ k.transpose(2, 3)) * q.shape[3] ** -0.5 + bias).softmax(dim=3) @ v
        out = out.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1).to(named["q"].dtype)
        return out if named.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)

    def of_chunks(self) -> list[tuple[int, Tensor | None]]:
        return list(zip(self.chunks, self.prompts, strict=True))

    def bias(self, call: str, chunk: int, prompt: Tensor | None) -> Tensor:
        """[L, L] of one film, with all that is in its sequence."""
        calls, level = self.calls, int(call[1])
        size = calls.grids[level][0] * calls.grids[level][1]
        length = calls.length(call[0], level)
        start = calls.video_start(call[0])
        out = torch.zeros(length, length)
        for frame in range(calls.frames):
            rows = slice(start + frame * size, start + (frame + 1) * size)
            looks = looked_at(self.source, frame)
            if chunk == 1 and self.rows == "conditional":
                looks = [frame] if calls.per_frame else list(range(calls.frames))
            for other in range(calls.frames):
                count = torch.tensor(float(looks.count(other)))
                out[rows, start + other * size : start + (other + 1) * size] = count.log()
        for pairs in self.pairs:
            of_masks = pairs.bias(call, chunk, prompt)
            if of_masks is not None:
                out[: of_masks.shape[1]] += of_masks[0]
        return out


def keys(source: str = "first_self", **settings: Any) -> FirstFrameKeysPatch:
    return FirstFrameKeysPatch(FirstFrameKeys(source, **settings))


def hung(model: TinyModel, *patches: Any, patcher: Any = None) -> Any:
    return install_patches(patcher or model.patcher, list(patches))


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], model: TinyModel, exact: float = EXACT) -> None:
    for prompt in ("positive", "negative") if model.cfg > 1.0 else ("positive",):
        assert relative(found[prompt], expected[prompt]) < exact, prompt


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", KINDS)
def test_films_equal_attention_over_all_pairs(name: str, source: str) -> None:
    model = tiny(name)
    expected = first_predictions(model, WholeFilm(model, source).hang(model.patcher))
    found = first_predictions(model, hung(model, keys(source)))
    compare(found, expected, model)
    assert relative(found["positive"], first_predictions(model, model.patcher)["positive"]) > CLEAR


# Animate 2's frames ask one by one, which leaves nothing to choose.
@pytest.mark.parametrize("name", rows([name for name in FAMILIES if name != "wan_animate2"]))
def test_masks_follow_the_keys_in_every_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)
    model, guide, spans = tiny(name), guide_of(name, "separate"), spans_of(name)
    expected = first_predictions(model, WholeFilm(model, "first_self", guide, spans).hang(model.patcher))
    found = first_predictions(model, hung(model, keys(), GuidePatch(guide, spans)))
    compare(found, expected, model)
    assert relative(found["positive"], first_predictions(model, patched(model, guide, spans))["positive"]) > CLEAR


@pytest.mark.parametrize("mode", ["separate hard", "focus", "focus_fg", "cross_text"])
@pytest.mark.parametrize("name", ["sd15", "wan", "mochi"])
def test_every_way_of_masks_follows_the_keys(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)
    monkeypatch.setattr(guidance_plan, "PARTITION_TOKENS", 1)
    model, guide, spans = tiny(name), guide_of(name, mode), spans_of(name)
    expected = first_predictions(model, WholeFilm(model, "first_prev", guide, spans).hang(model.patcher))
    compare(first_predictions(model, hung(model, keys("first_prev"), GuidePatch(guide, spans))), expected, model)


@pytest.mark.parametrize("source", ["first", "first_prev_self"])
def test_text_before_the_film(source: str) -> None:
    model, guide = cogvideox(), guide_of_cogvideox("separate")
    reference = WholeFilm(model, source, guide, SPANS, COGVIDEOX)
    expected = first_predictions(model, reference.hang(model.patcher))
    compare(first_predictions(model, hung(model, keys(source), GuidePatch(guide, SPANS))), expected, model)


@pytest.mark.parametrize("name", ["sd15", "wan", "hunyuan"])
def test_unconditional_rows_are_left_alone_to_the_bit(name: str) -> None:
    model = tiny(name)
    plain = first_predictions(model, model.patcher)
    found = first_predictions(model, hung(model, keys(rows="conditional")))
    expected = first_predictions(model, WholeFilm(model, "first_self", rows="conditional").hang(model.patcher))
    assert torch.equal(found["negative"], plain["negative"])
    assert relative(found["positive"], expected["positive"]) < EXACT


@pytest.mark.parametrize("name", KINDS)
def test_what_is_off_is_bit_identical(name: str) -> None:
    model = tiny(name)
    plain = sample(model, steps=2)
    off = hung(model, keys("self"), keys(blocks="none.such"))
    assert torch.equal(sample(model, off, steps=2), plain)
    assert torch.equal(sample(model, steps=2), plain)


def test_the_schedule_ends_where_it_says() -> None:
    model = tiny("sd15")
    films = [sample(model, hung(model, keys(end_percent=end)), steps=4) for end in (0.1, 0.6, 1.0)]
    late = sample(model, hung(model, keys(start_percent=0.99)), steps=4)
    assert not torch.equal(films[0], films[1]) and not torch.equal(films[1], films[2])
    assert torch.equal(late, sample(model, steps=4))


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("name", ["sd15", "wan", "hunyuan"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model, patcher = tiny(name), in_half(name, dtype)
    guide, spans = guide_of(name, "separate"), spans_of(name)
    reference = WholeFilm(model, "first_self", guide, spans)
    expected = first_predictions(model, reference.hang(patcher))["positive"]
    found = first_predictions(model, hung(model, keys(), GuidePatch(guide, spans), patcher=patcher))["positive"]
    assert found.isfinite().all() and relative(found, expected) < ROUNDING[dtype]


# --- FreeLong ---------------------------------------------------------------------------------------------------------

LONG = FreeLong(window=2, end_percent=1.0)


@pytest.mark.parametrize("name", ["sd15", "svd"])
def test_free_long_in_either_order_on_unets(name: str) -> None:
    model = tiny(name)
    one = sample(model, hung(model, keys(), patcher=hung(model, FreeLongPatch(LONG))))
    two = sample(model, hung(model, FreeLongPatch(LONG), patcher=hung(model, keys())))
    assert torch.equal(one, two)
    assert relative(one, sample(model, hung(model, keys()))) > CLEAR or name == "sd15"
    assert relative(one, sample(model, hung(model, FreeLongPatch(LONG)))) > CLEAR


@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_the_later_node_decides_on_transformers(name: str) -> None:
    """Keys that are hung in after FreeLong win where they act; FreeLong after them takes them for its whole clip."""
    model = tiny(name)
    alone, long = hung(model, keys()), hung(model, FreeLongPatch(LONG))
    keys_later = sample(model, hung(model, keys(), patcher=long))
    assert torch.equal(keys_later, sample(model, alone))
    long_later = sample(model, hung(model, FreeLongPatch(LONG), patcher=alone))
    for other in (keys_later, sample(model, long)):
        assert long_later.isfinite().all() and relative(long_later, other) > CLEAR


# --- windows ----------------------------------------------------------------------------------------------------------


class Watched(FirstFrameKeysPatch):
    """Notes the sites that its keys are handed on with."""

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        def noting(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, bias: Any) -> Tensor:
            self.seen.append((site, q.shape[2], k.shape[2]))
            return attend.with_bias(bias)(q, k, v, site)

        return super().__call__(replace(attend, continuation=noting), q, k, v, site)

    seen: list[tuple[AttentionSite, int, int]]


def test_sliding_windows_of_animatediff(comfy_folder: Path, tmp_path: Path) -> None:
    model = tiny_sd15()
    evolved = with_motion_model(load_pack(comfy_folder), tmp_path)
    patch = Watched(FirstFrameKeys("first_self"))
    patch.seen = []
    film = sample(model, hung(model, patch, patcher=evolved(model.patcher)))
    assert film.isfinite().all() and relative(film, sample(model, evolved(model.patcher))) > CLEAR
    changed = [(site, queries, found) for site, queries, found in patch.seen if site.key_frames is not None]
    assert {site.frames for site, _, _ in changed} == WINDOWS
    for site, queries, found in changed:
        assert site.kind == "self" and found == 2 * queries
        assert site.key_frames == tuple((site.frames[0], frame) for frame in site.frames)
    # 16 spatial transformers, in each of three windows, at each of two steps.
    assert len(changed) == 16 * 3 * 2


def test_copies_of_a_model_keep_their_keys() -> None:
    model = tiny("sd15")
    patcher = hung(model, keys())
    film = sample(model, patcher)
    assert torch.equal(sample(model, patcher.clone()), film)
    assert torch.equal(sample(model, copy.copy(patcher)), film)
    assert relative(sample(model), film) > CLEAR
