"""A tiny CogVideoX, its calls of attention, and explicit biases for it."""

from __future__ import annotations

from typing import Any

import torch
from dense_reference import Calls, DenseGuide, DenseReference
from guides import plain_guide
from native_guides import GUIDES, POSITIONS
from native_models import TEXT, TinyModel, randomise

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.text_spans import TextSpans

HEADS, HEAD, TEXT_CHANNELS = 2, 16, 32
DIM = HEADS * HEAD
FRAMES = 3
CALLS = Calls("J0 J0", FRAMES, ((4, 6, 2),), 4, text_first=True)
SPANS = TextSpans(("red ball", "cube"), POSITIONS, TEXT)


def cogvideox(size: tuple[int, int] = (8, 12), **settings: Any) -> TinyModel:
    """A tiny CogVideoX 1.0 in ComfyUI's model and patcher."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    class Config(comfy.supported_models_base.BASE):
        unet_config: dict[str, Any] = {}
        unet_extra_config: dict[str, Any] = {}
        latent_format = comfy.latent_formats.HunyuanVideo

    sizes = {"num_attention_heads": HEADS, "attention_head_dim": HEAD, "time_embed_dim": DIM, "num_layers": 2}
    sizes |= {"text_embed_dim": TEXT_CHANNELS, "in_channels": 16, "use_rotary_positional_embeddings": True, **settings}
    config = Config(sizes)
    config.set_inference_dtype(torch.float32, None)
    with torch.no_grad():
        kind = comfy.model_base.ModelType.V_PREDICTION
        model = comfy.model_base.BaseModel(config, kind, unet_model=CogVideoXTransformer3DModel)
        randomise(model.diffusion_model)
    model.eval()
    device = torch.device("cpu")
    return TinyModel(
        "cogvideox", lambda: comfy.model_patcher.ModelPatcher(model, device, device), (1, 16, FRAMES, *size), 32
    )


class Reference(DenseReference):
    def __init__(self, model: TinyModel, guide: DenseGuide) -> None:
        self.order, self.guides = CALLS.each, [guide]
        self.active, self.on, self.model_calls = (lambda sigma: True), True, 0


def guide_of(mode: str, size: tuple[int, int] = (8, 12), **changes: Any) -> Guide:
    masks = torch.zeros(2, 9, 8 * size[0], 8 * size[1])
    for frame in range(9):
        masks[0, frame, 16:48, 4 * frame : 4 * frame + 30] = 1.0
        if frame:
            masks[1, frame, 30:, 50 - frame :] = 0.8
    masks = torch.nn.functional.avg_pool2d(masks, 5, stride=1, padding=2)
    return plain_guide(masks, **{"end_percent": 1.0, **GUIDES[mode], **changes})


def reference(model: TinyModel, guide: Guide, spans: TextSpans | None = SPANS) -> Reference:
    return Reference(model, DenseGuide(guide, CALLS, model.latents[-2:], spans))
