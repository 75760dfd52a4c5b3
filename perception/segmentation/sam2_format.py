"""SAM 2 and 2.1 weights in two layouts: transformers and the original sam2 package.

They differ in names, and in that the original keeps four point embeddings apart and the position matrix once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Sam2VideoConfig

# Frames are stretched to a square of this many pixels; the shapes do not show it.
IMAGE_SIZE = 1024
# Attention heads of the mask decoder; the shapes do not show them.
DECODER_HEADS = 8
# Pixels of the picture per pixel of the features that masks are decoded from.
FEATURE_STRIDE = 16

_POSITIONS = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_SHARED_POSITIONS = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
_POINTS = "prompt_encoder.point_embed.weight"
_POINT = "sam_prompt_encoder.point_embeddings.{}.weight"
_POINT_KINDS = 4

_HEADS = (
    ("mask_decoder.output_hypernetworks_mlps.#", "sam_mask_decoder.output_hypernetworks_mlps.#"),
    ("mask_decoder.iou_prediction_head", "sam_mask_decoder.iou_prediction_head"),
    ("mask_decoder.pred_obj_score_head", "sam_mask_decoder.pred_obj_score_head"),
    ("object_pointer_proj", "obj_ptr_proj"),
)
# (transformers, original) beginnings of names, # for a number; the first pair that fits decides.
_BEGINNINGS: tuple[tuple[str, str], ...] = (
    *((f"{ours}.proj_in.", f"{theirs}.layers.0.") for ours, theirs in _HEADS),
    *((f"{ours}.layers.0.", f"{theirs}.layers.1.") for ours, theirs in _HEADS),
    *((f"{ours}.proj_out.", f"{theirs}.layers.2.") for ours, theirs in _HEADS),
    ("vision_encoder.backbone.patch_embed.projection.", "image_encoder.trunk.patch_embed.proj."),
    ("vision_encoder.backbone.blocks.#.layer_norm#.", "image_encoder.trunk.blocks.#.norm#."),
    ("vision_encoder.backbone.blocks.#.mlp.proj_in.", "image_encoder.trunk.blocks.#.mlp.layers.0."),
    ("vision_encoder.backbone.blocks.#.mlp.proj_out.", "image_encoder.trunk.blocks.#.mlp.layers.1."),
    ("vision_encoder.backbone.", "image_encoder.trunk."),
    ("vision_encoder.neck.convs.#.", "image_encoder.neck.convs.#.conv."),
    ("memory_attention.layer_norm.", "memory_attention.norm."),
    ("memory_attention.layers.#.layer_norm#.", "memory_attention.layers.#.norm#."),
    ("memory_attention.layers.#.self_attn.o_proj.", "memory_attention.layers.#.self_attn.out_proj."),
    ("memory_attention.layers.#.cross_attn_image.o_proj.", "memory_attention.layers.#.cross_attn_image.out_proj."),
    ("memory_attention.", "memory_attention."),
    *(
        pair
        for layer in range(4)
        for pair in (
            (
                f"memory_encoder.mask_downsampler.layers.{layer}.conv.",
                f"memory_encoder.mask_downsampler.encoder.{3 * layer}.",
            ),
            (
                f"memory_encoder.mask_downsampler.layers.{layer}.layer_norm.",
                f"memory_encoder.mask_downsampler.encoder.{3 * layer + 1}.",
            ),
        )
    ),
    ("memory_encoder.mask_downsampler.final_conv.", "memory_encoder.mask_downsampler.encoder.12."),
    ("memory_encoder.feature_projection.", "memory_encoder.pix_feat_proj."),
    ("memory_encoder.memory_fuser.layers.#.depthwise_conv.", "memory_encoder.fuser.layers.#.dwconv."),
    ("memory_encoder.memory_fuser.layers.#.layer_norm.", "memory_encoder.fuser.layers.#.norm."),
    ("memory_encoder.memory_fuser.layers.#.pointwise_conv#.", "memory_encoder.fuser.layers.#.pwconv#."),
    ("memory_encoder.memory_fuser.layers.#.scale", "memory_encoder.fuser.layers.#.gamma"),
    ("memory_encoder.projection.", "memory_encoder.out_proj."),
    ("prompt_encoder.mask_embed.conv1.", "sam_prompt_encoder.mask_downscaling.0."),
    ("prompt_encoder.mask_embed.layer_norm1.", "sam_prompt_encoder.mask_downscaling.1."),
    ("prompt_encoder.mask_embed.conv2.", "sam_prompt_encoder.mask_downscaling.3."),
    ("prompt_encoder.mask_embed.layer_norm2.", "sam_prompt_encoder.mask_downscaling.4."),
    ("prompt_encoder.mask_embed.conv3.", "sam_prompt_encoder.mask_downscaling.6."),
    ("prompt_encoder.", "sam_prompt_encoder."),
    ("mask_decoder.upscale_conv1.", "sam_mask_decoder.output_upscaling.0."),
    ("mask_decoder.upscale_layer_norm.", "sam_mask_decoder.output_upscaling.1."),
    ("mask_decoder.upscale_conv2.", "sam_mask_decoder.output_upscaling.3."),
    *(
        (f"mask_decoder.transformer.{place}.o_proj.", f"sam_mask_decoder.transformer.{place}.out_proj.")
        for place in (
            "layers.#.self_attn",
            "layers.#.cross_attn_token_to_image",
            "layers.#.cross_attn_image_to_token",
            "final_attn_token_to_image",
        )
    ),
    ("mask_decoder.transformer.layers.#.layer_norm#.", "sam_mask_decoder.transformer.layers.#.norm#."),
    ("mask_decoder.transformer.layers.#.mlp.proj_in.", "sam_mask_decoder.transformer.layers.#.mlp.layers.0."),
    ("mask_decoder.transformer.layers.#.mlp.proj_out.", "sam_mask_decoder.transformer.layers.#.mlp.layers.1."),
    ("mask_decoder.transformer.layer_norm_final_attn.", "sam_mask_decoder.transformer.norm_final_attn."),
    ("mask_decoder.", "sam_mask_decoder."),
    ("mask_downsample.", "mask_downsample."),
    ("temporal_positional_encoding_projection_layer.", "obj_ptr_tpos_proj."),
    ("memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    ("no_memory_embedding", "no_mem_embed"),
    ("no_memory_positional_encoding", "no_mem_pos_enc"),
    ("no_object_pointer", "no_obj_ptr"),
    ("occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
)


@dataclass(frozen=True)
class HieraSize:
    """What the shapes of a picture encoder do not show.

    Attributes:
        heads: attention heads of its first stage; each stage has twice as many as the one before.
        windows: sides of the attention windows of its four stages, in tokens.
        global_blocks: blocks that attend to the whole picture.
    """

    heads: int
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]


# The published sizes by first width and blocks per stage: tiny, small, base plus, large.
HIERA_SIZES: dict[tuple[int, tuple[int, ...]], HieraSize] = {
    (96, (1, 2, 7, 2)): HieraSize(1, (8, 4, 14, 7), (5, 7, 9)),
    (96, (1, 2, 11, 2)): HieraSize(1, (8, 4, 14, 7), (7, 10, 13)),
    (112, (2, 3, 16, 3)): HieraSize(2, (8, 4, 14, 7), (12, 16, 20)),
    (144, (2, 6, 36, 4)): HieraSize(2, (8, 4, 16, 8), (23, 33, 43)),
}


def is_original(names: Mapping[str, Tensor]) -> bool:
    """Whether names are those of an original SAM 2 or 2.1 checkpoint."""
    return "image_encoder.trunk.patch_embed.proj.weight" in names and "maskmem_tpos_enc" in names


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a transformers ``Sam2VideoModel`` state dict to the original package's names.

    Raises:
        ValueError: for a name that does not belong to SAM 2.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _SHARED_POSITIONS:
            renamed[_POSITIONS] = value
        elif name == _POINTS:
            renamed.update({_POINT.format(kind): value[kind : kind + 1] for kind in range(_POINT_KINDS)})
        else:
            renamed[_rename(name, 0)] = value
    return renamed


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an original state dict to the names of transformers' ``Sam2VideoModel``.

    Raises:
        KeyError: with the name of a tensor that is missing.
        ValueError: for a name that does not belong to SAM 2.
    """
    renamed = {shared: state[_POSITIONS] for shared in _SHARED_POSITIONS}
    points = [_POINT.format(kind) for kind in range(_POINT_KINDS)]
    renamed[_POINTS] = torch.cat([state[name] for name in points])
    for name, value in state.items():
        if name != _POSITIONS and name not in points:
            renamed[_rename(name, 1)] = value
    return renamed


