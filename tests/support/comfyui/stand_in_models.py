"""Custom nodes for tests: loaders of tiny random models, in place of those that need real weights.

Each gives what the loader it stands for gives: a MODEL of ComfyUI's own class, a CLIP with the family's own encoder
class and, where its vocabulary is in the checkout, its own tokenizer, and a VAE with the family's factors.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

# The motion module's levels in AnimateDiff are 320 to 1280 channels wide; those of our U-Net a tenth of that.
MOTION_SHRINK = 10
MOTION_FILE = "stand_in.safetensors"


def beside(name: str) -> ModuleType:
    """A module beside this one; ComfyUI imports us from a folder of links, which is on no path."""
    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def native_models() -> ModuleType:
    return beside("native_models")


def make_model(family: str, seed: int) -> Any:
    """A ``ModelPatcher`` with random weights."""
    models = native_models()
    makers = {
        "wan": lambda: models.build("WAN21_T2V", models.WAN),
        "ltx": lambda: models.build("LTXV", models.LTX),
        "hunyuan": lambda: models.build("HunyuanVideo", models.HUNYUAN),
        "sd15": lambda: models.build("SD15", {**models.UNET, **SD15_LEVELS}),
        "ltxav": lambda: models.build("LTXAV", beside("native_ltx_models").LTXAV_23),
        "minimax": lambda: beside("native_minimax_models").build_minimax(),
        "hunyuan15": lambda: models.build("HunyuanVideo15", beside("native_qwen_models").HUNYUAN15),
    }
    patcher = makers[family]()
    models.randomise(patcher.model.diffusion_model, seed)
    return patcher


# As many blocks as Stable Diffusion 1.5 has: a motion module has a place at each.
SD15_LEVELS = {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "num_heads": 4,
}


class TinyDecoder(nn.Module):
    """Mixes latent channels to colours and enlarges; of the first latent frame only its last picture is kept."""

    def __init__(self, channels: int, time: int, space: int) -> None:
        super().__init__()
        self.time, self.space = time, space
        mix = torch.randn(3, channels, generator=torch.Generator().manual_seed(0)) / channels**0.5
        self.mix = nn.Parameter(mix, requires_grad=False)
        # What LTX's upsampler asks for: statistics of a VAE whose latents are normalised already.
        self.per_channel_statistics = PlainStatistics()

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        """[B, C, (t,) h, w] to [B, 3, (T,) H, W] in -1..1."""
        colours = torch.einsum("kc,bc...->bk...", self.mix, latents).tanh()
        colours = colours.repeat_interleave(self.space, dim=-1).repeat_interleave(self.space, dim=-2)
        return colours if colours.ndim == 4 else self.over_time(colours)

    def over_time(self, colours: Tensor) -> Tensor:
        """[B, 3, t, H, W] to [B, 3, T, H, W]."""
        return colours.repeat_interleave(self.time, dim=2)[:, :, self.time - 1 :]


class TinyMiniMaxDecoder(TinyDecoder):
    """MiniMax H3's two first latent frames hold five pictures, five more 17."""

    def over_time(self, colours: Tensor) -> Tensor:
        pictures = (colours.shape[2] - 2) // 5 * 17 + 5
        places = torch.arange(pictures) * colours.shape[2] // pictures
        return colours[:, :, places]


class PlainStatistics(nn.Module):
    def normalize(self, latents: Tensor) -> Tensor:
        return latents

    def un_normalize(self, latents: Tensor) -> Tensor:
        return latents


class TinySoundDecoder(nn.Module):
    """Makes a few samples of two channels out of each latent frame of sound.

    Args:
        time_axis: which axis of the latents is time.
    """

    output_sample_rate = 16000
    # Of LTX's latents: how many numbers each frame of each channel has, and how many frames a second.
    latent_frequency_bins, latents_per_second = 16, 25

    def __init__(self, time_axis: int) -> None:
        super().__init__()
        self.time_axis = time_axis
        self.gain = nn.Parameter(torch.ones(1), requires_grad=False)

    def num_of_latents_from_frames(self, frames: int, rate: float) -> int:
        return math.ceil(frames / rate * self.latents_per_second)

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        """[B, C, ...] to [B, 2, samples]."""
        loudness = latents.movedim(self.time_axis, 1).flatten(2).mean(dim=2) * self.gain
        return loudness[:, None].repeat_interleave(640, dim=2).expand(-1, 2, -1).clone()


