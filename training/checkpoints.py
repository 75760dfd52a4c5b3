"""Save and resume a training run: one file with everything that is needed to continue where it stopped."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from ..weight_files.reading import NONSENSE
from ..weight_files.writing import replacing


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (state dicts, numbers) to ``path``; a crash in the middle leaves the old file whole.

    Raises:
        OSError: it cannot be written, for want of room for example. The old file is still there, without half of a new
        one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            # Otherwise the name could be on the disk before the contents are.
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # Torch's writer hides the reason of a full disk behind its own RuntimeError.
        hidden = error.__context__ if isinstance(error, RuntimeError) else None
        reason = getattr(error, "strerror", None) or getattr(hidden, "strerror", None) or str(error).splitlines()[0]
        kept = "the last one is still there" if path.is_file() else "there is no earlier one"
        raise OSError(f"{str(path)!r} cannot be written ({reason}); {kept}; make room and go on.") from error


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", entries: Collection[str] = ()
) -> dict[str, Any] | None:
    """Read a checkpoint written by :func:`save_checkpoint`, or None where there is none yet.

    Args:
        path: of the file.
        device: for its tensors.
        entries: that it must have.

    Raises:
        ValueError: it is damaged, or something else.
    """
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        state = None if broken else torch.load(path, map_location=device, weights_only=True)
    except (zipfile.BadZipFile, UnpicklingError, OSError, EOFError, RuntimeError, *NONSENSE):
        state = None
    if not isinstance(state, dict) or not state.keys() >= set(entries):
        raise ValueError(
            f"the checkpoint {str(path)!r} is damaged or not a checkpoint of this training; "
            "remove it to start anew, or put a good copy in its place to go on."
        )
    return state


class ExponentialMovingAverage:
    """Running mean of a module's floating point state, kept beside it.

    Args:
        module: whose parameters and buffers to follow.
        decay: weight of the old mean, 0..1. Early steps use a smaller one so that the start fades.
    """

    def __init__(self, module: nn.Module, decay: float = 0.998) -> None:
        self.decay = decay
        self.steps = 0
        self.mean = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present state."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value.detach(), 1 - decay)
            else:
                self.mean[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = int(state["steps"])
        mean: Mapping[str, Tensor] = state["mean"]
        for name, value in mean.items():
            self.mean[name].copy_(value)
