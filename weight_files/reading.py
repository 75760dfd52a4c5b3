"""Reading weight files without running anything in them, with errors that say what is wrong and what to do."""

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

# Under which name training scripts put the weights among other things; averaged weights come first.
WRAPPERS = ("ema", "model", "state_dict", "model_state_dict")
# How many names an error lists of each kind.
NAMES_SHOWN = 3
# Longest header that is read; those of large models take a few hundred kilobytes.
MAX_HEADER_BYTES = 100 * 2**20

# A name cut short to a lone full stop is not a class, but damage.
_FORBIDDEN_CLASS = re.compile(r"GLOBAL (\w[\w.]*)")
# What torch's reader raises for bytes that it wrongly takes for a pickle.
NONSENSE = (
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a weight file without running anything in it.

    Which format it is, is read from its first bytes, not from its name. Tensors of a file in torch's current format
    stay mapped to it until they are copied, so that a large file is not in memory twice.

    Args:
        path: safetensors, or what ``torch.save`` wrote; the weights may lie under ``ema``, ``model`` or
            ``state_dict``, and every name may start with ``module.``.

    Returns:
        Tensors by their names, on the CPU.

    Raises:
        FileNotFoundError: when the file does not exist.
        RuntimeError: when it is empty, cut short, or not a weight file at all.
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
        raise not_opened(path, error) from error
    except NONSENSE as error:
        raise RuntimeError(f"{path} is not a weight file, or is broken or cut short: copy it again.") from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise RuntimeError(
            f"{path} cannot be read ({first_sentence(error)}); the file is broken or cut short: copy it again."
        ) from error
    return _tensors_of(content, path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a safetensors file says of itself in its header; empty for files of other formats or without a header.

    Raises:
        FileNotFoundError, RuntimeError: as ``read_state``.
    """
    path = Path(path)
    start = _first_bytes(path)
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or length > MAX_HEADER_BYTES:
        return {}
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise RuntimeError(
                f"{path} cannot be read ({error}); the file is broken or cut short: copy it again."
            ) from error
    return dict(header.get("__metadata__") or {})


def load_checked(
    module: nn.Module, state: Mapping[str, Tensor], path: str | Path, ignore: Sequence[str] = ()
) -> nn.Module:
    """Put weights into a module and say exactly what does not fit.

    A module that was built on the meta device gets its memory here, which saves random initialisation.

    Args:
        module: to fill; parameters keep their types.
        state: tensors by the module's names.
        path: that the weights came from, for the error.
        ignore: beginnings of names that may be missing from the state or left over in it.

    Returns:
        The same module, in evaluation mode.

    Raises:
        RuntimeError: naming up to three missing, left over and wrongly shaped tensors each, with their counts.
    """

    def named(names: Collection[str]) -> list[str]:
        return sorted(name for name in names if not name.startswith(tuple(ignore)))

    expected = module.state_dict()
    resized = [
        f"{name} is {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    faults = [
        count_names(names, verdict)
        for names, verdict in (
            (named(expected.keys() - state.keys()), "missing"),
            (named(state.keys() - expected.keys()), "unknown"),
            (resized, "of another size"),
        )
        if names
    ]
    if faults:
        raise RuntimeError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(faults)}. The file is incomplete or of another "
            "model; copy it again or choose another."
        )
    on_meta = any(value.is_meta for value in expected.values())
    chosen = {name: value for name, value in state.items() if name in expected}
    if on_meta:
        chosen = {name: value.detach().to("cpu", expected[name].dtype, copy=True) for name, value in chosen.items()}
    module.load_state_dict(chosen, strict=False, assign=on_meta)
    return module.eval()


def _first_bytes(path: Path) -> bytes:
    """The beginning of a file that may hold weights.

    Raises:
        FileNotFoundError: when the file does not exist.
        RuntimeError: when it is empty or plainly something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; choose a weight file (.pth, .pt, .bin or .safetensors).")
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


def not_opened(path: Path, error: BaseException) -> Exception:
    """What to say of a file that torch refused; torch's message advises to switch the protection off."""
    forbidden = _FORBIDDEN_CLASS.search(str(error))
    if forbidden is None:
        return RuntimeError(f"{path} is not a weight file, or is broken or cut short: copy it again.")
    return ValueError(
        f"{path} holds code or objects ({forbidden[1]}) beside tensors, which are not opened because they could do "
        "harm; choose a .safetensors file or one with tensors only."
    )


def count_names(names: Sequence[str], verdict: str) -> str:
    """``5 tensors are missing (a, b, c, ...)``, empty without names."""
    if not names:
        return ""
    listed = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {verdict} ({listed})"


def first_sentence(error: BaseException) -> str:
    """What an error says, without the advice that follows."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    sentence = lines[0].split(". ")[0].rstrip(".:")
    # What torch says of archives from before its first release is about switching its protection off.
    return "an outdated format" if "weights_only" in sentence else sentence
