"""SAM weights in two layouts: transformers and the original segment-anything package. They differ in names only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...weight_files.reading import load_checked
from ..loading import load_processor

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from transformers import SamConfig, SamModel, SamProcessor

SamLayout = Literal["transformers", "original"]

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
# Head count of the mask decoder in every published SAM; the shapes do not show it.
DECODER_HEADS = 8

# How the names of the picture encoder's layers begin in the two layouts, and in the small one that is not supported.
_ENCODERS = ("image_encoder.blocks.", "vision_encoder.layers.")
TINY_ENCODER = "image_encoder.patch_embed.seq."

_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_SHARED_POSITIONS = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
# (transformers, original), parts of names; the first pair that fits a name is used for each pattern in turn.
_RENAMES: tuple[tuple[str, str], ...] = (
    ("vision_encoder.patch_embed.projection.", "image_encoder.patch_embed.proj."),
    ("vision_encoder.neck.conv1.", "image_encoder.neck.0."),
    ("vision_encoder.neck.layer_norm1.", "image_encoder.neck.1."),
    ("vision_encoder.neck.conv2.", "image_encoder.neck.2."),
    ("vision_encoder.neck.layer_norm2.", "image_encoder.neck.3."),
    ("vision_encoder.layers.", "image_encoder.blocks."),
    ("vision_encoder.", "image_encoder."),
    ("prompt_encoder.point_embed.", "prompt_encoder.point_embeddings."),
    ("prompt_encoder.mask_embed.conv1.", "prompt_encoder.mask_downscaling.0."),
    ("prompt_encoder.mask_embed.layer_norm1.", "prompt_encoder.mask_downscaling.1."),
    ("prompt_encoder.mask_embed.conv2.", "prompt_encoder.mask_downscaling.3."),
    ("prompt_encoder.mask_embed.layer_norm2.", "prompt_encoder.mask_downscaling.4."),
    ("prompt_encoder.mask_embed.conv3.", "prompt_encoder.mask_downscaling.6."),
    ("mask_decoder.upscale_conv1.", "mask_decoder.output_upscaling.0."),
    ("mask_decoder.upscale_layer_norm.", "mask_decoder.output_upscaling.1."),
    ("mask_decoder.upscale_conv2.", "mask_decoder.output_upscaling.3."),
    ("transformer.layer_norm_final_attn.", "transformer.norm_final_attn."),
)
_BLOCK_NORM = re.compile(r"(?<=\.)(layer_norm|norm)(?=[1-4]\.(weight|bias)$)")
_HEAD = re.compile(r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.(.+)\.(weight|bias)$")


def claims_sam(names: Mapping[str, Any]) -> bool:
    """Whether a state dict holds a whole SAM, by its names: picture encoder and mask decoder of either layout."""
    encoder = any(name.startswith((*_ENCODERS, TINY_ENCODER)) for name in names)
    return encoder and any(name.startswith("mask_decoder.iou_token.") for name in names)


def detect_layout(names: Mapping[str, Any]) -> SamLayout:
    """Which layout a state dict has, by its names.

    Raises:
        ValueError: when it is neither.
    """
    for layout, beginning in zip(("original", "transformers"), _ENCODERS, strict=True):
        if any(name.startswith(beginning) for name in names):
            return layout
    if any(name.startswith(TINY_ENCODER) for name in names):
        raise ValueError(
            "these weights have a TinyViT picture encoder (MobileSAM, vit_tiny), which is not supported; "
            "choose a vit_b, vit_l or vit_h file."
        )
    sample = ", ".join(list(names)[:3]) or "none"
    raise ValueError(f"these are not SAM weights (first names: {sample}); choose a SAM (first version) file.")


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a transformers ``SamModel`` state dict to the original package's names."""
    renamed: dict[str, Tensor] = {}
    depth = _head_depth(state, r"\.layers\.(\d+)\.", offset=2)
    for name, value in state.items():
        if name in _SHARED_POSITIONS:
            renamed[_POSITIONS] = value
            continue
        head = _HEAD.match(name)
        if head:
            renamed[f"{head[1]}.layers.{_original_head_layer(head[2], depth)}.{head[3]}"] = value
            continue
        renamed[_rename(name, forward=True)] = value
    return renamed


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an original state dict to the names of transformers' ``SamModel``."""
    renamed: dict[str, Tensor] = {}
    depth = _head_depth(state, r"\.layers\.(\d+)\.", offset=0)
    for name, value in state.items():
        if name == _POSITIONS:
            renamed.update({shared: value for shared in _SHARED_POSITIONS})
            continue
        if name in ("pixel_mean", "pixel_std"):
            continue
        head = _HEAD.match(name)
        if head:
            renamed[f"{head[1]}.{_transformers_head_layer(head[2], depth)}.{head[3]}"] = value
            continue
        renamed[_rename(name, forward=False)] = value
    return renamed


