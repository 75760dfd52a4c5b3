"""LTX-2, 2.3 and 2.5 beyond what every family promises: sound, the connector's rows, switches, keyframes, refusals."""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from dense_reference import CALLS, OVERRIDE, guides_ask_apart
from native_guides import as_seen, dense, first_predictions, guide_of, masks_of, patched, relative, spans_of
from native_ltx_models import LTXAV, UNPROCESSED
from native_models import TinyModel, build, sample, tiny
from sound_places import seen_changes
from torch import Tensor

from mask_guided_video.attention_patches.guidance import plan as guidance_plan
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.patch import Attend
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches, require_supported
from mask_guided_video.host.prompts.joined_prompts import schedule_prompts

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

WITH_SOUND = ["ltxav", "ltxav_23", "ltxav_25", "ltxav_weak_guide", "ltxav_masked_guide"]
EXACT, CLEAR = 1e-4, 1e-3


@pytest.fixture(autouse=True)
def by_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)


def prove(model: TinyModel, order: str, options: dict[str, Any] | None = None, mode: str = "separate") -> None:
    """Compare a guided model with explicit biases at the calls of ``order``."""
    base = model.patcher.clone()
    base.model_options["transformer_options"] |= options or {}
    guide, spans = guide_of(model.name, mode), spans_of(model.name)
    reference = dense(model, guide, spans)
    reference.order = order.split()
    expected = first_predictions(model, reference.hang(base))
    found = first_predictions(model, patched(model, guide, spans, base))
    plain = first_predictions(model, base)
    assert reference.model_calls == 1
    assert relative(found["positive"], expected["positive"]) < EXACT
    assert relative(found["negative"], expected["negative"]) < EXACT
    assert relative(found["positive"], plain["positive"]) > CLEAR


# --- where film, sound and text are -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_SOUND)
def test_film_sound_and_text_are_each_where_the_pack_says(name: str) -> None:
    """Of the calls of a block the first ones are film's, and the others are left alone: not by length, by measure."""
    steps, cell, row = tiny(name).sound[2], (1, 2, 3), 4
    changes = {
        "film": lambda streams: streams.with_film(*cell),
        "sound": lambda streams: streams.with_sound(steps - 2),
        "text": lambda streams: streams.with_text(row),
    }
    film, sound, text = (0, 20 + 2 * 5 + 3), (0, steps - 2), (0, row)
    # Who is among the queries, who among the keys: film, text of film, sound, text of sound, film hears, sound sees.
    expected = [("film", "film"), ("film", "text"), ("sound", "sound"), ("sound", "text"), ("film", "sound")]
    expected.append(("sound", "film"))
    if "<" in CALLS[name].order and guides_ask_apart():
        # A guide's queries have no cell of the film among them.
        expected.insert(1, ("", "film"))
    places = {"film": film, "sound": sound, "text": text}
    calls = seen_changes(tiny(name), changes)
    assert len(calls) == 2 * len(expected)
    for (site, lengths, seen), (asking, asked) in zip(calls, expected * 2, strict=True):
        for change, (query, key) in seen.items():
            assert query == (places[change] if change == asking else None), (site, lengths)
            assert key == (places[change] if change == asked else None), (site, lengths)
        guided = {("film", "film"): "self", ("film", "text"): "cross"}.get((asking, asked))
        assert (None if site is None else site.kind) == guided
        if site is not None:
            assert film[1] in site.video_queries(lengths[0]) and site.grid == (3, 4, 5)
            assert len(site.video_queries(lengths[0])) == 60


def test_lengths_alone_would_not_tell_these_calls_apart() -> None:
    lengths = [lengths for _, lengths, _ in seen_changes(tiny("ltxav_23"), {})]
    assert lengths.count((60, 60)) == 8 and lengths.count((60, 1024)) == 4


