"""FreeLong in context windows: the node, what each window sees, and what the host's handler leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from core_windows import predictions_by_window
from dense_reference import CALLS
from direct_free_long import DirectFreeLong
from native_guides import first_predictions, relative
from native_models import TinyModel, sample, tiny
from torch import Tensor
from window_films import with_film

from mask_guided_video.attention_patches.free_long import FreeLong
from mask_guided_video.host.sampling.host_windows import ContextWindows, install_context_windows

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

EXACT, CLEAR = 1e-4, 1e-3
# Context windows of 8 frames that share 2, and FreeLong's windows of 4 inside of them.
WINDOW, LENGTH, OVERLAP, FRAMES = 4, 8, 2, 17
WINDOWS = ContextWindows(LENGTH, OVERLAP)
SETTINGS: dict[str, Any] = {
    "variant": "FreeLong",
    "window": WINDOW,
    "strength": 1.0,
    "end_percent": 1.0,
    "temporal_cutoff": 0.25,
    "spatial_cutoff": 0.25,
    "largest_level": "local",
    "bands": "1, 2, 4",
    "key_stride": 1,
    "blocks": "all",
}
CONTEXT: dict[str, Any] = {
    "context_length": LENGTH / WINDOW,
    "context_overlap": OVERLAP / WINDOW,
    "context_schedule": "standard_static",
    "fuse_method": "pyramid",
}


def run_node(name: str, model: Any, **changes: Any) -> Any:
    from mask_guided_video import NODE_CLASS_MAPPINGS

    settings = {**(CONTEXT if name == "MGV_FreeLongWindows" else {}), **SETTINGS, **changes}
    return NODE_CLASS_MAPPINGS[name].execute(model=model, **settings).result[0]


def noise_of(model: TinyModel, films: int = 1) -> Tensor:
    return model.noise(frames=FRAMES, films=films)


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform", "looped_uniform", "batched"])
def test_every_window_is_a_clip_of_its_own(schedule: str) -> None:
    """Each window's prediction is that of a film of just these frames, with FreeLong written out by hand."""
    model, noise = tiny("wan"), noise_of(tiny("wan"))
    patcher = run_node("MGV_FreeLongWindows", model.patcher, context_schedule=schedule)
    found = predictions_by_window(model, patcher, noise)
    assert len(found) >= 3 and {frame for window in found for frame in window} == set(range(FRAMES))
    for window, predictions in found.items():
        calls = replace(CALLS["wan"], frames=len(window))
        reference = DirectFreeLong(FreeLong(WINDOW, end_percent=1.0), calls)
        part = noise[:, :, list(window)]
        expected = first_predictions(model, reference.hang(model.patcher), noise=part)
        for prompt, value in predictions.items():
            assert relative(value, expected[prompt]) < EXACT
        plain = first_predictions(model, model.patcher, noise=part)["positive"]
        # batched leaves one frame for its last window.
        assert (relative(predictions["positive"], plain) > CLEAR) == (len(window) > WINDOW)


def test_whole_film_is_what_the_hosts_handler_makes_of_them() -> None:
    import comfy.context_windows as host

    model, noise = tiny("ltx"), noise_of(tiny("ltx"))
    film = sample(model, run_node("MGV_FreeLongWindows", model.patcher), noise=noise)
    reference = DirectFreeLong(FreeLong(WINDOW, end_percent=1.0), replace(CALLS["ltx"], frames=LENGTH))
    expected = reference.hang(model.patcher)
    expected.model_options["context_handler"] = host.IndexListContextHandler(
        context_schedule=host.get_matching_context_schedule("standard_static"),
        fuse_method=host.get_matching_fuse_method("pyramid"),
        context_length=LENGTH,
        context_overlap=OVERLAP,
        dim=2,
        causal_window_fix=False,
    )
    assert relative(film, sample(model, expected, noise=noise)) < EXACT


