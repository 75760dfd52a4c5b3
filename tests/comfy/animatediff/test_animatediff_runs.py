"""Runs with FreeLong in AnimateDiff-Evolved's motion modules: what they leave behind, and what goes beside them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from evolved import (
    FRAMES,
    Evolved,
    change,
    lengthen,
    load_pack,
    part_of_pack,
    step,
    take_for_attention,
    tiny_sd15,
    with_motion_model,
)
from guides import plain_guide
from native_models import TinyModel
from temporal_reference import attention_of_motion_modules
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.kernels.torch_attention import OVERRIDE_KEY
from mask_guided_video.backbones.registry import install_patches
from mask_guided_video.host.sampling.host_windows import ContextWindows, install_context_windows

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# Cells of the four levels of 8 x 12 latents.
GRIDS = ((8, 12), (4, 6), (2, 3), (1, 2))
BLENDED = FreeLong(2, spatial_cutoff=0.6, end_percent=1.0, largest_level="blend")


@pytest.fixture(scope="module")
def pack(comfy_folder: Path) -> ModuleType:
    return load_pack(comfy_folder)


@pytest.fixture(scope="module")
def evolved(pack: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Evolved:
    """The nodes of the pack."""
    return with_motion_model(pack, tmp_path_factory.mktemp("animatediff_time"))


@pytest.fixture(scope="module")
def model() -> TinyModel:
    """SD1.5 of all its levels and blocks, with a tenth of its channels."""
    return tiny_sd15()


@pytest.fixture(scope="module")
def plain(model: TinyModel, evolved: Evolved) -> Tensor:
    """A film of the motion model without windows."""
    with torch.inference_mode():
        return step(model, evolved(model.patcher, windows=False))


def functions(evolved: Evolved) -> set[Any]:
    """What the attentions of the motion model hold."""
    parts = evolved.motion_model.model.modules()
    return {part.actual_attention for part in parts if hasattr(part, "actual_attention")}


@pytest.mark.parametrize("problem", ["cancelled", "failed"])
def test_a_run_that_ends_early_leaves_nothing_behind(
    problem: str, model: TinyModel, evolved: Evolved, plain: Tensor
) -> None:
    from comfy.model_management import InterruptProcessingException

    error = InterruptProcessingException if problem == "cancelled" else RuntimeError

    class Ended(FreeLongPatch):
        def __call__(self, *args: Any) -> Tensor:
            super().__call__(*args)
            raise error("in the middle of a motion module")

    before = functions(evolved)
    weights = {name: value.clone() for name, value in evolved.motion_model.model.state_dict().items()}
    patched = install_patches(evolved(model.patcher, windows=False), [Ended(BLENDED)])
    with pytest.raises(error, match="in the middle"):
        step(model, patched)
    assert functions(evolved) == before == {part_of_pack("utils_motion").optimized_attention_mm}
    assert torch.equal(step(model, evolved(model.patcher, windows=False)), plain)
    after = evolved.motion_model.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def test_the_models_that_go_in_are_unchanged(model: TinyModel, evolved: Evolved, plain: Tensor) -> None:
    patcher = evolved(model.patcher, windows=False)
    options = patcher.model_options["transformer_options"]
    before = {name: list(value) for name, value in options["patches"].items()}
    step(model, lengthen(patcher, BLENDED))
    assert {name: list(value) for name, value in options["patches"].items()} == before
    assert OVERRIDE_KEY not in options and functions(evolved) == {part_of_pack("utils_motion").optimized_attention_mm}
    assert torch.equal(step(model, patcher), plain)


def test_nothing_is_exchanged_where_nothing_acts(
    model: TinyModel, evolved: Evolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while a motion module runs."""
    seen = set()
    attend = part_of_pack("utils_motion").optimized_attention_mm

    def spy(*args: Any) -> Tensor:
        seen.update(functions(evolved))
        return attend(*args)

    take_for_attention(monkeypatch, spy)
    guide = GuidePatch(plain_guide(torch.ones(1, FRAMES, 64, 96), mode="focus"))
    short = FreeLongPatch(FreeLong(FRAMES))
    step(model, install_patches(evolved(model.patcher, windows=False), [guide, short]))
    assert seen == {spy}


# --- beside others ----------------------------------------------------------------------------------------------------


def test_overrides_of_other_packs_stay_out_of_motion_modules(model: TinyModel, evolved: Evolved) -> None:
    calls: list[int] = []

    def override(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0].shape[1])
        return function(*args, **kwargs)

    patcher = evolved(model.patcher, windows=False)
    patcher.model_options["transformer_options"][OVERRIDE_KEY] = override
    step(model, patcher)
    alone = list(calls)
    calls.clear()
    step(model, lengthen(patcher, BLENDED))
    assert calls == alone and len(calls) == 32


@pytest.mark.parametrize("order", ["one stack", "guidance outside", "FreeLong outside"])
def test_with_mask_guidance_in_one_model(
    order: str, model: TinyModel, evolved: Evolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance keeps objects apart over time as well: here frames 0..3 of the whole picture from the others."""
    masks = torch.zeros(1, FRAMES, 64, 96)
    masks[:, :4] = 1.0
    guide = plain_guide(masks, mode="separate", strength=4.0, end_percent=1.0, rows="both")
    patches = [GuidePatch(guide), FreeLongPatch(BLENDED)]
    patcher = evolved(model.patcher, windows=False)
    if order == "one stack":
        both = install_patches(patcher, patches)
    else:
        inner, outer = patches[::-1] if order == "guidance outside" else patches
        both = install_patches(install_patches(patcher, [inner]), [outer])
    film = step(model, both)
    apart = masks[0, :, 0, 0]
    # Frames in which there is no object are left alone.
    bias = -4.0 * (apart[:, None] > apart).float()
    take_for_attention(monkeypatch, attention_of_motion_modules(BLENDED, GRIDS, bias=bias))
    # In space every cell of a frame is of the same region, so that nothing changes there.
    assert change(film, step(model, patcher)) < 1e-4


def test_view_options_are_named(model: TinyModel, evolved: Evolved, caplog: pytest.LogCaptureFixture) -> None:
    """They give the attention of a motion module a part of the frames at a time, without a word which."""
    view = evolved.node("ADE_StandardStaticViewOptions", view_length=4, view_overlap=2)
    context = evolved.node("ADE_ViewsOnlyContextOptions", view_opts_req=view)
    plain = step(model, evolved(model.patcher, context=context))
    with caplog.at_level(logging.WARNING):
        film = step(model, lengthen(evolved(model.patcher, context=context), BLENDED))
    assert torch.equal(film, plain)
    assert [record.message for record in caplog.records if "view options" in record.message] == [
        "motion modules see 4 of 8 frames at a time (view options of AnimateDiff-Evolved), so FreeLong and guidance "
        "have no effect in them; take the view options out."
    ]


def test_context_windows_of_the_host_are_refused(model: TinyModel, evolved: Evolved) -> None:
    """To the pack the frames of all prompts would be those of one clip."""
    windows = ContextWindows(4, 2, "standard_static", "pyramid")
    patcher = install_context_windows(evolved(model.patcher, windows=False), 0, windows)
    with pytest.raises(ValueError, match="4 frames at a time, but the motion modules take the batch for clips of 8"):
        step(model, lengthen(patcher, FreeLong(2)))


def test_pictures_without_a_motion_model_are_named(model: TinyModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plain = step(model)
        assert torch.equal(step(model, lengthen(model.patcher, FreeLong(4))), plain)
    assert sum("this model has no motion module" in record.message for record in caplog.records) == 1
