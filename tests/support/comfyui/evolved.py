"""AnimateDiff-Evolved with narrow layers: its own loader, nodes and sampling.

The pack (github.com/Kosinkadink/ComfyUI-AnimateDiff-Evolved) is found as ``packs`` says. Its motion
modules have fixed widths, of which these have a tenth, as has the U-Net; all else is as with the real files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import packs
import pytest
import torch
from native_models import UNET, TinyModel, build, sample
from packs import run_node
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches

NAME = "animatediff_evolved"
FRAMES, WINDOW, OVERLAP = 8, 4, 2
# Static windows of 4 with 2 in common.
WINDOWS = {(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7)}


def load_pack(comfy_folder: Path) -> ModuleType:
    """The pack as ComfyUI imports it; the test is skipped where it is not installed."""
    return packs.load_pack(comfy_folder, packs.ANIMATEDIFF, NAME)


def part_of_pack(name: str) -> ModuleType:
    """One of its modules."""
    return sys.modules[f"{NAME}.animatediff.{name}"]


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A weight whose attention clearly prefers some frames to others."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return noise * 0.1 + ("norm" in name and name.endswith("weight"))
    gain = 2.0 if "to_q" in name or "to_k" in name else 1.0
    return noise * gain / shape[1] ** 0.5


def tiny_sd15() -> TinyModel:
    """SD1.5 of all its levels and blocks, with a tenth of its channels."""
    config = {
        **UNET,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    }
    return TinyModel("sd15 under AnimateDiff", partial(build, "SD15", config), (FRAMES, 4, 8, 12), 32)


def tiny_sdxl() -> TinyModel:
    """SDXL of all its levels and blocks, with a tenth of its channels."""
    config = {
        **UNET,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 1, 1, 1, 1],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": True,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
    }
    return TinyModel("sdxl under AnimateDiff", partial(build, "SDXL", config), (FRAMES, 4, 8, 12), 32, vector=1280)


class Evolved:
    """The nodes that people use: motion model, context windows, evolved sampling."""

    def __init__(self, pack: ModuleType, motion_model: Any) -> None:
        self.pack = pack
        self.motion_model = motion_model

    def node(self, name: str, **inputs: Any) -> Any:
        """First output of a node."""
        return run_node(self.pack, name, **inputs)

    def __call__(self, patcher: Any, windows: bool = True, context: Any = None, **settings: Any) -> Any:
        """A model under AnimateDiff.

        Args:
            patcher: the model.
            windows: static context windows of ``WINDOW`` frames.
            context: other context options.
            settings: further inputs of the node that applies the motion model.
        """
        models = self.node("ADE_ApplyAnimateDiffModel", motion_model=self.motion_model, **settings)
        if windows and context is None:
            context = self.node("ADE_StandardStaticContextOptions", context_length=WINDOW, context_overlap=OVERLAP)
        return self.node(
            "ADE_UseEvolvedSampling",
            model=patcher,
            beta_schedule="autoselect",
            m_models=models,
            context_options=context,
        )


def with_motion_model(pack: ModuleType, folder: Path, version: str = "SD1.5", **settings: Any) -> Evolved:
    """The nodes with a motion model of random weights, saved to a file and loaded by the pack.

    Args:
        pack: of ``load_pack``.
        folder: an empty one, which the host shall know from now on.
        version: SD1.5, or SDXL, which has three levels and no module in the middle.
        settings: further inputs of the node that loads it.
    """
    import folder_paths
    from safetensors.torch import save_file

    modules = part_of_pack("motion_module_ad")
    wide = modules.MotionModule
    block = "motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    parts = ["down_blocks.3", "up_blocks.3", "mid_block"] if version == "SD1.5" else ["down_blocks.2", "up_blocks.2"]
    shape = {f"{part}.{block}": torch.zeros(1, 24, 32) for part in parts}
    info = modules.AnimateDiffInfo(version, "AnimateDiff", "v2", "tiny")
    generator = torch.Generator().manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "MotionModule", lambda channels, **others: wide(channels // 10, **others))
        state = modules.AnimateDiffModel(shape, info).state_dict()
        state = {
            key: value if key.endswith("pos_encoder.pe") else random_weight(key, value.shape, generator)
            for key, value in state.items()
        }
        name = f"{folder.name}.safetensors"
        save_file(state, folder / name)
        folder_paths.add_model_folder_path("animatediff_models", str(folder))
        return Evolved(pack, run_node(pack, "ADE_LoadAnimateDiffModel", model_name=name, **settings))


def step(model: TinyModel, patcher: Any = None, noise: Tensor | None = None) -> Tensor:
    """One step of a film."""
    return sample(model, patcher, steps=1, noise=noise)


def lengthen(patcher: Any, settings: FreeLong) -> Any:
    """A clone of a model with FreeLong."""
    return install_patches(patcher, [FreeLongPatch(settings)])


def take_for_attention(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]) -> None:
    """Let the motion modules take another function for attention, as they do at the beginning of a run."""
    monkeypatch.setattr(part_of_pack("utils_motion"), "optimized_attention_mm", function)


def change(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a part of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


class Watched(FreeLongPatch):
    """Notes the sites of the calls that it changes."""

    def __init__(self, settings: FreeLong) -> None:
        super().__init__(settings)
        self.sites: list[AttentionSite] = []

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        self.sites.append(site)
        return super().__call__(attend, q, k, v, site)
