"""Prompts over time in ComfyUI: tiny models of every family against cross-attention written out by hand; the node."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_windows import NOT_CUT_BY_THE_HOST, film_frames, predictions_by_window, windowed
from dense_reference import CALLS
from direct_prompts import DirectPrompts
from family_rows import pairs, rows
from native_guides import first_predictions, relative
from native_models import BUILDERS, sample, tiny
from scheduled_prompts import prompts_of, scheduled
from torch import Tensor
from window_films import CONDITIONS, film_part, with_film

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.latent_time import causal
from mask_guided_video.backbones.family import Family
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.backbones.registry import install_patches, require_supported
from mask_guided_video.host.prompts.joined_prompts import (
    JOINED_KEY,
    check_words,
    join_conditionings,
    named_prompts,
    schedule_prompts,
)
from mask_guided_video.host.prompts.prompt_tokens import token_spans

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# Of the others, the words of a text see each other inside the model.
MIXED = ("ltxav", "kandinsky5")
FAMILIES = sorted(name for name in BUILDERS if "C" in CALLS[name].order and not name.startswith(MIXED))
# Animate 2's frames ask one by one, so that a window has fewer calls than the reference counts.
WINDOWED = sorted(set(FAMILIES) - NOT_CUT_BY_THE_HOST - {"wan_animate2"})
# Of the output's range, in single precision; and what a schedule changes at least.
EXACT, CLEAR = 1e-4, 1e-3
RED, BLUE = "a red ball moves left on sand", "a blue square stays still and moves"


def weights_by_hand(starts: tuple[int, ...], overlap: int, frames: int, factor: int) -> Tensor:
    """[frames, prompts], frame by frame."""
    rows = []
    for frame in range(factor * (frames - 1) + 1):
        risen = [1.0]
        for start in starts[1:]:
            place = frame + 0.5 - start
            risen.append(float(place > 0) if not overlap else min(max(place / overlap + 0.5, 0.0), 1.0))
        rows.append([one - other for one, other in zip(risen, [*risen[1:], 0.0], strict=True)])
    pixels = torch.tensor(rows)
    return torch.stack([pixels[:1].mean(0), *(part.mean(0) for part in pixels[1:].split(factor))])


def starts_of(name: str, frames: int) -> tuple[int, int]:
    """A second prompt from the middle of a film of so many latent frames, within the frames of one of them."""
    return 0, CALLS[name].factor * (frames - 1) // 2 + 1


# --- every family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "overlap"), pairs(FAMILIES, [3, 0]))
def test_film_equals_cross_attention_by_hand(name: str, overlap: int) -> None:
    model, calls = tiny(name), CALLS[name]
    starts, parts = starts_of(name, calls.frames), prompts_of(model)
    patched, joined, _ = scheduled(model, parts, starts, overlap)
    found = first_predictions(model, patched, positive=joined)
    weights = weights_by_hand(starts, overlap, calls.frames, calls.factor)
    direct = DirectPrompts(model, weights, [part[0][0] for part in parts])
    expected = first_predictions(model, direct.hang(model.patcher), positive=joined)
    plain = first_predictions(model, model.patcher, positive=joined)
    assert direct.model_calls >= 1
    assert relative(found["positive"], expected["positive"]) < EXACT
    assert relative(found["positive"], plain["positive"]) > CLEAR
    assert torch.equal(found["negative"], plain["negative"])


@pytest.mark.parametrize("name", rows(FAMILIES))
def test_the_same_prompt_throughout_is_the_plain_film(name: str) -> None:
    model = tiny(name)
    part = model.conditioning(10)
    patched, joined, _ = scheduled(model, [part, part], starts_of(name, CALLS[name].frames), 3)
    expected = first_predictions(model, model.patcher, positive=part)["positive"]
    if "vace" in name:
        # VACE's own blocks read all prompts, which for equal ones is the same too.
        assert relative(first_predictions(model, patched, positive=joined)["positive"], expected) < EXACT
    else:
        assert relative(first_predictions(model, patched, positive=joined)["positive"], expected) < EXACT / 10


@pytest.mark.parametrize(
    ("name", "schedule", "loops"),
    [pytest.param(*row.values, "standard_static", False, marks=row.marks) for row in rows(WINDOWED)]
    + [(name, "looped_uniform", True) for name in ("wan", "ltx", "sd15")],
)
def test_context_windows_have_the_prompts_of_their_frames(name: str, schedule: str, loops: bool) -> None:
    frames, leading = film_frames(name), CALLS[name].leading
    model = with_film(name, frames + leading)
    starts, parts, noise = starts_of(name, frames), prompts_of(model), model.noise(frames=frames + leading)
    patched, joined, _ = scheduled(model, parts, starts, 3)
    patched = windowed(patched, name, schedule, loops)
    found = predictions_by_window(model, patched, noise, positive=joined)
    weights = weights_by_hand(starts, 3, frames, CALLS[name].factor)
    assert len(found) >= 3
    for window, predictions in found.items():
        here, calls = film_part(name, window)
        alone = with_film(name, frames + leading, window)
        # The joined prompt comes with the conditions of the whole film.
        positive = [[joined[0][0], {**joined[0][1], **{key: alone.extras[key] for key in CONDITIONS.get(name, ())}}]]
        direct = DirectPrompts(alone, weights[here], [part[0][0] for part in parts], calls)
        part = noise.index_select(model.window_axis, torch.tensor(window))
        expected = first_predictions(alone, direct.hang(alone.patcher), noise=part, positive=positive)
        assert relative(predictions["positive"], expected["positive"]) < EXACT


@pytest.mark.parametrize("name", ["wan", "ltx", "sd15"])
def test_more_prompts_than_the_host_puts_into_one_batch(name: str) -> None:
    model, frames = tiny(name), CALLS[name].frames + 4
    starts = tuple(CALLS[name].factor * number for number in range(6))
    parts, noise = prompts_of(model, 6), model.noise(frames=CALLS[name].frames + 4)
    patched, joined, _ = scheduled(model, parts, starts, 2)
    direct = DirectPrompts(
        model, weights_by_hand(starts, 2, frames, CALLS[name].factor), [part[0][0] for part in parts]
    )
    found = first_predictions(model, patched, positive=joined, noise=noise)
    expected = first_predictions(model, direct.hang(model.patcher), positive=joined, noise=noise)
    assert relative(found["positive"], expected["positive"]) < EXACT


@pytest.mark.parametrize("name", ["wan", "sd15", "ltx"])
def test_a_second_positive_prompt_is_left_alone(name: str) -> None:
    model = tiny(name)
    patched, joined, _ = scheduled(model, prompts_of(model), starts_of(name, CALLS[name].frames), 2)
    other = model.conditioning(30)
    both = first_predictions(model, patched, positive=[*joined, *other])["positive"]
    alone = first_predictions(model, patched, positive=joined)["positive"]
    plain = first_predictions(model, model.patcher, positive=other)["positive"]
    assert relative(both, (alone + plain) / 2) < EXACT


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_free_long_beside_it_in_either_order(name: str) -> None:
    model, frames = tiny(name), 9
    noise, parts = model.noise(frames=frames), prompts_of(model)
    free_long = FreeLongPatch(FreeLong(3, end_percent=1.0))
    starts = starts_of(name, frames)
    schedule_first, joined, schedule = scheduled(model, parts, starts, 3)
    one = install_patches(schedule_first, [free_long])
    other, _, _ = scheduled(model, parts, starts, 3, install_patches(model.patcher, [free_long]))
    found = [first_predictions(model, patcher, noise=noise, positive=joined)["positive"] for patcher in (one, other)]
    assert torch.equal(*found)
    direct = DirectPrompts(model, schedule.weights(frames, causal(CALLS[name].factor)), [part[0][0] for part in parts])
    alone = first_predictions(model, schedule_first, noise=noise, positive=joined)["positive"]
    expected = first_predictions(model, direct.hang(model.patcher), noise=noise, positive=joined)["positive"]
    assert relative(alone, expected) < EXACT and relative(found[0], alone) > CLEAR


# --- what is refused --------------------------------------------------------------------------------------------------


def test_another_conditioning_is_refused_before_the_model_is_called() -> None:
    model = tiny("wan")
    patched, _, _ = scheduled(model, prompts_of(model), (0, 5))
    calls: list[int] = []
    handle = model.patcher.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(ValueError, match="connect the conditioning of Prompt Schedule to the sampler"):
            sample(model, patched)
        late, joined, _ = scheduled(model, prompts_of(model), (0, 9))
        with pytest.raises(ValueError, match="begins at frame 9 but the film has 9 frames, 0 to 8"):
            sample(model, late, positive=joined)
    finally:
        handle.remove()
    assert not calls


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hunyuan", "HunyuanVideo lets text and video attend to each other"),
        ("hunyuan15", "HunyuanVideo 1.5 lets text and video attend to each other"),
        ("mochi", "Mochi lets text and video attend to each other"),
        ("minimax_h3", "MiniMax H3 lets text and video attend to each other"),
        ("kandinsky5", "Kandinsky 5 mixes all words of a text"),
        ("svd", "Stable Video Diffusion reads no text"),
    ],
)
def test_models_without_cross_attention_of_text_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_prompts(tiny(name).patcher, None, (0, 4), (RED, BLUE), 2)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_joint_families_are_those_with_joint_sites(name: str) -> None:
    family, _ = require_supported(tiny(name).patcher)
    assert isinstance(family, Family) and family.joint_text == ("J" in CALLS[name].order)


def test_a_missing_text_encoder_is_named() -> None:
    with pytest.raises(ValueError, match="clip is empty"):
        schedule_prompts(tiny("wan").patcher, None, (0, 4), (RED, BLUE), 2)


def test_hooked_prompts_of_other_numbers_are_refused() -> None:
    one, two = tiny("wan").conditioning(1), tiny("wan").conditioning(2) * 2
    with pytest.raises(ValueError, match="makes 1 and 2 conditionings"):
        join_conditionings([one, two], [RED, BLUE])


# --- joined conditionings ---------------------------------------------------------------------------------------------


def test_what_is_joined() -> None:
    first = [[torch.ones(1, 2, 3), {"pooled_output": torch.tensor([[1.0]]), "attention_mask": torch.tensor([[1, 0]])}]]
    second = [[torch.zeros(1, 3, 3), {"pooled_output": torch.tensor([[3.0]]), "guidance": 4.0}]]
    ((embedding, extra),) = join_conditionings([first, second], [RED, BLUE], "source")
    assert embedding[0, :, 0].tolist() == [1, 1, 0, 0, 0]
    assert extra["attention_mask"].tolist() == [[1, 0, 1, 1, 1]]
    assert extra["pooled_output"].tolist() == [[2.0]]
    assert "guidance" not in extra and extra[JOINED_KEY].lengths == (2, 3)
    assert JOINED_KEY not in first[0][1]
    nothing = [[torch.ones(1, 2, 3), {"pooled_output": None}]]
    assert join_conditionings([nothing, second], [RED, BLUE])[0][1]["pooled_output"] is None


def test_which_prompts_a_text_means() -> None:
    joined = join_conditionings([tiny("wan").conditioning(1)] * 3, [RED, BLUE, RED], f"0: {RED}\n4: {BLUE}\n8: {RED}")
    extra = joined[0][1][JOINED_KEY]
    assert named_prompts(extra, f" {BLUE}\n") == [1]
    assert named_prompts(extra, RED) == [0, 2]
    assert named_prompts(extra, f"0: {RED}\n4: {BLUE}\n8: {RED}\n") == [0, 1, 2]
    with pytest.raises(ValueError, match="'a green ball' is not one of those of the schedule"):
        named_prompts(extra, "a green ball")


# --- the node, on a native model with its text encoder ----------------------------------------------------------------

SCHEDULE = f"0: {RED}\n5: {BLUE}"


def node(native: Any, schedule: str = SCHEDULE, overlap: int = 2, model: Any = None) -> tuple[Any, Any, str]:
    from mask_guided_video.nodes.prompt_schedule import PromptSchedule as Node

    return Node.execute(model or native[0], native[1], schedule, overlap).args


def film(native: Any, model: Any, positive: Any, frames: int = 9) -> Tensor:
    import comfy.sample

    negative = native[1].encode_from_tokens_scheduled(native[1].tokenize(""))
    noise = torch.randn(1, 4, frames, 4, 4, generator=torch.Generator().manual_seed(3))
    return comfy.sample.sample(
        model,
        noise,
        3,
        4.0,
        "ddim",
        "ddim_uniform",
        positive,
        negative,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=0,
    )


def encoded(native: Any, text: str) -> Any:
    return native[1].encode_from_tokens_scheduled(native[1].tokenize(text))


def test_the_node_says_what_it_does(native) -> None:
    model, positive, report = node(native)
    assert report.splitlines() == [
        f"frames 0 to 4: {RED}",
        f"frames 5 to the end: {BLUE}",
        "each fades into the next over 2 frames.",
    ]
    assert node(native, overlap=0)[2].endswith("each changes at once.")
    assert model is not native[0] and positive[0][0].shape[1] == 2 * encoded(native, RED)[0][0].shape[1]


def test_the_film_of_the_node_is_that_of_the_model_by_itself(native, tiny_folder) -> None:
    from mask_guided_video.recipes.long_video.schedule import parse_schedule
    from mask_guided_video.recipes.long_video.schedule import schedule_prompts as by_itself
    from mask_guided_video.video_models.toybox import load_toybox

    model, positive, _ = node(native)
    alone = load_toybox(folder=tiny_folder)
    joined, patches = by_itself(alone, parse_schedule(SCHEDULE), 2)
    assert torch.equal(joined.embedding, positive[0][0])
    noise = torch.randn(1, 4, 9, 4, 4, generator=torch.Generator().manual_seed(3))
    expected = alone.sample(noise, joined, alone.encode_prompt(""), steps=3, patches=patches)
    found = native[0].model.process_latent_in(film(native, model, positive))
    assert relative(found, expected) < 1e-2
    assert relative(found, native[0].model.process_latent_in(film(native, native[0], positive))) > 1e-2


def test_one_prompt_is_the_plain_film_to_the_bit(native) -> None:
    model, positive, report = node(native, f"0: {RED}")
    assert torch.equal(film(native, model, positive), film(native, native[0], encoded(native, RED)))
    assert report == f"frames 0 to the end: {RED}"


def test_a_bad_schedule_is_refused_by_the_node(native) -> None:
    with pytest.raises(ValueError, match="line 2 of the prompt schedule"):
        node(native, f"0: {RED}\nfrom 5 on: {BLUE}")


# --- beside guides of words -------------------------------------------------------------------------------------------


def guide(phrases: str = "ball", strength: float = 1.0) -> Any:
    from mask_guided_video.nodes.guidance import MaskToAttentionBias

    mask = torch.zeros(9, 16, 16)
    mask[:, :, :6] = 1.0
    return MaskToAttentionBias.execute(phrases, "cross_text", strength, 0.0, 1.0, "all", "both", False, mask=mask)[0]


def guided(native: Any, model: Any, prompt: str, positive: Any, phrases: str = "ball", strength: float = 1.0) -> Any:
    from mask_guided_video.nodes.guidance import PatchAttention

    return PatchAttention.execute(model, guide(phrases, strength), prompt, native[1], positive)[0]


@pytest.mark.parametrize("prompt", [SCHEDULE, RED])
def test_words_are_found_in_the_prompts_that_are_meant(native, prompt: str) -> None:
    model, positive, _ = node(native)
    family, _ = require_supported(native[0])
    length = encoded(native, RED)[0][0].shape[1]
    spans = token_spans(native[1], prompt, ["ball", "red"], family, positive)
    # "ball" and "red" are in the first prompt only.
    assert spans.positions == ((2,), (1,)) and spans.length == 2 * length
    assert spans.prompts == frozenset({prompt_name(positive[0][0])})
    both = token_spans(native[1], SCHEDULE, ["moves"], family, positive, background_phrase="ball")
    assert both.positions == ((3, length + 6),) and both.background == (2,)
    assert both.ordinary == (*range(7), *range(length, length + 7))
    with pytest.raises(ValueError, match="'red' does not occur in the prompt"):
        token_spans(native[1], BLUE, ["red"], family, positive)
    with pytest.raises(ValueError, match="is not one of those of the schedule"):
        token_spans(native[1], "a red ball", ["red"], family, positive)
    with pytest.raises(ValueError, match="'grass' does not occur"):
        token_spans(native[1], SCHEDULE, ["grass"], family, positive)


def test_guides_of_words_and_schedule_in_either_order(native) -> None:
    model, positive, _ = node(native)
    one = film(native, guided(native, model, SCHEDULE, positive, strength=3.0), positive)
    other = film(native, node(native, model=guided(native, native[0], SCHEDULE, positive, strength=3.0))[0], positive)
    assert relative(other, one) < EXACT
    without = film(native, model, positive)
    assert relative(one, without) > CLEAR
    # The ball is in the first prompt alone, but later frames follow the first ones over time.
    blue = film(native, guided(native, model, SCHEDULE, positive, "square", 3.0), positive)
    assert relative(blue, one) > CLEAR


def test_guides_of_words_must_know_their_prompt(native) -> None:
    model, positive, _ = node(native)
    with pytest.raises(ValueError, match="connect the conditioning of Prompt Schedule to positive of Patch Attention"):
        guided(native, model, RED, None)
    unnamed = guided(native, native[0], RED, None)
    with pytest.raises(ValueError, match="in which of its prompts ball should be guided"):
        node(native, model=unnamed)
    check_words(guided(native, model, SCHEDULE, positive))
    check_words(native[0])


def test_real_tokenizers_find_words_in_joined_prompts(comfy_folder) -> None:
    """Stable Diffusion's tokenizer, with a prompt of more than one chunk between two short ones."""
    import comfy.sd
    from comfy.sd1_clip import SD1Tokenizer

    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = SD1Tokenizer(), {}
    texts = ("a red ball on sand", ", ".join(["a very long sentence about a blue ball"] * 12), "a Ball at night")
    lengths = (77, 154, 77)
    parts = [[[torch.full((1, length, 4), float(number)), {}]] for number, length in enumerate(lengths)]
    joined = join_conditionings(parts, texts, "0: ...")
    family, _ = require_supported(tiny("sd15").patcher)
    spans = token_spans(clip, "0: ...", ["ball"], family, joined)
    ids = [entry[0] for text in texts for chunk in clip.tokenize(text)["l"] for entry in chunk]
    word = clip.tokenize("ball")["l"][0][1][0]
    assert list(spans.positions[0]) == [place for place, token in enumerate(ids) if token == word]
    assert len(spans.positions[0]) == 14 and spans.length == 308


