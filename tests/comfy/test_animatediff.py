"""Guidance in the sliding windows of AnimateDiff-Evolved: its own loader, nodes and sampling, with narrow layers.

The pack (github.com/Kosinkadink/ComfyUI-AnimateDiff-Evolved) is taken from the checkout's ``custom_nodes``. Its motion
modules have fixed widths, of which these have a tenth, as has the U-Net; all else is as with the real files.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from native_models import UNET, TinyModel, build, sample
from torch import Tensor

from mask_guided_video.attention_patches.mask_guidance import MaskGuidance, MaskGuidancePatch, mask_guidance_patch
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.attention_patches.text_spans import TextSpans
from mask_guided_video.backbones.registry import install_patches

pytestmark = pytest.mark.comfy

FOLDER = "ComfyUI-AnimateDiff-Evolved"
FRAMES, WINDOW, OVERLAP = 8, 4, 2
# Static windows of 4 with 2 in common.
WINDOWS = {(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7)}
POSITIONS = ((1, 2),)


@pytest.fixture(scope="module")
def pack(comfy_folder: Path) -> ModuleType:
    """The pack as ComfyUI imports it; skipped where it is not installed."""
    folder = comfy_folder / "custom_nodes" / FOLDER
    if not (folder / "__init__.py").is_file():
        pytest.skip(f"no {FOLDER} in the custom_nodes of this ComfyUI")
    name = "animatediff_evolved"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def motion_model(pack: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A motion module with random weights, saved to a file and loaded by the pack's node."""
    import folder_paths
    from safetensors.torch import save_file

    modules = sys.modules["animatediff_evolved.animatediff.motion_module_ad"]
    wide = modules.MotionModule
    patch = pytest.MonkeyPatch()
    patch.setattr(modules, "MotionModule", lambda channels, **settings: wide(channels // 10, **settings))
    block = "motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    shape = {f"{part}.{block}": torch.zeros(1, 24, 32) for part in ("down_blocks.3", "up_blocks.3", "mid_block")}
    info = modules.AnimateDiffInfo("SD1.5", "AnimateDiff", "v2", "tiny")
    generator = torch.Generator().manual_seed(3)
    state = {
        key: value if key.endswith("pos_encoder.pe") else torch.randn(value.shape, generator=generator) * 0.1
        for key, value in modules.AnimateDiffModel(shape, info).state_dict().items()
    }
    folder = tmp_path_factory.mktemp("animatediff_models")
    save_file(state, folder / "tiny_motion.safetensors")
    folder_paths.add_model_folder_path("animatediff_models", str(folder))
    load = pack.NODE_CLASS_MAPPINGS["ADE_LoadAnimateDiffModel"]()
    yield getattr(load, load.FUNCTION)("tiny_motion.safetensors")[0]
    patch.undo()


@pytest.fixture(scope="module")
def model() -> TinyModel:
    """SD1.5 of all its levels and blocks, with a tenth of its channels."""
    config = {
        **UNET,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    }
    return TinyModel("sd15 under AnimateDiff", build("SD15", config), (FRAMES, 4, 8, 12), 32)


@pytest.fixture
def evolved(pack: ModuleType, motion_model: Any) -> Any:
    """The nodes that people use: motion module, sliding windows, evolved sampling."""

    def node(name: str, **inputs: Any) -> Any:
        instance = pack.NODE_CLASS_MAPPINGS[name]()
        return getattr(instance, instance.FUNCTION)(**inputs)[0]

    def apply(patcher: Any, windows: bool = True) -> Any:
        models = node("ADE_ApplyAnimateDiffModel", motion_model=motion_model)
        context = node("ADE_StandardStaticContextOptions", context_length=WINDOW, context_overlap=OVERLAP)
        return node(
            "ADE_UseEvolvedSampling",
            model=patcher,
            beta_schedule="autoselect",
            m_models=models,
            context_options=context if windows else None,
        )

    return apply


def masks() -> Tensor:
    """One object that moves; where it is tells each frame from the others."""
    out = torch.zeros(1, FRAMES, 64, 96)
    for frame in range(FRAMES):
        out[0, frame, 16:48, 8 * frame : 8 * frame + 32] = 1.0
    return out


def guide(**changes: Any) -> MaskGuidance:
    return MaskGuidance(masks(), **{"mode": "separate", "strength": 4.0, "end_percent": 1.0, **changes})


def hang(patcher: Any, patch: Any = None) -> Any:
    spans = TextSpans(("red ball",), POSITIONS, 12)
    return install_patches(patcher, [patch or mask_guidance_patch(guide(), spans)])


class Watched(MaskGuidancePatch):
    """Notes the sites of the calls that it guides."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sites: list[AttentionSite] = []

    def acts_at(self, site: AttentionSite) -> bool:
        self.sites.append(site)
        return super().acts_at(site)


@pytest.mark.parametrize("order", ["AnimateDiff first", "guidance first"])
def test_every_window_is_guided_with_its_own_frames(model: TinyModel, evolved: Any, order: str) -> None:
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
    assert all(site.grid[0] == WINDOW and site.rows.folded_size == WINDOW for site in patch.sites)
    # 16 spatial transformers with two calls each, nothing of the motion modules; 3 windows, 2 steps.
    blocks = {(site.block, site.kind) for site in patch.sites}
    assert len(blocks) == 32 and {kind for _, kind in blocks} == {"self", "cross"}
    assert {site.progress for site in patch.sites} and len({site.sigma for site in patch.sites}) == 2


def test_windows_equal_the_masks_sliced_by_hand(model: TinyModel, evolved: Any) -> None:
    """A film of one window's length, guided by that window's part of the masks, makes the same attention calls."""
    found: dict[tuple[int, ...], list[Tensor]] = {}

    class Kept(MaskGuidancePatch):
        def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            out = super().__call__(attend, q, k, v, site)
            by_hand = mask_guidance_patch(MaskGuidance(masks()[:, list(site.frames)], **settings), self.text_spans)
            own = AttentionSite(**{**vars(site), "frames": tuple(range(len(site.frames))), "clip_frames": WINDOW})
            torch.testing.assert_close(out, by_hand(attend, q, k, v, own))
            found.setdefault(site.frames, []).append(out)
            return out

    settings = {"mode": "separate", "strength": 4.0, "end_percent": 1.0}
    patcher = hang(evolved(model.patcher), Kept(guide(), TextSpans(("red ball",), POSITIONS, 12)))
    with torch.inference_mode():
        sample(model, patcher, steps=1)
    assert found.keys() == WINDOWS


def test_strength_zero_is_bit_identical(model: TinyModel, evolved: Any) -> None:
    with torch.inference_mode():
        plain = sample(model, evolved(model.patcher))
        none = sample(model, hang(evolved(model.patcher), mask_guidance_patch(guide(strength=0.0))))
        assert torch.equal(none, plain)
        # And a guided run leaves nothing behind.
        sample(model, hang(evolved(model.patcher)))
        assert torch.equal(sample(model, evolved(model.patcher)), plain)


def test_motion_matters_and_films_without_windows_are_guided(model: TinyModel, evolved: Any) -> None:
    patch = Watched(guide(), None)
    with torch.inference_mode():
        still = sample(model)
        moved = sample(model, evolved(model.patcher, windows=False))
        guided = sample(model, hang(evolved(model.patcher, windows=False), patch))
    assert not torch.allclose(moved, still, atol=1e-2)
    assert not torch.allclose(guided, moved, atol=1e-2)
    assert {site.frames for site in patch.sites} == {tuple(range(FRAMES))}


def test_masks_of_another_length_are_named_before_sampling(model: TinyModel, evolved: Any) -> None:
    wrong = mask_guidance_patch(MaskGuidance(masks()[:, :5], mode="separate"))
    with torch.inference_mode(), pytest.raises(ValueError, match=f"5 mask frames do not fit a clip of {FRAMES}"):
        sample(model, hang(evolved(model.patcher), wrong))
