"""What nodes need of the host: memory, precision, progress and cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from .types import HelperModel
from .working_memory import working_memory

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def progress(total: int | None = None) -> Callable[[int, int], None]:
    """A progress function for long work: moves the node's bar, and raises when the user cancels."""
    bar = comfy.utils.ProgressBar(total or 1)

    def report(done: int, of: int) -> None:
        bar.update_absolute(done, of)
        management.throw_exception_if_processing_interrupted()

    return report


class SamplingProgress:
    """A progress function for a node that samples: it also shows the picture that sampling has come to.

    Args:
        model: ``ModelPatcher`` of the sampled model.
    """

    def __init__(self, model: Any) -> None:
        self._bar = comfy.utils.ProgressBar(1)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self._picture: Any = None

    def show(self, denoised: Tensor) -> None:
        """Take a picture of these latents, where the user wants previews."""
        if self._previewer is not None:
            self._picture = self._previewer.decode_latent_to_preview_image("JPEG", denoised)

    def __call__(self, done: int, of: int) -> None:
        """Move the bar, and raise when the user cancels."""
        self._bar.update_absolute(done, of, self._picture)
        management.throw_exception_if_processing_interrupted()


def toybox_folder(name: str) -> Path:
    """A folder of the bundled demo models.

    Raises:
        FileNotFoundError: if the pack was copied without it.
    """
    folder = Path(__file__).resolve().parent.parent.parent / "toybox" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"the Toybox is incomplete: {folder} is missing; restore the folder toybox.")
    return folder


def weight_dtype(precision: str, half_is_safe: bool) -> torch.dtype:
    """Data type of a helper model's weights.

    Args:
        precision: a name in :data:`PRECISIONS`, or auto: bf16 where the device is made for it and the model keeps its
            quality, else fp32.
        half_is_safe: whether it does.
    """
    if precision != "auto":
        return PRECISIONS[precision]
    device = management.get_torch_device()
    # Not on MPS, whose half precision lacks some of the operations these models use.
    if half_is_safe and not management.is_device_mps(device) and management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float32


class HelperHolder(torch.nn.Module):
    """Holds a helper model: ``ModelPatcher`` writes ``device``, which transformers models only let it read."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


class HelperPatcher(comfy.model_patcher.ModelPatcher):
    """Loads and unloads a helper model whole.

    Core can leave a part of a model behind and cast its weights when they are used, but only in layers of its own
    kind. A transformers model that is moved in parts runs on two devices and fails, so nothing is moved in parts here:
    when room is short, other models go, and when they need room, this one goes.
    """

    def partially_load(self, device_to: Any, extra_memory: float = 0, **options: Any) -> int:
        """Load all of it, whatever the room."""
        return super().partially_load(device_to, extra_memory=float("inf"), **options)

    def partially_unload(self, *arguments: Any, **options: Any) -> int:
        """Give nothing up: core then unloads the whole model."""
        return 0


def wrap_helper(helper: Any, module: torch.nn.Module, name: str) -> HelperModel:
    """Put a helper model under ComfyUI's memory management."""
    patcher = HelperPatcher(
        HelperHolder(module), load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    return HelperModel(patcher, helper, name)


def load_helper(model: HelperModel, height: int = 1080, width: int = 1920) -> Any:
    """Bring a helper model to the device it runs on, evicting others when memory is short, and return its helper.

    Args:
        model: what :func:`wrap_helper` made.
        height, width: of the video it is to see.
    """
    needed = working_memory(model.patcher.model.module, height, width)
    management.load_models_gpu([model.patcher], memory_required=needed)
    return model.helper
