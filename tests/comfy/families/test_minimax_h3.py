"""MiniMax H3: video and sound in one sequence, without a batch, each prompt in a call of its own.

What holds for all families is proved of it where theirs is; here is what no other model has.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from core_windows import windowed
from dense_reference import CALLS, OVERRIDE, DenseGuide, DenseReference
from family_rows import rows
from guides import plain_guide
from mode_guides import Watch, guided, mode_guide
from native_guides import dense, first_predictions, guide_of, masks_of, patched, relative, spans_of
from native_minimax_models import build_minimax
from native_models import TinyModel, sample, tiny
from tiny_model import flat
from token_places import see
from torch import Tensor

from mask_guided_video.attention_patches.errors import ModelNotSupported
from mask_guided_video.attention_patches.guidance.modes.registry import MODES
from mask_guided_video.attention_patches.kernels.torch_attention import torch_attention
from mask_guided_video.attention_patches.latent_time import latent_frame_groups
from mask_guided_video.backbones.families.minimax_h3 import MiniMaxH3
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.backbones.registry import install_patches, latent_channels_of, latent_time_of
from mask_guided_video.host.sampling.host_windows import ContextWindows, install_context_windows

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

NAMES = sorted(name for name in CALLS if name.startswith("minimax"))
# Of the output's range, in single precision; and what guidance changes at least.
EXACT, CLEAR = 1e-4, 1e-3
FRAMES, CELLS = 7, 24


def both_prompts(name: str = "minimax_h3") -> TinyModel:
    """The tiny model with a negative prompt, which it reads in a call of its own."""
    return replace(tiny(name), cfg=3.0)


def given_parts(model: TinyModel) -> Any:
    """A noise mask that keeps the left of the video's last frames, a little of one more, and the end of the sound."""
    from comfy.nested_tensor import NestedTensor

    video, sound = torch.ones(1, 1, *model.latents[2:]), torch.ones(1, 1, *model.sound[2:])
    video[:, :, 4:, :, :5] = 0.0
    video[:, :, 2] = 0.4
    sound[..., 6:] = 0.0
    return NestedTensor([video, sound])


