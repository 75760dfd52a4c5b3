"""ComfyUI's own Context Windows nodes as they are set by default, with what the pack hangs into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from first_frame_calls import first_of, frame_of
from mode_guides import guided, mode_guide, moving_masks
from native_guides import guide_of, masks_of, patched, relative, spans_of
from native_models import TinyModel, sample, tiny
from scheduled_prompts import prompts_of, scheduled
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong
from mask_guided_video.host.sampling.first_frame_lock import lock_first_frame
from mask_guided_video.host.sampling.long_clips import install_free_long

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

CLEAR = 1e-4
# Each node with a model for it, and latent frames of a film that its windows cut in two.
NODES = {
    "WanContextWindowsManualNode": ("wan", 24),
    "LTXVContextWindowsNode": ("ltx", 22),
    "ContextWindowsManualNode": ("sd15", 19),
}


def core_node(name: str, model: Any, **changes: Any) -> Any:
    """Run one of ComfyUI's nodes with the values that it shows at first."""
    import comfy_extras.nodes_context_windows as nodes

    node = getattr(nodes, name, None)
    if node is None:
        pytest.skip(f"this ComfyUI has no {name}")
    shown = {
        each.id: each.default if each.default is not None or not hasattr(each, "options") else each.options[0]
        for each in node.define_schema().inputs
        if each.id != "model"
    }
    return node.execute(model=model, **{**shown, **changes}).result[0]


