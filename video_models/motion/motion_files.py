"""Motion files: the result of motion tuning, with all that is needed to use it, and loading one into a model.

A file is safetensors. Its tensors are named as ComfyUI's LoRA loader reads them (``diffusion_model.<module>.``);
its header's key ``mask_guided_video.motion`` holds the rest as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...weight_files.reading import read_metadata, read_state
from ...weight_files.writing import write_tensors
from ..video_model import StandaloneVideoModel
from .lamp import with_lamp
from .lora import with_lora

METADATA_KEY = "mask_guided_video.motion"
VERSION = 1
KINDS = ("lora", "lamp")


@dataclass(frozen=True)
class MotionInfo:
    """The header of a motion file.

    Attributes:
        kind: ``lora`` or ``lamp``.
        base_name: the model it was tuned on, for display.
        base_hash: of that model's tensors, see :func:`base_hash`.
        base_tensors: names of those tensors in the U-Net.
        frames: length of the clips.
        width, height: their size in pixels.
        prompt: of the clips, or of one of them.
        phrases: words of it that name the objects.
        background_phrase: words of it that name the background.
        mode: of the masks in training; empty where there were none.
        constants: of the mode, where they differ from its defaults.
        key_source: frames whose keys self-attention read; empty for the mode's default.
        first_frame: how often the first frame was given clean, 0..1.
        steps, seed: of the run.
        details: of the kind: rank, modules and so on.
        version: of this format.
    """

    kind: str
    base_name: str
    base_hash: str
    base_tensors: tuple[str, ...]
    frames: int
    width: int = 0
    height: int = 0
    prompt: str = ""
    phrases: tuple[str, ...] = ()
    background_phrase: str = ""
    mode: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    key_source: str = ""
    first_frame: float = 1.0
    steps: int = 0
    seed: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION


@dataclass(frozen=True, eq=False)
class MotionFile:
    """A motion file in memory.

    Attributes:
        name: of the file, for messages.
        info: what it says of itself.
        tensors: float, by their names in the file.
    """

    name: str
    info: MotionInfo
    tensors: Mapping[str, Tensor]


def write_motion(path: Path, tensors: Mapping[str, Tensor], info: MotionInfo) -> None:
    """Write a motion file, and its folder; it appears under its name when it is complete.

    Raises:
        OSError: no room, or no right to write; its text is a sentence.
    """
    # One entry only: safetensors writes several in an order that differs from time to time.
    write_tensors(path, tensors, {METADATA_KEY: json.dumps(asdict(info))})


def read_motion(path: str | Path) -> MotionFile:
    """Read and check a motion file.

    Raises:
        FileNotFoundError: when the file does not exist.
        RuntimeError: when it is cut short or not a weight file at all.
        ValueError: when it is not a motion file, of a newer version, or without tensors.
    """
    path = Path(path)
    tensors, text = read_state(path), read_metadata(path).get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{path.name} is not a motion file: its header lacks {METADATA_KEY}; "
            "choose one that Train Motion made (other LoRA files belong to ComfyUI's LoRA loader)."
        )
    try:
        values = json.loads(text)
        info = MotionInfo(
            **{**values, **{name: tuple(values[name]) for name in ("base_tensors", "phrases")}},
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path.name} has a header that cannot be read ({error}); make the file again.") from error
    if info.version > VERSION or info.kind not in KINDS:
        raise ValueError(
            f"{path.name} holds motion of the kind {info.kind!r}, version {info.version}; this pack knows "
            f"{', '.join(KINDS)} up to version {VERSION}: update it."
        )
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors; make the file again.")
    return MotionFile(path.name, info, tensors)


def base_hash(state: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """The hash that distinguishes base models: of the named tensors, in half precision.

    Args:
        state: of a U-Net.
        names: of tensors in it.

    Raises:
        KeyError: a name is not in the state.
    """
    found = hashlib.sha256()
    for name in sorted(names):
        value = state[name].detach().to("cpu", torch.float16).contiguous()
        found.update(f"{name} {list(value.shape)} ".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()[:32]


def check_base(motion: MotionFile, state: Mapping[str, Tensor], any_base: bool = False) -> None:
    """Make sure that a motion file belongs to a model.

    Args:
        motion: the file.
        state: of the model's U-Net.
        any_base: allow models of the same structure with other weights, such as fine-tuned ones.

    Raises:
        ValueError: it belongs to another model.
    """
    info = motion.info
    missing = [name for name in info.base_tensors if name not in state]
    if missing:
        raise ValueError(
            f"{motion.name} was tuned on {info.base_name}, and this model is built otherwise: it lacks {missing[0]} "
            f"and {len(missing) - 1} more of {len(info.base_tensors)}; connect {info.base_name}."
        )
    if not any_base and base_hash(state, info.base_tensors) != info.base_hash:
        raise ValueError(
            f"{motion.name} was tuned on {info.base_name}, and this model has other weights (or holds them in another "
            f"precision than half or float32); connect {info.base_name}, or allow any base to use it all the same."
        )


def apply_motion(
    model: StandaloneVideoModel, motion: MotionFile, strength: float = 1.0, any_base: bool = False
) -> StandaloneVideoModel:
    """A model with a motion file in it; the given one stays as it is and shares what does not change.

    Args:
        model: that the file was tuned on.
        motion: the file.
        strength: of the motion; 0 leaves the model as it is, 1 is as tuned.
        any_base: see :func:`check_base`.

    Raises:
        ValueError: it belongs to another model, or its tensors do not fit.
    """
    check_base(motion, model.unet.state_dict(), any_base)
    if strength == 0.0:
        return model
    put_in = with_lora if motion.info.kind == "lora" else with_lamp
    return with_unet(model, put_in(model.unet, motion.tensors, strength, motion.name))


def with_unet(model: StandaloneVideoModel, unet: Any) -> StandaloneVideoModel:
    """The same model around another U-Net."""
    text = model.text
    return StandaloneVideoModel(
        unet, model.coder.vae, text.encoder, text.tokenizer, model.geometry, model.device, text.padding_is_read
    )
