"""Mask guidance on tiny models of every family in ComfyUI: what is guided is exactly what the masks say.

The proof compares with ``dense_reference``, which adds an explicit bias to every attention call and knows nothing of
sites. Films are sampled with ComfyUI's own sampling, with a positive and a negative prompt where the model can do both.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_reference import CALLS
from family_rows import pairs, rows
from guides import plain_guide
from native_guides import GUIDES, dense, first_predictions, guide_of, left_alone, masks_of, patched, relative, spans_of
from native_models import BUILDERS, sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.guidance import plan as guidance_plan
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

FAMILIES = sorted(BUILDERS)
WITH_WORDS = [name for name in FAMILIES if CALLS[name].has_words]
# Of the output's range, in single precision.
EXACT = 1e-4
# What guidance changes at least; ten times what is allowed as error.
CLEAR = 1e-3
PLAIN: dict[str, dict[str, Tensor]] = {}


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which biases are applied; by size alone tiny models would all take the explicit one."""
    name = getattr(request, "param", "channels")
    if name != "explicit":
        monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)
    monkeypatch.setattr(guidance_plan, "PARTITION_TOKENS", 1 if name == "partition" else 10**9)
    return name


def plain(name: str) -> dict[str, Tensor]:
    """What the unguided model predicts, asked once."""
    if name not in PLAIN:
        PLAIN[name] = first_predictions(tiny(name), tiny(name).patcher)
    return PLAIN[name]


def prove(name: str, guide: Guide, spans: TextSpans | None) -> dict[str, Tensor]:
    """Compare what the guided model predicts with explicit biases and with no guidance; returns it."""
    model = tiny(name)
    reference = dense(model, guide, spans)
    expected = first_predictions(model, reference.hang(model.patcher))
    guided = first_predictions(model, patched(model, guide, spans))
    assert reference.model_calls == 1
    for prompt in prompts_of(name):
        assert relative(guided[prompt], expected[prompt]) < EXACT
    assert relative(guided["positive"], plain(name)["positive"]) > CLEAR
    return guided


def prompts_of(name: str) -> tuple[str, ...]:
    return ("positive", "negative") if tiny(name).cfg > 1.0 else ("positive",)


@pytest.mark.parametrize("name", rows(FAMILIES))
@pytest.mark.parametrize("nothing", ["strength 0", "no object"])
def test_no_guidance_is_bit_identical(name: str, nothing: str) -> None:
    model = tiny(name)
    masks = masks_of(model) if nothing == "strength 0" else torch.zeros_like(masks_of(model))
    guide = plain_guide(masks, mode="separate", strength=0.0 if nothing == "strength 0" else 8.0, end_percent=1.0)
    assert torch.equal(sample(model, patched(model, guide, spans_of(name))), sample(model))


@pytest.mark.parametrize(("name", "mode"), pairs(FAMILIES, ["separate", "focus", "focus_fg", "separate among film"]))
def test_guided_film_equals_explicit_biases(name: str, mode: str, kernel: str) -> None:
    prove(name, guide_of(name, mode), spans_of(name) if mode == "separate" else None)


@pytest.mark.parametrize(("name", "mode"), pairs(WITH_WORDS, ["cross_text", "cross_text hard"]))
def test_words_equal_explicit_biases(name: str, mode: str, kernel: str) -> None:
    prove(name, guide_of(name, mode), spans_of(name))


@pytest.mark.parametrize("name", rows(FAMILIES))
@pytest.mark.parametrize("kernel", ["partition", "channels", "explicit"], indirect=True)
def test_hard_sides_equal_closed_keys(name: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    write = guidance_plan.PartitionJob.write

    def counting(self: Any, *args: Any) -> None:
        used.append(self)
        write(self, *args)

    monkeypatch.setattr(guidance_plan.PartitionJob, "write", counting)
    prove(name, guide_of(name, "separate hard"), spans_of(name))
    assert bool(used) == (kernel == "partition")


@pytest.mark.parametrize("name", rows([name for name in FAMILIES if tiny(name).cfg > 1.0]))
@pytest.mark.parametrize("mode", ["separate", "focus"])
def test_unconditional_rows_are_left_alone_to_the_bit(name: str, mode: str, kernel: str) -> None:
    both = prove(name, guide_of(name, mode), spans_of(name))
    one = prove(name, guide_of(name, mode, rows="conditional"), spans_of(name))
    assert left_alone(name, one["negative"], plain(name)["negative"])
    assert relative(both["negative"], plain(name)["negative"]) > CLEAR
    assert relative(one["positive"], both["positive"]) < EXACT


def test_every_mode_is_proved() -> None:
    assert {guide["mode"] for guide in GUIDES.values()} == {"separate", "focus", "focus_fg", "cross_text"}