@pytest.mark.parametrize("name", ["ltxav", "ltxav_23"])
def test_each_token_of_a_prompt_keeps_its_row_behind_the_connector(name: str) -> None:
    model = tiny(name)
    family, network = require_supported(model.patcher)
    text = model.conditioning(1)[0][0]
    for token in range(text.shape[1]):
        other = text.clone()
        other[:, token] += 1.0
        with torch.inference_mode():
            rows = [network.preprocess_text_embeds(each, unprocessed=True) for each in (text, other)]
        change = (rows[1] - rows[0]).abs().sum(dim=2)[0]
        assert int(change.argmax()) == token
        # All others have heard of it.
        assert int((change > 1e-6).sum()) == len(change) == family.text_rows(text.shape[1])


@pytest.mark.parametrize("length", [1, 12, 512, 1023, 1024, 1025, 1100])
def test_as_many_rows_as_the_connector_makes(length: int) -> None:
    model = tiny("ltxav")
    family, network = require_supported(model.patcher)
    with torch.inference_mode():
        made = network.preprocess_text_embeds(torch.zeros(1, length, 32), unprocessed=True)
    assert made.shape[1] == family.text_rows(length) == family.text_rows(made.shape[1])


def test_words_of_another_text_are_refused() -> None:
    model, guide = tiny("ltxav"), guide_of("ltxav", "cross_text")
    spans = TextSpans(("red ball", "cube"), ((1, 2), (4,)), 20)
    with pytest.raises(ValueError, match="in a text of 20 tokens but the positive prompt has 1024"):
        sample(model, patched(model, guide, spans), steps=1)


def test_text_that_is_processed_already() -> None:
    """As old single-file checkpoints make it: the registers are in the conditioning."""
    model = replace(tiny("ltxav"), context_dim=64, text=1024, extras={})
    prove(model, CALLS["ltxav"].order)
    prove(model, CALLS["ltxav"].order, mode="cross_text")


