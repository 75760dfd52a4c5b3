"""Models of ComfyUI that make pictures and no videos, by the names of the host's classes.

Some of them share a network or an autoencoder with video models, so that a message which only says what is missing
would send people looking for an update. Stable Diffusion 1 and SDXL are not here: AnimateDiff makes videos with them.

Source: Comfy-Org/ComfyUI, comfy/model_base.py.
"""

from __future__ import annotations

from typing import Any

# Name of the class of the model, and what people call it.
PICTURE_MODELS = {
    "Anima": "Anima",
    "AuraFlow": "AuraFlow",
    "Boogu": "Boogu",
    "Chroma": "Chroma",
    "ErnieImage": "ERNIE-Image",
    "Flux": "Flux",
    "Flux2": "Flux 2",
    "HiDream": "HiDream",
    "HunyuanDiT": "HunyuanDiT",
    "HunyuanImage21": "HunyuanImage 2.1",
    "HunyuanImage21Refiner": "The refiner of HunyuanImage 2.1",
    "Ideogram4": "Ideogram 4",
    "JoyImage": "JoyImage",
    "Kandinsky5Image": "Kandinsky 5 Image",
    "Krea2": "Krea 2",
    "LongCatImage": "LongCat-Image",
    "Lumina2": "Lumina 2 or Z-Image",
    "MageFlow": "Mage-Flow",
    "Omnigen2": "OmniGen 2",
    "PixArt": "PixArt",
    "QwenImage": "Qwen-Image",
    "SD3": "Stable Diffusion 3",
}


def picture_model(model: Any) -> str | None:
    """What people call a model that makes pictures only, or None for all others.

    Args:
        model: the host's ``BaseModel``.
    """
    names = (kind.__name__ for kind in type(model).__mro__)
    return next((PICTURE_MODELS[name] for name in names if name in PICTURE_MODELS), None)
