"""Opening model folders and weight files, with errors that say which one, what is wrong and what to do."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
# Under which name training scripts put the weights among other things.
WRAPPERS = ("model", "state_dict", "model_state_dict")
# How many names an error lists of each kind.
NAMES_SHOWN = 3

# A name cut short to a lone full stop is no class, but damage.
_FORBIDDEN_CLASS = re.compile(r"GLOBAL (\w[\w.]*)")
# What torch's reader raises for bytes that it takes for a pickle and that are none.
_NONSENSE = (
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)


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
    # Newer versions load in the file's dtype unless told otherwise, and renamed the argument. Tensors of other sizes
    # are let through here and refused below, by name.
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
        raise _not_opened(folder, error) from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise RuntimeError(
            f"the weights in {folder} cannot be read ({_first_sentence(error)}); the file is broken or cut short: copy "
            "the folder again."
        ) from error
    except (misdescribed, ArithmeticError, *_NONSENSE) as error:
        raise RuntimeError(
            f"{folder / 'config.json'} describes no such model ({_first_sentence(error)}); copy the folder again."
        ) from error
    missing = sorted(info["missing_keys"])
    # Newer versions tell the sizes too.
    resized = sorted(
        key if isinstance(key, str) else f"{key[0]} is {list(key[1])} instead of {list(key[2])}"
        for key in info.get("mismatched_keys") or ()
    )
    if missing or resized:
        faults = [
            _some(names, verdict) for names, verdict in ((missing, "missing"), (resized, "of another size")) if names
        ]
        raise RuntimeError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(faults)}; copy the folder again."
        )
    return model.eval()


def model_type_of(folder: str | Path) -> str | None:
    """What kind of model a folder's ``config.json`` says it holds.

    Raises:
        FileNotFoundError: when the folder or its configuration is missing.
        ValueError: when ``config.json`` is no JSON.
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
        raise ValueError(f"{path} is no valid configuration ({error}); copy the model folder again.") from error


def check_model_folder(folder: str | Path, *model_types: str) -> Path:
    """Check that a folder is there and holds one of these kinds of model; return its path.

    Raises:
        FileNotFoundError: when the folder, its configuration or its weights are missing.
        ValueError: when ``config.json`` is no JSON or names another kind of model.
    """
    folder = Path(folder)
    found = model_type_of(folder)
    if found not in model_types:
        wanted = " or ".join(repr(name) for name in model_types)
        raise ValueError(f"{folder} holds a model of type {found!r}; choose a folder of type {wanted}.")
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise FileNotFoundError(f"{folder} has no model.safetensors; copy the whole model folder there.")
    return folder


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a weight file without running anything in it.

    Which format it is, is read from its first bytes, not from its name. Tensors of a file in torch's current format
    stay mapped to it until they are copied, so that a large file is not in memory twice.

    Args:
        path: safetensors, or what ``torch.save`` wrote; the weights may lie under ``model`` or ``state_dict``, and
            every name may start with ``module.``.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: when there is no such file.
        RuntimeError: when it is empty, cut short, or no weight file at all.
        ValueError: when it can be read and holds no named tensors, or objects of other kinds.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    start = _first_bytes(path)
    try:
        # Eight bytes of length, then JSON.
        if start[8:9] == b"{":
            content = load_file(str(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise _not_opened(path, error) from error
    except _NONSENSE as error:
        raise RuntimeError(f"{path} is no weight file, or is broken or cut short: copy it again.") from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise RuntimeError(
            f"{path} cannot be read ({_first_sentence(error)}); the file is broken or cut short: copy it again."
        ) from error
    return _tensors_of(content, path)


def load_checked(
    module: nn.Module, state: Mapping[str, Tensor], path: str | Path, ignore: Sequence[str] = ()
) -> nn.Module:
    """Put weights into a module and say exactly what does not fit.

    A module that was built on the meta device gets its memory here, which spares the random start.

    Args:
        module: to fill; parameters keep their types.
        state: tensors by the module's own names.
        path: that the weights came from, for the error.
        ignore: beginnings of names that may be missing from the state or left over in it.

    Returns:
        The same module, in evaluation mode.

    Raises:
        RuntimeError: naming up to three missing, left over and wrongly shaped tensors each, with their counts.
    """

    def named(names: Collection[str]) -> list[str]:
        return sorted(name for name in names if not name.startswith(tuple(ignore)))

    own = module.state_dict()
    resized = [
        f"{name} is {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [
        _some(names, verdict)
        for names, verdict in (
            (named(own.keys() - state.keys()), "missing"),
            (named(state.keys() - own.keys()), "unknown"),
            (resized, "of another size"),
        )
        if names
    ]
    if faults:
        raise RuntimeError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(faults)}. The file is incomplete or of another "
            "model; copy it again or choose another."
        )
    on_meta = any(value.is_meta for value in own.values())
    chosen = {name: value for name, value in state.items() if name in own}
    if on_meta:
        chosen = {name: value.detach().to("cpu", own[name].dtype, copy=True) for name, value in chosen.items()}
    module.load_state_dict(chosen, strict=False, assign=on_meta)
    return module.eval()


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


def _first_bytes(path: Path) -> bytes:
    """The beginning of a file that may hold weights.

    Raises:
        FileNotFoundError: when there is no such file.
        RuntimeError: when it is empty or plainly something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; choose a weight file (.pth, .pt, .bin or .safetensors).")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise RuntimeError(f"{path} is empty (0 bytes); copy it again.")
    if start.startswith(b"version https://git-lfs"):
        raise RuntimeError(f"{path} is a Git LFS pointer, not the weights; fetch the file itself (git lfs pull).")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise RuntimeError(f"{path} is a web page, not weights; download the file itself instead of the page about it.")
    return start


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Named tensors in what a file held, without wrapping and common prefix."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of named tensors; choose a weight file.")
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no named tensors; choose a weight file.")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _not_opened(path: Path, error: BaseException) -> Exception:
    """What to say of a file that torch refused; its own message advises to switch the protection off."""
    forbidden = _FORBIDDEN_CLASS.search(str(error))
    if forbidden is None:
        return RuntimeError(f"{path} is no weight file, or is broken or cut short: copy it again.")
    return ValueError(
        f"{path} holds code or objects ({forbidden[1]}) beside tensors, which are not opened because they could do "
        "harm; choose a .safetensors file or one with tensors only."
    )


def _some(names: Sequence[str], verdict: str) -> str:
    """``5 tensors are missing (a, b, c, ...)``, empty without names."""
    if not names:
        return ""
    listed = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {verdict} ({listed})"


def _first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    sentence = lines[0].split(". ")[0].rstrip(".:")
    # What torch says of archives from before its first release is about switching its protection off.
    return "a format of old" if "weights_only" in sentence else sentence


def _takes_dtype() -> bool:
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return (major, minor) >= (4, 56)
