"""Opening any detector or segmentation model by its path: which family it is, is read from the file itself."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ..weight_files.reading import read_state
from .loading import model_type_of

if TYPE_CHECKING:
    from .detection.detector import ObjectDetector
    from .tracking.tracker import ObjectTracker


def open_detector(
    path: str | Path, dtype: torch.dtype = torch.float32, bert_folder: str | Path | None = None
) -> ObjectDetector:
    """Open a GroundingDINO.

    Args:
        path: a folder in the transformers layout (GroundingDINO, MM-GroundingDINO), or an original ``.pth`` file.
        dtype: of the weights in memory.
        bert_folder: BERT's tokenizer and configuration, which original files do not hold; None looks beside the file.

    Returns:
        The detector, on the CPU.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the path holds another kind of model.
        RuntimeError: when a file is broken or does not fit.
        ImportError: when a package that this kind needs is not installed.
    """
    from .detection import grounding_dino, grounding_dino_original
    from .detection.detector import ObjectDetector

    path = Path(path)
    if not path.is_file():
        return ObjectDetector(grounding_dino.load_folder(path, dtype))
    state = read_state(path)
    if not grounding_dino_original.claims(state):
        raise ValueError(
            f"{path} is not a GroundingDINO file ({_first_names(state)}); choose a groundingdino_*.pth file."
        )
    return ObjectDetector(grounding_dino_original.load_state(state, path, dtype, bert_folder))


def open_tracker(path: str | Path, dtype: torch.dtype = torch.float32) -> ObjectTracker:
    """Open a model that makes masks: SAM, SAM-HQ, SAM 2 or 2.1, SAM 3, EdgeTAM.

    Args:
        path: a folder in the transformers layout, or one weight file in the original layout of its family.
        dtype: of the weights in memory.

    Returns:
        The tracker, on the CPU. Models for single pictures follow by optical flow, the others by their memory.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the path holds another kind of model.
        RuntimeError: when a file is broken or does not fit.
        ImportError: when this version of transformers does not have this model.
    """
    from .segmentation import edgetam, sam, sam2, sam3, sam_hq
    from .tracking.flow_propagation import FlowModel
    from .tracking.tracker import ObjectTracker

    path = Path(path)
    pictures, films = (sam, sam_hq), (sam2, edgetam, sam3)

    def follower(model: Any, family: ModuleType) -> ObjectTracker:
        return ObjectTracker(FlowModel(model) if family in pictures else model)

    if path.is_file():
        state = read_state(path)
        # SAM-HQ has all of SAM's names and more.
        for family in (sam_hq, sam, sam2):
            if family.claims(state):
                return follower(family.load_state(state, path, dtype), family)
        raise ValueError(
            f"{path} is not a SAM, SAM-HQ or SAM 2 file ({_first_names(state)}); "
            "choose another file, or a model folder."
        )
    found = model_type_of(path)
    for family in (*pictures, *films):
        if found in family.MODEL_TYPES:
            return follower(family.load_folder(path, dtype), family)
    known = ", ".join(name for family in (*pictures, *films) for name in family.MODEL_TYPES)
    raise ValueError(f"{path} holds a model of type {found!r}; choose a folder of one of these types: {known}.")


def _first_names(state: dict) -> str:
    return "first names: " + (", ".join(list(state)[:3]) or "none")