# --- where tokens stand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked", [False, True])
def test_sound_stands_between_what_is_given_and_the_film(name: str, masked: bool) -> None:
    """Measured: one cell of the video, of the sound, or one row of the text is changed."""
    model, calls = tiny(name), CALLS[name]
    seen = see(model, noise_mask=given_parts(model) if masked else None)
    (_, _, channels, length) = model.sound
    film = calls.text + calls.before
    first = film - channels * length
    assert len(seen) == model.patcher.model.diffusion_model.blocks.__len__() == 2
    for call in seen:
        assert call.lengths == (film + FRAMES * CELLS,) * 2
        assert tuple(call.site.video) == (film, film + FRAMES * CELLS) and tuple(call.site.text) == (0, calls.text)
        assert len(call.sounds) == channels * length
        for (channel, at), places in call.sounds.items():
            assert places == ((0, first + channel * length + at),) * 2
        for cell, place in (*call.queries.items(), *call.keys.items()):
            assert place == (0, film + cell[0] * CELLS + cell[1] // 2 * 6 + cell[2] // 2)
        assert call.words == {row: (0, row) for row in range(calls.text)}


def test_latent_frames_cover_one_and_four_frames_in_turn() -> None:
    """Measured by core's own numbers: frames of a keyframe on the time axis of the model."""
    pytest.importorskip("comfy.ldm.minimax.model", reason="this ComfyUI has no MiniMax H3")
    from comfy.ldm.minimax.model import FRAME_RESCALE, PackedLayout
    from comfy_extras.nodes_minimax_h3 import temporal_shape

    time = MiniMaxH3().latent_time
    for length in (5, 22, 39, 124, 362):
        frames, latents, _ = temporal_shape(length)
        assert frames == length == time.pixel_frames(latents) and latents % 5 == 2
        groups = latent_frame_groups(length, latents, time)
        layout = PackedLayout(0, latents, 2, 2, 1)
        # Places of the latent frames on the time axis, in frames of the video.
        begins = (layout.position_ids[-latents:, 0] / FRAME_RESCALE).round().long().tolist()
        assert [group.start for group in groups] == begins and groups[-1].stop == length
    assert MiniMaxH3().trained_frames == temporal_shape(362)[1]


def test_masks_of_a_wrong_length_are_told_the_rule() -> None:
    model = tiny("minimax_h3")
    for count in (6, 17, 21, 23, 25):
        masks = masks_of(model)[:, :1].expand(-1, count, -1, -1)
        with pytest.raises(ValueError, match=r"22 frames of film, always 17 \* n \+ 5\); give 1 or 7 or 22 masks"):
            sample(model, patched(model, guide_of("minimax_h3", "separate", masks=masks), None))


def test_masks_of_pixel_frames_act_on_their_latent_frames() -> None:
    """A mask in frames 17 to 20 alone is one of latent frame 5's, which stands for frame 17, and of 6, the others."""
    model, length = tiny("minimax_h3"), 22
    for frame, latent in ((0, 0), (1, 1), (4, 1), (5, 2), (16, 4), (17, 5), (18, 6), (21, 6)):
        masks = torch.zeros(1, length, 64, 96)
        masks[:, frame, 16:48, 24:72] = 1.0
        watch = Watch()
        guide = plain_guide(masks, mode="focus_fg", strength=3.0, end_percent=1.0)
        sample(model, install_patches(patched(model, guide, None), [watch]), steps=1)
        site, plain, out = watch.calls[0]
        changed = (out - plain)[:, :, slice(*site.video)].unflatten(2, (FRAMES, CELLS)).abs().amax(dim=(0, 1, 3, 4))
        assert (changed > 1e-3).nonzero().flatten().tolist() == [latent], frame


# --- what is guided ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["separate", "focus", "cross_text"])
def test_both_prompts_equal_explicit_biases_in_calls_of_their_own(name: str, mode: str) -> None:
    model, guide, spans = both_prompts(name), guide_of(name, mode), spans_of(name)
    reference = dense(model, guide, spans)
    expected = first_predictions(model, reference.hang(model.patcher))
    assert reference.model_calls == 2
    found = first_predictions(model, patched(model, guide, spans))
    plain = first_predictions(model, model.patcher)
    for prompt in ("positive", "negative"):
        assert relative(found[prompt], expected[prompt]) < EXACT
    assert relative(found["positive"], plain["positive"]) > CLEAR
    only = first_predictions(model, patched(model, guide_of(name, mode, rows="conditional"), spans))
    assert torch.equal(only["negative"], plain["negative"])
    assert torch.equal(only["positive"], found["positive"])
    off = patched(model, guide_of(name, mode, strength=0.0), spans)
    assert torch.equal(sample(model, off), sample(model))


@pytest.mark.parametrize("name", NAMES)
def test_words_of_one_of_two_positive_prompts(name: str) -> None:
    """As Conditioning (Combine) puts them together: each is a call, and only the one that is meant is guided."""
    model, guide = both_prompts(name), guide_of(name, "cross_text")
    two, (meant, _) = model.conditioning(1) + model.conditioning(3), model.conditioning(3)[0]
    refined = model.patcher.model.diffusion_model.preprocess_text_embeds(meant)
    spans = spans_of(name, frozenset([prompt_name(meant)]))
    reference = dense(model, guide, spans, prompt=refined)
    expected = first_predictions(model, reference.hang(model.patcher), positive=two)
    assert reference.model_calls == 3
    found = first_predictions(model, patched(model, guide, spans), positive=two)
    both = first_predictions(model, patched(model, guide, spans_of(name)), positive=two)
    plain = first_predictions(model, model.patcher, positive=two)
    assert relative(found["positive"], expected["positive"]) < EXACT
    assert torch.equal(found["negative"], plain["negative"])
    for other in (both, plain):
        assert relative(found["positive"], other["positive"]) > CLEAR


@pytest.mark.parametrize("name", NAMES)
def test_a_noise_mask_changes_no_place(name: str) -> None:
    """Kept rows have a noise level of their own; the guide acts on them as on others."""
    model, guide, spans = both_prompts(name), guide_of(name, "separate"), spans_of(name)
    mask = given_parts(model)
    expected = sample(model, dense(model, guide, spans).hang(model.patcher), noise_mask=mask)
    found = sample(model, patched(model, guide, spans), noise_mask=mask)
    assert relative(found, expected) < EXACT
    assert relative(found, sample(model, noise_mask=mask)) > CLEAR


def test_of_a_silent_latent_the_host_makes_one_with_sound() -> None:
    import nodes

    model, guide, spans = tiny("minimax_h3"), guide_of("minimax_h3", "separate"), spans_of("minimax_h3")
    calls = replace(CALLS["minimax_h3"], before=2 * 37)
    reference = DenseReference(model, [DenseGuide(guide, calls, model.latents[-2:], spans)])
    films = []
    for patcher in (patched(model, guide, spans), reference.hang(model.patcher), model.patcher):
        settings = (3, 2, 1.0, "euler", "simple", model.conditioning(1), model.conditioning(2))
        latent = {"samples": torch.zeros(model.latents)}
        film = nodes.KSampler().sample(patcher, *settings, latent)[0]["samples"]
        assert [tuple(part.shape) for part in film.unbind()] == [model.latents, (1, 32, 2, 37)]
        films.append(flat(film))
    assert relative(films[0], films[1]) < EXACT and relative(films[0], films[2]) > CLEAR


@pytest.mark.parametrize("name", rows(NAMES, ("minimax_h3_references",)))
@pytest.mark.parametrize("mode", list(MODES))
def test_no_rule_touches_what_sound_and_text_ask_for(name: str, mode: str) -> None:
    """In every call the rows of text, keyframes, references and sound are those of plain attention, up to rounding."""
    model, watch = both_prompts(name), Watch()
    sample(model, install_patches(guided(model, mode_guide(model, mode)), [watch]), steps=1)
    changed = 0.0
    for site, plain, out in watch.calls:
        film = slice(*site.video)
        assert film.stop == out.shape[2]
        torch.testing.assert_close(out[:, :, : film.start], plain[:, :, : film.start], atol=1e-5, rtol=1e-5)
        changed = max(changed, relative(out[:, :, film], plain[:, :, film]))
    assert len(watch.calls) == 4 and changed > CLEAR


# --- containers -------------------------------------------------------------------------------------------------------


class FreeingOverride:
    """Another pack's kernel, which frees q, k and v as soon as it has read them, and notes which are held even then."""

    def __init__(self) -> None:
        self.held: list[bool] = []

        def override(function: Any, *args: Any, **kwargs: Any) -> Tensor:
            return torch_attention(*args, **kwargs)

        def in_containers(q: Any, k: Any, v: Any, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
            tensors = [container.take() for container in (q, k, v)]
            watched = [weakref.ref(tensor) for tensor in tensors]
            out = torch_attention(*tensors, heads, mask, **kwargs)
            del tensors
            self.held += [reference() is not None for reference in watched]
            return out

        override.container_function = in_containers
        self.override = override

    def hung(self, patcher: Any) -> Any:
        patcher = patcher.clone()
        patcher.model_options["transformer_options"][OVERRIDE] = self.override
        return patcher


def test_tensors_of_calls_that_are_not_guided_are_freed_as_early_as_without_us() -> None:
    model, freeing = tiny("minimax_h3"), FreeingOverride()
    plain = sample(model, freeing.hung(model.patcher), steps=2)
    # q, k and v of two blocks in two steps.
    assert freeing.held == [False] * 3 * 2 * 2
    freeing.held.clear()
    guide = guide_of("minimax_h3", "separate", blocks="block.1")
    film = sample(model, patched(model, guide, spans_of("minimax_h3"), freeing.hung(model.patcher)), steps=2)
    # Those of the first block alone go on in their containers.
    assert freeing.held == [False] * 3 * 2
    assert relative(film, plain) > CLEAR
    freeing.held.clear()
    off = patched(model, guide_of("minimax_h3", "separate", strength=0.0), None, freeing.hung(model.patcher))
    assert torch.equal(sample(model, off, steps=2), plain) and freeing.held == [False] * 3 * 2 * 2


def test_the_guided_call_empties_its_containers() -> None:
    """Nobody holds on to q, k and v of a guided call when it is over."""
    model, alive = tiny("minimax_h3"), []
    plain = sample(model, steps=1)

    from comfy.ldm.minimax import model as minimax

    attention = minimax.optimized_attention

    def watching(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Tensor:
        watched = [weakref.ref(container.peek()) for container in (q, k, v)]
        out = attention(q, k, v, *args, **kwargs)
        alive.extend(reference() is not None for reference in watched)
        assert all(container.tensor is None for container in (q, k, v))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minimax, "optimized_attention", watching)
        film = sample(model, patched(model, guide_of("minimax_h3", "separate"), spans_of("minimax_h3")), steps=1)
    assert relative(film, plain) > CLEAR
    # Two calls of the refiner for each of two prompts, and two blocks.
    assert alive == [False] * 3 * (4 + 2)


# --- what the host cannot do ------------------------------------------------------------------------------------------


def test_context_windows_are_refused_with_a_sentence() -> None:
    """Core names the method that is missing; our own windows say what to do."""
    model = replace(tiny("minimax_h3"), latents=(1, 24, 12, 8, 12))
    masks = masks_of(model, 12)
    guide = guide_of("minimax_h3", "separate", masks=masks)
    by_core = windowed(patched(model, guide, None), "minimax_h3", "standard_static")
    with pytest.raises(NotImplementedError, match="MiniMaxH3 must implement map_context_window_to_modalities"):
        sample(model, by_core)
    ours = install_context_windows(patched(model, guide, None), 2, ContextWindows(7, 2))
    with pytest.raises(ModelNotSupported, match="does not cut the sound of a MiniMaxH3 model .* take FreeLong"):
        sample(model, ours)
    # A clip that is no longer than a window is not cut.
    short = tiny("minimax_h3")
    windows = install_context_windows(patched(short, guide_of("minimax_h3", "separate"), None), 2, ContextWindows(7, 2))
    assert torch.equal(sample(short, windows), sample(short, patched(short, guide_of("minimax_h3", "separate"), None)))


def test_two_films_at_once_are_refused_by_the_host() -> None:
    model = tiny("minimax_h3")
    guided_model = patched(model, guide_of("minimax_h3", "separate"), spans_of("minimax_h3"))
    for patcher in (model.patcher, guided_model):
        with pytest.raises(ValueError, match="MiniMax H3 supports batch size 1"):
            sample(model, patcher, noise=model.noise(films=2))


def test_the_model_is_known_by_its_parts() -> None:
    patcher = tiny("minimax_h3").patcher
    assert latent_channels_of(patcher) == 24 != patcher.get_model_object("latent_format").latent_channels
    assert latent_time_of(patcher) == MiniMaxH3().latent_time
    network = patcher.model.diffusion_model
    assert MiniMaxH3().fits(network) and not MiniMaxH3().strange_parts(network)
    assert MiniMaxH3().block_names(network) == ["block.0", "block.1"]


def test_checkpoints_with_a_table_of_times_are_guided_too() -> None:
    """The smaller form in which the weights are published as well: no embedder of the time."""
    model = replace(tiny("minimax_h3"), make=partial(build_minimax, adaln_curve_grid=9))
    network = model.patcher.model.diffusion_model
    assert MiniMaxH3().fits(network) and not hasattr(network, "time_embedder")
    guide, spans = guide_of("minimax_h3", "separate"), spans_of("minimax_h3")
    film = sample(model, patched(model, guide, spans))
    assert relative(film, sample(model, dense(model, guide, spans).hang(model.patcher))) < EXACT
    assert relative(film, sample(model)) > CLEAR