def _rename(name: str, forward: bool) -> str:
    for ours, theirs in _RENAMES:
        old, new = (ours, theirs) if forward else (theirs, ours)
        if old in name:
            name = name.replace(old, new)
            break
    if ".blocks." in name or ".layers." in name:
        name = _BLOCK_NORM.sub("norm" if forward else "layer_norm", name)
    return name


def _head_depth(state: Mapping[str, Tensor], pattern: str, offset: int) -> int:
    """Index of the last linear layer of the small heads, in the original numbering."""
    numbers = [int(found[1]) for name in state if _HEAD.match(name) and (found := re.search(pattern, name))]
    return max(numbers, default=0 if offset else 2) + offset


def _original_head_layer(name: str, depth: int) -> int:
    if name == "proj_in":
        return 0
    return depth if name == "proj_out" else int(name.split(".")[1]) + 1


def _transformers_head_layer(name: str, depth: int) -> str:
    number = int(name.split(".")[1])
    if number == 0:
        return "proj_in"
    return "proj_out" if number == depth else f"layers.{number - 1}"


def config_of_original(state: Mapping[str, Tensor], decoder_heads: int = DECODER_HEADS) -> SamConfig:
    """Read all sizes from the shapes of an original state dict.

    Args:
        state: in the original layout.
        decoder_heads: attention heads of the mask decoder, which the shapes do not show.

    Raises:
        KeyError: naming a tensor that is missing.
    """
    from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    vision, prompt, decoder = sizes_of_original(state, decoder_heads)
    return SamConfig(
        vision_config=SamVisionConfig(**vision).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(**prompt).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(**decoder).to_dict(),
    )


