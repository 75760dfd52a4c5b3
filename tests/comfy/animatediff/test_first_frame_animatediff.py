"""A clean first frame under AnimateDiff-Evolved: its own context windows and sampling."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from evolved import FRAMES, WINDOWS, Evolved, change, load_pack, tiny_sd15, with_motion_model
from native_models import TinyModel, sample
from torch import Tensor

from mask_guided_video.host.sampling.first_frame_lock import lock_first_frame

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


@pytest.fixture(scope="module")
def pack(comfy_folder: Path) -> ModuleType:
    return load_pack(comfy_folder)


@pytest.fixture(scope="module")
def evolved(pack: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Evolved:
    return with_motion_model(pack, tmp_path_factory.mktemp("first_frame_animatediff"))


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_sd15()


def recorded_sample(model: TinyModel, patcher: Any) -> tuple[Tensor, list[tuple[tuple[int, ...], Tensor]]]:
    """A film, and frames and input of each call of the network."""
    calls: list[tuple[tuple[int, ...], Tensor]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        options = kwargs.get("transformer_options") or args[5]
        given = args[0].clone().unflatten(0, (len(options["cond_or_uncond"]), -1))
        frames = options["ad_params"]["sub_idxs"] or range(given.shape[1])
        calls.append((tuple(frames), given))

    handle = model.patcher.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return sample(model, patcher, steps=2), calls
    finally:
        handle.remove()


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("order", ["lock first", "lock last"])
def test_every_call_that_holds_the_beginning_is_given_the_clean_frame(
    model: TinyModel, evolved: Evolved, windows: bool, order: str
) -> None:
    frame = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(9)) * 1.7
    if order == "lock first":
        locked = evolved(lock_first_frame(model.patcher, frame), windows=windows)
    else:
        locked = lock_first_frame(evolved(model.patcher, windows=windows), frame)
    film, calls = recorded_sample(model, locked)
    wanted = model.patcher.model.process_latent_in(frame)[0]
    for frames, given in calls:
        held = [bool((given[:, place] == wanted).all()) for place in range(len(frames))]
        assert held == [index == 0 for index in frames]
    assert {frames for frames, _ in calls} == (WINDOWS if windows else {tuple(range(FRAMES))})
    assert torch.equal(film[:1], frame)
    plain = sample(model, evolved(model.patcher, windows=windows), steps=2)
    assert bool(film.isfinite().all()) and change(film[1:], plain[1:]) > 1e-3
