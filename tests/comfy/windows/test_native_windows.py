"""Films longer than the model: each context window is guided by its own part of the masks.

A window's call of the model is compared with a film of just these frames, with the masks cut out by hand and added as
explicit biases.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_windows import NO_ANCHOR, NOT_CUT_BY_THE_HOST, WITH_SOUND, film_frames, predictions_by_window, windowed
from dense_reference import CALLS, DenseGuide, DenseReference, latent_frames
from family_rows import rows
from native_guides import first_predictions, guide_of, left_alone, masks_of, patched, relative, spans_of
from native_models import BUILDERS, TinyModel, sample, tiny
from torch import Tensor
from window_films import film_part, with_film

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

EXACT = 1e-4
CLEAR = 1e-3
# One call for each frame, as many as the window has: not in the table of calls.
ASKS_BY_FRAME = {"wan_animate2"}
FAMILIES = sorted(set(BUILDERS) - NOT_CUT_BY_THE_HOST - WITH_SOUND - ASKS_BY_FRAME)

# By default: without and with a frame before the film, and with the text in the same sequence.
LOOPED = ("wan", "wan_vace_reference", "hunyuan")


def by_hand(name: str, window: tuple[int, ...], noise: Tensor, **changes: Any) -> dict[str, Tensor]:
    """The frames of a window as a film of their own, with explicit biases of their masks."""
    leading, frames = CALLS[name].leading, noise.shape[tiny(name).window_axis]
    model = with_film(name, frames, window)
    here, calls = film_part(name, window)
    masks = latent_frames(masks_of(model, frames - leading), calls.covered(frames - leading))[:, here]
    guide = guide_of(name, "separate", masks=masks, **changes)
    reference = DenseReference(model, [DenseGuide(guide, calls, model.latents[-2:], spans_of(name))])
    part = noise.index_select(model.window_axis, torch.tensor(window))
    return first_predictions(model, reference.hang(model.patcher), noise=part)


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for prompt, value in found.items():
        assert relative(value, expected[prompt]) < EXACT


@pytest.mark.parametrize(
    ("name", "schedule", "loops"),
    [
        *(pytest.param(*row.values, "standard_static", False, marks=row.marks) for row in rows(FAMILIES)),
        *(pytest.param(*row.values, "looped_uniform", True, marks=row.marks) for row in rows(FAMILIES, LOOPED)),
    ],
)
def test_core_windows_are_guided_by_their_part_of_the_masks(name: str, schedule: str, loops: bool) -> None:
    leading = CALLS[name].leading
    frames = film_frames(name) + leading
    model = with_film(name, frames)
    noise = model.noise(frames=frames)
    guide = guide_of(name, "separate", masks=masks_of(model, frames - leading))
    guided = windowed(patched(model, guide, spans_of(name)), name, schedule, loops)
    if loops and leading:
        with pytest.raises(ValueError, match="turn its closed loop off"):
            predictions_by_window(model, guided, noise)
        return
    found = predictions_by_window(model, guided, noise)
    plain = predictions_by_window(model, windowed(model.patcher, name, schedule, loops), noise)
    assert len(found) >= 3 and found.keys() == plain.keys()
    # Windows that loop go on at the beginning; all but those that begin there have an anchor.
    assert loops == any(list(window) != sorted(window) for window in found)
    assert any(len(window) == CALLS[name].latents + 1 for window in found) == (name not in NO_ANCHOR)
    for window, predictions in found.items():
        compare(predictions, by_hand(name, window, noise))
        assert relative(predictions["positive"], plain[window]["positive"]) > CLEAR


@pytest.mark.parametrize("name", rows(FAMILIES, LOOPED))
def test_windows_with_rows_left_alone(name: str) -> None:
    leading = CALLS[name].leading
    frames = film_frames(name) + leading
    model = with_film(name, frames)
    if model.cfg == 1.0:
        pytest.skip("this model is sampled without a negative prompt")
    noise = model.noise(frames=frames)
    guide = guide_of(name, "separate", masks=masks_of(model, frames - leading), rows="conditional")
    guided = windowed(patched(model, guide, spans_of(name)), name, "standard_static")
    found = predictions_by_window(model, guided, noise)
    plain = predictions_by_window(model, windowed(model.patcher, name, "standard_static"), noise)
    for window, predictions in found.items():
        compare(predictions, by_hand(name, window, noise, rows="conditional"))
        assert left_alone(name, predictions["negative"], plain[window]["negative"])


@pytest.mark.parametrize("name", rows(["sd15", "sd15_odd", "sdxl"]))
def test_animatediff_windows(name: str) -> None:
    """AnimateDiff-Evolved asks for parts of the batch and names their frames in ``ad_params``."""
    from comfy.samplers import calc_cond_batch

    model, frames = tiny(name), film_frames(name)
    noise = model.noise(frames=frames)
    size = CALLS[name].frames
    windows = [tuple(range(size)), tuple(range(size - 1, 2 * size - 1)), (frames - 1, *range(size - 1))]
    found: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def evaluate(args: dict[str, Any]) -> list[Tensor]:
        for window in windows:
            options = copy.copy(args["model_options"])
            options["transformer_options"] = {
                **options["transformer_options"],
                "ad_params": {"sub_idxs": list(window), "full_length": frames, "context_length": size},
            }
            rows = args["input"][list(window)]
            out = calc_cond_batch(args["model"], args["conds"], rows, args["sigma"][list(window)], options)
            found[window] = {"positive": out[0], "negative": out[1]}
        return [torch.zeros_like(args["input"]) for _ in args["conds"]]

    guide = guide_of(name, "separate", masks=masks_of(model, frames))
    guided = patched(model, guide, spans_of(name))
    guided.model_options["sampler_calc_cond_batch_function"] = evaluate
    sample(model, guided, steps=1, noise=noise)
    for window, predictions in found.items():
        compare(predictions, by_hand(name, window, noise))


def test_a_model_that_asks_frame_by_frame(caplog: pytest.LogCaptureFixture) -> None:
    """The first frame of a window has no pose, and is guided where it is one of the film's."""
    name, frames = "wan_animate2", film_frames("wan_animate2") + 1
    model = with_film(name, frames)
    noise = model.noise(frames=frames)
    guide = guide_of(name, "separate", masks=masks_of(model, frames - 1))
    found = predictions_by_window(
        model, windowed(patched(model, guide, spans_of(name)), name, "standard_static"), noise
    )
    plain = predictions_by_window(model, windowed(model.patcher, name, "standard_static"), noise)
    assert len(found) >= 3 and "was recognised" not in caplog.text
    for window, predictions in found.items():
        assert relative(predictions["positive"], plain[window]["positive"]) > CLEAR