def sizes_of_original(state: Mapping[str, Tensor], decoder_heads: int) -> tuple[dict[str, Any], ...]:
    """Fields of the configurations of picture encoder, prompt encoder and mask decoder, read from shapes.

    Raises:
        KeyError: naming a tensor that is missing.
    """
    grid, width = state["image_encoder.pos_embed"].shape[1], state["image_encoder.pos_embed"].shape[3]
    patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
    blocks = [f"image_encoder.blocks.{index}" for index in range(_count(state, r"image_encoder\.blocks\.(\d+)\."))]
    reaches = [(state[f"{block}.attn.rel_pos_h"].shape[0] + 1) // 2 for block in blocks]
    prompt_width = state["prompt_encoder.no_mask_embed.weight"].shape[1]
    first = "mask_decoder.transformer.layers.0"
    inner = state[f"{first}.cross_attn_token_to_image.q_proj.weight"].shape[0]
    vision = {
        "hidden_size": width,
        "output_channels": state["image_encoder.neck.0.weight"].shape[0],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // state["image_encoder.blocks.0.attn.rel_pos_h"].shape[1],
        "image_size": grid * patch,
        "patch_size": patch,
        "window_size": min(reaches),
        "global_attn_indexes": [index for index, reach in enumerate(reaches) if reach == grid],
        "num_pos_feats": state[_POSITIONS].shape[1],
        "mlp_dim": state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
        "initializer_range": 0.02,
    }
    prompt = {
        "hidden_size": prompt_width,
        "image_size": grid * patch,
        "patch_size": patch,
        "mask_input_channels": state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    }
    decoder = {
        "hidden_size": prompt_width,
        "mlp_dim": state[f"{first}.mlp.lin1.weight"].shape[0],
        "num_hidden_layers": _count(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "num_attention_heads": decoder_heads,
        "attention_downsample_rate": prompt_width // inner,
        "num_multimask_outputs": state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        "iou_head_depth": _count(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        "iou_head_hidden_dim": state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        # The original package's value; with the library's default the logits differ by a hundredth.
        "layer_norm_eps": 1e-5,
    }
    return vision, prompt, decoder


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def original_sam(config: SamConfig) -> Sam:
    """Build the original package's ``Sam`` at any size (its registry has three sizes only).

    Args:
        config: as transformers describes the model.
    """
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    grid = vision.image_size // vision.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=vision.image_size,
            patch_size=vision.patch_size,
            embed_dim=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            mlp_ratio=vision.mlp_dim / vision.hidden_size,
            out_chans=vision.output_channels,
            qkv_bias=vision.qkv_bias,
            norm_layer=partial(torch.nn.LayerNorm, eps=vision.layer_norm_eps),
            use_rel_pos=vision.use_rel_pos,
            window_size=vision.window_size,
            global_attn_indexes=tuple(vision.global_attn_indexes),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=prompt.hidden_size,
            image_embedding_size=(grid, grid),
            input_image_size=(vision.image_size, vision.image_size),
            mask_in_chans=prompt.mask_input_channels,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=decoder.hidden_size,
            transformer=TwoWayTransformer(
                depth=decoder.num_hidden_layers,
                embedding_dim=decoder.hidden_size,
                num_heads=decoder.num_attention_heads,
                mlp_dim=decoder.mlp_dim,
                attention_downsample_rate=decoder.attention_downsample_rate,
            ),
            num_multimask_outputs=decoder.num_multimask_outputs,
            iou_head_depth=decoder.iou_head_depth,
            iou_head_hidden_dim=decoder.iou_head_hidden_dim,
        ),
        pixel_mean=[255 * value for value in IMAGE_MEAN],
        pixel_std=[255 * value for value in IMAGE_STD],
    )


def sam_processor(image_size: int) -> SamProcessor:
    """SAM's picture preparation for a model of this input size in pixels."""
    from transformers import SamImageProcessor, SamProcessor

    return SamProcessor(
        SamImageProcessor(
            size={"longest_edge": image_size},
            pad_size={"height": image_size, "width": image_size},
            mask_size={"longest_edge": image_size // 4},
            mask_pad_size={"height": image_size // 4, "width": image_size // 4},
            image_mean=list(IMAGE_MEAN),
            image_std=list(IMAGE_STD),
        )
    )


def picture_processor(folder: str | Path, image_size: int) -> SamProcessor:
    """The picture preparation that a model folder describes, or SAM's usual one where it describes none.

    Args:
        folder: of the model.
        image_size: side of the model's input in pixels.

    Raises:
        RuntimeError: when a file is there and cannot be read.
    """
    from transformers import SamProcessor

    if not any((Path(folder) / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return sam_processor(image_size)
    return load_processor(SamProcessor, folder)


def sam_of_state(
    state: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype, decoder_heads: int = DECODER_HEADS
) -> SamModel:
    """Build transformers' model from weights of either layout and any size.

    Args:
        state: tensors by their names.
        path: that they came from, for errors.
        dtype: of the picture encoder's weights in memory. The rest, a few megabytes, stays in full precision: in
            bfloat16 the place of a prompt would be rounded to two pixels of 1024.
        decoder_heads: attention heads of the mask decoder.

    Raises:
        ValueError: when the weights are of another kind of model.
        RuntimeError: when tensors are missing, left over or of a wrong shape.
    """
    from transformers import SamModel

    original = state if layout_of(state, path) == "original" else to_original(state)
    with named_tensors(path):
        config = config_of_original(original, decoder_heads)
    with torch.device("meta"):
        model = SamModel(config)
    model.vision_encoder.to(dtype)
    return load_checked(model, to_transformers(original), path)


@contextmanager
def named_tensors(path: str | Path) -> Iterator[None]:
    """Say which tensor a file lacks when sizes are read from its tensors.

    Raises:
        RuntimeError: in place of the error inside.
    """
    try:
        yield
    except (KeyError, IndexError, ValueError) as error:
        lacking = f"lacks the tensor {error}" if isinstance(error, KeyError) else f"has tensors of odd shapes ({error})"
        raise RuntimeError(f"{path} {lacking}; the file is cut short or of another model: copy it again.") from error


def layout_of(state: Mapping[str, Tensor], path: str | Path) -> SamLayout:
    """Which layout a file's state dict has.

    Raises:
        ValueError: naming the file, when it is neither or of an encoder that is not supported.
    """
    try:
        return detect_layout(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
