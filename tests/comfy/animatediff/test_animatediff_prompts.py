"""Prompts over time in the sliding windows of AnimateDiff-Evolved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evolved import WINDOWS, Evolved, change, load_pack, step, tiny_sd15, with_motion_model
from native_models import TinyModel, sample
from torch import Tensor

from mask_guided_video.attention_patches.prompt_schedule import PromptSchedule, PromptSchedulePatch
from mask_guided_video.attention_patches.site import CONDITIONAL, AttentionSite
from mask_guided_video.backbones.host_hooks import prompt_name
from mask_guided_video.backbones.registry import install_patches
from mask_guided_video.host.prompts.joined_prompts import join_conditionings

pytestmark = pytest.mark.comfy

ORDERS = pytest.mark.parametrize("order", ["AnimateDiff first", pytest.param("prompts first", marks=pytest.mark.slow)])
# Of the output's range, in single precision; and what another prompt changes at least.
EXACT, CLEAR = 1e-4, 1e-3


@pytest.fixture(scope="module")
def evolved(comfy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Evolved:
    """The nodes of the pack."""
    return with_motion_model(load_pack(comfy_folder), tmp_path_factory.mktemp("animatediff_prompts"))


@pytest.fixture(scope="module")
def model() -> TinyModel:
    """SD1.5 of all its levels and blocks, with a tenth of its channels."""
    return tiny_sd15()


class ByHand(PromptSchedulePatch):
    """Compares each call with attention written out row by row; notes the frames of the windows."""

    def __init__(self, schedule: PromptSchedule, shares: list[list[float]]) -> None:
        super().__init__(schedule)
        self.shares, self.windows = shares, set()

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        out = super().__call__(attend, q, k, v, site)
        if not self.acts_at(site):
            return out
        self.windows.add(site.frames)
        rows = len(site.frames)
        for chunk, kind in enumerate(site.rows.chunks):
            if kind != CONDITIONAL:
                continue
            for place, frame in enumerate(site.frames):
                row = chunk * rows + place
                result = torch.zeros_like(out[row])
                for prompt, share in enumerate(self.shares[frame]):
                    part = self.schedule.span(prompt)
                    keys, values = k[row, :, part], v[row, :, part]
                    result += share * (q[row] @ keys.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ values
                torch.testing.assert_close(out[row], result, atol=1e-4, rtol=1e-3)
        return out


def scheduled(model: TinyModel, evolved: Evolved, order: str, overlap: int, patch: Any = PromptSchedulePatch) -> Any:
    """Two prompts, the second from frame 4 on: the patched model under AnimateDiff, the joined text and the patch."""
    parts = [model.conditioning(10), model.conditioning(11, model.text - 1)]
    joined = join_conditionings(parts, ["one", "other"])
    lengths = tuple(part[0][0].shape[1] for part in parts)
    hung = patch(PromptSchedule((0, 4), lengths, overlap, frozenset({prompt_name(joined[0][0])})))
    if order == "AnimateDiff first":
        return install_patches(evolved(model.patcher), [hung]), joined, hung
    return evolved(install_patches(model.patcher, [hung])), joined, hung


@ORDERS
def test_frames_of_one_prompt_are_those_of_its_own_film(model: TinyModel, evolved: Evolved, order: str) -> None:
    """In the first step windows know nothing of each other: the first sees the first prompt, the last the other."""
    patched, joined, _ = scheduled(model, evolved, order, overlap=0)
    plain = evolved(model.patcher)
    film = sample(model, patched, steps=1, positive=joined)
    first = sample(model, plain, steps=1, positive=model.conditioning(10))
    other = sample(model, plain, steps=1, positive=model.conditioning(11, model.text - 1))
    # Of the eight frames, two at each end lie in one window only.
    assert change(film[:2], first[:2]) < EXACT and change(film[-2:], other[-2:]) < EXACT
    assert change(film[:2], other[:2]) > CLEAR and change(film[-2:], first[-2:]) > CLEAR
    assert change(film[3:5], first[3:5]) > CLEAR and change(film[3:5], other[3:5]) > CLEAR


@ORDERS
def test_every_window_fades_as_its_own_frames_do(model: TinyModel, evolved: Evolved, order: str) -> None:
    # A fade over four frames, read in their middles.
    risen = [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]
    shares = [[1.0 - share, share] for share in risen]
    patched, joined, hung = scheduled(model, evolved, order, 4, lambda schedule: ByHand(schedule, shares))
    film = sample(model, patched, steps=1, positive=joined)
    assert hung.windows == WINDOWS
    assert bool(film.isfinite().all()) and change(film, step(model, evolved(model.patcher))) > CLEAR