# --- in a running ComfyUI ---------------------------------------------------------------------------------------------


def graph(positive_from: str = "schedule", schedule: str = SCHEDULE) -> dict[str, Any]:
    """The Toybox with FreeLong, a guide of words and prompts over time, twelve small frames, two steps."""
    free_long = {
        "model": ["schedule", 0], "variant": "FreeLong", "window": 0, "strength": 1.0, "end_percent": 0.5,
        "temporal_cutoff": 0.25, "spatial_cutoff": 0.25, "largest_level": "local", "bands": "1, 2", "key_stride": 1,
        "blocks": "all",
    }  # fmt: skip
    noise = {
        "seed": 1, "frames": 12, "width": 32, "height": 32, "mode": "plain", "window": 8, "stride": 4, "shared": 0.2,
        "batch_size": 1, "vae": ["load", 2],
    }  # fmt: skip
    bias = {
        "mask": ["mask", 0], "phrases": "red ball", "mode": "cross_text", "strength": 1.0, "start_percent": 0.0,
        "end_percent": 1.0, "blocks": "all", "rows": "both", "hard": False,
    }  # fmt: skip
    guide = {"model": ["long", 0], "guide": ["bias", 0], "clip": ["load", 1], "prompt": schedule}
    positive = [positive_from, 1 if positive_from == "schedule" else 0]
    sampling = {
        "model": ["guide", 0], "positive": positive, "negative": ["empty", 0], "noise": ["noise", 0],
        "latent": ["noise", 1], "steps": 2, "cfg": 4.0, "sampler_name": "ddim", "scheduler": "ddim_uniform",
        "denoise": 1.0,
    }  # fmt: skip
    nodes = {
        "load": ("MGV_LoadVideoModel", {"model_name": "Toybox"}),
        "empty": ("CLIPTextEncode", {"clip": ["load", 1], "text": ""}),
        "schedule": (
            "MGV_PromptSchedule",
            {"model": ["load", 0], "clip": ["load", 1], "schedule": schedule, "overlap": 4},
        ),
        "long": ("MGV_FreeLong", free_long),
        "mask": ("SolidMask", {"value": 1.0, "width": 32, "height": 32}),
        "bias": ("MGV_MaskToAttentionBias", bias),
        "guide": ("MGV_PatchAttention", {**guide, "positive": ["schedule", 1]}),
        "noise": ("MGV_VideoNoise", noise),
        "film": ("MGV_SampleVideo", sampling),
        "save": ("SaveLatent", {"samples": ["film", 0], "filename_prefix": "scheduled"}),
        "report": ("PreviewAny", {"source": ["schedule", 2]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_the_nodes_work_together_in_comfyui(server, toybox_folder) -> None:
    from safetensors.torch import load_file

    run = server.run(graph())
    assert run.succeeded, run.error
    assert run.outputs["report"]["text"][0].splitlines()[1] == f"frames 5 to the end: {BLUE}"
    latents = load_file(server.path_of(run.outputs["save"]["latents"][0]))["latent_tensor"]
    assert latents.shape == (1, 4, 12, 8, 8) and bool(latents.isfinite().all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_from": "empty"}, "connect the conditioning of Prompt Schedule to the sampler"),
        ({"schedule": f"0: {RED}\n12: {BLUE}"}, "begins at frame 12 but the film has 12 frames, 0 to 11"),
        ({"schedule": RED}, "begin it with a frame and a colon"),
    ],
)
def test_comfyui_shows_what_is_wrong(server, toybox_folder, changes: dict[str, str], message: str) -> None:
    run = server.run(graph(**changes))
    assert not run.succeeded and message in run.error