def _rename(name: str, side: int) -> str:
    for pair in _BEGINNINGS:
        found = re.match(re.escape(pair[side]).replace(r"\#", r"(\d+)"), name)
        if found:
            return pair[1 - side].replace("#", "{}").format(*found.groups()) + name[found.end() :]
    raise ValueError(f"{name} is not a tensor of SAM 2; choose a sam2_hiera_* or sam2.1_hiera_* file.")


def config_of_original(
    state: Mapping[str, Tensor], size: HieraSize | None = None, image_size: int = IMAGE_SIZE
) -> Sam2VideoConfig:
    """Read all sizes from the shapes of an original state dict, and which version it is from its names.

    Args:
        state: in the original layout.
        size: of the picture encoder; None looks it up among the published ones.
        image_size: side in pixels of the square that frames are stretched to.

    Raises:
        KeyError: with the name of a tensor that is missing.
        ValueError: for a picture encoder without a published size.
    """
    from transformers import Sam2VideoConfig

    width = state["no_mem_embed"].shape[-1]
    side = image_size // FEATURE_STRIDE
    layer = "memory_attention.layers.0"
    return Sam2VideoConfig(
        vision_config=_vision_config(state, size, image_size),
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": image_size,
            "patch_size": FEATURE_STRIDE,
            "mask_input_channels": state["sam_prompt_encoder.mask_downscaling.3.weight"].shape[0],
        },
        mask_decoder_config=_decoder_config(state, width),
        image_size=image_size,
        num_maskmem=state["maskmem_tpos_enc"].shape[0],
        # These two came with version 2.1.
        enable_occlusion_spatial_embedding="no_obj_embed_spatial" in state,
        enable_temporal_pos_encoding_for_object_pointers="obj_ptr_tpos_proj.weight" in state,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=_count(state, r"memory_attention\.layers\.(\d+)\."),
        memory_attention_downsample_rate=width // state[f"{layer}.self_attn.q_proj.weight"].shape[0],
        memory_attention_feed_forward_hidden_size=state[f"{layer}.linear1.weight"].shape[0],
        memory_attention_rope_feat_sizes=[side, side],
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=state["maskmem_tpos_enc"].shape[-1],
        mask_downsampler_embed_dim=state["memory_encoder.mask_downsampler.encoder.12.weight"].shape[0],
        memory_fuser_num_layers=_count(state, r"memory_encoder\.fuser\.layers\.(\d+)\."),
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=state["memory_encoder.fuser.layers.0.pwconv1.weight"].shape[0],
        memory_fuser_kernel_size=state["memory_encoder.fuser.layers.0.dwconv.weight"].shape[-1],
        memory_fuser_padding=state["memory_encoder.fuser.layers.0.dwconv.weight"].shape[-1] // 2,
    )


