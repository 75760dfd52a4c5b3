"""Every mode of mask guidance on the Toybox: a few steps of real films, and the object goes to its mask."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import MODES, make_mode
from mask_guided_video.attention_patches.guidance.patch import guide_patches
from mask_guided_video.video_models.sampling.trajectory_noise import trajectory_noise
from mask_guided_video.video_models.toybox import load_toybox

pytestmark = pytest.mark.slow

PROMPT, PHRASE, BACKGROUND = "a red ball stays still on grass", "red ball", "grass"


@pytest.fixture(scope="module")
def model(root: Path) -> Any:
    if not (root / "toybox" / "text_to_video" / "unet.safetensors").is_file():
        pytest.skip("this checkout has no Toybox weights")
    return load_toybox()


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


def moving_disc(frames: int) -> Tensor:
    """One disc [1, frames, 64, 64] that goes from the upper left to the right; it is not in the last frame."""
    place = torch.arange(64) + 0.5
    masks = torch.zeros(1, frames, 64, 64)
    for frame in range(frames - 1):
        masks[0, frame] = ((place - 16 - 5 * frame) ** 2 + (place[:, None] - 20) ** 2 < 12**2).float()
    return masks


def patches_of(model: Any, mode: str, frames: int = 4, **changes: Any) -> tuple[Any, ...]:
    """The mode over all steps."""
    known = {each.name for each in fields(MODES[mode])}
    ends = ("end_percent", "self_end_percent", "cross_end_percent", "temporal_end_percent", "amplify_end_percent")
    rule = make_mode(mode, blocks="all", **{name: 1.0 for name in ends if name in known})
    settings = {"masks": moving_disc(frames), **changes}
    guide = Guide(phrases=(PHRASE,), background_phrase=BACKGROUND, mode=rule, **settings)
    return guide_patches(guide, model.token_spans(PROMPT, (PHRASE,), BACKGROUND))


def film(
    model: Any, patches: tuple[Any, ...] = (), frames: int = 4, steps: int = 2, noise: Tensor | None = None
) -> Tensor:
    noise = model.noise(frames, 64, 64, seed=3) if noise is None else noise
    positive, negative = model.encode_prompt(PROMPT), model.encode_prompt("")
    return model.sample(noise, positive, negative, steps=steps, patches=patches)


@pytest.fixture(scope="module")
def plain(model: Any) -> Tensor:
    return film(model)


def test_no_guidance_is_bit_identical(model: Any, mode: str, plain: Tensor) -> None:
    assert torch.equal(film(model, patches_of(model, mode, strength=0.0)), plain)
    assert torch.equal(film(model, patches_of(model, mode, masks=torch.zeros(1, 1, 64, 64))), plain)


def test_the_same_seed_gives_the_same_film(model: Any, mode: str, plain: Tensor) -> None:
    patches = patches_of(model, mode)
    first = film(model, patches)
    assert bool(first.isfinite().all()) and not torch.allclose(first, plain, atol=0.01)
    for patch in patches:
        release = getattr(patch, "release", None)
        if release is not None:
            release()
    assert torch.equal(film(model, patches), first) and torch.equal(film(model), plain)


def test_free_long_in_either_order(model: Any, mode: str) -> None:
    long = FreeLongPatch(FreeLong(8, end_percent=0.0))
    patches = patches_of(model, mode, 10, key_source="self")
    inside, around = film(model, (long, *patches), 10, 1), film(model, (*patches, long), 10, 1)
    guidance = float((inside - film(model, (long,), 10, 1)).abs().max())
    assert bool(inside.isfinite().all()) and float((inside - around).abs().max()) < 0.05 * guidance


def test_noise_along_a_path_makes_other_films(model: Any, plain: Tensor) -> None:
    noise = trajectory_noise(model.noise(4, 64, 64, seed=3), moving_disc(4), torch.Generator().manual_seed(1))
    made = film(model, noise=noise)
    assert bool(made.isfinite().all()) and not torch.allclose(made, plain, atol=0.1)
