"""Guidance in the sliding windows of AnimateDiff-Evolved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evolved import FRAMES, WINDOW, WINDOWS, Evolved, load_pack, tiny_sd15, with_motion_model
from guides import plain_guide
from native_models import TinyModel, sample
from torch import Tensor

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches

pytestmark = pytest.mark.comfy

POSITIONS = ((1, 2),)


@pytest.fixture(scope="module")
def evolved(comfy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Evolved:
    """The nodes of the pack."""
    return with_motion_model(load_pack(comfy_folder), tmp_path_factory.mktemp("animatediff_models"))


@pytest.fixture(scope="module")
def model() -> TinyModel:
    """SD1.5 of all its levels and blocks, with a tenth of its channels."""
    return tiny_sd15()


def masks() -> Tensor:
    """One object that moves; where it is tells each frame from the others."""
    out = torch.zeros(1, FRAMES, 64, 96)
    for frame in range(FRAMES):
        out[0, frame, 16:48, 8 * frame : 8 * frame + 32] = 1.0
    return out


def guide(**changes: Any) -> Guide:
    return plain_guide(masks(), **{"mode": "separate", "strength": 4.0, "end_percent": 1.0, **changes})


def hang(patcher: Any, patch: Any = None) -> Any:
    spans = TextSpans(("red ball",), POSITIONS, 12)
    return install_patches(patcher, [patch or GuidePatch(guide(), spans)])


class Watched(GuidePatch):
    """Notes the sites of the calls that it guides."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sites: list[AttentionSite] = []

    def acts_at(self, site: AttentionSite) -> bool:
        self.sites.append(site)
        return super().acts_at(site)


@pytest.mark.parametrize("order", ["AnimateDiff first", pytest.param("guidance first", marks=pytest.mark.slow)])
def test_every_window_is_guided_with_its_own_frames(model: TinyModel, evolved: Evolved, order: str) -> None:
    patch = Watched(guide(), TextSpans(("red ball",), POSITIONS, 12))
    patcher = (
        hang(evolved(model.patcher), patch) if order == "AnimateDiff first" else evolved(hang(model.patcher, patch))
    )
    with torch.inference_mode():
        plain, film = sample(model, evolved(model.patcher)), sample(model, patcher)
    assert torch.isfinite(film).all()
    assert not torch.allclose(film, plain, atol=1e-2)
    assert {site.frames for site in patch.sites} == WINDOWS
    assert {site.clip_frames for site in patch.sites} == {FRAMES}
    assert all(site.grid[0] == WINDOW for site in patch.sites)
    # 16 spatial transformers with two calls each, 21 motion modules with two attentions each.
    of_frames = {(site.block, site.kind) for site in patch.sites if site.rows.folded_size == WINDOW}
    assert len(of_frames) == 32 and {kind for _, kind in of_frames} == {"self", "cross"}
    of_cells = {site.index for site in patch.sites if site.rows.folded == "positions"}
    assert len(of_cells) == 42 and {site.kind for site in patch.sites if site.index > 15} == {"temporal"}
    assert {site.progress for site in patch.sites} and len({site.sigma for site in patch.sites}) == 2


def test_windows_equal_the_masks_sliced_by_hand(model: TinyModel, evolved: Evolved) -> None:
    """A film of one window's length, guided by that window's part of the masks, makes the same attention calls."""
    found: dict[tuple[int, ...], list[Tensor]] = {}

    class Kept(GuidePatch):
        def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            out = super().__call__(attend, q, k, v, site)
            by_hand = GuidePatch(plain_guide(masks()[:, list(site.frames)], **settings), self.text_spans)
            own = replace(site, frames=tuple(range(len(site.frames))), clip_frames=WINDOW)
            torch.testing.assert_close(out, by_hand(attend, q, k, v, own))
            found.setdefault(site.frames, []).append(out)
            return out

    settings = {"mode": "separate", "strength": 4.0, "end_percent": 1.0}
    patcher = hang(evolved(model.patcher), Kept(guide(), TextSpans(("red ball",), POSITIONS, 12)))
    with torch.inference_mode():
        sample(model, patcher, steps=1)
    assert found.keys() == WINDOWS


def test_strength_zero_is_bit_identical(model: TinyModel, evolved: Evolved) -> None:
    with torch.inference_mode():
        plain = sample(model, evolved(model.patcher))
        none = sample(model, hang(evolved(model.patcher), GuidePatch(guide(strength=0.0))))
        assert torch.equal(none, plain)
        # And a guided run leaves nothing behind.
        sample(model, hang(evolved(model.patcher)))
        assert torch.equal(sample(model, evolved(model.patcher)), plain)


def test_motion_matters_and_films_without_windows_are_guided(model: TinyModel, evolved: Evolved) -> None:
    patch = Watched(guide(), None)
    with torch.inference_mode():
        still = sample(model)
        moved = sample(model, evolved(model.patcher, windows=False))
        guided = sample(model, hang(evolved(model.patcher, windows=False), patch))
    assert not torch.allclose(moved, still, atol=1e-2)
    assert not torch.allclose(guided, moved, atol=1e-2)
    assert {site.frames for site in patch.sites} == {tuple(range(FRAMES))}


def test_masks_of_another_length_are_named_before_sampling(model: TinyModel, evolved: Evolved) -> None:
    wrong = GuidePatch(plain_guide(masks()[:, :5], mode="separate"))
    with torch.inference_mode(), pytest.raises(ValueError, match=f"5 mask frames do not fit a clip of {FRAMES}"):
        sample(model, hang(evolved(model.patcher), wrong))