def _vision_config(state: Mapping[str, Tensor], size: HieraSize | None, image_size: int) -> dict:
    trunk = "image_encoder.trunk"
    first = state[f"{trunk}.patch_embed.proj.weight"].shape[0]
    count = _count(state, r"image_encoder\.trunk\.blocks\.(\d+)\.")
    # A block that projects its input begins a stage.
    starts = [0, *(block for block in range(1, count) if f"{trunk}.blocks.{block}.proj.weight" in state), count]
    blocks = tuple(stop - start for start, stop in zip(starts, starts[1:], strict=False))
    size = size or HIERA_SIZES.get((first, blocks))
    if size is None:
        known = "; ".join(f"{width} and {list(stages)}" for width, stages in HIERA_SIZES)
        raise ValueError(
            f"a picture encoder of width {first} with {list(blocks)} blocks is not a published SAM 2 (known: {known}); "
            "choose a tiny, small, base_plus or large file."
        )
    widths = [state[f"{trunk}.blocks.{stop - 1}.norm2.weight"].shape[0] for stop in starts[1:]]
    side = image_size // FEATURE_STRIDE
    return {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": first,
            "image_size": [image_size, image_size],
            "blocks_per_stage": list(blocks),
            "embed_dim_per_stage": widths,
            "num_attention_heads_per_stage": [size.heads * 2**stage for stage in range(len(blocks))],
            "window_size_per_stage": list(size.windows),
            "global_attention_blocks": list(size.global_blocks),
            "window_positional_embedding_background_size": list(state[f"{trunk}.pos_embed"].shape[-2:]),
            "mlp_ratio": state[f"{trunk}.blocks.0.mlp.layers.0.weight"].shape[0] / first,
        },
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[side * scale, side * scale] for scale in (4, 2, 1)],
        "fpn_hidden_size": state["image_encoder.neck.convs.0.conv.weight"].shape[0],
    }


def _decoder_config(state: Mapping[str, Tensor], width: int) -> dict:
    layer = "sam_mask_decoder.transformer.layers.0"
    return {
        "hidden_size": width,
        "mlp_dim": state[f"{layer}.mlp.layers.0.weight"].shape[0],
        "num_hidden_layers": _count(state, r"sam_mask_decoder\.transformer\.layers\.(\d+)\."),
        "num_attention_heads": DECODER_HEADS,
        "attention_downsample_rate": width // state[f"{layer}.cross_attn_token_to_image.q_proj.weight"].shape[0],
        "num_multimask_outputs": state["sam_mask_decoder.mask_tokens.weight"].shape[0] - 1,
        "iou_head_hidden_dim": state["sam_mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})
