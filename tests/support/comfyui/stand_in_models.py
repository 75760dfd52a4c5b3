"""Custom nodes for tests: loaders of tiny random models, in place of those that need real weights.

Each gives what the loader it stands for gives: a MODEL of ComfyUI's own class, a CLIP with the family's own encoder
class and, where its vocabulary is in the checkout, its own tokenizer, and a VAE with the family's factors.
"""

from __future__ import annotations

import importlib
import re
import sys
import zlib
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

# Hidden sizes of the tiny networks: text and, for HunyuanVideo, its pooled text.
TEXT_CHANNELS = 32
POOLED_CHANNELS = 8
# The motion module's levels in AnimateDiff are 320 to 1280 channels wide; those of our U-Net a tenth of that.
MOTION_SHRINK = 10
MOTION_FILE = "stand_in.safetensors"


def native_models() -> ModuleType:
    """The module beside this one; ComfyUI imports us from a folder of links, which is on no path."""
    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("native_models")


def make_model(family: str, seed: int) -> Any:
    """A ``ModelPatcher`` with random weights."""
    models = native_models()
    configs = {
        "wan": ("WAN21_T2V", models.WAN),
        "ltx": ("LTXV", models.LTX),
        "hunyuan": ("HunyuanVideo", models.HUNYUAN),
        "sd15": ("SD15", {**models.UNET, **SD15_LEVELS}),
    }
    patcher = models.build(*configs[family])
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


class LlamaWords:
    """Stands for Llama 3's tokenizer, whose vocabulary is not in every checkout: one token a word.

    As there, tokens of control have their own numbers and a word after a space another one than the same word without.
    """

    control = {
        "<|begin_of_text|>": 128000,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eot_id|>": 128009,
        "\n\n": 271,
        "user": 882,
    }

    @classmethod
    def from_pretrained(cls, path: str, **_: Any) -> LlamaWords:
        return cls()

    def get_vocab(self) -> dict[str, int]:
        return dict(self.control)

    def __call__(self, text: str) -> dict[str, list[int]]:
        pieces = re.findall(r"<\|\w+\|>|\n\n| ?\w+|[^\w\s]", text)
        ids = [self.control.get(piece, 1000 + zlib.crc32(piece.encode()) % 100_000) for piece in pieces]
        return {"input_ids": [self.control["<|begin_of_text|>"], *ids]}


def make_clip(family: str) -> Any:
    """A ``comfy.sd.CLIP`` with random weights."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    small_t5 = {"d_model": TEXT_CHANNELS, "d_kv": 8, "d_ff": 64, "num_heads": 2, "num_layers": 2, "vocab_size": 32128}
    small_clip = {"intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    options: dict[str, Any] = {"dtype": torch.float32}
    tokenizer, encoder = globals()[f"_{family}_text"]()
    if family == "wan":
        options["umt5xxl_model_config"] = small_t5
    elif family == "ltx":
        options["t5xxl_model_config"] = small_t5
    elif family == "hunyuan":
        options["clip_l_model_config"] = {**small_clip, "hidden_size": POOLED_CHANNELS}
        options["llama_model_config"] = {
            "hidden_size": TEXT_CHANNELS,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
    else:
        options["clip_l_model_config"] = {**small_clip, "hidden_size": TEXT_CHANNELS}
    clip = comfy.sd.CLIP(ClipTarget(tokenizer, encoder), model_options=options)
    native_models().randomise(clip.cond_stage_model)
    return clip


def _wan_text() -> tuple[Any, Any]:
    """UMT5; its tokenizer reads a file that comes with the weights, so T5's stands in for it."""
    from comfy import sd1_clip
    from comfy.text_encoders import wan
    from transformers import T5TokenizerFast

    folder = Path(sd1_clip.__file__).parent / "text_encoders" / "t5_tokenizer"

    class Tokenizer(sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                str(folder),
                pad_with_end=False,
                embedding_size=TEXT_CHANNELS,
                embedding_key="umt5xxl",
                tokenizer_class=T5TokenizerFast,
                has_start_token=False,
                pad_to_max_length=False,
                max_length=99999999,
                min_length=512,
                pad_token=0,
            )

    return partial(sd1_clip.SD1Tokenizer, clip_name="umt5xxl", tokenizer=Tokenizer), wan.te(dtype_t5=torch.float32)


def _ltx_text() -> tuple[Any, Any]:
    from comfy.text_encoders import lt

    return lt.LTXVT5Tokenizer, lt.ltxv_te(dtype_t5=torch.float32)


def _hunyuan_text() -> tuple[Any, Any]:
    from comfy.text_encoders import hunyuan_video

    def tokenizer(**arguments: Any) -> Any:
        with patch.object(hunyuan_video, "LlamaTokenizerFast", LlamaWords):
            return hunyuan_video.HunyuanVideoTokenizer(**arguments)

    return tokenizer, hunyuan_video.hunyuan_video_clip(dtype_llama=torch.float32)


def _sd15_text() -> tuple[Any, Any]:
    from comfy import sd1_clip

    return sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel


class TinyDecoder(nn.Module):
    """Mixes latent channels to colours and enlarges; of the first latent frame only its last picture is kept."""

    def __init__(self, channels: int, time: int, space: int) -> None:
        super().__init__()
        self.time, self.space = time, space
        mix = torch.randn(3, channels, generator=torch.Generator().manual_seed(0)) / channels**0.5
        self.mix = nn.Parameter(mix, requires_grad=False)

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        """[B, C, (t,) h, w] to [B, 3, (T,) H, W] in -1..1."""
        colours = torch.einsum("kc,bc...->bk...", self.mix, latents).tanh()
        colours = colours.repeat_interleave(self.space, dim=-1).repeat_interleave(self.space, dim=-2)
        if colours.ndim == 4:
            return colours
        return colours.repeat_interleave(self.time, dim=2)[:, :, self.time - 1 :]


def make_vae(family: str) -> Any:
    """A ``comfy.sd.VAE`` that can decode."""
    import comfy.model_patcher
    import comfy.sd

    channels, time, space = {"wan": (16, 4, 8), "ltx": (128, 8, 32), "hunyuan": (16, 4, 8), "sd15": (4, 1, 8)}[family]
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = TinyDecoder(channels, time, space)
    vae.latent_channels = channels
    vae.upscale_ratio = vae.downscale_ratio = space
    if family != "sd15":
        vae.latent_dim = 3
        vae.upscale_ratio = (lambda frames: max(0, frames * time - time + 1), space, space)
        vae.upscale_index_formula = (time, space, space)
        vae.downscale_ratio = (lambda frames: max(0, (frames + time - 1) // time), space, space)
        vae.downscale_index_formula = (time, space, space)
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
        makers = {"MODEL": partial(make_model, family, seed), "CLIP": partial(make_clip, family)}
        makers["VAE"] = partial(make_vae, family)
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
        model, clip, vae = super().load(family, seed)
        # LTX-Video's checkpoints hold no text encoder.
        return model, None if family == "ltx" else clip, vae


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
    for node in (StandInModel, StandInClip, StandInVae, StandInCheckpoint, StandInControlNet, StandInMotion)
}
