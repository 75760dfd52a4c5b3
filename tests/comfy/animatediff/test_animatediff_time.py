"""FreeLong in AnimateDiff-Evolved's motion modules, against a direct implementation in the pack's own attention."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from evolved import (
    FRAMES,
    WINDOW,
    WINDOWS,
    Evolved,
    Watched,
    change,
    lengthen,
    load_pack,
    step,
    take_for_attention,
    tiny_sd15,
    tiny_sdxl,
    with_motion_model,
)
from family_rows import rows
from native_models import TinyModel
from temporal_reference import attend_over_time, attention_of_motion_modules
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches, require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# Cells of the four levels of 8 x 12 latents.
GRIDS = ((8, 12), (4, 6), (2, 3), (1, 2))
ALWAYS = {"end_percent": 1.0, "spatial_cutoff": 0.6}
SETTINGS = {
    "FreeLong": FreeLong(4, **ALWAYS),
    "blended at the finest grid too": FreeLong(3, 0.4, largest_level="blend", **ALWAYS),
    "FreeLong++": FreeLong(2, bands=(1, 2, 4, 8), largest_level="blend", **ALWAYS),
    "half": FreeLong(2, strength=0.5, largest_level="blend", **ALWAYS),
    "windows only": FreeLong(4, end_percent=0.0),
}


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


class Compared(Watched):
    """Compares each call with the direct implementation on the very same tensors."""

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        out = super().__call__(attend, q, k, v, site)
        flat = [tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v)]
        expected = attend_over_time(self.settings, *flat, q.shape[1], site.grid[1:], site.level)
        torch.testing.assert_close(out.transpose(1, 2).flatten(2), expected, atol=2e-6, rtol=2e-5)
        return out


@pytest.mark.parametrize("name", rows(SETTINGS, ("FreeLong", "FreeLong++")))
def test_motion_modules_equal_a_direct_implementation(
    name: str, model: TinyModel, evolved: Evolved, plain: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS[name]
    film = step(model, lengthen(evolved(model.patcher, windows=False), settings))
    # The order of the nodes does not matter.
    assert torch.equal(step(model, evolved(lengthen(model.patcher, settings), windows=False)), film)
    take_for_attention(monkeypatch, attention_of_motion_modules(settings, GRIDS))
    by_hand = step(model, evolved(model.patcher, windows=False))
    assert change(film, by_hand) < 1e-4 < 1e-2 < change(film, plain)


def test_each_context_window_is_a_clip_of_its_own(
    model: TinyModel, evolved: Evolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = Compared(FreeLong(2, largest_level="blend", **ALWAYS))
    windowed = step(model, evolved(model.patcher))
    film = step(model, install_patches(evolved(model.patcher), [patch]))
    assert {site.frames for site in patch.sites} == WINDOWS
    assert {(site.clip_frames, site.grid[0]) for site in patch.sites} == {(FRAMES, WINDOW)}
    # A context window of no more frames than FreeLong's is left alone.
    assert torch.equal(step(model, lengthen(evolved(model.patcher), FreeLong(WINDOW, **ALWAYS))), windowed)
    take_for_attention(monkeypatch, attention_of_motion_modules(patch.settings, GRIDS))
    by_hand = step(model, evolved(model.patcher))
    assert change(film, by_hand) < 1e-4 < 1e-2 < change(film, windowed)


def test_strength_zero_and_short_clips_are_bit_identical(model: TinyModel, evolved: Evolved, plain: Tensor) -> None:
    short = Watched(FreeLong(FRAMES, **ALWAYS))
    assert torch.equal(step(model, install_patches(evolved(model.patcher, windows=False), [short])), plain)
    assert not short.sites
    none = lengthen(evolved(model.patcher, windows=False), FreeLong(2, strength=0.0))
    assert torch.equal(step(model, none), plain)


def test_sites_of_the_motion_modules(model: TinyModel, evolved: Evolved) -> None:
    patch = Watched(FreeLong(4, **ALWAYS))
    step(model, install_patches(evolved(model.patcher, windows=False), [patch]))
    # Two modules in each block of a level on the way down, three on the way up, one in between; two attentions each.
    blocks = [f"down.{level}.{number}" for level in range(4) for number in range(2)] + ["mid.0"]
    blocks += [f"up.{level}.{number}" for level in range(4) for number in range(3)]
    assert [site.block for site in patch.sites] == [block for block in blocks for _ in range(2)]
    assert [(site.index, site.total) for site in patch.sites] == [(index, 42) for index in range(42)]
    grids = {(site.level, site.grid) for site in patch.sites}
    assert grids == {(level, (FRAMES, *grid)) for level, grid in enumerate(GRIDS)}
    assert {(site.kind, site.rows.folded, site.rows.chunks) for site in patch.sites} == {
        ("temporal", "positions", patch.sites[0].rows.chunks)
    }
    assert sorted(patch.sites[0].rows.chunks) == [0, 1]
    assert patch.sites[16].level == 3 and patch.sites[-1].level == 0


def test_blocks_can_be_chosen(model: TinyModel, evolved: Evolved) -> None:
    patch = Watched(FreeLong(4, blocks="mid,up.0.*", **ALWAYS))
    step(model, install_patches(evolved(model.patcher, windows=False), [patch]))
    assert [site.block for site in patch.sites[::2]] == ["mid.0", "up.0.0", "up.0.1", "up.0.2"]
    # The coarsest level of SD1.5 has no transformers, but may get motion modules.
    family, network = require_supported(model.patcher)
    assert {"up.0.1", "down.3.1", "down.0.0"} <= set(family.block_names(network))


def test_odd_sizes_equal_a_direct_implementation(
    model: TinyModel, evolved: Evolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FreeLong(3, largest_level="blend", **ALWAYS)
    noise = torch.randn(7, 4, 9, 13, generator=torch.Generator().manual_seed(5))
    film = step(model, lengthen(evolved(model.patcher, windows=False), settings), noise=noise)
    take_for_attention(monkeypatch, attention_of_motion_modules(settings, ((9, 13), (5, 7), (3, 4), (2, 2))))
    assert change(film, step(model, evolved(model.patcher, windows=False), noise=noise)) < 1e-4


def test_longer_clips_than_the_positions_by_adjusted_positions(
    model: TinyModel, pack: ModuleType, evolved: Evolved, tmp_path: Path
) -> None:
    """The pack refuses more frames than the motion model has positions; its own node makes more of them."""
    settings = FreeLong(16, largest_level="blend", **ALWAYS)
    noise = torch.randn(26, 4, 4, 4, generator=torch.Generator().manual_seed(6))
    with pytest.raises(ValueError, match="upper limit of 24 frames"):
        step(model, lengthen(evolved(model.patcher, windows=False), settings), noise=noise)
    positions = evolved.node("ADE_AdjustPEFullStretch", pe_stretch=8, print_adjustment=False)
    adjusted = evolved.node("ADE_AnimateDiffSettings", pe_adjust=positions)
    longer = with_motion_model(pack, tmp_path, ad_settings=adjusted)
    patch = Compared(settings)
    film = step(model, install_patches(longer(model.patcher, windows=False), [patch]), noise=noise)
    assert {site.grid[0] for site in patch.sites} == {26} and len(patch.sites) == 42
    assert change(film, step(model, longer(model.patcher, windows=False), noise=noise)) > 1e-2


def test_scaled_and_weakened_motion_equals_a_direct_implementation(
    model: TinyModel, evolved: Evolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack scales the keys, and mixes what comes of a motion module with what goes into it."""
    settings = FreeLong(3, largest_level="blend", **ALWAYS)
    half = torch.ones(FRAMES, 8, 12)
    half[:, :, 6:] = 0.3
    values = {"scale_multival": 1.4, "effect_multival": half}
    film = step(model, lengthen(evolved(model.patcher, windows=False, **values), settings))
    assert change(film, step(model, lengthen(evolved(model.patcher, windows=False), settings))) > 1e-2
    take_for_attention(monkeypatch, attention_of_motion_modules(settings, GRIDS))
    assert change(film, step(model, evolved(model.patcher, windows=False, **values))) < 1e-4


