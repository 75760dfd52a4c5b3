"""Masks with finer edges by SAM-HQ (Ke et al., arXiv 2306.01567), which adds a mask token and early features to SAM.

The model is transformers' ``SamHQModel``; weights may also come in the original package's layout. As in that package's
predictor, the fine mask is added to SAM's own one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .loading import load_model_folder
from .sam import EncodedPictures, SamSegmenter
from .sam_format import picture_processor, sam_processor
from .sam_hq_format import claims_sam_hq, sam_hq_of_state

MODEL_TYPES = ("sam_hq",)


class SamHQSegmenter(SamSegmenter):
    """SAM-HQ as the tracker asks it; like :class:`~.sam.SamSegmenter`, of a ``SamHQModel``."""

    def _look(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        embeddings, details = self.model.get_image_embeddings(pixels)
        # Only what the first layer with attention to the whole picture found is used.
        return embeddings, details[0]

    def _more(self, picture: EncodedPictures, count: int) -> dict[str, Any]:
        parameter = next(self.model.mask_decoder.parameters())
        details = picture.details.to(parameter.device, parameter.dtype)
        return {"intermediate_embeddings": [details.expand(count, -1, -1, -1)], "hq_token_only": False}


def claims(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a SAM-HQ, in the original or the transformers layout."""
    return claims_sam_hq(state)


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> SamHQSegmenter:
    """Open a folder in the transformers layout.

    Args:
        folder: with ``config.json``, weights and, if it is not the usual one, the preparation of pictures.
        dtype: of the picture encoder's weights in memory; the small rest stays in full precision.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the folder holds another kind of model.
        RuntimeError: when a file is broken.
        ImportError: when this version of transformers has no SAM-HQ.
    """
    model = load_model_folder(_model_class(), folder, MODEL_TYPES, torch.float32)
    model.vision_encoder.to(dtype)
    return SamHQSegmenter(model, picture_processor(folder, model.config.vision_config.image_size))


def load_state(state: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype = torch.float32) -> SamHQSegmenter:
    """Build a SAM-HQ of any size from the weights of one file.

    Args:
        state: in the original or the transformers layout.
        path: that it came from, for errors.
        dtype: of the picture encoder's weights in memory; the small rest stays in full precision.

    Raises:
        ValueError: when the weights are of another kind of model.
        RuntimeError: when tensors are missing, left over or of a wrong shape.
        ImportError: when this version of transformers has no SAM-HQ.
    """
    _model_class()
    model = sam_hq_of_state(state, path, dtype)
    return SamHQSegmenter(model, sam_processor(model.config.vision_config.image_size))


def _model_class() -> type:
    """``SamHQModel``, which came with transformers 4.52.

    Raises:
        ImportError: when it is not there.
    """
    try:
        from transformers import SamHQModel
    except ImportError as error:
        raise ImportError(
            "SAM-HQ needs transformers 4.52 or newer; update the package, or choose a SAM file instead."
        ) from error
    return SamHQModel
