"""The cases of ``native_models.py``: ComfyUI's video models with random weights, and the patches they get."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shared.measuring import plain_guide

if TYPE_CHECKING:
    from torch import Tensor

# How much of the picture the mask covers.
SHARE = 0.3
# Where the object's words stand in the text.
WORDS = (3, 4)
# What the guide of each variant is; ``plain`` has none, and ``dense`` does what ``channels`` does.
GUIDES: dict[str, dict[str, Any]] = {
    "channels": {"mode": "separate"},
    "focus_fg": {"mode": "focus_fg"},
    "partition": {"mode": "separate", "hard": True},
    "cross_text": {"mode": "cross_text"},
    "share": {"mode": "separate", "share": 0.9},
    "dense": {"mode": "separate"},
}
VARIANTS = ("plain", *GUIDES)


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model and a clip.

    Attributes:
        family: its name here.
        config: name of the class in ``comfy.supported_models``.
        network: configuration of the diffusion model.
        latents: size of the latents of one clip.
        pixels: (frames, height, width) of the clip.
        text: (tokens, channels) of the text.
        inputs: further entries of the condition: ``pooled_output`` and ``attention_mask`` by their lengths.
    """

    family: str
    config: str
    network: Mapping[str, Any]
    latents: tuple[int, ...]
    pixels: tuple[int, int, int]
    text: tuple[int, int]
    inputs: Mapping[str, int] = field(default_factory=dict)

    @property
    def variants(self) -> tuple[str, ...]:
        """What can be done with it: Stable Video Diffusion does not take words."""
        return tuple(name for name in VARIANTS if self.family != "svd" or name != "cross_text")