def test_two_motion_models_in_the_same_blocks(
    model: TinyModel, pack: ModuleType, evolved: Evolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = Watched(FreeLong(3, largest_level="blend", **ALWAYS))
    other = with_motion_model(pack, tmp_path)
    first = other.node("ADE_ApplyAnimateDiffModel", motion_model=other.motion_model)
    film = step(model, install_patches(evolved(model.patcher, windows=False, prev_m_models=first), [patch]))
    assert [(site.index, site.total) for site in patch.sites] == [(index, 84) for index in range(84)]
    assert [site.block for site in patch.sites[:8]] == ["down.0.0"] * 4 + ["down.0.1"] * 4
    take_for_attention(monkeypatch, attention_of_motion_modules(patch.settings, GRIDS))
    assert change(film, step(model, evolved(model.patcher, windows=False, prev_m_models=first))) < 1e-4


def test_sdxl_under_animatediff(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finest level has motion modules but no transformers."""
    patch = Watched(FreeLong(4, largest_level="blend", **ALWAYS))
    sdxl = tiny_sdxl()
    evolved = with_motion_model(pack, tmp_path, "SDXL")
    plain = step(sdxl, evolved(sdxl.patcher, windows=False))
    film = step(sdxl, install_patches(evolved(sdxl.patcher, windows=False), [patch]))
    take_for_attention(monkeypatch, attention_of_motion_modules(patch.settings, GRIDS))
    by_hand = step(sdxl, evolved(sdxl.patcher, windows=False))
    assert change(film, by_hand) < 1e-4 < 1e-2 < change(film, plain)
    blocks = [f"down.{level}.{number}" for level in range(3) for number in range(2)]
    blocks += [f"up.{level}.{number}" for level in range(3) for number in range(3)]
    assert [site.block for site in patch.sites[::2]] == blocks