def patched_with(feature: str, model: TinyModel, frames: int) -> tuple[Any, Any]:
    """The model with a part of the pack, and the positive prompt that belongs to it."""
    name, prompt = model.name, model.conditioning(1)
    if feature == "patch attention":
        return patched(model, guide_of(name, "separate", masks=masks_of(model, frames)), spans_of(name)), prompt
    if feature == "dynamic mask guidance":
        return guided(model, mode_guide(model, "dmg", masks=moving_masks(model, frames))), prompt
    if feature == "FreeLong":
        return install_free_long(model.patcher, FreeLong(window=4, end_percent=1.0)), prompt
    if feature == "first frame lock":
        return lock_first_frame(model.patcher, frame_of(model)), prompt
    schedule, joined, _ = scheduled(model, prompts_of(model), (0, frames // 2), 3)
    return schedule, joined


@pytest.mark.parametrize("node", sorted(NODES))
@pytest.mark.parametrize(
    "feature", ["patch attention", "dynamic mask guidance", "FreeLong", "first frame lock", "prompt schedule"]
)
def test_all_that_is_hung_into_a_model_acts_in_cores_windows(node: str, feature: str) -> None:
    name, frames = NODES[node]
    model = tiny(name)
    if feature == "FreeLong" and name == "sd15":
        pytest.skip("no attention over time")
    noise = model.noise(frames=frames)
    hung, prompt = patched_with(feature, model, frames)
    film = sample(model, core_node(node, hung), noise=noise.clone(), steps=1, positive=prompt)
    plain = sample(model, core_node(node, model.patcher), noise=noise.clone(), steps=1, positive=prompt)
    whole = sample(model, hung, noise=noise.clone(), steps=1, positive=prompt)
    assert bool(film.isfinite().all()) and relative(film, plain) > CLEAR
    # The film is cut; but for models without attention over time that is no difference.
    assert name == "sd15" or relative(film, whole) > CLEAR
    if feature == "first frame lock":
        assert torch.equal(first_of(model, film), frame_of(model))


# --- one FreeNoise ----------------------------------------------------------------------------------------------------


def video_noise_of(mode: str) -> Any:
    from mask_guided_video.nodes.video import SeededVideoNoise

    return SeededVideoNoise(3, mode, 8, 2, 0.2)


def seen_noise(model: TinyModel, sample_with: Callable[[Any], Any], patcher: Any, frames: int) -> Tensor:
    """The whole clip that the first step of a run begins with, put together from its windows."""
    found: dict[int, Tensor] = {}

    def keep(apply_model: Any, args: dict[str, Any]) -> Tensor:
        window = args["c"]["transformer_options"]["context_window"]
        # The last ones are the window's own, behind an anchor.
        own = args["input"][:1, :, -len(window.index_list) :]
        for place, frame in enumerate(window.index_list):
            found.setdefault(frame, own[:, :, place].clone())
        return torch.zeros_like(args["input"])

    watched = patcher.clone()
    watched.set_model_unet_function_wrapper(keep)
    sample_with(watched)
    assert sorted(found) == list(range(frames))
    return torch.stack([found[frame] for frame in range(frames)], dim=2)


def by_video_node(model: TinyModel, noise: Any, frames: int) -> Callable[[Any], Any]:
    from mask_guided_video.host.sampling.comfy_sampling import SamplerSettings, sample_film

    latent = {"samples": torch.zeros(model.noise(frames=frames).shape)}
    prompts = model.conditioning(1), model.conditioning(2)
    settings = SamplerSettings(1, 3.0, "euler", "simple")
    return lambda patcher: sample_film(patcher, *prompts, noise, latent, settings)


def by_core_sampler(model: TinyModel, noise: Any, frames: int) -> Callable[[Any], Any]:
    latent = {"samples": torch.zeros(model.noise(frames=frames).shape)}
    return lambda patcher: sample(model, patcher, noise=noise.generate_noise(latent), steps=1)


@pytest.mark.parametrize(("mode", "shuffled"), [("freenoise", False), ("specmix", False), ("plain", True)])
@pytest.mark.parametrize("way", ["Sample Video", "core's sampler, guided", "core's sampler, first frame lock"])
def test_noise_is_shuffled_once(mode: str, shuffled: bool, way: str) -> None:
    model, frames = tiny("wan"), NODES["WanContextWindowsManualNode"][1]
    noise = video_noise_of(mode)
    patcher = model.patcher
    if "guided" in way:
        patcher = patched(model, guide_of("wan", "separate", masks=masks_of(model, frames)), None)
    if "lock" in way:
        patcher = lock_first_frame(patcher, frame_of(model))
    windowed = core_node("WanContextWindowsManualNode", patcher, freenoise=True)
    run = (by_video_node if way == "Sample Video" else by_core_sampler)(model, noise, frames)
    seen = seen_noise(model, run, windowed, frames)
    given = noise.generate_noise({"samples": torch.zeros(model.noise(frames=frames).shape)})
    first = 1 if "lock" in way else 0
    assert torch.equal(seen[:, :, first:21], given[:, :, first:21])
    assert torch.equal(seen[:, :, 21:], given[:, :, 21:]) != shuffled
    # The model's own windows are as they were set.
    assert windowed.model_options["context_handler"].freenoise


def test_our_own_windows_do_not_shuffle() -> None:
    from mask_guided_video.host.sampling.host_windows import ContextWindows, install_context_windows

    model, frames = tiny("wan"), 24
    core = core_node("WanContextWindowsManualNode", model.patcher, freenoise=True)
    noise = video_noise_of("plain")
    run = by_core_sampler(model, noise, frames)
    seen = seen_noise(model, run, install_context_windows(core, 2, ContextWindows(8, 2)), frames)
    assert torch.equal(seen, noise.generate_noise({"samples": torch.zeros(model.noise(frames=frames).shape)}))


def test_noise_that_shares_on_top_of_freenoise_is_still_known() -> None:
    from mask_guided_video.host.sampling.shared_noise import SharedNoise
    from mask_guided_video.video_models.sampling.noise import is_rescheduled

    model = tiny("wan")
    latent = {"samples": torch.zeros(model.noise(frames=12).shape), "batch_index": [0]}
    for mode, known in (("freenoise", True), ("specmix", True), ("plain", False), ("shared", False)):
        noise = video_noise_of(mode)
        assert is_rescheduled(noise.generate_noise(latent)) == known
        assert is_rescheduled(SharedNoise(noise, "lamp", 0.3).generate_noise(latent)) == known
    # No longer than its window, FreeNoise is plain.
    short = {"samples": torch.zeros(model.noise(frames=8).shape)}
    assert not is_rescheduled(video_noise_of("freenoise").generate_noise(short))
