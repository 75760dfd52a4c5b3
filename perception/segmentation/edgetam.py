"""EdgeTAM (Zhou et al., arXiv 2501.07256), a SAM 2 for small machines, from folders in the transformers layout."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch

from ...missing_packages import missing_package
from ..loading import check_model_folder, load_model_folder
from .memory_propagation import MemoryModel
from .sam2 import video_classes, video_processor

MODEL_TYPES = ("edgetam_video",)


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> MemoryModel:
    """Open a folder in the transformers layout.

    Args:
        folder: with ``config.json`` and weights; a processor's files are used where they are there.
        dtype: of the weights in memory.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the folder holds another kind of model.
        RuntimeError: when the weights cannot be read or do not fit.
        ImportError: when this version of transformers has no EdgeTAM, or timm is missing.
    """
    video = video_classes("EdgeTAM", "4.57", "EdgeTamVideoModel", "EdgeTamVideoInferenceSession")
    if importlib.util.find_spec("timm") is None:
        raise missing_package("EdgeTAM", "timm")
    folder = check_model_folder(folder, *MODEL_TYPES)
    # Read as usual, its configuration makes transformers 4 fetch that of the default picture encoder.
    config = video[0].config_class(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = load_model_folder(video[0], folder, MODEL_TYPES, dtype, config)
    return MemoryModel(model, model, video[1], video_processor(folder, model.prompt_encoder.input_image_size))