# --- what the host's own windows cannot do ----------------------------------------------------------------------------


def guided(name: str, frames: int) -> Any:
    return patched(tiny(name), guide_of(name, "focus", masks=masks_of(tiny(name), frames)), None)


def long_guided_film() -> tuple[TinyModel, Tensor]:
    """A film of nine latent frames of LTX-Video, and a guide picture behind it."""
    mask = torch.ones(1, 1, 10, 4, 5)
    mask[:, :, 9] = 0.0
    entry = {"strength": 1.0, "pixel_mask": None, "latent_shape": [1, 4, 5], "pre_filter_count": 20}
    extras = {**tiny("ltx_guided").extras, "concat_mask": mask, "guide_attention_entries": [entry]}
    model = replace(tiny("ltx_guided"), extras=extras)
    return model, model.noise(frames=10)


@pytest.mark.parametrize("own", [False, True])
def test_guide_pictures_of_ltx_in_windows_are_refused(own: bool) -> None:
    from mask_guided_video.host.sampling.host_windows import ContextWindows, install_context_windows

    model, noise = long_guided_film()
    patcher = guided("ltx_guided", 9)
    if own:
        patcher = install_context_windows(patcher, 2, ContextWindows(3, 1))
    else:
        patcher = windowed(patcher, "ltx_guided", "standard_static")
    with pytest.raises(ValueError, match="does not cut this model's guide pictures to its context windows; take the"):
        sample(model, patcher, noise=noise)
    # Without windows nothing is in the way.
    assert bool(sample(model, guided("ltx_guided", 9), noise=noise, steps=1).isfinite().all())


def test_the_anchor_of_a_model_that_counts_its_frames_is_refused() -> None:
    model, frames = tiny("svd"), film_frames("svd")
    patcher = windowed(guided("svd", frames), "svd", "standard_static", causal_window_fix=True)
    with pytest.raises(ValueError, match="7 frames but say 6; turn causal_window_fix off"):
        sample(model, patcher, noise=model.noise(frames=frames))


def test_masks_of_another_length_are_refused_before_anything_is_sampled() -> None:
    model, frames = tiny("wan"), film_frames("wan")
    calls: list[Any] = []
    patcher = windowed(guided("wan", CALLS["wan"].frames), "wan", "standard_static")
    patcher.set_model_unet_function_wrapper(lambda *args: calls.append(args))
    with pytest.raises(ValueError, match="9 mask frames do not fit a clip of 7 latent frames"):
        sample(model, patcher, noise=model.noise(frames=frames))
    assert not calls
