"""Write a LaVie U-Net as safetensors: smaller where wanted, quick to open, and with nothing but tensors in it.

Tensors go from file to file one by one, so that a model of several gigabytes needs a few hundred megabytes of memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ..video_models.lavie.files import STAGE_NAMES, check_unet_state, find_config, is_computed, own_tensors
from ..weight_files.reading import read_metadata, read_state
from ..weight_files.writing import replacing

Precision = Literal["float32", "float16", "bfloat16"]

# The format's names for types of numbers.
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# The header is padded so that tensors begin at a multiple of this.
ALIGNMENT = 8


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        target: the file.
        stage: which of LaVie's models it is: ``base``, ``interpolation`` or ``upscaling``.
        tensors: how many.
        elements: numbers in all of them.
        bytes_read, bytes_written: sizes of both files.
    """

    target: Path
    stage: str
    tensors: int
    elements: int
    bytes_read: int
    bytes_written: int

    def summary(self) -> str:
        """The result in one line."""
        read, written = self.bytes_read / 1e9, self.bytes_written / 1e9
        return (
            f"LaVie's {STAGE_NAMES[self.stage]}: {self.tensors} tensors, {self.elements:,} numbers, "
            f"{read:.3g} GB -> {written:.3g} GB"
        )


def convert_weights(
    source: Path,
    target: Path | None = None,
    precision: Precision | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Write a LaVie U-Net as safetensors, its sizes in the header under ``config``.

    Names and shapes stay those of the published file; what training stored beside the averaged weights is left out.

    Args:
        source: ``lavie_base.pt``, ``lavie_interpolation.pt``, ``lavie_vsr.pt`` or a file made from one.
        target: what to write; beside the source with the suffix ``.safetensors`` when left out.
        precision: of the numbers; as they are when left out. Half of the memory, and on GPUs what is computed with, is
            ``float16``.
        overwrite: whether ``target`` may exist.
        progress: called with the stage's name, tensors done and their total.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: it is broken, incomplete or not a LaVie U-Net; the target exists or has no room; a number is not
            finite, or too large for the precision.
    """
    target = source.with_suffix(".safetensors") if target is None else target
    _check_target(source, target, precision, overwrite)
    try:
        contents = read_state(source)
        metadata = read_metadata(source)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    try:
        state = own_tensors(contents)
        loaded = {name: value for name, value in state.items() if not is_computed(name)}
        config = find_config(loaded, source, metadata)
        check_unet_state(loaded, config)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from error
    types = {name: _type_of(name, value, precision) for name, value in state.items()}
    header = _header(state, types, {"format": "pt", "config": json.dumps(config.to_dict())})
    size = len(header) + sum(value.numel() * types[name].itemsize for name, value in state.items())
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise ValueError(
            f"{target} would take {size / 1e9:.3g} GB but {free / 1e9:.3g} GB are free; choose another folder, or "
            "precision float16."
        )
    with replacing(target) as temporary:
        _write(temporary, header, state, types, progress)
    elements = sum(value.numel() for value in state.values())
    return Conversion(target, config.stage, len(state), elements, source.stat().st_size, size)


def _check_target(source: Path, target: Path, precision: Precision | None, overwrite: bool) -> None:
    if precision is not None and precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(get_args(Precision))}.")
    if target.suffix != ".safetensors":
        raise ValueError(f"{str(target)!r} is to be written; give a name that ends in .safetensors.")
    if not target.parent.is_dir():
        raise ValueError(f"{str(target)!r} cannot be written: the folder does not exist; make it first.")
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{str(source)!r} is the source itself; give another name to write to.")
    if target.exists() and not overwrite:
        raise ValueError(f"{str(target)!r} exists; give another name, or allow to overwrite it.")


def _type_of(name: str, value: Tensor, precision: Precision | None) -> torch.dtype:
    """The type to write a tensor in; frequencies are not weights, and lose by rounding."""
    if precision is None or not value.is_floating_point() or is_computed(name):
        return value.dtype
    return getattr(torch, precision)


def _header(state: Mapping[str, Tensor], types: Mapping[str, torch.dtype], metadata: dict[str, str]) -> bytes:
    """What stands before the tensors: the length of a JSON text, and the text: types, shapes and places."""
    entries: dict[str, object] = {"__metadata__": metadata}
    begin = 0
    for name, value in state.items():
        if types[name] not in TYPE_NAMES:
            raise ValueError(
                f"tensor {name} has type {types[name]}, which the format does not know; choose a precision."
            )
        end = begin + value.numel() * types[name].itemsize
        entries[name] = {"dtype": TYPE_NAMES[types[name]], "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(
    path: Path,
    header: bytes,
    state: Mapping[str, Tensor],
    types: Mapping[str, torch.dtype],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    with path.open("wb") as file:
        file.write(header)
        for done, (name, value) in enumerate(state.items(), start=1):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"tensor {name} holds numbers that are not finite; the file is damaged: copy it again."
                )
            written = value.to(types[name]).contiguous()
            if written.dtype != value.dtype and not bool(torch.isfinite(written).all()):
                raise ValueError(
                    f"tensor {name} reaches {float(value.abs().max()):.3g}, too much for {types[name]}; "
                    "choose precision bfloat16 or float32."
                )
            # One axis, so that tensors without any can be seen as bytes too.
            file.write(memoryview(written.reshape(-1).view(torch.uint8).numpy()))
            if progress is not None:
                progress("writing", done, len(state))
