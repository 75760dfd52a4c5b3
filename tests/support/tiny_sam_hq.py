"""SAM-HQ at tiny size with random weights."""

from typing import Any

import torch


def build() -> Any:
    """A tiny ``SamHQModel`` whose untrained logits are large enough to show differences."""
    from transformers import (
        SamHQConfig,
        SamHQMaskDecoderConfig,
        SamHQModel,
        SamHQPromptEncoderConfig,
        SamHQVisionConfig,
    )

    vision = SamHQVisionConfig(
        hidden_size=32,
        output_channels=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1, 2],
        num_pos_feats=16,
        mlp_dim=48,
        initializer_range=0.02,
    )
    decoder = SamHQMaskDecoderConfig(
        hidden_size=32, mlp_dim=40, num_attention_heads=8, iou_head_hidden_dim=24, vit_dim=32, layer_norm_eps=1e-5
    )
    prompt = SamHQPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8)
    config = SamHQConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=decoder.to_dict()
    )
    torch.manual_seed(0)
    model = SamHQModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not bool(parameter.any()):
                parameter.add_(torch.randn(parameter.shape) * 0.1)
            elif parameter.ndim > 1:
                parameter.mul_(3.0)
        for head in (*model.mask_decoder.output_hypernetworks_mlps, model.mask_decoder.hq_mask_mlp):
            head.proj_out.weight.mul_(10.0)
        model.shared_image_embedding.positional_embedding.copy_(torch.randn(2, 16))
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(
            model.shared_image_embedding.positional_embedding
        )
    return model
