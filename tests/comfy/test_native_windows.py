"""Films longer than the model: each context window is guided by its own part of the masks.

A window's call of the model is compared with a film of just these frames, with the masks cut out by hand and added as
explicit biases.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from dense_reference import CALLS, latent_frames
from native_guides import dense, first_predictions, guide_of, masks_of, patched, relative, spans_of
from native_models import BUILDERS, TinyModel, sample, tiny
from torch import Tensor

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

EXACT = 1e-4
CLEAR = 1e-3
# ComfyUI 0.3.64 does not cut the further latents of these models (pictures, guides) to a window's frames.
NOT_CUT_BY_THE_HOST = {
    "cosmos_predict2",
    "ltx_guided",
    "wan_animate",
    "wan_camera",
    "wan_image",
    "wan_vace",
    "wan_vace_reference",
}
FAMILIES = sorted(set(BUILDERS) - NOT_CUT_BY_THE_HOST)


def film_frames(name: str) -> int:
    """Latent frames of a film of three windows that share one frame each."""
    return 3 * CALLS[name].frames - 2


def windowed(patcher: Any, name: str, schedule: str, loops: bool = False) -> Any:
    """The model with core's context windows, each as long as the tiny model's film."""
    import comfy.context_windows as windows

    class Handler(windows.IndexListContextHandler):
        """Core's, whose search for the step wants one noise level and not one per frame of the batch."""

        def set_step(self, timestep: Tensor, model_options: dict[str, Any]) -> None:
            super().set_step(timestep[:1], model_options)

    patcher = patcher.clone()
    patcher.model_options["context_handler"] = Handler(
        context_schedule=windows.get_matching_context_schedule(schedule),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=CALLS[name].frames,
        context_overlap=1,
        context_stride=1,
        closed_loop=loops,
        dim=tiny(name).window_axis,
    )
    return patcher


def predictions_by_window(
    model: TinyModel, patcher: Any, noise: Tensor, **settings: Any
) -> dict[tuple[int, ...], dict[str, Tensor]]:
    """What the model predicts in the first step in each of core's windows."""
    found: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def keep(apply_model: Any, args: dict[str, Any]) -> Tensor:
        out = apply_model(args["input"], args["timestep"], **args["c"])
        window = tuple(args["c"]["transformer_options"]["context_window"].index_list)
        for chunk, part in zip(args["cond_or_uncond"], out.chunk(len(args["cond_or_uncond"])), strict=True):
            found.setdefault(window, {})[("positive", "negative")[chunk]] = part.clone()
        return out

    patcher = patcher.clone()
    patcher.set_model_unet_function_wrapper(keep)
    sample(model, patcher, steps=1, noise=noise, **settings)
    return found


def by_hand(name: str, window: tuple[int, ...], noise: Tensor, **changes: Any) -> dict[str, Tensor]:
    """The frames of a window as a film of their own, with explicit biases of their masks."""
    model, calls = tiny(name), CALLS[name]
    masks = latent_frames(masks_of(model, film_frames(name)), film_frames(name), calls.factor)[:, list(window)]
    guide = guide_of(name, "separate", masks=masks, **changes)
    part = noise.index_select(model.window_axis, torch.tensor(window))
    return first_predictions(model, dense(model, guide, spans_of(name)).hang(model.patcher), noise=part)


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for prompt, value in found.items():
        assert relative(value, expected[prompt]) < EXACT


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("schedule", "loops"), [("standard_static", False), ("looped_uniform", True)])
def test_core_windows_are_guided_by_their_part_of_the_masks(name: str, schedule: str, loops: bool) -> None:
    model, frames = tiny(name), film_frames(name)
    noise = model.noise(frames=frames)
    guide = guide_of(name, "separate", masks=masks_of(model, frames))
    guided = windowed(patched(model, guide, spans_of(name)), name, schedule, loops)
    found = predictions_by_window(model, guided, noise)
    plain = predictions_by_window(model, windowed(model.patcher, name, schedule, loops), noise)
    assert len(found) >= 3 and found.keys() == plain.keys()
    # Windows that loop go on at the beginning.
    assert loops == any(list(window) != sorted(window) for window in found)
    for window, predictions in found.items():
        compare(predictions, by_hand(name, window, noise))
        assert relative(predictions["positive"], plain[window]["positive"]) > CLEAR


@pytest.mark.parametrize("name", FAMILIES)
def test_windows_with_rows_left_alone(name: str) -> None:
    model, frames = tiny(name), film_frames(name)
    if model.cfg == 1.0:
        pytest.skip("this model is sampled without a negative prompt")
    noise = model.noise(frames=frames)
    guide = guide_of(name, "separate", masks=masks_of(model, frames), rows="conditional")
    guided = windowed(patched(model, guide, spans_of(name)), name, "standard_static")
    found = predictions_by_window(model, guided, noise)
    plain = predictions_by_window(model, windowed(model.patcher, name, "standard_static"), noise)
    for window, predictions in found.items():
        compare(predictions, by_hand(name, window, noise, rows="conditional"))
        assert torch.equal(predictions["negative"], plain[window]["negative"])


@pytest.mark.parametrize("name", ["sd15", "sd15_odd", "sdxl"])
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


@pytest.mark.parametrize("name", sorted(NOT_CUT_BY_THE_HOST - {"ltx_guided"}))
def test_which_models_the_host_cannot_window(name: str) -> None:
    """Should a later core cut their latents, this fails, and the model belongs among those above."""
    model = tiny(name)
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        sample(model, windowed(model.patcher, name, "standard_static"), noise=model.noise(frames=film_frames(name)))
