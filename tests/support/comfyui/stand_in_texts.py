"""Text encoders of the tiny random models: the families' own classes, small, with their own tokenizers.

Where a tokenizer's vocabulary comes with the weights only, another one stands in for it. Encoders that also read
pictures are made without their eyes: no bundled workflow shows them one.
"""

from __future__ import annotations

import re
import zlib
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny_model import randomise
from torch import nn

# Hidden sizes of the tiny networks: text and, for HunyuanVideo, its pooled text.
TEXT_CHANNELS = 32
POOLED_CHANNELS = 8
# What LTX-2.3's video and sound read of the text.
VIDEO_CHANNELS, SOUND_CHANNELS = 48, 24


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


class GemmaWords:
    """Stands for Gemma 3's SentencePiece tokenizer: one token a word, the same with and without a space before it."""

    begin = 2

    @classmethod
    def from_pretrained(cls, path: Any, **_: Any) -> GemmaWords:
        return cls()

    def get_vocab(self) -> dict[str, int]:
        return {"<bos>": self.begin}

    def __call__(self, text: str) -> dict[str, list[int]]:
        words = re.findall(r"\w+|[^\w\s]", text)
        return {"input_ids": [self.begin, *(1000 + zlib.crc32(word.encode()) % 200_000 for word in words)]}


class NoEyes(nn.Module):
    """In place of the part of a text encoder that reads pictures."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


_LANGUAGE = {
    "hidden_size": TEXT_CHANNELS,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SMALL_LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    # Gemma's encoder has no name to look its settings up by.
    "ltxav": {"_model_config": _LANGUAGE},
    "minimax": {"qwen3vl_32b_model_config": _LANGUAGE},
    "hunyuan15": {
        "qwen25_7b_model_config": _LANGUAGE,
        "_model_config": {"d_model": 1472, "d_ff": 64, "d_kv": 8, "num_heads": 2, "num_layers": 1},
    },
}


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
    elif family in SMALL_LANGUAGE_MODELS:
        options |= SMALL_LANGUAGE_MODELS[family]
    else:
        options["clip_l_model_config"] = {**small_clip, "hidden_size": TEXT_CHANNELS}
    clip = comfy.sd.CLIP(ClipTarget(tokenizer, encoder), model_options=options)
    randomise(clip.cond_stage_model)
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


def _ltxav_text() -> tuple[Any, Any]:
    from comfy import clip_model
    from comfy.text_encoders import lt

    def tokenizer(**arguments: Any) -> Any:
        with patch.object(lt, "SPieceTokenizer", GemmaWords):
            return lt.LTXAVGemmaTokenizer(**arguments)

    wide = lt.DualLinearProjection
    encoder = _blind(
        lt.ltxav_te(dtype_llama=torch.float32, text_projection_type="dual_linear"), clip_model, "CLIPVision"
    )

    def narrow(width: int, video: int, sound: int, **options: Any) -> Any:
        # All layers of the text are read, and what goes into them.
        layers = _LANGUAGE["num_hidden_layers"] + 1
        return wide(layers * _LANGUAGE["hidden_size"], VIDEO_CHANNELS, SOUND_CHANNELS, **options)

    def small(**arguments: Any) -> Any:
        with patch.object(lt, "DualLinearProjection", narrow):
            return encoder(**arguments)

    return tokenizer, small


def _minimax_text() -> tuple[Any, Any]:
    from comfy.text_encoders import minimax, qwen3vl

    return minimax.MiniMaxH3Tokenizer, _blind(minimax.te(dtype_llama=torch.float32), qwen3vl, "Qwen3VLVisionModel")


def _hunyuan15_text() -> tuple[Any, Any]:
    from comfy.text_encoders import hunyuan_image, hunyuan_video, qwen_vl

    encoder = hunyuan_image.te(dtype_llama=torch.float32)
    return hunyuan_video.HunyuanVideo15Tokenizer, _blind(encoder, qwen_vl, "Qwen2VLVisionTransformer")


def _blind(encoder: Any, module: Any, name: str) -> Any:
    """The class of an encoder, made without the part for pictures that ``module`` has under a name."""

    def make(**arguments: Any) -> Any:
        with patch.object(module, name, NoEyes):
            return encoder(**arguments)

    return make
