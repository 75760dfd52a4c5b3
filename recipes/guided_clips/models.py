"""The model that guided clips are made with, and the motion that was tuned onto it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..long_video.models import ModelFiles, open_long_video_models
from ..protocols import VideoModel


def open_guided_model(
    files: ModelFiles, motion: Path | None = None, motion_strength: float = 1.0, device: str | None = None
) -> tuple[str, VideoModel]:
    """Open it, so that what is wrong with a file is known before the first step.

    Args:
        files: which model.
        motion: a tuned motion to put onto it, or None.
        motion_strength: of it; 0 is none, 1 as it was tuned.
        device: of the computation; None is the CPU.

    Returns:
        A name that distinguishes it from other models and motions, and the model.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: when the files or this installation lack something.
    """
    from ...video_models.motion.motion_files import apply_motion, read_motion

    models = open_long_video_models(files, device)
    if motion is None:
        return models.name, models.model
    model = apply_motion(models.model, read_motion(motion), motion_strength)
    digest = hashlib.sha256(motion.read_bytes()).hexdigest()[:16]
    return f"{models.name} with {motion.name} ({digest}) at {motion_strength:g}", model
