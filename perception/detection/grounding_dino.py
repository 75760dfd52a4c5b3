"""GroundingDINO and MM-GroundingDINO in transformers (Liu et al., arXiv 2303.05499; Zhao et al., 2401.02361)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..frames import as_bytes
from ..loading import load_model_folder, load_processor, model_type_of
from .grounding import CaptionReader, Grounding, Pictures, grounding_of

CLASS_NAMES = {
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
}
MODEL_TYPES = tuple(CLASS_NAMES)
# The number of the full stop that transformers has written into the models' code.
STOP = 1012


class TransformersGroundingDino:
    """A :class:`~.grounding.GroundingModel`.

    Args:
        model: transformers ``GroundingDinoForObjectDetection`` or ``MMGroundingDinoForObjectDetection``.
        processor: the matching ``GroundingDinoProcessor``.

    Raises:
        RuntimeError: when the tokenizer is not BERT's.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        self.model = model
        self.picture_encoder: nn.Module = model.model.backbone
        self.processor = processor
        self.token_limit: int = model.config.max_text_len
        self.reader = CaptionReader(processor.tokenizer)
        if self.reader.stop != STOP:
            raise RuntimeError(
                f"the tokenizer gives the full stop the number {self.reader.stop} and GroundingDINO needs {STOP}; "
                "copy the model folder's own tokenizer files again."
            )

    def count_tokens(self, phrase: str) -> int:
        """Tokens that a phrase and its full stop take in a caption."""
        return self.reader.count_tokens(phrase)

    def prepare(self, frames: Tensor) -> Pictures:
        """Resize and normalise frames, float [B, H, W, 3], as the folder's configuration says."""
        # Said explicitly: pictures of 1 or 3 rows look as if their channels came first.
        inputs = self.processor.image_processor(
            images=as_bytes(frames), input_data_format="channels_last", return_tensors="pt"
        )
        height, width = frames.shape[1:3]
        return Pictures(inputs["pixel_values"], height, width, inputs.get("pixel_mask"))

    @torch.no_grad()
    def ground(self, pictures: Pictures, phrases: Sequence[str]) -> Grounding:
        """Look for all phrases at once; see :class:`~.grounding.GroundingModel`."""
        parameter = next(self.model.parameters())
        device, count = parameter.device, len(pictures.pixels)
        tokens, places = self.reader.read(phrases)
        tokens = tokens.to(device).expand(count, -1)
        answer = self.model(
            pixel_values=pictures.pixels.to(device, parameter.dtype),
            pixel_mask=None if pictures.mask is None else pictures.mask.to(device),
            input_ids=tokens,
            token_type_ids=torch.zeros_like(tokens),
            attention_mask=torch.ones_like(tokens),
        )
        return grounding_of(answer.logits, answer.pred_boxes, places, pictures)


def safe_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which these models are loaded when ``dtype`` is requested.

    float16 moves corners by at most 0.1 % of the picture and changes no label (measured with the Toybox detector), but
    transformers before 5 mixes it with float32 and fails. bfloat16 moves them by up to 2 % and scores by up to 0.27,
    since it has 8 bits for a place in the picture. Where it would fail or harm, float32 is used.
    """
    import transformers

    works = dtype == torch.float16 and int(transformers.__version__.split(".")[0]) >= 5
    return dtype if works else torch.float32


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> TransformersGroundingDino:
    """Open a folder in the transformers layout.

    Args:
        folder: with config.json, weights, tokenizer and image processor files.
        dtype: of the weights in memory, made safe by :func:`safe_dtype`.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the folder holds another kind of model.
        RuntimeError: when a file is broken or does not fit.
        ImportError: when this version of transformers does not have this model.
    """
    import transformers

    found = model_type_of(folder)
    name = CLASS_NAMES.get(found, CLASS_NAMES["grounding-dino"])
    if not hasattr(transformers, name):
        raise ImportError(
            f"transformers {transformers.__version__} has no {name}, which {folder} needs; update transformers."
        )
    model = load_model_folder(getattr(transformers, name), folder, MODEL_TYPES, safe_dtype(dtype))
    return TransformersGroundingDino(model, load_processor(transformers.GroundingDinoProcessor, folder))
