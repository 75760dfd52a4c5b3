"""Named sets of models: a video model with the detector and the tracker that go with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .protocols import Detector, Tracker, VideoModel

if TYPE_CHECKING:
    from ..perception.boxes import Box
    from ..perception.frames import Film
    from ..perception.tracks import Tracks

TOYBOX = Path(__file__).resolve().parent.parent / "toybox"


@dataclass(frozen=True, eq=False)
class ModelSet:
    """What Mask Refine runs on."""

    name: str
    model: VideoModel
    detector: Detector
    tracker: Tracker


class Staged:
    """A helper model that is on the device only while it works; everything else is the helper's.

    Args:
        helper: a detector or tracker with its module as ``model``.
        device: where it works.
    """

    def __init__(self, helper: Any, device: torch.device) -> None:
        self.helper = helper
        self.device = device

    def release(self) -> None:
        """Back to the CPU."""
        self.helper.model.to("cpu")


class StagedDetector(Staged):
    """A detector; arguments not named here are those of ``ObjectDetector.detect``."""

    def detect(
        self, frames: Tensor | Film, phrases: Sequence[str], *thresholds: float, **options: Any
    ) -> list[list[Box]]:
        """As the detector does."""
        self.helper.model.to(self.device)
        return self.helper.detect(frames, phrases, *thresholds, **options)


class StagedTracker(Staged):
    """A tracker; arguments not named here are those of ``ObjectTracker.track``."""

    def track(self, frames: Tensor | Film, *evidence: Any, **options: Any) -> Tracks:
        """As the tracker does."""
        self.helper.model.to(self.device)
        return self.helper.track(frames, *evidence, **options)


def check_device(name: str | None) -> torch.device:
    """The device of that name; the CPU for None.

    Raises:
        ValueError: an unknown name, or a device that this machine does not have.
    """
    try:
        device = torch.device("cpu" if name is None else name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; give cpu, cuda, cuda:1 or mps.") from error
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {name!r}, which this machine (or its torch) does not have; take cpu.")
    return device


def load_models(loader: Callable[..., Any], *arguments: Any) -> Any:
    """Call a loader of models; all errors of the files become one kind of error.

    Raises:
        ValueError: the models cannot be loaded, and why.
    """
    from transformers.utils.logging import disable_progress_bar

    # Runs have their own bars.
    disable_progress_bar()
    try:
        return loader(*arguments)
    except (OSError, RuntimeError, ImportError) as error:
        raise ValueError(f"the models cannot be loaded: {error}") from error


def load_toybox_set(device: str | None = None) -> ModelSet:
    """The tiny models that come with the pack: toys for trying it, on a world of coloured shapes.

    Args:
        device: of the computation; None is the CPU.

    Raises:
        ValueError, OSError, RuntimeError: weights that are missing or broken; the message names the folder.
    """
    from ..video_models.toybox import load_toybox

    return ModelSet("toybox", load_toybox(check_device(device)), *load_finders(device=device))


def load_toybox_joint_set(device: str | None = None) -> ModelSet:
    """As ``load_toybox_set``, with the video model in which text and video are one sequence.

    Args:
        device: of the computation; None is the CPU.

    Raises:
        ValueError, OSError, RuntimeError: weights that are missing or broken; the message names the folder.
    """
    from ..video_models.joint.model import load_joint_toybox

    return ModelSet("toybox-joint", load_joint_toybox(check_device(device)), *load_finders(device=device))


def load_finders(
    detector: str | Path | None = None, tracker: str | Path | None = None, device: str | None = None
) -> tuple[StagedDetector, StagedTracker]:
    """Load what finds objects and what follows them.

    Args:
        detector: folder or file of a GroundingDINO; None takes the Toybox one.
        tracker: folder or file of a SAM of any generation; None takes the Toybox one.
        device: of the computation; None is the CPU.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: when the files or this installation lack something.
    """
    from ..perception.open_models import open_detector, open_tracker

    chosen = check_device(device)
    return (
        StagedDetector(open_detector(detector or TOYBOX / "detector"), chosen),
        StagedTracker(open_tracker(tracker or TOYBOX / "segmenter"), chosen),
    )


def load_lavie_set(
    path: str | Path,
    parts: str | Path | None,
    device: str | None = None,
    tokenizer: str | Path | None = None,
    detector: str | Path | None = None,
    tracker: str | Path | None = None,
) -> ModelSet:
    """LaVie's base model or Stable Diffusion 1 from a file, with what finds and follows objects.

    Args:
        path: ``lavie_base.pt`` or a file made from it, or a checkpoint or folder of Stable Diffusion 1.
        parts: Stable Diffusion 1 checkpoint or folder, for text encoder and VAE; None where ``path`` has them.
        device: of the computation; None is the CPU.
        tokenizer: folder of the tokenizer where the parts are a single file; None looks beside it and in the cache.
        detector, tracker: as in ``load_finders``; the Toybox ones know only its world of coloured shapes.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: when the files or this installation lack something.
    """
    from ..video_models.lavie.models import open_lavie

    model = open_lavie(path, parts, check_device(device), tokenizer=tokenizer)
    return ModelSet(Path(path).name, model, *load_finders(detector, tracker, device))


MODEL_SETS: dict[str, Callable[[str | None], ModelSet]] = {
    "toybox": load_toybox_set,
    "toybox-joint": load_toybox_joint_set,
}


def load_model_set(
    name: str,
    device: str | None = None,
    parts: str | Path | None = None,
    tokenizer: str | Path | None = None,
    detector: str | Path | None = None,
    tracker: str | Path | None = None,
) -> ModelSet:
    """Load a named set, or one around a file of LaVie's base model.

    Args:
        name: one of ``MODEL_SETS``, or the path of a model file.
        device: of the computation; None is the CPU.
        parts, tokenizer: of a model file, as in ``load_lavie_set``.
        detector, tracker: as in ``load_finders``; None takes those of the set.

    Raises:
        ValueError: an unknown name, or parts for a set that has its own; and as the loaders do.
    """
    if name not in MODEL_SETS:
        if not Path(name).suffix and not Path(name).exists():
            raise ValueError(
                f"model is {name!r}; choose one of {', '.join(MODEL_SETS)}, or give a file of LaVie's base model."
            )
        return load_lavie_set(name, parts, device, tokenizer, detector, tracker)
    if parts is not None or tokenizer is not None:
        raise ValueError(f"the set {name!r} has its own text encoder and VAE; leave the parts and the tokenizer out.")
    models = MODEL_SETS[name](device)
    if detector is not None or tracker is not None:
        finders = load_finders(detector, tracker, device)
        models = replace(
            models,
            detector=models.detector if detector is None else finders[0],
            tracker=models.tracker if tracker is None else finders[1],
        )
    return models
