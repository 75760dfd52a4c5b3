"""FreeLong in Stable Video Diffusion's attention over time, against a direct one as an attention override."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_reference import CALLS, OVERRIDE
from family_rows import rows
from guides import plain_guide
from native_models import TinyModel, sample, tiny
from temporal_reference import attend_over_time
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

FRAMES = 6
ALWAYS = {"end_percent": 1.0, "spatial_cutoff": 0.6}
SETTINGS = {
    "FreeLong": FreeLong(4, **ALWAYS),
    "blended at the finest grid too": FreeLong(3, 0.4, largest_level="blend", **ALWAYS),
    "FreeLong++": FreeLong(2, bands=(1, 2, 4), largest_level="blend", **ALWAYS),
    "half": FreeLong(2, strength=0.5, largest_level="blend", **ALWAYS),
    "windows only": FreeLong(4, end_percent=0.0),
}


class Direct:
    """Replaces the calls over time of a tiny model, which are known by their order."""

    def __init__(self, settings: FreeLong, bias: Tensor | None = None) -> None:
        self.settings = settings
        self.bias = bias
        self.order = CALLS["svd"].each
        self.count = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Direct:
        return self

    def hang(self, patcher: Any) -> Any:
        """A clone of the model."""
        patched = patcher.clone()
        patched.model_options["transformer_options"][OVERRIDE] = self.attend
        patched.set_model_unet_function_wrapper(self.call_model)
        return patched

    def call_model(self, apply_model: Any, args: dict[str, Any]) -> Tensor:
        """One call of the model."""
        self.count = 0
        out = apply_model(args["input"], args["timestep"], **args["c"])
        assert self.count == len(self.order)
        return out

    def attend(self, function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
        """One attention call."""
        kind, level = self.order[self.count]
        self.count += 1
        if kind != "T":
            return function(q, k, v, heads, **kwargs)
        grid = CALLS["svd"].grids[int(level)][:2]
        return attend_over_time(self.settings, q, k, v, heads, grid, int(level), self.bias)


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny("svd")


@pytest.fixture(scope="module")
def plain(model: TinyModel) -> Tensor:
    """Its film."""
    with torch.inference_mode():
        return sample(model)


def change(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a part of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", rows(SETTINGS, ("FreeLong", "FreeLong++")))
def test_attention_over_time_equals_a_direct_implementation(name: str, model: TinyModel, plain: Tensor) -> None:
    film = sample(model, install_patches(model.patcher, [FreeLongPatch(SETTINGS[name])]))
    by_hand = sample(model, Direct(SETTINGS[name]).hang(model.patcher))
    assert change(film, by_hand) < 1e-4 < 1e-3 < change(film, plain)


@pytest.mark.parametrize("settings", [FreeLong(2, strength=0.0), FreeLong(FRAMES, **ALWAYS)])
def test_strength_zero_and_short_clips_are_bit_identical(settings: FreeLong, model: TinyModel, plain: Tensor) -> None:
    assert torch.equal(sample(model, install_patches(model.patcher, [FreeLongPatch(settings)])), plain)


def test_a_clip_of_one_frame_more_than_the_window(model: TinyModel, plain: Tensor) -> None:
    """The first length at which anything happens: the ends of the clip do not see each other."""
    settings = FreeLong(FRAMES - 1, largest_level="blend", **ALWAYS)
    film = sample(model, install_patches(model.patcher, [FreeLongPatch(settings)]))
    assert change(film, sample(model, Direct(settings).hang(model.patcher))) < 1e-4
    assert not torch.equal(film, plain)


@pytest.mark.parametrize("order", ["one stack", "guidance outside", "FreeLong outside"])
def test_with_mask_guidance_in_one_model(order: str, model: TinyModel) -> None:
    """In space every cell of a frame is of the same region, so that guidance acts over time alone."""
    masks = torch.zeros(1, FRAMES, 64, 96)
    masks[:, :3] = 1.0
    guide = GuidePatch(plain_guide(masks, mode="separate", strength=4.0, end_percent=1.0, rows="both"))
    settings = FreeLong(2, largest_level="blend", **ALWAYS)
    patches = [guide, FreeLongPatch(settings)]
    if order == "one stack":
        both = install_patches(model.patcher, patches)
    else:
        inner, outer = patches[::-1] if order == "guidance outside" else patches
        both = install_patches(install_patches(model.patcher, [inner]), [outer])
    apart = masks[0, :, 0, 0]
    # Frames in which there is no object are left alone.
    direct = Direct(settings, -4.0 * (apart[:, None] > apart).float())
    assert change(sample(model, both), sample(model, direct.hang(model.patcher))) < 1e-4


def test_sites_over_time(model: TinyModel) -> None:
    class Watched(FreeLongPatch):
        def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            sites.append(site)
            return super().__call__(attend, q, k, v, site)

    sites: list[AttentionSite] = []
    sample(model, install_patches(model.patcher, [Watched(FreeLong(4, **ALWAYS))]), steps=1)
    assert {(site.kind, site.rows.folded, site.frames) for site in sites} == {
        ("temporal", "positions", tuple(range(FRAMES)))
    }
    levels = [int(call[1]) for call in CALLS["svd"].each if call[0] == "T"]
    assert [site.level for site in sites] == levels
    assert [site.grid for site in sites] == [(FRAMES, *CALLS["svd"].grids[level][:2]) for level in levels]


def test_a_run_that_ends_early_leaves_nothing_behind(model: TinyModel, plain: Tensor) -> None:
    from comfy.model_management import InterruptProcessingException

    class Cancelled(FreeLongPatch):
        def __call__(self, *args: Any) -> Tensor:
            super().__call__(*args)
            raise InterruptProcessingException

    patched = install_patches(model.patcher, [Cancelled(FreeLong(2, **ALWAYS))])
    with pytest.raises(InterruptProcessingException):
        sample(model, patched)
    assert torch.equal(sample(model), plain)