def test_order_of_free_long_and_the_hosts_own_windows_does_not_matter() -> None:
    from mask_guided_video.host.sampling.long_clips import install_free_long

    model, noise = tiny("hunyuan"), noise_of(tiny("hunyuan"))
    settings = FreeLong(WINDOW, end_percent=1.0)
    both = run_node("MGV_FreeLongWindows", model.patcher)
    after = install_context_windows(install_free_long(model.patcher, settings), 2, WINDOWS)
    before = install_free_long(install_context_windows(model.patcher, 2, WINDOWS), settings)
    films = [sample(model, patcher, noise=noise) for patcher in (both, after, before)]
    assert torch.equal(films[0], films[1]) and torch.equal(films[0], films[2])


def test_one_window_is_the_film_without_windows() -> None:
    """Clips no longer than a context window are not cut; those no longer than FreeLong's window not touched."""
    model = tiny("wan")
    windowed = run_node("MGV_FreeLongWindows", model.patcher)
    for frames in (LENGTH, WINDOW):
        noise = model.noise(frames=frames)
        film = sample(model, windowed, noise=noise)
        assert torch.equal(film, sample(model, run_node("MGV_FreeLong", model.patcher), noise=noise))
    assert torch.equal(film, sample(model, noise=noise))


def test_strength_zero_leaves_the_hosts_windows() -> None:
    model, noise = tiny("wan"), noise_of(tiny("wan"))
    windowed = run_node("MGV_FreeLongWindows", model.patcher, strength=0.0)
    assert "optimized_attention_override" not in windowed.model_options["transformer_options"]
    expected = sample(model, install_context_windows(model.patcher, 2, WINDOWS), noise=noise)
    assert torch.equal(sample(model, windowed, noise=noise), expected)


# --- what the host's handler leaves out -------------------------------------------------------------------------------


def test_several_films_at_once() -> None:
    model, noise = tiny("wan"), noise_of(tiny("wan"), films=2)
    windowed = install_context_windows(model.patcher, 2, WINDOWS)
    films = sample(model, windowed, noise=noise)
    for index in range(2):
        alone = sample(model, windowed, noise=noise[index : index + 1])
        assert relative(films[index : index + 1], alone) < EXACT


def test_frames_as_the_batch() -> None:
    model, noise = tiny("svd"), noise_of(tiny("svd"))
    patcher = run_node("MGV_FreeLongWindows", model.patcher)
    found = predictions_by_window(model, patcher, noise)
    assert len(found) == 3
    for window, predictions in found.items():
        calls = replace(CALLS["svd"], frames=len(window))
        reference = DirectFreeLong(FreeLong(WINDOW, end_percent=1.0), calls)
        expected = first_predictions(model, reference.hang(model.patcher), noise=noise[list(window)])
        assert relative(predictions["positive"], expected["positive"]) < EXACT


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde"])
def test_samplers_that_call_the_model_between_steps(sampler: str) -> None:
    model, noise = tiny("wan"), noise_of(tiny("wan"))
    windows = replace(WINDOWS, schedule="standard_uniform")
    windowed = install_context_windows(model.patcher, 2, windows)
    film = sample(model, windowed, noise=noise, steps=4, sampler=sampler)
    assert bool(film.isfinite().all()) and relative(film, sample(model, noise=noise, steps=4, sampler=sampler)) > CLEAR


@pytest.mark.parametrize("name", ["wan_image", "wan_camera", "wan_vace", "wan_humo", "cosmos_predict2"])
def test_conditions_with_frames_are_cut_too(name: str) -> None:
    model = with_film(name, FRAMES)
    noise = noise_of(model)
    found = predictions_by_window(model, install_context_windows(model.patcher, 2, WINDOWS), noise)
    assert len(found) == 3
    for window, predictions in found.items():
        assert len(window) == LENGTH
        alone = with_film(name, FRAMES, window)
        expected = first_predictions(alone, alone.patcher, noise=noise[:, :, list(window)])
        assert relative(predictions["positive"], expected["positive"]) < EXACT


