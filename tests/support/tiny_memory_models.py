"""Video models with a memory at tiny size with random weights, of the real classes, and films for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 64
# The width of the memory is fixed in transformers 4.
MEMORY_WIDTH = 64
WIDTH = 2 * MEMORY_WIDTH


def tiny_film(frames: int = 12, height: int = 48, width: int = 80, seed: int = 0) -> Tensor:
    """A square that wanders over a noisy ground: float [T, H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    film = torch.rand(frames, height, width, 3, generator=generator) * 0.3
    for frame in range(frames):
        left = 8 + 3 * frame % (width - 30)
        film[frame, 12:30, left : left + 16] = torch.tensor([0.9, 0.5, 0.1])
    return film


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights so large that every part has a say, and objects that are there in every frame."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "embed" in name and parameter.shape[0] < 8:
                parameter.copy_(values)
            elif parameter.ndim > 1:
                parameter.copy_(values * 1.5 * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(values * 0.2 + float("norm" in name and name.endswith("weight")))
        for module in model.modules():
            if hasattr(module, "pred_obj_score_head"):
                module.pred_obj_score_head.proj_out.bias.fill_(4.0)
            if hasattr(module, "shared_image_embedding"):
                # One matrix in every checkpoint, though newer versions of the library keep it twice.
                same = module.shared_image_embedding.positional_embedding
                same.copy_(torch.randn(same.shape, generator=generator))
                module.prompt_encoder.shared_embedding.positional_embedding = same.clone()
    return model.eval()


def _shared_options() -> dict:
    return {
        "prompt_encoder_config": {
            "hidden_size": WIDTH,
            "image_size": SIDE,
            "patch_size": 16,
            "mask_input_channels": 8,
        },
        "mask_decoder_config": {"hidden_size": WIDTH, "mlp_dim": 32, "iou_head_hidden_dim": WIDTH},
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_num_layers": 2,
        "memory_attention_rope_feat_sizes": [SIDE // 16, SIDE // 16],
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": MEMORY_WIDTH,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 32,
    }


def tiny_sam2(version: str = "2.1", seed: int = 0):
    """A ``Sam2VideoModel`` for pictures of 64 x 64 pixels."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    side = SIDE // 16
    config = Sam2VideoConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [SIDE, SIDE],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [4, 2, 2, 2],
                "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [2, 2],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[4 * side, 4 * side], [2 * side, 2 * side], [side, side]],
            "fpn_hidden_size": WIDTH,
        },
        image_size=SIDE,
        memory_attention_feed_forward_hidden_size=32,
        enable_occlusion_spatial_embedding=version == "2.1",
        enable_temporal_pos_encoding_for_object_pointers=version == "2.1",
        **_shared_options(),
    )
    return enliven(Sam2VideoModel(config), seed)


def tiny_edgetam(seed: int = 0):
    """An ``EdgeTamVideoModel`` for pictures of 64 x 64 pixels."""
    from transformers import EdgeTamVideoConfig, EdgeTamVideoModel

    side = SIDE // 16
    config = EdgeTamVideoConfig(
        vision_config={
            "model_type": "edgetam_vision_model",
            "backbone_config": {
                "model_type": "timm_wrapper",
                "architecture": "resnet10t",
                "num_classes": 2,
                "do_pooling": False,
                "model_args": {"in_chans": 3, "features_only": True, "out_indices": [1, 2, 3, 4]},
            },
            "backbone_channel_list": [512, 256, 128, 64],
            "backbone_feature_sizes": [[4 * side, 4 * side], [2 * side, 2 * side], [side, side]],
            "fpn_hidden_size": WIDTH,
        },
        image_size=SIDE,
        memory_attention_mlp_hidden_size=32,
        memory_attention_rope_k_sizes=[2, 2],
        perceiver_resampler_num_latents=4,
        perceiver_resampler_num_latents_2d=4,
        perceiver_resampler_mlp_intermediate_size=32,
        **_shared_options(),
    )
    return enliven(EdgeTamVideoModel(config), seed)


def _sam3_vision() -> dict:
    side = SIDE // 16
    return {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "pretrain_image_size": 32,
        },
        "fpn_hidden_size": WIDTH,
        "backbone_feature_sizes": [[4 * side, 4 * side], [2 * side, 2 * side], [side, side]],
    }


def _sam3_tracker_options() -> dict:
    vision = {"model_type": "sam3_vision_model", **_sam3_vision()}
    return {
        "vision_config": vision,
        "image_size": SIDE,
        "memory_attention_feed_forward_hidden_size": 32,
        **_shared_options(),
    }


def tiny_sam3_tracker(seed: int = 0):
    """A ``Sam3TrackerVideoModel`` for pictures of 64 x 64 pixels."""
    from transformers import Sam3TrackerVideoConfig, Sam3TrackerVideoModel

    return enliven(Sam3TrackerVideoModel(Sam3TrackerVideoConfig(**_sam3_tracker_options())), seed)


def tiny_sam3(vocabulary: int, seed: int = 0):
    """A ``Sam3VideoModel``, detector and tracker, for pictures of 64 x 64 pixels."""
    from transformers import Sam3VideoConfig, Sam3VideoModel

    small = {"hidden_size": WIDTH, "num_attention_heads": 2}
    layers = {**small, "num_layers": 1, "intermediate_size": 32}
    config = Sam3VideoConfig(
        detector_config={
            "model_type": "sam3",
            "vision_config": _sam3_vision(),
            "text_config": {
                "model_type": "clip_text_model",
                "vocab_size": vocabulary,
                "hidden_size": 32,
                "intermediate_size": 64,
                "projection_dim": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 32,
                "eos_token_id": 1,
            },
            "geometry_encoder_config": layers,
            "detr_encoder_config": layers,
            "detr_decoder_config": {**layers, "num_queries": 10},
            "mask_decoder_config": small,
        },
        tracker_config={"model_type": "sam3_tracker_video", **_sam3_tracker_options()},
        low_res_mask_size=SIDE // 4,
    )
    return enliven(Sam3VideoModel(config), seed)