def make_vae(family: str) -> Any:
    """A ``comfy.sd.VAE`` that can decode."""
    channels, time, space = {
        **{"wan": (16, 4, 8), "ltx": (128, 8, 32), "hunyuan": (16, 4, 8), "sd15": (4, 1, 8)},
        **{"ltxav": (128, 8, 32), "minimax": (24, 4, 16), "hunyuan15": (32, 4, 16)},
    }[family]
    vae = _vae(TinyMiniMaxDecoder if family == "minimax" else TinyDecoder, channels, time, space)
    vae.latent_channels = channels
    vae.upscale_ratio = vae.downscale_ratio = space
    if family != "sd15":
        vae.latent_dim = 3
        vae.upscale_ratio = (lambda frames: max(0, frames * time - time + 1), space, space)
        vae.upscale_index_formula = (time, space, space)
        vae.downscale_ratio = (lambda frames: max(0, (frames + time - 1) // time), space, space)
        vae.downscale_index_formula = (time, space, space)
    return vae


def make_sound_vae(family: str) -> Any:
    """A ``comfy.sd.VAE`` that decodes sound."""
    vae = _vae(TinySoundDecoder, {"ltxav": 2, "minimax": 3}[family])
    vae.latent_channels = {"ltxav": 8, "minimax": 32}[family]
    vae.audio_sample_rate = TinySoundDecoder.output_sample_rate
    vae.process_output = lambda sound: sound
    return vae


def _vae(decoder: type[nn.Module], *arguments: Any) -> Any:
    import comfy.model_patcher
    import comfy.sd

    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = decoder(*arguments)
    vae.memory_used_decode = lambda shape, dtype: 1024
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, vae.device, vae.device)
    return vae


class _Loader:
    """A loader node with nothing to choose but the family."""

    CATEGORY = "tests"
    FUNCTION = "load"
    OUTPUTS: tuple[str, ...] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"family": ("STRING", {"default": "wan"}), "seed": ("INT", {"default": 0})}}

    def load(self, family: str, seed: int) -> tuple[Any, ...]:
        makers = {"MODEL": partial(make_model, family, seed), "VAE": partial(make_vae, family)}
        makers["CLIP"] = partial(beside("stand_in_texts").make_clip, family)
        with torch.inference_mode(False), torch.no_grad():
            return tuple(makers[kind]() for kind in self.RETURN_TYPES)


class StandInModel(_Loader):
    RETURN_TYPES = ("MODEL",)


class StandInClip(_Loader):
    RETURN_TYPES = ("CLIP",)


class StandInVae(_Loader):
    RETURN_TYPES = ("VAE",)


class StandInCheckpoint(_Loader):
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    def load(self, family: str, seed: int) -> tuple[Any, ...]:
        # The checkpoints of LTX-Video hold no text encoder.
        if family in ("ltx", "ltxav"):
            with torch.inference_mode(False), torch.no_grad():
                return make_model(family, seed), None, make_vae(family)
        return super().load(family, seed)


class StandInSoundVae(_Loader):
    """In place of the loaders of sound VAEs; ``ckpt_name`` or ``vae_name`` stays, and is not read."""

    RETURN_TYPES = ("VAE",)

    def load(self, family: str, seed: int) -> tuple[Any]:
        with torch.inference_mode(False), torch.no_grad():
            return (make_sound_vae(family),)


