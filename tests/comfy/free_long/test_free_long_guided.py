"""FreeLong beside Patch Attention, Preview Guide and Regenerate, in either order; and in LaVie's own U-Net."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from dense_reference import Calls
from direct_free_long import DirectFreeLong
from guides import plain_guide
from long_models import CLEAR, EXACT, FRAMES, SETTINGS, calls_of, direct, free_long, long_model
from native_guides import dense, guide_of, masks_of, patched, relative, spans_of
from native_models import TinyModel, sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.free_long import OCTAVES, FreeLong
from mask_guided_video.attention_patches.guidance import plan as guidance_plan

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# Two levels with attention: down, middle, and two transformers each on the way up.
LAVIE_LEVELS = (0, 1, 1, 1, 1, 0, 0)
# 7 x 10 latents, 4 x 5 after halving.
LAVIE = Calls(" ".join(f"-{n} -{n} T{n}" for n in LAVIE_LEVELS), FRAMES, ((7, 10, 1), (4, 5, 2)), 1)


@pytest.mark.parametrize("order", ["guide first", "FreeLong first"])
@pytest.mark.parametrize(
    ("name", "mode", "kernel"),
    [
        ("wan", "separate", "as it comes"),
        ("wan", "separate", "channels"),
        ("wan", "separate hard", "partition"),
        ("wan", "cross_text", "channels"),
        ("ltx", "focus_fg", "channels"),
        ("hunyuan", "separate", "channels"),
        ("mochi", "focus", "as it comes"),
    ],
)
def test_with_patch_attention_in_either_order(
    name: str, mode: str, order: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FreeLong of attention that has the guide's bias."""
    if kernel != "as it comes":
        monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)
        monkeypatch.setattr(guidance_plan, "PARTITION_TOKENS", 1 if kernel == "partition" else 10**9)
    model, settings = long_model(name), SETTINGS["FreeLong"]
    guide, spans = guide_of(name, mode, masks=masks_of(tiny(name), FRAMES)), spans_of(name)
    if order == "guide first":
        patcher = free_long(model, settings, patched(model, guide, spans))
    else:
        patcher = patched(model, guide, spans, free_long(model, settings))
    film = sample(model, patcher)
    explicit = dense(model, guide, spans)
    explicit.guides[0].calls = calls_of(name)
    expected = sample(model, explicit.hang(direct(name, settings).hang(model.patcher)))
    assert relative(film, expected) < EXACT
    for one in (free_long(model, settings), patched(model, guide, spans)):
        assert relative(film, sample(model, one)) > CLEAR


# --- LaVie's own U-Net ------------------------------------------------------------------------------------------------


@pytest.fixture
def lavie(native: tuple[Any, Any, Any]) -> TinyModel:
    return TinyModel("lavie", lambda: native[0], (1, 4, FRAMES, 7, 10), 32, text=6)


@pytest.mark.parametrize("largest", ["local", "blend"])
@pytest.mark.parametrize("bands", [(), OCTAVES])
def test_temporal_attention_equals_whole_masks_and_spectra(
    lavie: TinyModel, largest: Any, bands: tuple[int, ...]
) -> None:
    settings = FreeLong(4, end_percent=1.0, largest_level=largest, bands=bands)
    expected = sample(lavie, DirectFreeLong(settings, LAVIE).hang(lavie.patcher))
    assert relative(sample(lavie, free_long(lavie, settings)), expected) < EXACT
    assert relative(expected, sample(lavie)) > CLEAR


def run_nodes(native: tuple[Any, Any, Any], order: str, frames: int = FRAMES, **changes: Any) -> dict[str, Any]:
    """Films of the nodes: without anything, and the second film of Regenerate with the patches of ``order``."""
    from mask_guided_video import NODE_CLASS_MAPPINGS

    def node(name: str, **values: Any) -> tuple[Any, ...]:
        found = NODE_CLASS_MAPPINGS[name].execute(**values).result
        assert found is not None
        return tuple(found)

    model, clip, vae = native
    settings = dict(zip(("positive", "negative"), (encode(clip, text) for text in ("a red ball", "")), strict=True))
    settings |= {"steps": 2, "cfg": 3.0, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
    noise, latent = node(
        "MGV_VideoNoise",
        **{"seed": 1, "frames": frames, "width": 32, "height": 28, "mode": "freenoise", "window": 4, "stride": 2},
        shared=0.2,
        batch_size=1,
        vae=vae,
    )
    film = node("MGV_SampleVideo", model=model, noise=noise, latent=latent, denoise=1.0, **settings)[0]
    masks = torch.zeros(1, frames, 28, 32)
    masks[0, :, 6:20, 4:18] = 1.0
    guide = plain_guide(masks, mode="separate", strength=4.0, end_percent=1.0)
    long = {"variant": "FreeLong", "window": 4, "strength": 1.0, "end_percent": 1.0, "bands": "1, 2, 4"}
    long |= {"temporal_cutoff": 0.25, "spatial_cutoff": 0.25, "largest_level": "blend", "key_stride": 1}
    for step in order.split():
        if step == "guide":
            model = node("MGV_PatchAttention", model=model, guide=guide, prompt="a red ball")[0]
        if step == "long":
            model = node("MGV_FreeLong", model=model, **{**long, "blocks": "all", **changes})[0]
    second = node(
        "MGV_Regenerate",
        **{"model": model, "noise": noise, "latent": film, "mode": "same_noise", "seed": 3, "strength": 0.6},
        **{"background_lock": True, "lock_grow": 1, "lock_blur": 1, "mask": masks[0]},
        **settings,
    )[0]
    preview = node("MGV_PreviewGuide", guide=guide, model=model, latent=latent, size=32)[0]
    return {"first": film["samples"], "second": second["samples"], "preview": preview}


def encode(clip: Any, text: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def test_regenerate_with_guide_and_free_long_in_either_order(native: tuple[Any, Any, Any]) -> None:
    found = {order: run_nodes(native, order) for order in ("plain", "guide", "long", "guide long", "long guide")}
    both = found["guide long"]["second"]
    assert relative(both, found["long guide"]["second"]) < EXACT
    for order in ("plain", "guide", "long"):
        assert relative(both, found[order]["second"]) > CLEAR
    for films in found.values():
        assert torch.equal(films["first"], found["plain"]["first"])
        assert torch.equal(films["preview"], found["plain"]["preview"])


@pytest.mark.parametrize("changes", [{"strength": 0.0}, {"window": FRAMES}, {"window": 0, "frames": 8}])
def test_nodes_that_do_nothing_change_nothing(native: tuple[Any, Any, Any], changes: dict[str, Any]) -> None:
    """Also with the window that the model has itself: the tiny one was made for 8 frames."""
    frames = changes.pop("frames", FRAMES)
    plain, long = (run_nodes(native, order, frames, **changes) for order in ("guide", "guide long"))
    assert torch.equal(plain["second"], long["second"])


def test_guide_of_a_part_of_the_clip() -> None:
    """Masks that are empty in some frames leave these to FreeLong alone, whatever order."""
    model, settings = long_model("wan"), replace(SETTINGS["FreeLong"], bands=OCTAVES)
    masks: Tensor = masks_of(tiny("wan"), FRAMES)
    masks[:, 9:] = 0.0
    guide, spans = guide_of("wan", "separate", masks=masks), spans_of("wan")
    films = [
        sample(model, free_long(model, settings, patched(model, guide, spans))),
        sample(model, patched(model, guide, spans, free_long(model, settings))),
    ]
    assert bool(films[0].isfinite().all()) and relative(films[0], films[1]) < EXACT
