"""Sets of models by name: a video model with the detector and the tracker that go with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .protocols import Detector, Tracker, VideoModel

TOYBOX = Path(__file__).resolve().parent.parent / "toybox"


@dataclass(frozen=True, eq=False)
class ModelSet:
    """What Mask Refine runs on."""

    name: str
    model: VideoModel
    detector: Detector
    tracker: Tracker


def load_toybox_set(device: str | None = None) -> ModelSet:
    """The tiny models that come with the pack: toys for trying it, on a world of coloured shapes.

    Args:
        device: of the computation; None lets the models choose.

    Raises:
        ValueError, OSError, RuntimeError: weights that are missing or broken; the message names the folder.
    """
    from ..perception.detector import load_grounding_dino
    from ..perception.tracker import load_sam
    from ..video_models.toybox import load_toybox

    detector = load_grounding_dino(TOYBOX / "detector")
    tracker = load_sam(TOYBOX / "segmenter")
    return ModelSet("toybox", load_toybox(device), detector, tracker)


MODEL_SETS: dict[str, Callable[[str | None], ModelSet]] = {"toybox": load_toybox_set}


def load_model_set(name: str, device: str | None = None) -> ModelSet:
    """Load a set by its name.

    Raises:
        ValueError: an unknown name; and as the loaders do.
    """
    if name not in MODEL_SETS:
        raise ValueError(f"model is {name!r}; choose one of {', '.join(MODEL_SETS)}.")
    return MODEL_SETS[name](device)