class StandInLora:
    """A LoRA that changes each weight of the attention and the feed-forward layers a little."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "strength_model": ("FLOAT", {"default": 1.0})}}

    def load(self, model: Any, strength_model: float) -> tuple[Any]:
        generator = torch.Generator().manual_seed(5)
        changes = {
            f"diffusion_model.{name}": ("diff", (0.05 * torch.randn(weight.shape, generator=generator),))
            for name, weight in model.model.diffusion_model.named_parameters()
            if weight.ndim == 2
        }
        changed = model.clone()
        changed.add_patches(changes, strength_model)
        return (changed,)


class StandInUpscaler:
    """LTX's own latent upsampler with random weights."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("LATENT_UPSCALE_MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0})}}

    def load(self, seed: int = 0) -> tuple[Any]:
        import comfy.model_management
        import comfy.model_patcher
        import comfy.ops
        from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler

        config = {"in_channels": 128, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3}
        # ComfyUI 0.20.1 has plain layers and hands the network itself on.
        plain = "operations" not in inspect.signature(LatentUpsampler.from_config).parameters
        layers = {} if plain else {"operations": comfy.ops.disable_weight_init}
        with torch.inference_mode(False), torch.no_grad():
            network = LatentUpsampler.from_config(config, **layers)
            native_models().randomise(network, seed)
        if plain:
            return (network,)
        comfy.model_management.archive_model_dtypes(network)
        device = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(network, device, device),)


class StandInControlNet:
    """A ControlNet of Stable Diffusion 1.5, as narrow as the U-Net."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0})}}

    def load(self, seed: int = 0) -> tuple[Any]:
        import comfy.controlnet
        import comfy.model_management
        import comfy.ops
        from comfy.cldm.cldm import ControlNet

        models = native_models()
        config = {**models.UNET, **SD15_LEVELS}
        for key in ("out_channels", "transformer_depth_output", "use_temporal_attention"):
            del config[key]
        with torch.inference_mode(False), torch.no_grad():
            network = ControlNet(hint_channels=3, operations=comfy.ops.disable_weight_init, **config)
            models.randomise(network, seed)
        device = comfy.model_management.get_torch_device()
        return (comfy.controlnet.ControlNet(network, load_device=device),)


class StandInMotion:
    """AnimateDiff-Evolved's own loader, with a motion module as narrow as the U-Net."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"model": ("MODEL",), "beta_schedule": ("STRING", {})},
            "optional": {"context_options": ("CONTEXT_OPTIONS",)},
        }

    def load(self, model: Any, beta_schedule: str, context_options: Any = None) -> tuple[Any]:
        import nodes

        loader = nodes.NODE_CLASS_MAPPINGS["ADE_AnimateDiffLoaderGen1"]
        modules = sys.modules[loader.__module__.rpartition(".")[0] + ".motion_module_ad"]
        wide = modules.MotionModule

        def narrow(channels: int, *arguments: Any, **options: Any) -> Any:
            return wide(channels // MOTION_SHRINK, *arguments, **options)

        with patch.object(modules, "MotionModule", narrow):
            save_motion_module(modules, narrow)
            return loader().load_mm_and_inject_params(
                model=model, model_name=MOTION_FILE, beta_schedule=beta_schedule, context_options=context_options
            )


def save_motion_module(modules: ModuleType, make: Any) -> None:
    """Write a file of AnimateDiff's second version with random weights, unless it is there."""
    import comfy.ops
    import folder_paths
    from safetensors.torch import save_file

    path = Path(folder_paths.models_dir) / "animatediff_models" / MOTION_FILE
    if path.exists():
        return
    settings = {
        "temporal_pe": True,
        "temporal_pe_max_len": 32,
        "attention_block_types": ("Temporal_Self", "Temporal_Self"),
        "ops": comfy.ops.disable_weight_init,
    }
    widths = (320, 640, 1280, 1280)
    blocks = {f"down_blocks.{index}": (width, modules.BlockType.DOWN, index) for index, width in enumerate(widths)}
    blocks |= {f"up_blocks.{index}": (width, modules.BlockType.UP, index) for index, width in enumerate(widths[::-1])}
    blocks["mid_block"] = (widths[-1], modules.BlockType.MID, 0)
    tensors = {}
    for seed, (name, (width, kind, index)) in enumerate(blocks.items()):
        with torch.inference_mode(False), torch.no_grad():
            block = make(width, block_type=kind, block_idx=index, **settings)
            native_models().randomise(block, seed)
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in block.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        *(StandInModel, StandInClip, StandInVae, StandInSoundVae, StandInCheckpoint),
        *(StandInLora, StandInUpscaler, StandInControlNet, StandInMotion),
    )
}