@pytest.mark.parametrize("name", ["wan", "wan_reference"])
def test_what_only_seems_to_have_the_films_frames_stays_whole(name: str) -> None:
    """32 channels of a text, and the 8 rows of a reference picture: ComfyUI itself takes them for 32 and 8 frames."""
    model, frames = tiny(name), {"wan": 32, "wan_reference": 8}[name]
    noise = model.noise(frames=frames)
    found = predictions_by_window(model, install_context_windows(model.patcher, 2, ContextWindows(6, 1)), noise)
    for window, predictions in found.items():
        expected = first_predictions(model, model.patcher, noise=noise[:, :, list(window)])
        assert relative(predictions["positive"], expected["positive"]) < EXACT


@pytest.mark.parametrize("frames_of_mask", [1, FRAMES])
@pytest.mark.parametrize("frames", [FRAMES, 8])
def test_a_prompt_for_a_part_of_the_picture(frames_of_mask: int, frames: int) -> None:
    """The mask is cut with the film where it has its frames, and stays whole where only its height is the same."""
    model = tiny("wan")
    mask = torch.zeros(1, min(frames_of_mask, frames), 8, 12)
    mask[..., :5] = 1.0
    (embedding, extras), (other, _) = model.conditioning(1)[0], model.conditioning(3)[0]
    positive = [[embedding, {**extras, "mask": mask}], [other, {**extras, "mask": 1.0 - mask}]]
    noise = model.noise(frames=frames)
    windowed = install_context_windows(model.patcher, 2, ContextWindows(6, 1))
    # Left and right of the border the film is that of one prompt each.
    for place, alone in ((0, embedding), (-1, other)):
        expected = sample(model, windowed, noise=noise, positive=[[alone, extras]], steps=1)
        found = sample(model, windowed, noise=noise, positive=positive, steps=1)
        assert relative(found[..., place], expected[..., place]) < EXACT


# --- the nodes --------------------------------------------------------------------------------------------------------


def test_window_zero_is_the_models_own() -> None:
    patcher = run_node("MGV_FreeLongWindows", tiny("wan").patcher, window=0)
    handler = patcher.model_options["context_handler"]
    patch = patcher.model_options["transformer_options"]["attention_patch_stacks"][0].patches[0]
    assert (patch.settings.window, handler.context_length, handler.context_overlap) == (21, 42, 10)
    assert patch.settings.bands == ()
    patcher = run_node("MGV_FreeLong", tiny("ltx").patcher, window=0, variant="FreeLong++")
    patch = patcher.model_options["transformer_options"]["attention_patch_stacks"][0].patches[0]
    assert (patch.settings.window, patch.settings.bands) == (16, (1, 2, 4))


def test_windows_take_the_place_of_earlier_ones() -> None:
    first = run_node("MGV_FreeLongWindows", tiny("wan").patcher)
    second = install_context_windows(first, 2, ContextWindows(12, 4))
    assert first.model_options["context_handler"].context_length == LENGTH
    assert second.model_options["context_handler"].context_length == 12
    wrappers = [found for kinds in second.wrappers.values() for key, found in kinds.items() if "Context" in key]
    assert [len(found) for found in wrappers] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": "1, two"}, "bands is '1, two'; write whole numbers"),
        ({"bands": " , "}, "write whole numbers"),
        ({"bands": "2, 4"}, "give window lengths that ascend from 1"),
        ({"bands": "1, 4, 2"}, "give window lengths that ascend from 1"),
        ({"blocks": "block.7"}, "fits no block of this model"),
        ({"blocks": ""}, "blocks is ''"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"context_overlap": 2.0}, "context_overlap is 2 and context_length 2"),
        ({"context_overlap": 0.0, "fuse_method": "overlap-linear"}, "choose flat instead"),
    ],
)
def test_errors_are_one_clear_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_node("MGV_FreeLongWindows", tiny("wan").patcher, variant="FreeLong++", **changes)


def test_a_model_that_is_not_known_is_refused() -> None:
    from comfy.model_patcher import ModelPatcher

    stranger = torch.nn.Module()
    stranger.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="model not supported: Linear"):
        run_node("MGV_FreeLong", ModelPatcher(stranger, torch.device("cpu"), torch.device("cpu")))
