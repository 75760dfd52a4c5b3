"""Opening model folders of transformers, with errors that say which one, what is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..weight_files.reading import NONSENSE, count_names, first_sentence, not_opened

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


def load_model_folder(
    model_class: type, folder: str | Path, model_type: str | tuple[str, ...], dtype: torch.dtype, config: Any = None
) -> Any:
    """Load a transformers model from a folder, never from the network, and check that every weight was there.

    Args:
        model_class: a transformers model class.
        folder: with ``config.json`` and weights.
        model_type: that the configuration must name, or several to choose from.
        dtype: of the loaded weights; the file's own may differ.
        config: made from the folder's by the caller; None lets the class read it.

    Returns:
        The model in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: when the folder, its configuration or its weights are missing.
        ValueError: when the folder holds another kind of model.
        RuntimeError: when the weights cannot be read or do not fit.
    """
    from pickle import UnpicklingError

    from huggingface_hub import errors as hub_errors
    from safetensors import SafetensorError

    folder = check_model_folder(folder, *([model_type] if isinstance(model_type, str) else model_type))
    # Newer versions load in the file's dtype by default, and renamed the argument. Tensors of other sizes
    # are let through here and refused below, each by its name.
    options = {"dtype" if _takes_dtype() else "torch_dtype": dtype, "ignore_mismatched_sizes": True}
    if config is not None:
        options["config"] = config
    # Older versions of the package do not check configurations.
    misdescribed = getattr(hub_errors, "StrictDataclassError", ValueError)
    try:
        model, info = model_class.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, **options
        )
    except UnpicklingError as error:
        raise not_opened(folder, error) from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise RuntimeError(
            f"the weights in {folder} cannot be read ({first_sentence(error)}); the file is broken or cut short: copy "
            "the folder again."
        ) from error
    except (misdescribed, ArithmeticError, *NONSENSE) as error:
        raise RuntimeError(
            f"{folder / 'config.json'} does not describe this model ({first_sentence(error)}); copy the folder again."
        ) from error
    missing = sorted(info["missing_keys"])
    # Newer versions give the sizes too.
    resized = sorted(
        key if isinstance(key, str) else f"{key[0]} is {list(key[1])} instead of {list(key[2])}"
        for key in info.get("mismatched_keys") or ()
    )
    if missing or resized:
        faults = [
            count_names(names, verdict)
            for names, verdict in ((missing, "missing"), (resized, "of another size"))
            if names
        ]
        raise RuntimeError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(faults)}; copy the folder again."
        )
    return model.eval()


def model_type_of(folder: str | Path) -> str | None:
    """What kind of model a folder's ``config.json`` says it holds.

    Raises:
        FileNotFoundError: when the folder or its configuration is missing.
        ValueError: when ``config.json`` is not JSON.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; give a transformers model folder with config.json and model.safetensors."
        )
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json; copy the whole model folder there.")
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{path} is not a valid configuration ({error}); copy the model folder again.") from error


def check_model_folder(folder: str | Path, *model_types: str) -> Path:
    """Check that a folder is there and holds one of these kinds of model; return its path.

    Raises:
        FileNotFoundError: when the folder, its configuration or its weights are missing.
        ValueError: when ``config.json`` is not JSON or names another kind of model.
    """
    folder = Path(folder)
    found = model_type_of(folder)
    if found not in model_types:
        wanted = " or ".join(repr(name) for name in model_types)
        raise ValueError(f"{folder} holds a model of type {found!r}; choose a folder of type {wanted}.")
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise FileNotFoundError(f"{folder} has no model.safetensors; copy the whole model folder there.")
    return folder


def load_processor(processor_class: type, folder: str | Path) -> Any:
    """Load a processor (image processor and tokenizer) from a folder.

    Raises:
        RuntimeError: when a file is missing or cannot be read.
    """
    try:
        return processor_class.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise RuntimeError(
            f"the processor files in {folder} cannot be read ({error}); copy the tokenizer and preprocessor files too."
        ) from error


def _takes_dtype() -> bool:
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return (major, minor) >= (4, 56)
