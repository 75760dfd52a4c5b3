"""Where the frames of a clip stand in context windows, measured: one latent frame is changed, and the tokens that
change in the first attention call of each window are those of this frame.

Nothing of the host's code is derived again here: what a site says is compared with what the world shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from core_windows import NOT_CUT_BY_THE_HOST, WITH_SOUND, film_frames, windowed
from dense_reference import CALLS
from family_rows import rows
from native_models import BUILDERS, TinyModel, sample, tiny
from torch import Tensor
from window_films import LAID_OVER, with_film

from mask_guided_video.attention_patches.latent_time import PICTURES
from mask_guided_video.attention_patches.patch import Attend
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches
from mask_guided_video.host.sampling.host_windows import ContextWindows, install_context_windows

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# Temporal convolutions come before the first attention call, so that what changes is not one frame alone.
MIXES_FRAMES = {"svd"}
FAMILIES = sorted(set(BUILDERS) - NOT_CUT_BY_THE_HOST - WITH_SOUND - MIXES_FRAMES - LAID_OVER)


class Enough(Exception):
    """The first attention call of a model call is known, the rest of it need not be worked out."""


@dataclass(eq=False)
class FirstCalls:
    """A patch that keeps the values of the first attention call among the film's tokens, and ends the model call."""

    calls: list[tuple[AttentionSite, Tensor]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstCalls:
        return self

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        assert site.index == 0 and site.kind in ("self", "joint")
        self.calls.append((site, _by_frame(v, site)))
        raise Enough


def _by_frame(v: Tensor, site: AttentionSite) -> Tensor:
    """[frames, everything else] of the film's tokens."""
    frames, height, width = site.grid
    v = v[:, :, slice(*(site.key_video or site.video))]
    if site.rows.folded == "frames":
        return v.unflatten(0, (-1, frames)).transpose(0, 1).flatten(1)
    return v.unflatten(2, (frames, height * width)).movedim(2, 0).flatten(1)


def first_calls(model: TinyModel, patcher: Any, noise: Tensor) -> list[tuple[AttentionSite, Tensor]]:
    watch = FirstCalls()
    watched = install_patches(patcher, [watch])

    def call(apply_model: Any, args: dict[str, Any]) -> Tensor:
        with pytest.raises(Enough):
            apply_model(args["input"], args["timestep"], **args["c"])
        return torch.zeros_like(args["input"])

    watched.set_model_unet_function_wrapper(call)
    sample(model, watched, steps=1, noise=noise)
    assert watch.calls
    return watch.calls


def said_and_seen(
    model: TinyModel, patcher: Any, noise: Tensor, frame: int, film_frame: int, unchanged: Any = None
) -> int:
    """Compare the places that sites name with those that change; returns in how many calls there are any."""
    changed = noise.clone()
    changed.select(model.window_axis, frame).add_(1.0)
    found = 0
    plain = unchanged or first_calls(model, patcher, noise)
    for (site, before), (_, after) in zip(plain, first_calls(model, patcher, changed), strict=True):
        seen = [place for place in range(len(before)) if not torch.equal(before[place], after[place])]
        time = site.latent_time or PICTURES
        said = [place for place, name in enumerate(site.frames) if film_frame in time.token(name, site.clip_frames)]
        if time.span > 1 and film_frame == site.frames[0]:
            # It fills up the last token of an odd number of latent frames, too.
            seen = [place for place in seen if place in said or place < len(site.frames) - 1]
        assert said == seen
        found += bool(seen)
    return found


@pytest.mark.parametrize("name", rows(FAMILIES))
def test_frames_stand_where_the_sites_of_core_windows_say(name: str) -> None:
    leading = CALLS[name].leading
    frames = film_frames(name) + leading
    model = with_film(name, frames)
    noise = model.noise(frames=frames)
    patcher = windowed(model.patcher, name, "standard_static")
    unchanged = first_calls(model, patcher, noise)
    for frame in range(frames):
        calls = said_and_seen(model, patcher, noise, frame, frame - leading, unchanged)
        # Reference pictures are no frames of the film.
        assert bool(calls) == (frame >= leading)


@pytest.mark.parametrize(
    ("schedule", "loops"), [("standard_uniform", False), ("looped_uniform", True), ("batched", False)]
)
@pytest.mark.parametrize("name", ["wan", "ltx", "sd15"])
def test_every_schedule(name: str, schedule: str, loops: bool) -> None:
    model, frames = tiny(name), film_frames(name)
    patcher = windowed(model.patcher, name, schedule, loops)
    for frame in (0, frames // 2, frames - 1):
        assert said_and_seen(model, patcher, model.noise(frames=frames), frame, frame)


@pytest.mark.parametrize("name", rows(["wan", "wan_image", "wan_animate", "ltx", "sd15"], ("wan", "wan_animate")))
def test_our_windows_have_no_anchor(name: str) -> None:
    leading = CALLS[name].leading
    frames = film_frames(name) + leading
    model = with_film(name, frames)
    patcher = install_context_windows(model.patcher, model.window_axis, ContextWindows(4, 1))
    noise = model.noise(frames=frames)
    assert {len(site.frames) for site, _ in first_calls(model, patcher, noise)} <= {4, 4 - leading}
    for frame in range(leading, frames):
        assert said_and_seen(model, patcher, noise, frame, frame - leading)


@pytest.mark.parametrize("kept", ["0", "0, 2", "1", "-1"])
@pytest.mark.parametrize("anchor", [True, False])
@pytest.mark.parametrize("name", rows(["wan", "ltx", "sd15", "wan_vace_reference"], ("wan_vace_reference",)))
def test_latents_that_are_kept_in_every_window(name: str, anchor: bool, kept: str) -> None:
    import inspect

    import comfy.context_windows as host

    if "latent_retain_index_list" not in inspect.signature(host.IndexListContextHandler).parameters:
        pytest.skip("this ComfyUI keeps no latents")
    leading = CALLS[name].leading
    frames = film_frames(name) + leading
    model = with_film(name, frames)
    lists = {"latent_retain_index_list": kept, "cond_retain_index_list": kept}
    patcher = windowed(model.patcher, name, "standard_static", causal_window_fix=anchor, **lists)
    if leading and kept == "1" and not anchor:
        pytest.skip("the reference picture's place")
    noise = model.noise(frames=frames)
    for frame in range(frames):
        said_and_seen(model, patcher, noise, frame, frame - leading)
    # The first one that is kept is in all windows, unless it is the reference.
    first = int(kept.split(",")[0]) % frames
    if first >= leading:
        assert said_and_seen(model, patcher, noise, first, first - leading) == len(first_calls(model, patcher, noise))


def seen_pictures(name: str, frames: int, patcher_of: Any, frame: int) -> list[tuple[tuple[int, ...], list[int]]]:
    """For each window the frames that its site names, and the places that change with one frame of the picture."""
    models = [with_film(name, frames) for _ in range(2)]
    changed = models[1].extras["concat_latent_image"] = models[1].extras["concat_latent_image"].clone()
    changed[:, :, frame] += 1.0
    noise = models[0].noise(frames=frames)
    both = [first_calls(model, patcher_of(model), noise) for model in models]
    return [
        (site.frames, [place for place in range(len(before)) if not torch.equal(before[place], after[place])])
        for (site, before), (_, after) in zip(*both, strict=True)
    ]


def test_pictures_that_are_kept_in_every_window(caplog: pytest.LogCaptureFixture) -> None:
    """The picture that is given beside the latents decides what is seen at its place."""
    frames = film_frames("wan_image")

    def kept(model: TinyModel, **settings: Any) -> Any:
        return windowed(model.patcher, "wan_image", "standard_static", cond_retain_index_list="0", **settings)

    # In front of each window there is the anchor, whose result is dropped.
    windows = seen_pictures("wan_image", frames, kept, 0)
    assert len(windows) >= 3 and all(names[0] == 0 and places == [0] for names, places in windows)
    assert "cond_retain_index_list" not in caplog.text
    # Without it the first frame of each window gets the picture of another one.
    windows = seen_pictures("wan_image", frames, lambda model: kept(model, causal_window_fix=False), 0)
    assert all(names[0] == 0 and places == [0] for names, places in windows)
    assert caplog.text.count("take it out of cond_retain_index_list if that is not meant") == 2


@pytest.mark.parametrize("anchor", [True, False])
def test_a_picture_that_is_laid_over_every_window(anchor: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Kandinsky 5's given picture: the first frame of each window shows the first frame of the video."""
    name, frames = "kandinsky5_image", film_frames("kandinsky5_image")
    models = [with_film(name, frames) for _ in range(2)]
    models[1].extras["time_dim_replace"] = models[0].extras["time_dim_replace"]() + 1.0
    noise = models[0].noise(frames=frames)

    def cut(model: TinyModel) -> Any:
        return windowed(model.patcher, name, "standard_static", causal_window_fix=anchor)

    windows = [first_calls(model, cut(model), noise) for model in models]
    assert len(windows[0]) >= 3
    for (site, before), (_, after) in zip(*windows, strict=True):
        assert [place for place in range(len(before)) if not torch.equal(before[place], after[place])] == [0]
        assert site.frames[0] == 0 and list(site.frames[1:]) == sorted(set(site.frames[1:]) - {0})
    # What the latents have there is seen nowhere, and the others where they are named.
    assert not said_and_seen(models[0], cut(models[0]), noise, 0, frames, windows[0])
    for frame in range(1, frames):
        calls = said_and_seen(models[0], cut(models[0]), noise, frame, frame, windows[0])
        assert calls or not anchor
    assert ("masks of the first frame hold there; turn causal_window_fix on" in caplog.text) != anchor


def test_kept_conditions_mean_nothing_where_there_are_none() -> None:
    """Nothing stands beside the latents of a text-to-video model, so the anchor is what is seen."""
    model, frames = tiny("wan"), film_frames("wan")
    patcher = windowed(model.patcher, "wan", "standard_static", cond_retain_index_list="0")
    names = [site.frames for site, _ in first_calls(model, patcher, model.noise(frames=frames))]
    assert sum(frames[0] == 0 for frames in names) == 1 and len(names) >= 3
    for frame in range(frames):
        assert said_and_seen(model, patcher, model.noise(frames=frames), frame, frame)
