"""SAM 2 and 2.1 (Ravi et al., arXiv 2408.00714; facebookresearch/sam2), from folders and from original files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..loading import load_model_folder, load_processor, model_type_of
from .memory_propagation import MemoryModel
from .sam2_format import HieraSize, config_of_original, is_original, to_original, to_transformers

if TYPE_CHECKING:
    from transformers import Sam2VideoModel

MODEL_TYPES = ("sam2_video", "sam2")

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
# How many tensors that do not fit an error names.
FAULTS_SHOWN = 4
# Files of which any one says how frames are prepared.
PROCESSOR_FILES = ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json")


def claims(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of an original SAM 2 or 2.1 file."""
    return is_original(state)


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> MemoryModel:
    """Open a folder in the transformers layout.

    Args:
        folder: with ``config.json`` and weights; a processor's files are used where they are there.
        dtype: of the weights in memory.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the folder holds another kind of model.
        RuntimeError: when the weights cannot be read or do not fit, or are those for single pictures only.
        ImportError: when this version of transformers has no SAM 2.
    """
    video = video_classes("SAM 2", "4.56", "Sam2VideoModel", "Sam2VideoInferenceSession")
    try:
        model = load_model_folder(video[0], folder, MODEL_TYPES, dtype)
    except RuntimeError as error:
        # The same type is written for the model without its memory.
        if model_type_of(folder) != "sam2" or "memory" not in str(error):
            raise
        raise RuntimeError(
            f"{folder} holds SAM 2 for single pictures (its memory is missing), which cannot follow objects; choose a "
            "folder of type 'sam2_video'."
        ) from error
    return MemoryModel(model, model, video[1], video_processor(folder, model.prompt_encoder.input_image_size))


def load_state(state: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype = torch.float32) -> MemoryModel:
    """Open an original file.

    Args:
        state: its tensors by their original names.
        path: where they are from, for errors.
        dtype: of the weights in memory; the file's own may differ.

    Raises:
        ValueError: when the picture encoder does not have a published size.
        RuntimeError: when tensors are missing or do not fit.
        ImportError: when this version of transformers has no SAM 2.
    """
    video = video_classes("SAM 2", "4.56", "Sam2VideoModel", "Sam2VideoInferenceSession")
    model = model_of_original(state, path).to(dtype)
    return MemoryModel(model, model, video[1], video_processor(None, model.prompt_encoder.input_image_size))


def model_of_original(
    state: Mapping[str, Tensor], path: str | Path, size: HieraSize | None = None, image_size: int | None = None
) -> Sam2VideoModel:
    """Build a transformers model from original weights.

    Args:
        state: its tensors by their original names.
        path: where they are from, for errors.
        size: of the picture encoder; None looks it up among the published ones.
        image_size: side in pixels of the square that frames are stretched to; None takes the published one.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        ValueError: when the picture encoder does not have a published size.
        RuntimeError: when tensors are missing or do not fit.
    """
    from transformers import Sam2VideoModel

    options = {} if image_size is None else {"image_size": image_size}
    try:
        config = config_of_original(state, size, **options)
    except KeyError as error:
        raise RuntimeError(f"{path} lacks the tensor {error}; the file is cut short: copy it again.") from error
    model = Sam2VideoModel(config)
    wanted = to_original(model.state_dict())
    faults = [f"{name} is missing" for name in wanted if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in wanted]
    faults += [
        f"{name} is {list(state[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if faults:
        raise RuntimeError(
            f"{path} is not a complete SAM 2 checkpoint: {', '.join(faults[:FAULTS_SHOWN])} "
            f"({len(faults)} tensors do not fit in all); copy it again or choose another."
        )
    model.load_state_dict(to_transformers(state))
    return model.eval()


def video_classes(family: str, since: str, *names: str) -> list[Any]:
    """Classes of transformers that came with some version.

    Args:
        family: what they are for, to tell the user.
        since: the version that has them.
        names: of the classes; sessions are looked for beside the model.

    Raises:
        ImportError: when the installed version does not have them.
    """
    import importlib

    import transformers

    model = getattr(transformers, names[0], None)
    if model is None:
        raise ImportError(f"{family} needs transformers {since} or newer; found {transformers.__version__}.")
    module = importlib.import_module(model.__module__)
    return [model, *(getattr(module, name) for name in names[1:])]


def video_processor(
    folder: str | Path | None,
    image_size: int,
    mean: tuple[float, float, float] = IMAGE_MEAN,
    std: tuple[float, float, float] = IMAGE_STD,
) -> Any:
    """What prepares frames: read from a folder, or made from facts where the folder does not say.

    Args:
        folder: that may hold the processor's files.
        image_size: side in pixels of the model's square.
        mean: of the channels, 0..1.
        std: of the channels, 0..1.

    Raises:
        RuntimeError: when a processor's file is there and cannot be read.
        ValueError: when it prepares frames of another size than the model wants.
    """
    from transformers import Sam2VideoVideoProcessor

    if folder is None or not any((Path(folder) / name).is_file() for name in PROCESSOR_FILES):
        size = {"height": image_size, "width": image_size}
        return Sam2VideoVideoProcessor(size=size, image_mean=list(mean), image_std=list(std))
    processor = load_processor(Sam2VideoVideoProcessor, folder)
    found = processor.size["height"], processor.size["width"]
    if found != (image_size, image_size):
        raise ValueError(
            f"the processor files in {folder} prepare frames of {found[0]} x {found[1]} pixels but the model wants "
            f"{image_size} x {image_size}; copy the whole model folder again."
        )
    return processor