@pytest.mark.parametrize("name", ["ltxav", "ltxav_23"])
def test_hidden_words_are_still_heard_through_other_rows(name: str) -> None:
    """A limit of these models: the connector has told all other rows of a word before the blocks read any of them."""
    model, row = tiny(name), 4
    text = model.conditioning(1)[0][0]
    other = text.clone()
    other[:, row] = model.conditioning(7)[0][0][:, row]

    def moved(rows: list[int], seen: bool = False) -> float:
        """How far the prediction moves when a word is exchanged, with these rows of the text as keys."""

        def choose(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            return attend(q, k[:, :, rows], v[:, :, rows], site) if site.kind == "cross" else attend(q, k, v, site)

        # With ``seen`` the word is exchanged behind the connector, in its own row only.
        texts = [as_seen(model, text), as_seen(model, text)] if seen else [text, other]
        if seen:
            texts[1][:, row] = as_seen(model, other)[:, row]
        extras = {} if seen else model.extras
        patcher = install_patches(model.patcher, [choose])
        films = [sample(model, patcher, steps=1, cfg=1.0, positive=[[each, extras]]) for each in texts]
        # The sound hears all rows, and the film hears the sound: of that there is none here.
        return float((films[1] - films[0]).norm())

    model = replace(model, sound=())
    every = list(range(1024))
    without = [each for each in every if each != row]
    # Raised: the row stands there twenty times.
    whole, hidden, raised = moved(every), moved(without), moved([*without, *[row] * 20])
    assert hidden > 0.1 * whole and raised > whole
    # Behind the connector hiding is complete.
    assert moved(every, seen=True) > 0.0 and moved(without, seen=True) == 0.0


# --- what leaves calls out --------------------------------------------------------------------------------------------

BLOCK = "S0 C0 -0 -0 -0 -0"
SWITCHES = {
    "sound to film": ({"a2v_cross_attn": False}, " ".join(["S0 C0 -0 -0 -0"] * 2)),
    "both ways": ({"a2v_cross_attn": False, "v2a_cross_attn": False}, " ".join(["S0 C0 -0 -0"] * 2)),
    "no sound": ({"run_ax": False}, " ".join(["S0 C0 -0"] * 2)),
}


@pytest.mark.parametrize("name", ["ltxav", "ltxav_23"])
@pytest.mark.parametrize("switch", list(SWITCHES))
def test_switches_that_leave_calls_out(name: str, switch: str) -> None:
    options, order = SWITCHES[switch]
    prove(tiny(name), order, options)


def needs_space_time_guidance() -> None:
    if not hasattr(importlib.import_module("comfy_extras.nodes_lt"), "LTXVSpatioTemporalGuidance"):
        pytest.skip("this ComfyUI leaves no self-attention out")


@pytest.mark.parametrize("name", ["ltxav", "ltxav_23"])
@pytest.mark.parametrize("block", [0, 1])
def test_blocks_without_self_attention(name: str, block: int) -> None:
    needs_space_time_guidance()
    blocks = [BLOCK, BLOCK]
    blocks[block] = "C0 -0 -0 -0"
    prove(tiny(name), " ".join(blocks), {"stg_self_attn_blocks": frozenset([block])})


def test_a_film_as_long_as_the_text_is_not_taken_for_it() -> None:
    """Without self-attention the first call of a block has 1024 queries and 1024 keys all the same."""
    needs_space_time_guidance()
    model = replace(tiny("ltxav"), latents=(1, 128, 4, 16, 16))
    kinds = []
    for blocks in ((), (0, 1)):
        calls = seen_changes(model, {}, {"stg_self_attn_blocks": frozenset(blocks)})
        assert {lengths for site, lengths, _ in calls if site is not None} == {(1024, 1024)}
        kinds.append([None if site is None else site.kind for site, _, _ in calls])
    assert kinds == [["self", "cross", None, None, None, None] * 2, ["cross", None, None, None] * 2]


def test_a_pass_without_film_has_nothing_to_guide() -> None:
    calls = seen_changes(tiny("ltxav"), {}, {"run_vx": False})
    assert len(calls) == 6 and all(site is None for site, _, _ in calls)


@pytest.mark.parametrize("node", ["LTXVSpatioTemporalGuidance", "LTXVModalityGuidance"])
def test_the_hosts_own_passes_are_guided(node: str, caplog: pytest.LogCaptureFixture) -> None:
    """A third pass in each step, without some of the calls; its film is guided like the others'."""
    needs_space_time_guidance()
    nodes = importlib.import_module("comfy_extras.nodes_lt")
    settings = {"scale": 1.0, "blocks": "0"} if "Spatio" in node else {"modality_scale": 3.0}
    model, passes = tiny("ltxav_23"), []
    guide, spans = guide_of(model.name, "separate"), spans_of(model.name)
    guided = patched(model, guide, spans)

    def watch(apply_model: Any, args: dict[str, Any]) -> Tensor:
        passes.append(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    guided.set_model_unet_function_wrapper(watch)
    with caplog.at_level(logging.WARNING):
        both = getattr(nodes, node).execute(guided, start_percent=0.0, end_percent=1.0, **settings).args[0]
        film = sample(model, both, steps=1)
    assert passes == [[1, 0], [0]] and "recognised" not in caplog.text
    assert relative(film, sample(model, guided, steps=1)) > CLEAR
    plain = getattr(nodes, node).execute(model.patcher, start_percent=0.0, end_percent=1.0, **settings).args[0]
    assert relative(film, sample(model, plain, steps=1)) > CLEAR


# --- what stands beside the film --------------------------------------------------------------------------------------


def test_a_reference_voice_before_the_sound() -> None:
    reference = {"tokens": torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(5))}
    model = replace(tiny("ltxav_23"), extras={**UNPROCESSED, "ref_audio": reference})
    plain = seen_changes(model, {"sound": lambda streams: streams.with_sound(3)})
    if plain[2][1] == (60, 60):
        pytest.skip("this ComfyUI has no reference voice")
    assert plain[2][1] == (66, 66) and plain[2][2]["sound"] == ((0, 9), (0, 9))
    prove(model, CALLS["ltxav_23"].order)


def test_keyframes_that_the_model_makes_are_no_film() -> None:
    from comfy.ldm.lightricks.model import LTXVModel

    if not hasattr(LTXVModel, "keyframes_abs_pos_mask"):
        pytest.skip("this ComfyUI makes no keyframes")
    made = {"first_latent_frame": 3, "num_keyframes": 1, "tokens_per_frame": 20}
    model = replace(tiny("ltxav_25"), extras={**UNPROCESSED, "generated_keyframes": made})
    prove(model, CALLS["ltxav_25"].order)
    beside = seen_changes(model, {"keyframe": lambda streams: streams.with_film(3, 0, 0)})
    for site, lengths, seen in beside:
        if site is not None and site.kind == "self":
            assert seen["keyframe"] == ((0, 60), (0, 60)) and lengths == (80, 80)
            assert 60 not in site.video_queries(80)


@pytest.mark.parametrize("name", ["ltxav", "ltxav_23"])
def test_sound_is_left_alone(name: str) -> None:
    """A block's calls of sound get what they always get, and their own answers are the same to the bit."""
    model, heard = tiny(name), {}

    def listen(patcher: Any, key: str) -> Any:
        def note(function: Any, *args: Any, **kwargs: Any) -> Tensor:
            out = function(*args, **kwargs)
            heard.setdefault(key, []).append((args[0].shape, args[1].shape, kwargs.get("mask"), out.clone()))
            return out

        patcher = patcher.clone()
        patcher.model_options["transformer_options"][OVERRIDE] = note
        return patcher

    guide, spans = guide_of(name, "separate"), spans_of(name)
    first_predictions(model, listen(model.patcher, "plain"))
    first_predictions(model, patched(model, guide, spans, listen(model.patcher, "guided")))
    sounds = {
        key: [call for call in calls if call[0][-1] == 24 and call[0][-1] == call[1][-1]]
        for key, calls in heard.items()
    }
    assert len(sounds["plain"]) == len(sounds["guided"]) == 8
    for plain, guided in zip(sounds["plain"], sounds["guided"], strict=True):
        assert plain[:2] == guided[:2] and plain[2] is None and guided[2] is None
    # Sound among itself and with the text, before it hears the film for the first time.
    for index in (0, 1):
        assert torch.equal(sounds["plain"][index][3], sounds["guided"][index][3])


def test_the_model_itself_is_untouched() -> None:
    model = tiny("ltxav_23")
    before = {name: value.clone() for name, value in model.patcher.model.state_dict().items()}
    film = sample(model)
    sample(model, patched(model, guide_of(model.name, "separate"), spans_of(model.name)))
    assert torch.equal(sample(model), film)
    assert all(torch.equal(value, before[name]) for name, value in model.patcher.model.state_dict().items())


def test_masks_count_the_frames_of_the_film_alone() -> None:
    """Neither the guide nor the sound: 17 frames are 3 latent ones."""
    model = tiny("ltxav_weak_guide")
    assert masks_of(model).shape[1] == 17
    guide = guide_of(model.name, "separate", masks=torch.ones(2, 25, 32, 40))
    with pytest.raises(ValueError, match="25 mask frames do not fit a clip of 3 latent frames .*give 1 or 3 or 17"):
        sample(model, patched(model, guide, spans_of(model.name)), steps=1)


def test_a_part_that_nobody_knows_is_refused() -> None:
    patcher = build("LTXAV", LTXAV)
    assert require_supported(patcher)[0].name == "LTX-2 / 2.3 / 2.5"
    patcher.model.diffusion_model.add_module("depth_proj", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"LTXAVModel \(built like LTX-2 / 2.3 / 2.5, but .*: depth_proj\)"):
        require_supported(patcher)


def test_prompts_over_time_are_refused() -> None:
    with pytest.raises(ValueError, match="LTX-2 / 2.3 / 2.5 mixes all words of a text before its blocks read them"):
        schedule_prompts(tiny("ltxav").patcher, None, (0, 4), ("a red ball", "a blue ball"), 2)