def wan(heads: int, depth: int, frames: int, rows: int, columns: int) -> Case:
    """Wan 2.1 T2V; 12 heads and 30 blocks are the 1.3B model. Rows and columns of tokens."""
    network = {
        **{"dim": 128 * heads, "ffn_dim": 8960 * heads // 12, "num_heads": heads, "num_layers": depth, "in_dim": 16},
        **{"out_dim": 16, "text_dim": 4096, "freq_dim": 256, "patch_size": (1, 2, 2)},
    }
    latents = (1, 16, frames, 2 * rows, 2 * columns)
    return Case("wan", "WAN21_T2V", network, latents, (4 * frames - 3, 16 * rows, 16 * columns), (512, 4096))


def ltx(heads: int, depth: int, frames: int, rows: int, columns: int) -> Case:
    """LTX-Video; 32 heads and 28 blocks are the 2B model."""
    network = {
        **{"num_layers": depth, "num_attention_heads": heads, "attention_head_dim": 64},
        **{"cross_attention_dim": 64 * heads, "caption_channels": 4096},
    }
    latents, pixels = (1, 128, frames, rows, columns), (8 * frames - 7, 32 * rows, 32 * columns)
    return Case("ltx", "LTXV", network, latents, pixels, (128, 4096), {"attention_mask": 128})


def ltxav(heads: int, depth: int, frames: int, rows: int, columns: int) -> Case:
    """LTX-2 without sound, its text processed already; 32 heads and 48 blocks are the 19B model."""
    network = {
        **{"num_layers": depth, "num_attention_heads": heads, "attention_head_dim": 128},
        **{"cross_attention_dim": 128 * heads, "caption_channels": 128},
        # What hears and reads is small: it does not run here.
        **{"audio_num_attention_heads": 4, "audio_attention_head_dim": 64, "audio_cross_attention_dim": 256},
        **{"connector_num_attention_heads": 4, "connector_attention_head_dim": 32, "connector_num_layers": 1},
    }
    latents, pixels = (1, 128, frames, rows, columns), (8 * frames - 7, 32 * rows, 32 * columns)
    return Case("ltxav", "LTXAV", network, latents, pixels, (1024, 128))


def hunyuan(heads: int, double: int, single: int, frames: int, rows: int, columns: int) -> Case:
    """HunyuanVideo; 24 heads, 20 double and 40 single blocks are the 13B model."""
    network = {
        **{"in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 768, "context_in_dim": 4096},
        **{"hidden_size": 128 * heads, "mlp_ratio": 4.0, "num_heads": heads, "axes_dim": [16, 56, 56], "theta": 256},
        **{"depth": double, "depth_single_blocks": single, "qkv_bias": True, "guidance_embed": True},
        **{"byt5": False, "meanflow": False},
    }
    latents, pixels = (1, 16, frames, 2 * rows, 2 * columns), (4 * frames - 3, 16 * rows, 16 * columns)
    return Case("hunyuan", "HunyuanVideo", network, latents, pixels, (256, 4096), {"pooled_output": 768})


def mochi(heads: int, depth: int, frames: int, rows: int, columns: int) -> Case:
    """Mochi; 24 heads and 48 blocks are the 10B model."""
    network = {
        **{"depth": depth, "patch_size": 2, "num_heads": heads, "hidden_size_x": 128 * heads},
        # The class insists on 12,288 hidden channels.
        **{"hidden_size_y": 64 * heads, "mlp_ratio_x": 96.0 / heads, "mlp_ratio_y": 4.0, "learn_sigma": False},
        **{"in_channels": 12, "qk_norm": True, "qkv_bias": False, "use_t5": True, "t5_feat_dim": 4096},
        **{"t5_token_length": 256, "timestep_scale": 1000.0, "posenc_preserve_area": True},
    }
    latents, pixels = (1, 12, frames, 2 * rows, 2 * columns), (6 * frames - 5, 16 * rows, 16 * columns)
    return Case("mochi", "GenmoMochi", network, latents, pixels, (256, 4096), {"attention_mask": 256})


def unet(channels: int, blocks: int) -> dict[str, Any]:
    """What both U-Nets have in common; 320 channels and 2 blocks a level are the real ones."""
    return {
        **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels},
        **{"num_res_blocks": [blocks] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1},
        **{"transformer_depth": [1] * (3 * blocks) + [0] * blocks, "use_spatial_transformer": True, "legacy": False},
        **{"transformer_depth_output": [1] * (3 * blocks + 3) + [0] * (blocks + 1), "use_temporal_attention": False},
        **{"context_dim": 768, "use_linear_in_transformer": False, "adm_in_channels": None},
    }


def sd15(channels: int, blocks: int, frames: int, height: int, width: int) -> Case:
    """Stable Diffusion 1.5 with the frames in the batch."""
    latents, pixels = (frames, 4, height, width), (frames, 8 * height, 8 * width)
    return Case("sd15", "SD15", unet(channels, blocks), latents, pixels, (77, 768))


def svd(channels: int, blocks: int, frames: int, height: int, width: int) -> Case:
    """Stable Video Diffusion."""
    network = {
        **unet(channels, blocks),
        **{"in_channels": 8, "context_dim": 1024, "use_linear_in_transformer": True, "adm_in_channels": 768},
        **{"num_classes": "sequential", "use_temporal_attention": True, "use_temporal_resblock": True},
        **{"extra_ff_mix_layer": True, "use_spatial_context": True, "merge_factor": 0.0},
        **{"merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1]},
    }
    latents, pixels = (frames, 4, height, width), (frames, 8 * height, 8 * width)
    return Case("svd", "SVD_img2vid", network, latents, pixels, (1, 1024))


# What each machine is given. On a CPU: 832 x 480 with 9 frames for Wan, one or two blocks, some of half the width.
SIZES: dict[str, tuple[Case, ...]] = {
    "quick": (
        *(
            wan(2, 1, 3, 16, 20),
            ltx(2, 1, 3, 16, 20),
            ltxav(2, 1, 3, 16, 20),
            hunyuan(2, 1, 1, 3, 16, 20),
            mochi(2, 2, 3, 16, 20),
        ),
        *(sd15(64, 1, 2, 24, 32), svd(64, 1, 3, 24, 32)),
    ),
    "cpu": (
        *(
            wan(12, 1, 3, 30, 52),
            ltx(32, 1, 4, 16, 24),
            ltxav(32, 1, 4, 16, 24),
            hunyuan(12, 1, 1, 2, 20, 34),
            mochi(12, 1, 2, 20, 34),
        ),
        *(sd15(320, 1, 1, 24, 32), svd(320, 1, 2, 24, 32)),
    ),
    "cuda": (
        *(
            wan(12, 30, 21, 30, 52),
            ltx(32, 28, 13, 16, 24),
            ltxav(32, 8, 16, 16, 24),
            hunyuan(24, 4, 8, 19, 30, 53),
            mochi(24, 8, 14, 30, 53),
        ),
        *(sd15(320, 2, 16, 64, 64), svd(320, 2, 14, 72, 128)),
    ),
}


def find_comfyui() -> Path:
    """Folder of ComfyUI.

    Raises:
        SystemExit: there is none.
    """
    named = os.environ.get("COMFYUI_PATH")
    folder = Path(named).expanduser() if named else Path.home() / "comfy" / "ComfyUI"
    if not (folder / "comfy" / "model_management.py").is_file():
        raise SystemExit(f"no ComfyUI in {folder}: set COMFYUI_PATH to the folder of a checkout.")
    return folder.resolve()


def import_comfyui(device: str) -> None:
    """Import ComfyUI for a device, with torch's attention, which is its choice on CUDA, on the CPU as well."""
    sys.path.insert(0, str(find_comfyui()))
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    args.use_pytorch_cross_attention = True
    logging.disable(logging.INFO)


def build(case: Case, device: str) -> Any:
    """A ComfyUI ``ModelPatcher`` with random weights on the device."""
    import comfy.model_patcher
    import comfy.supported_models

    config_class = getattr(comfy.supported_models, case.config)
    config = config_class({**config_class.unet_config, **case.network})
    config.set_inference_dtype(data_type(device), None)
    model = config.get_model({}, device=torch.device(device))
    torch.manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        parameter.requires_grad_(False)
        parameter.normal_(std=0.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1)
        if parameter.ndim == 1 and ("norm" in name or name.endswith("scale")) and "bias" not in name:
            parameter.add_(1.0)
    model.to(device).eval()
    return comfy.model_patcher.ModelPatcher(model, torch.device(device), torch.device(device))


def data_type(device: str) -> torch.dtype:
    """Of weights and activations."""
    return torch.float32 if device == "cpu" else torch.bfloat16


# --- patches ----------------------------------------------------------------------------------------------------------


def film_masks(pixels: tuple[int, int, int], share: float = SHARE) -> Tensor:
    """[1, frames, height, width], a rectangle that moves down and to the right."""
    frames, height, width = pixels
    tall, wide = round(share**0.5 * height), round(share**0.5 * width)
    masks = torch.zeros(1, *pixels)
    for frame in range(frames):
        # Edges fall inside of cells, so that some of them belong to both sides.
        top, left = (round((frame + 0.4) / frames * spare) for spare in (height - tall, width - wide))
        masks[0, frame, top : top + tall, left : left + wide] = 1.0
    return masks


class DenseBias:
    """The plain alternative as a patch: the bias of a guide with one object, written out over all pairs of tokens.

    Args:
        guide: ``Guide``.
        words: positions of the object's words, for ``cross_text``.
    """

    def __init__(self, guide: Any, words: Sequence[int] = ()) -> None:
        self.guide = guide
        self.words = list(words)
        self._biases: dict[Any, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Memory of the biases that have been made."""
        return sum(bias.numel() * bias.element_size() for bias in self._biases.values())

    def acts_at(self, site: Any) -> bool:
        """Where the guide itself acts."""
        if self.guide.mode.name == "cross_text":
            return site.kind in ("cross", "joint")
        return site.kind in ("self", "joint") or (site.kind == "temporal" and self.guide.mode.name == "separate")

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: Any) -> Tensor:
        """Attend with the bias added."""
        if not self.acts_at(site):
            return attend(q, k, v, site)
        bias = self.bias(site, q, k.shape[2])
        return attend.with_bias(bias if attend.bias is None else bias + attend.bias)(q, k, v, site)

    def bias(self, site: Any, q: Tensor, keys: int) -> Tensor:
        """[1 or frames or cells, 1, Lq, Lk] of a site, made once."""
        key = (site.kind, site.level, keys)
        if key not in self._biases:
            from mask_guided_video.attention_patches.guidance.regions import MaskPyramid

            pyramid = MaskPyramid(self.guide.masks, self.guide.mode.hard)
            size = (*site.grid[1:], site.clip_frames, site.extent, site.latent_time)
            member = pyramid.regions(*size).objects[0].flatten(1)
            folded = {"none": member.flatten()[None], "frames": member, "positions": member.T}[site.rows.folded]
            bias = torch.zeros(len(folded), 1, q.shape[2], keys, dtype=q.dtype, device=q.device)
            for row, inside in zip(bias, folded.to(q.device), strict=True):
                self._fill(row[0, slice(*site.video)], inside, site)
            self._biases[key] = bias
        return self._biases[key]

    def _fill(self, bias: Tensor, inside: Tensor, site: Any) -> None:
        """Write the bias [video tokens, Lk] of one sequence, a thousand queries at a time."""
        strength = 1000.0 if self.guide.mode.hard else self.guide.own_strength
        for begin in range(0, len(inside), 1024):
            of_queries = inside[begin : begin + 1024, None]
            block = bias[begin : begin + 1024]
            if self.guide.mode.name == "cross_text":
                block[:, torch.tensor(self.words, device=bias.device) + site.text.start] = strength * of_queries.to(
                    bias
                )
            elif self.guide.mode.name == "separate":
                # Both inside or both outside: -g * (1 - (a * b + (1 - a) * (1 - b))).
                unlike = of_queries + inside - 2.0 * of_queries * inside
                block[:, slice(*site.video)] = (-strength * unlike).to(bias.dtype)
            else:
                kept = strength * inside.clamp(min=1e-4).log()
                block[:, slice(*site.video)] = ((of_queries >= 0.5) * kept).to(bias.dtype)


class Recorder:
    """A patch that records the sites of a model call, one of each kind and grid."""

    def __init__(self) -> None:
        self.found: dict[Any, tuple[Any, tuple[int, ...], int]] = {}
        self.calls = 0

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: Any) -> Tensor:
        """Attend unchanged."""
        self.calls += 1
        self.found.setdefault((site.kind, site.level), (site, tuple(q.shape), k.shape[2]))
        return attend(q, k, v, site)


def guide_patch(name: str, masks: Tensor, words: bool, dense: bool = False) -> Any:
    """The patch of a variant; ``dense`` gives the plain alternative to it instead."""
    from mask_guided_video.attention_patches.guidance.attention_share import ShareGoal
    from mask_guided_video.attention_patches.guidance.patch import GuidePatch
    from mask_guided_video.attention_patches.guidance.text_spans import TextSpans

    settings = dict(GUIDES[name])
    share = settings.pop("share", None)
    guide = plain_guide(masks, **settings)
    if share is not None:
        guide = replace(guide, goal=ShareGoal(share))
    if dense or name == "dense":
        return DenseBias(guide, WORDS)
    # Without words ``separate`` keeps to the video, as its dense bias does.
    spans = TextSpans(("object",), (WORDS,)) if words and guide.mode.name == "cross_text" else None
    return GuidePatch(guide, spans)
